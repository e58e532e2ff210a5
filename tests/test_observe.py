"""Metrics: what happened, counted from outside, and what was observed behaves as before."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from proxystore_core.connectors.base import leased
from proxystore_core.connectors.file import FileConnector
from proxystore_core.errors import RefusedError
from proxystore_core.lifetimes import Session
from proxystore_core.observe import Metrics, Observed, Operation
from proxystore_core.proxy import extract, resolve
from proxystore_core.store import Store


def slept(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def test_times_are_seconds():
    metrics = Metrics()
    start = time.perf_counter()
    assert metrics.timed("sleep", lambda: slept(0.03), len) == "slept"
    metrics.timed("sleep", lambda: "x", len)
    passed = time.perf_counter() - start
    one = metrics["sleep"]
    assert 0.03 <= one.slowest <= one.seconds <= passed
    assert (one.count, one.errors, one.nbytes) == (2, 0, 6)


def test_errors_are_counted_and_raised():
    metrics = Metrics()
    for error in (ValueError, KeyboardInterrupt):

        def fail(error: type[BaseException] = error) -> None:
            raise error("seen")

        with pytest.raises(error, match="seen"):
            metrics.timed("fail", fail)
    assert metrics["fail"] == Operation(errors=2)


def test_what_is_read_is_a_copy():
    metrics = Metrics()
    metrics.timed("put", lambda: None)
    metrics["put"].count = 99
    metrics.as_dict()["put"].count = 99
    assert metrics["put"].count == 1
    assert metrics["never"] == Operation()
    assert list(metrics.as_dict()) == ["put"]


def test_repr():
    metrics = Metrics()
    assert repr(metrics) == "<Metrics of nothing yet>"
    metrics.timed("get", lambda: b"xy", len)
    assert repr(metrics).startswith("<Metrics get 1x ")
    assert repr(metrics).endswith(" s 2 B>")


def test_threads_lose_no_count():
    metrics = Metrics()
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda i: metrics.timed("op", lambda: b"abc", len), range(800)))
    assert metrics["op"].count == 800
    assert metrics["op"].nbytes == 2400


@pytest.mark.parametrize("url", ["memory://observed", "shm://test-observed", "file"])
def test_an_observed_store_does_what_a_bare_one_does(url, tmp_path):
    url = f"file://{tmp_path}" if url == "file" else url
    with Store.from_url(url, name="seen", metrics=True, register=True) as store, Store.from_url(url) as bare:
        assert store.connector.url == bare.connector.url
        assert store.connector.config() == bare.connector.config()
        for fact in ("schemes", "checksum", "cheap_get"):
            assert getattr(store.connector, fact) == getattr(bare.connector, fact)
        proxy = pickle.loads(pickle.dumps(store.proxy(np.arange(1000))))
        assert extract(proxy).sum() == 499_500
        assert bare.get(store.put([1])) == [1]
        assert store.metrics is not None
        assert store.metrics["put"].count == 2
        assert store.metrics["put"].nbytes > 8000
        assert store.metrics["get"].nbytes == store.metrics["deserialize"].nbytes > 8000
        assert store.metrics["serialize"].nbytes == store.metrics["put"].nbytes
        store.close(clear=True)


def test_an_observed_connector_keeps_leases(tmp_path):
    observed: Any = Observed(FileConnector(tmp_path), Metrics())
    assert leased(observed) is not None
    session = Session(observed, lease=60)
    assert session.name in observed.sessions()
    key = observed.put([b"x"], session=session.name)
    assert session.end() == 1
    assert not observed.exists(key)
    assert observed.sessions() == {}


def test_failures_of_the_connector(tmp_path):
    with Store("failing", FileConnector(tmp_path), metrics=True) as store:
        assert store.metrics is not None
        with pytest.raises(RefusedError):
            store.get("../x")
        assert store.metrics["get"] == Operation(errors=1)
        assert store.get("user." + "0" * 20) is None
        assert store.metrics["get"].count == 1
        assert store.metrics["get"].nbytes == 0


def test_a_cache_hit_is_no_get(tmp_path):
    with Store("hits", FileConnector(tmp_path), metrics=True, register=True) as store:
        proxy = store.proxy([1], populate_target=False)
        resolve(proxy)
        resolve(proxy)
        assert pickle.loads(pickle.dumps(proxy)) == [1]
        assert store.metrics is not None
        assert store.metrics["get"].count == 1
        assert store.metrics["deserialize"].count == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_child_forked_while_the_lock_is_held_can_count():
    code = """
    import os
    from proxystore_core.observe import Metrics
    metrics = Metrics()
    with metrics._lock:
        child = os.fork()
        if not child:
            metrics.timed("op", lambda: None)
            os._exit(0 if metrics["op"].count == 1 else 1)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30)
