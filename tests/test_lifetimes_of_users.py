"""Lifetimes that users give to objects: a block, a lease, the process."""

from __future__ import annotations

import contextlib
import datetime as dt
import fractions
import math
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from waiting import until

from proxystore_core import (
    ConfigurationError,
    ContextLifetime,
    LeaseLifetime,
    Proxy,
    StaticLifetime,
    Store,
    get_key,
)
from proxystore_core.connectors.base import leased
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.errors import FullError
from proxystore_core.lifetimes import Session
from proxystore_core.testing import in_fork


class Unleased(MemoryConnector):
    """Keeps no leases: objects are evicted one by one."""

    def __getattribute__(self, name: str) -> Any:
        if name == "renew":
            raise AttributeError(name)
        return super().__getattribute__(name)


@pytest.fixture(params=["shm", "redis", "unleased"])
def store(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Store[Any]]:
    if request.param == "unleased":
        store: Store[Any] = Store(secrets.token_hex(4), Unleased(secrets.token_hex(4)))
    else:
        url = f"shm://{secrets.token_hex(4)}" if request.param == "shm" else redis_url
        store = Store.from_url(url, name=secrets.token_hex(4))
    with store:
        yield store
        store.close(clear=True)


def put_all(store: Store[Any], lifetime: Any) -> list[str]:
    future = store.future(lifetime=lifetime)
    future.set_result(1)
    return [
        store.put(1, lifetime=lifetime),
        get_key(store.proxy([1], lifetime=lifetime)),
        *(get_key(proxy) for proxy in store.proxy_batch([[1], [2]], lifetime=lifetime)),
        get_key(store.locked_proxy([1], lifetime=lifetime).unlock()),
        future.key,
    ]


def test_context(store: Store[Any]) -> None:
    mine, added = store.proxy([0]), store.put(0)
    kept = store.put("kept")
    with ContextLifetime() as lifetime:
        keys = put_all(store, lifetime)
        lifetime.add_proxy(mine)
        lifetime.add_key(store, added)
        assert all(store.exists(key) for key in keys)
        assert not lifetime.done()
    assert lifetime.done()
    assert not any(store.exists(key) for key in [*keys, get_key(mine), added])
    assert store.get(kept) == "kept"
    for add in (lambda: store.put(1, lifetime=lifetime), lambda: lifetime.add_key(store, kept)):
        with pytest.raises(ConfigurationError, match="over"):
            add()
    lifetime.close()


def _sessions(store: Store[Any]) -> dict[str, float]:
    keeper = leased(store.connector)
    return {} if keeper is None else keeper.sessions()


