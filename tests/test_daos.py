"""The DAOS store on a fake of pydaos, and on a real container where DAOS_POOL and DAOS_CONT name one."""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import daos_fake
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core.connectors.base import Connector, Key
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    FullError,
    MissingExtraError,
    RefusedError,
    UnreachableError,
)
from proxystore_core.recipe import open_connector
from proxystore_core.store import Store
from proxystore_core.testing import ConnectorContract

REAL = bool(
    os.environ.get("DAOS_POOL") and os.environ.get("DAOS_CONT") and importlib.util.find_spec("pydaos")
)
PART = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def _fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if REAL:
        yield
        return
    with daos_fake.installed(tmp_path_factory.mktemp("daos")):
        yield


def connector(**options: Any) -> Any:
    from proxystore_core.connectors.daos import DAOSConnector

    pool, container = (os.environ["DAOS_POOL"], os.environ["DAOS_CONT"]) if REAL else ("tank", "box")
    return DAOSConnector(pool, container, prefix=f"test-{secrets.token_hex(4)}", **options)


class TestDAOSConnector(ConnectorContract):
    def make(self) -> Any:
        return connector()

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        found: dict[str, dict[int, bytes]] = {}
        for bucket in range(16):
            for field, data in connector._named(str(bucket)).dump().items():
                if data is not None:
                    key, _, part = field.rpartition(".")
                    found.setdefault(key, {})[int(part)] = data
        return {
            key: b"" if key.endswith(".0") else b"".join(data for _, data in sorted(parts.items()))
            for key, parts in found.items()
        }

    def corrupt(self, connector: Connector, key: Key) -> bool:
        bucket = connector._bucket(key.partition(".")[0])
        data = bytearray(bucket.get(f"{key}.0"))
        data[len(data) // 2] ^= 1
        bucket.put(f"{key}.0", bytes(data))
        return True


fake_only = pytest.mark.skipif(REAL, reason="counts, or breaks, what only the fake shows")


@pytest.fixture
def store() -> Iterator[Any]:
    made = connector()
    for session in ("user", "one"):
        made.evict(made.put([b"opens what it needs"], session=session))
    made.renew("one", 600)
    yield made
    made.end("one")
    made.end("user")
    made.close()


def counted(do: Any) -> dict[str, int]:
    before = dict(daos_fake.calls)
    do()
    return {name: count - before[name] for name, count in daos_fake.calls.items() if count != before[name]}


@fake_only
@pytest.mark.parametrize("size", [0, 1, 1000, PART])
@pytest.mark.parametrize("session", ["user", "one"])
def test_up_to_a_mebibyte_each_operation_is_one_trip(store, size, session):
    keys: list[str] = []
    assert counted(lambda: keys.append(store.put([b"x" * size], session=session))) == {"put": 1, "waves": 1}
    assert counted(lambda: store.get(keys[0])) == {"get": 1, "waves": 1}
    assert counted(lambda: store.exists(keys[0])) == {"get": 1, "waves": 1}
    assert counted(lambda: store.evict(keys[0])) == {"put": 1, "waves": 1}


@fake_only
def test_what_is_bigger_travels_sixteen_parts_at_a_time(store):
    data = os.urandom(40 * PART + 5)
    keys: list[str] = []
    assert counted(lambda: keys.append(store.put([data]))) == {"put": 3, "waves": 3}
    assert counted(lambda: store.get(keys[0])) == {"get": 3, "waves": 3}  # no part needs a second trip
    assert store.get(keys[0]) == data


@fake_only
def test_a_batch_of_small_objects_is_one_call(store):
    items = [[b"%d" % number] for number in range(160)]
    keys: list[str] = []
    assert counted(lambda: keys.extend(store.put_batch(items, session="one"))) == {"put": 1, "waves": 10}
    assert counted(lambda: store.get_batch(keys))["waves"] == 10
    assert [bytes(data) for data in store.get_batch(keys)] == [item[0] for item in items]
    assert counted(lambda: store.evict_batch(keys)) == {"put": 1, "waves": 10}
    assert store.get_batch(keys) == [None] * 160


def test_nothing_is_an_object(store):
    key = store.put([])
    assert store.exists(key)
    assert store.get(key) == b""
    store.evict(key)
    assert not store.exists(key)


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 16))
def test_parts_are_the_bytes_in_order(buffers, size):
    from proxystore_core.connectors import daos

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daos, "_PART", size)
        parts = list(daos._parts_of([memoryview(each) for each in buffers if each]))
        whole = b"".join(buffers)
        assert b"".join(parts) == (whole or b"\0")
        assert len(parts) == daos._count(len(whole))
        assert all(type(part) is bytes and len(part) == size for part in parts[:-1])


def test_a_part_that_is_bytes_already_is_not_copied():
    from proxystore_core.connectors.daos import _parts_of

    data = os.urandom(PART)
    assert next(_parts_of([memoryview(data)])) is data


