"""What is proxied: values from the threshold on, and never a proxy."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from proxystore_core.proxy import Proxy
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
