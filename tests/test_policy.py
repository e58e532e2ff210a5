"""What is proxied: values from the threshold on, and never a proxy."""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import Future

import numpy as np
import pytest

from proxystore_core.proxy import Proxy
from proxystore_integrations.dependents import LaterFuture, store_futures
from proxystore_integrations.policy import Policy


def unreachable():
    raise AssertionError("a proxy was resolved")


@pytest.mark.parametrize(
    ("value", "over"),
    [
        (bytes(99_999), False),
        (bytes(100_000), True),
        (np.zeros(12_499), False),
        (np.zeros(12_500), True),
        ([bytes(99_992)], True),
        ([bytes(99_991)], False),
        ({"weights": [np.zeros(100_000)]}, True),
        (None, False),
        (list(range(1000)), False),
        (list(range(1_000_000)), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_over_from_the_threshold_on(value, over):
    assert Policy(100_000).over(value) is over


@pytest.mark.parametrize("threshold", [0, 100, 100_000])
def test_a_proxy_is_never_proxied_and_never_resolved(threshold):
    class OwnedProxy(Proxy[object]):
        pass

    policy = Policy(threshold)
    assert not policy.over(Proxy(unreachable))
    assert not policy.over(OwnedProxy(unreachable))


def test_a_threshold_of_zero_proxies_everything_else():
    assert Policy(0).over(None)
    assert Policy(0).over(b"")


def test_a_policy_is_a_frozen_value():
    policy = Policy(1000)
    assert pickle.loads(pickle.dumps(policy)) == policy
    with pytest.raises(AttributeError):
        policy.threshold = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "leaves"),
    [
        ((1, "text", b"bytes", np.zeros(12_499), None), True),
        ((), True),
        ((1, np.zeros(12_500)), False),
        ((1, [2]), False),
        ((np.array([1, [2]], dtype=object),), False),
        ((Proxy(unreachable),), False),
        pytest.param((object(),), False, id="an object"),  # whose name has no address
    ],
    ids=str,
)
def test_leaves_are_small_and_hold_nothing(values, leaves):
    assert Policy(1).over(np.zeros(1))  # measured once, its type is known
    assert Policy(100_000).leaves(values) is leaves


def test_a_value_that_cannot_be_measured_is_no_leaf():
    view = memoryview(b"view")
    assert Policy(100_000).leaves([view])
    view.release()
    assert not Policy(100_000).leaves([view])


@pytest.mark.parametrize("kind", [LaterFuture, store_futures[Future]])
def test_a_future_is_no_leaf_whatever_the_threshold(kind):
    assert not Policy(sys.maxsize).leaves([kind.__new__(kind)])