def test_a_context_that_ends_while_its_session_begins(
    store: Store[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lifetime, before = ContextLifetime(), _sessions(store)
    begin = lifetime._begin

    def ending(store: Store[Any]) -> Session:
        session = begin(store)
        lifetime.close()
        return session

    monkeypatch.setattr(lifetime, "_begin", ending)
    with pytest.raises(ConfigurationError, match="over"):
        store.put(1, lifetime=lifetime)
    assert _sessions(store).keys() == before.keys()


def test_a_lease_that_is_extended_while_its_session_begins(
    store: Store[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lifetime, before = LeaseLifetime(5), _sessions(store)
    begin = lifetime._begin

    def extending(store: Store[Any]) -> Session:
        session = begin(store)
        lifetime.extend(100)
        return session

    monkeypatch.setattr(lifetime, "_begin", extending)
    store.put(1, lifetime=lifetime)
    assert all(left > 50 for session, left in _sessions(store).items() if session not in before)
    lifetime.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_context_that_ends_while_an_object_is_put(
    store: Store[Any], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifetime, before, keys = ContextLifetime(), _sessions(store), []
    put = store.connector.put

    def late(*args: Any, **options: Any) -> str:
        lifetime.close()
        keys.append(put(*args, **options))
        if fails:  # and has begun the session again
            store.connector.evict(keys[0])
            raise FullError("no room")
        return keys[0]

    monkeypatch.setattr(store.connector, "put", late)
    with pytest.raises(ConfigurationError, match="over"):
        store.put(1, lifetime=lifetime)
    assert not store.exists(keys[0])
    assert _sessions(store).keys() == before.keys()


def test_an_error_ends_a_context(store: Store[Any]) -> None:
    keys = []

    def fail() -> None:
        with ContextLifetime() as lifetime:
            keys.append(store.put(1, lifetime=lifetime))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not store.exists(keys[0])


def test_several_stores(store: Store[Any]) -> None:
    with Store(secrets.token_hex(4), MemoryConnector(secrets.token_hex(4))) as other:
        with ContextLifetime() as lifetime:
            keys = [store.put(1, lifetime=lifetime), other.put(1, lifetime=lifetime)]
        assert not store.exists(keys[0])
        assert not other.exists(keys[1])


def test_lease(store: Store[Any]) -> None:
    lifetime = LeaseLifetime(0.3)
    keys = put_all(store, lifetime)
    assert all(store.exists(key) for key in keys)
    until(lambda: not any(store.exists(key) for key in keys))
    until(lifetime.done)
    with pytest.raises(ConfigurationError, match="over"):
        lifetime.extend(1)


def test_extended_lease(store: Store[Any]) -> None:
    with LeaseLifetime(dt.timedelta(seconds=0.5)) as lifetime:
        key = store.put(1, lifetime=lifetime)
        witness = store.put(1, lifetime=(short := LeaseLifetime(0.6)))
        lifetime.extend(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=600))
        until(short.done)
        assert not store.exists(witness)
        assert store.exists(key)
    assert not store.exists(key)


def test_heartbeat(store: Store[Any]) -> None:
    with LeaseLifetime(0.4, heartbeat=True) as lifetime:
        key = store.put(1, lifetime=lifetime)
        until(LeaseLifetime(1.0).done)
        assert store.exists(key)
    assert not store.exists(key)


@pytest.mark.parametrize(
    "wrong",
    [0, -1, float("nan"), "10", True, dt.timedelta(0), dt.datetime.now()],  # noqa: DTZ005
)
def test_wrong_leases(wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        LeaseLifetime(wrong)


STATIC = """
import os, sys, time
from proxystore_core import ContextLifetime, LeaseLifetime, StaticLifetime, Store
store = Store.from_url(sys.argv[1])
kind = sys.argv[2]
assert StaticLifetime() is StaticLifetime()
lifetime = StaticLifetime() if kind == "static" else LeaseLifetime(1.0, heartbeat=True)
print(store.put([1], lifetime=lifetime), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["static", "lease"])
def test_the_end_of_a_process(store: Store[Any], kind: str) -> None:
    if isinstance(store.connector, MemoryConnector):
        pytest.skip("no other process reaches it")
    command = [sys.executable, "-c", STATIC, store.connector.url, kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        key = process.stdout.readline().strip()
        assert store.exists(key)
        if kind == "static":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGKILL)
        process.wait()
    if kind == "static":
        assert not store.exists(key)
    else:

        def swept() -> bool:
            store.connector.sweep()
            return not store.exists(key)

        until(swept)


def test_a_fork_ends_nothing(store: Store[Any]) -> None:
    with ContextLifetime() as lifetime:
        key = store.put(1, lifetime=lifetime)
        static = store.put(1, lifetime=StaticLifetime())
        assert in_fork(lifetime.close) is None
        assert store.exists(key)
        assert store.exists(static)
        assert in_fork(lambda: StaticLifetime().done()) is False
    StaticLifetime().close()
    assert not store.exists(static)
    assert not StaticLifetime().done()


def test_repr(store: Store[Any], tmp_path: Path) -> None:
    with ContextLifetime() as lifetime:
        store.put(1, lifetime=lifetime)
        assert repr(lifetime) == "ContextLifetime(1 stores)"
    assert repr(lifetime).endswith("over)")


@pytest.mark.parametrize("long", [math.inf, 1e12, dt.timedelta.max, dt.datetime.max.replace(tzinfo=dt.UTC)])
@pytest.mark.parametrize("heartbeat", [False, True])
def test_leases_that_outlive_everybody(store: Store[Any], long: Any, heartbeat: bool) -> None:
    lifetime = LeaseLifetime(long, heartbeat=heartbeat)
    key = store.put([1], lifetime=lifetime)
    lifetime.extend(long)
    assert store.get(key) == [1]
    lifetime.close()
    assert not store.exists(key)


def test_numbers_of_other_libraries_are_seconds() -> None:
    for seconds in (np.float64(60), np.int64(60), fractions.Fraction(60)):
        LeaseLifetime(cast(Any, seconds)).close()


def test_what_is_no_proxy_is_not_taken_in(store: Store[Any]) -> None:
    proxy = store.proxy([1])
    wrong: Any
    for wrong, error in ((5, TypeError), (Proxy(list), ConfigurationError)):
        with ContextLifetime() as lifetime, pytest.raises(error):
            lifetime.add_proxy(proxy, wrong)
        assert store.exists(get_key(proxy))
    store.evict(get_key(proxy))


def test_a_lifetime_that_ends_while_something_is_stored_for_it(
    store: Store[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lifetime = ContextLifetime()
    stored: list[str] = []
    put = store.connector.put

    def ended(*args: Any, **options: Any) -> str:
        key: str = put(*args, **options)
        stored.append(key)
        lifetime.close()
        return key

    monkeypatch.setattr(store.connector, "put", ended)
    with contextlib.suppress(ConfigurationError):
        store.put([1], lifetime=lifetime)
    assert not store.exists(stored[0])