def test_a_missing_part_is_no_object(store):
    key = store.put([os.urandom(3 * PART)])
    store._bucket("user").put(f"{key}.1", None)
    assert store.get(key) is None


def test_a_part_of_another_length(store):
    key = store.put([os.urandom(2 * PART)])
    store._bucket("user").put(f"{key}.1", b"short")
    with pytest.raises(CorruptError, match="another length"):
        store.get(key)


def test_keys_are_c_strings(store):
    key = store.put([b"data"])
    for forged in (f"{key}\0", f"{key}\0x", key.replace("user", "us\0er"), f"{key}é", f"{key} "):
        with pytest.raises(RefusedError, match="not a key of a DAOS store"):
            store.get(forged)


def test_what_another_process_ended_gets_a_lease_again(store):
    other = type(store).from_url(store.url)
    assert other.end("one") == 0
    key = store.put([b"late"], session="one")  # believes in the lease that it has seen
    assert "one" not in store.sessions()
    assert store.sweep() == []
    assert 590 < store.sessions()["one"] <= 600
    assert store.end("one") == 1
    assert store.get(key) is None


@fake_only
@pytest.mark.parametrize(
    ("number", "kind"),
    [(-1007, FullError), (-1001, RefusedError), (-1011, DeadlineError), (-1006, UnreachableError)],
)
def test_errors_say_what_daos_says(store, number, kind):
    daos_fake.fail_with.append(("failed to store KV value", number))
    with pytest.raises(kind, match="DAOS says: failed to store KV value"):
        store.put([b"data"])


@fake_only
def test_a_full_pool_keeps_nothing_of_the_object(store, monkeypatch):
    bput, turn = daos_fake.DDict.bput, []

    def full_at_the_second(self: Any, fields: Any) -> None:
        turn.append(fields)
        if len(turn) == 2:
            raise daos_fake.PyDError("failed to store KV value", -1007)
        bput(self, fields)

    monkeypatch.setattr(daos_fake.DDict, "bput", full_at_the_second)
    with pytest.raises(FullError):
        store.put([bytes(20 * PART)])
    assert not list(store._bucket("user"))


@fake_only
def test_an_interrupted_put_keeps_nothing_of_the_object(store, monkeypatch):
    bput, turn = daos_fake.DDict.bput, []

    def interrupted_after_the_first(self: Any, fields: Any) -> None:
        turn.append(fields)
        bput(self, fields)
        if len(turn) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(daos_fake.DDict, "bput", interrupted_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        store.put([bytes(20 * PART)])
    assert not list(store._bucket("user"))
    strided = memoryview(bytes(100))[::2]
    with pytest.raises(TypeError, match="contiguous"):
        store.put_batch([[bytes(20 * PART)], [strided]])
    assert not list(store._bucket("user"))


@fake_only
def test_what_is_not_there_costs_a_trip_and_no_memory_whatever_its_key_says(store):
    key = store.put([bytes(40 * PART)])
    store.evict(key)
    assert counted(lambda: store.get(key)) == {"get": 1, "waves": 1}
    forged = f"user.{'0' * 20}.{'f' * 10}"
    assert counted(lambda: store.get_batch([forged, key])) == {"get": 2, "waves": 2}
    assert store.get_batch([forged, key]) == [None, None]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("daos://tank", "expected daos://pool/container"),
        ("daos:///box", "expected daos://pool/container"),
        ("daos://tank/box/more", "expected daos://pool/container"),
        ("daos://tank/box?prefix=a b", "prefix"),
        ("daos://me@tank/box", "user"),
    ],
)
def test_wrong_urls(url, words):
    with pytest.raises(ConfigurationError, match=words):
        open_connector(url)


def test_no_such_container():
    with pytest.raises(ConfigurationError, match=r"failed to access container.*daos container list"):
        open_connector("daos://tank/lost").put([b"data"])


def test_without_pydaos_the_error_says_what_to_install(tmp_path: Path):
    script = (
        "from proxystore_core.recipe import check_url\n"
        "from proxystore_core.errors import MissingExtraError\n"
        "try:\n    check_url('daos://tank/box')\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=variables,
        cwd=tmp_path,
        check=False,
    )
    assert "python3-daos" in done.stdout, done.stderr
    assert "pip install" not in done.stdout
    assert issubclass(MissingExtraError, ImportError)


def test_a_store():
    with Store("daos", connector()) as store:
        proxies = store.proxy_batch([list(range(1000)), b"", "text"], session="s")
        assert [store.get(key) for key in map(_key, proxies)] == [list(range(1000)), b"", "text"]
        store.connector.end("s")


def _key(proxy: Any) -> Any:
    from proxystore_core.store import get_key

    return get_key(proxy)
