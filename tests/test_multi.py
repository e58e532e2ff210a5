"""Several stores as one: the contract over three of them, what goes where, and when one of them is down."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import secrets
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measures import files
from redis_servers import Server, free_port, serving
from waiting import resolve_together

from proxystore_core.connectors import multi as multi_module
from proxystore_core.connectors.base import Connector, Key, holder_of, is_far, place_of, routed
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.connectors.multi import MultiConnector, Policy, multi_url
from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.lifetimes import Session
from proxystore_core.near import NearCopies
from proxystore_core.recipe import open_connector
from proxystore_core.store import Store
from proxystore_core.testing import ConnectorContract, in_new_process

MB = 1 << 20
HOST = socket.gethostname()


class TestMultiConnector(ConnectorContract):
    """Small objects in shared memory, larger ones in files, the largest on a server."""

    @pytest.fixture(autouse=True)
    def on(self, server: Server) -> None:
        self.server = server

    def make(self) -> MultiConnector:
        name = secrets.token_hex(4)
        return MultiConnector(
            {
                "near": (ShmConnector(name, spill=self.place / f"{name}-spill"), Policy(max_size=999)),
                "disk": (FileConnector(self.place / name), Policy(max_size=2_000_000)),
                "far": RedisConnector("127.0.0.1", self.server.port, prefix=name),
            }
        )

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        assert isinstance(connector, MultiConnector)
        parts: dict[str, Any] = {name: part.connector for name, part in connector._parts.items()}
        found = files(parts["near"].store_dir, f"near.{parts['near'].node}.")
        found |= files(parts["disk"].store_dir, "disk.")
        witness = self.server.witness
        for place in witness.scan_iter(f"{parts['far']._prefix}:*"):
            session = place.decode().partition("{")[2].partition(":")[0]
            for field in witness.hkeys(place):
                name, _, part = field.decode().rpartition(".")
                if part == "0":
                    key = f"far.{session}.{name}"
                    found[key] = bytes(connector.get(key) or b"")
        return found

    def corrupt(self, connector: Connector, key: Key) -> bool:
        assert isinstance(connector, MultiConnector)
        part, session, name = key.split(".")
        assert part == "disk"
        path = Path(connector._parts["disk"].connector.store_dir, session, name)  # type: ignore[attr-defined]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return True


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[dict[str, FileConnector]]:
    pair = {name: FileConnector(tmp_path / name) for name in ("a", "b")}
    yield pair
    for connector in pair.values():
        for session in ["user", *connector.sessions()]:
            connector.end(session)


def goes_to(connector: MultiConnector, size: int = 1, **hints: Any) -> str:
    key = connector.put([bytes(size)], **hints)
    connector.evict(key)
    return key.partition(".")[0]


# What goes where.


def test_by_size(pair: dict[str, FileConnector]) -> None:
    multi = MultiConnector({"a": (pair["a"], Policy(max_size=100)), "b": (pair["b"], Policy(min_size=50))})
    assert [goes_to(multi, size) for size in (0, 49, 50, 100, 101)] == ["a", "a", "a", "a", "b"]
    between = MultiConnector({"a": (pair["a"], Policy(max_size=10)), "b": (pair["b"], Policy(min_size=20))})
    with pytest.raises(ConfigurationError, match="15 bytes"):
        between.put([bytes(15)])


def test_by_priority(pair: dict[str, FileConnector]) -> None:
    multi = MultiConnector({"a": pair["a"], "b": (pair["b"], Policy(priority=1))})
    assert goes_to(multi) == "b"
    assert goes_to(MultiConnector(pair)) == "a"


def test_by_host(pair: dict[str, FileConnector]) -> None:
    elsewhere = Policy(priority=1, hosts=("no-such-host", "*.nowhere"))
    assert goes_to(MultiConnector({"a": (pair["a"], elsewhere), "b": pair["b"]})) == "b"
    here = Policy(priority=1, hosts=(f"{HOST[:-1]}?",))
    assert goes_to(MultiConnector({"a": pair["a"], "b": (pair["b"], here)})) == "b"


def test_by_class_and_tags(pair: dict[str, FileConnector]) -> None:
    multi = MultiConnector(
        {"a": (pair["a"], Policy(priority=1, kinds=("numpy:*",))), "b": (pair["b"], Policy(tags=("keep",)))}
    )
    with Store("routed", multi) as store:
        keys = [store.put(np.arange(10)), store.put("text", tags=["keep"])]
        keys += [store.reference(np.arange(3), tags={"keep"}).key, store.put_frames([b"x"], tags=["keep"])[0]]
        assert [key[0] for key in keys] == ["a", "b", "a", "b"]
        with pytest.raises(ConfigurationError, match="builtins:str"):
            store.put("text")
        proxy = store.proxy("text", tags=["keep", "other"])
        assert proxy.upper() == "TEXT"
        store.close(clear=True)


def test_metrics_see_it(pair: dict[str, FileConnector]) -> None:
    multi = MultiConnector({"a": (pair["a"], Policy(kinds=("numpy:*",))), "b": pair["b"]})
    with Store("measured", multi, metrics=True) as store:
        key = store.put(np.arange(10))
        assert key.startswith("a.")
        assert store.get(key).sum() == 45
        assert store.metrics is not None
        assert store.metrics["put"].count == 1
        store.evict(key)


# When one is down.


class Broken:
    """A connector that fails in a way of its own, however often it is asked."""

    schemes = ("broken",)
    checksum = cheap_get = False
    url = "broken://"

    def __init__(self, error: StoreError) -> None:
        self.error = error
        self.asked = 0

    def config(self) -> dict[str, Any]:
        return {}

    def put(self, data: object, *, session: str) -> str:
        self.asked += 1
        raise self.error

    def renew(self, session: str, seconds: float) -> None:
        raise self.error

    def end(self, session: str) -> int:
        raise self.error

    def sweep(self) -> list[str]:
        raise self.error

    def sessions(self) -> dict[str, float]:
        raise self.error


@pytest.mark.parametrize("kind", [UnreachableError, DeadlineError, FullError])
def test_the_next_one_takes_it_and_it_is_said_once(
    pair: dict[str, FileConnector], kind: type[StoreError]
) -> None:
    broken = Broken(kind(f"because of {secrets.token_hex(4)}"))
    multi = MultiConnector({"broken": broken, "a": pair["a"]})
    with pytest.warns(RuntimeWarning, match="because of") as said:
        keys = [multi.put([b"data"]) for _ in range(3)]
    assert len(said) == 1
    assert [multi.get(key) for key in keys] == [b"data"] * 3
    # What is down is left in peace for a while; what is full may have room for the next.
    assert broken.asked == (3 if kind is FullError else 1)
    broken.error = kind("in other words")
    multi._parts["broken"].down_until = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        multi.put([b"data"])


@pytest.mark.parametrize("kind", [RefusedError, ConfigurationError])
def test_what_is_refused_is_refused(pair: dict[str, FileConnector], kind: type[StoreError]) -> None:
    multi = MultiConnector({"broken": Broken(kind("no")), "a": pair["a"]})
    with pytest.raises(kind, match="no"):
        multi.put([b"data"])


def test_the_first_error_when_all_are_down() -> None:
    multi = MultiConnector({"x": Broken(UnreachableError("first")), "y": Broken(FullError("second"))})
    with pytest.warns(RuntimeWarning), pytest.raises(UnreachableError, match="first"):
        multi.put([b"data"])
    for use in (lambda: multi.renew("s", 1), lambda: multi.end("s"), multi.sessions, multi.sweep):
        with pytest.raises(UnreachableError):
            use()


def test_a_server_that_dies_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxystore_core.connectors.multi._REST", 0.0)
    with serving(tmp_path / "r") as server:
        first = f"redis://{server.address}?connect_timeout=0.2"
        multi = open_connector(multi_url({"first": {"url": first}, "then": {"url": f"file://{tmp_path}/f"}}))
        session = Session(multi, lease=60)
        before = multi.put([b"before"], session=session.name)
        assert before.startswith("first.")
        server.kill()
        with pytest.warns(RuntimeWarning, match="first"):
            during = multi.put([b"during"], session=session.name)
        assert during.startswith("then.")
        assert multi.get(during) == b"during"
        with pytest.raises(UnreachableError):  # not None: it may be there
            multi.get(before)
        assert session.name in multi.sessions()  # type: ignore[attr-defined]
        with pytest.raises(UnreachableError):
            session.end()
        assert multi.get(during) is None
        server.start()
        assert multi.put([b"after"], session=session.name).startswith("first.")
        assert session.end() == 1
        multi.close()


def test_one_that_was_never_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    gone = f"redis://127.0.0.1:{free_port()}?connect_timeout=0.1"
    for url in (gone, f"file://{tmp_path}/file/store"):
        parts = {"gone": {"url": url}, "here": {"url": f"file://{tmp_path}/here"}}
        with pytest.warns(RuntimeWarning, match="gone"):
            multi = open_connector(multi_url(parts))
            key = multi.put([b"data"])
        assert open_connector(multi.url).url == multi.url
        assert multi.get(key) == b"data"
        multi.close(clear=True)


# Everywhere else.


def test_a_reference_is_enough(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(8)
    with serving(tmp_path / "locked", "--requirepass", secret, witness={"password": secret}) as locked:
        parts = {
            "near": ShmConnector("multi"),
            "far": (RedisConnector("127.0.0.1", locked.port, password=secret), Policy(min_size=1000)),
        }
        multi = MultiConnector({**parts, "near": (parts["near"], Policy(max_size=999))})
        with Store("enough", multi) as store:
            proxies = [store.proxy(b"n" * 10, populate_target=False), store.proxy(b"f" * 5000)]
            assert secret not in repr(store.config()) + store.recipe
            assert secret.encode() not in pickle.dumps(proxies)
            monkeypatch.setenv("PROXYSTORE_REDIS_PASSWORD", secret)
            assert in_new_process(_lengths, [pickle.dumps(proxy) for proxy in proxies]) == [10, 5000]
            store.close(clear=True)


def _lengths(pickled: list[bytes]) -> list[int]:
    return [len(pickle.loads(each)) for each in pickled]


def test_a_config_is_only_read(pair: dict[str, FileConnector]) -> None:
    multi = MultiConnector({"a": (pair["a"], Policy(tags=("x", "y"), max_size=5)), "b": pair["b"]})
    config = multi.config()
    assert config == multi.config()
    assert MultiConnector.from_config(config).config() == config
    config["parts"]["a"]["tags"].append("z")
    config["parts"].clear()
    assert multi.config()["parts"]["a"] == {"url": pair["a"].url, "max_size": 5, "tags": ["x", "y"]}
    assert goes_to(multi) == "b"


def test_where_it_can_be_reached(pair: dict[str, FileConnector], server: Server) -> None:
    shm, redis = ShmConnector(), RedisConnector("127.0.0.1", server.port)
    assert place_of(MultiConnector(pair)) == ""
    assert place_of(MultiConnector({"r": redis, "s": shm})) == shm.node
    elsewhere = MultiConnector({"s": (shm, Policy(hosts=("nowhere",))), "r": redis})
    assert place_of(elsewhere) == ""
    for multi, far, cheap in ((elsewhere, True, False), (MultiConnector({"s": shm}), False, True)):
        assert is_far(multi) is far
        assert multi.cheap_get is cheap
        assert routed(multi) is multi
    key = elsewhere.put([b"x"])
    assert holder_of(elsewhere, key) == (redis, key.partition(".")[2])
    elsewhere.evict(key)


def test_one_of_several(tmp_path: Path) -> None:
    inner = MultiConnector({"x": FileConnector(tmp_path / "x"), "y": FileConnector(tmp_path / "y")})
    outer = MultiConnector({"in": (inner, Policy(min_size=5)), "m": MemoryConnector("several")})
    with Store("nested", outer) as store:
        key = store.put("some text")
        assert key.startswith("in.x.")
        assert store.get(key) == "some text"
        assert open_connector(outer.url).exists(key)
        store.close(clear=True)


def test_processes_of_one_host_fetch_once(server: Server) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, go, sums = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
    array = np.arange(MB, dtype=np.int64)
    parts = {"near": (ShmConnector(), Policy(max_size=MB)), "far": RedisConnector("127.0.0.1", server.port)}
    with contextlib.closing(NearCopies()) as copies, Store("near", MultiConnector(parts)) as store:
        copies._enter()  # else the first to end takes the copy away before the last has begun
        references = [store.reference(array), store.reference(array[: 1 << 16])]
        assert [reference.key.partition(".")[0] for reference in references] == ["far", "near"]
        processes = [
            spawn.Process(target=resolve_together, args=(references[number % 2], ready, go, sums))
            for number in range(8)
        ]
        for process in processes:
            process.start()
        for _ in processes:
            assert ready.acquire(timeout=60)
        before = server.witness.info("stats")["total_net_output_bytes"]
        go.set()
        expected = [int(array.sum())] * 4 + [int(array[: 1 << 16].sum())] * 4
        assert sorted(sums.get(timeout=60) for _ in processes) == sorted(expected)
        for process in processes:
            process.join()
        sent = server.witness.info("stats")["total_net_output_bytes"] - before
        assert array.nbytes <= sent < 1.1 * array.nbytes
        for reference in references:
            copies.evict(reference.recipe, reference.key)
            store.evict(reference.key)


# What is wrong.


def test_keys_of_others(pair: dict[str, FileConnector]) -> None:
    multi = MultiConnector(pair)
    theirs = pair["a"].put([b"theirs"])
    for key in (theirs, "a.", "c." + theirs, "a..", "a.b." + theirs, ""):
        with pytest.raises(RefusedError):
            multi.get(key)
    assert multi.get("a." + theirs) == b"theirs"
    assert multi.get("b." + theirs) is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("multi://", "at least one"),
        ("multi://a", "'a' has no URL"),
        ("multi://a?a=shm://&b=shm://", "'b'"),
        ("multi://a?a=shm://&a.max_sise=1", "max_sise"),
        ("multi://a?a=shm://&a.max_size=many", "many"),
        ("multi://a?a=shm://&a.max_size=1&a.min_size=2", "no.* size|nothing"),
        ("multi://a?a=nosuch://", "nosuch"),
        ("multi://a/b?a=shm://", "list of stores"),
        ("multi://ä?ä=shm://", "no name of a store"),
        ("multi://a?a=redis://me:word@host", "password"),
    ],
)
def test_urls_that_are_wrong(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        open_connector(url)
    assert "word@" not in str(caught.value)


def test_parts_that_are_wrong() -> None:
    for part in (1, "shm://", (MemoryConnector("x"), 5), {"max_size": 1}):
        with pytest.raises(ConfigurationError):
            MultiConnector({"a": part})
    with pytest.raises(ConfigurationError, match="hosts"):
        Policy(hosts=(1,))  # type: ignore[arg-type]


def test_one_that_comes_back_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def down(url: str) -> Connector:
        raise UnreachableError("down")

    def slowly(url: str) -> Connector:
        opened.append(url)
        time.sleep(0.1)
        return open_connector(url)

    monkeypatch.setattr(multi_module, "open_connector", down)
    with pytest.warns(RuntimeWarning):
        connector = MultiConnector({"a": {"url": f"memory://{secrets.token_hex(4)}"}})
    monkeypatch.setattr(multi_module, "open_connector", slowly)
    with ThreadPoolExecutor(8) as executor:
        keys = list(executor.map(lambda _: connector.put([b"data"]), range(8)))
    assert len(opened) == 1
    assert all(connector.get(key) == b"data" for key in keys)
    connector.close()


def test_the_others_are_cleared_when_one_is_down(tmp_path: Path) -> None:
    with serving(tmp_path / "r") as server:
        disk = MemoryConnector("cleared")
        store = MultiConnector(
            {
                "far": {
                    "url": f"redis://{server.address}?connect_timeout=0.2&deadline=1",
                    "max_size": 10,
                },
                "disk": (disk, Policy(min_size=11)),
            }
        )
        store.put([b"small"])
        key = store.put([b"something larger"])
        assert store.get(key)
        server.kill()
        with pytest.raises(StoreError):
            store.close(clear=True)
        assert store.get(key) is None
        server.start()


def test_a_session_ends_in_the_others_when_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = MemoryConnector("refuses"), MemoryConnector("ends")
    store = MultiConnector({"one": (one, Policy(max_size=10)), "other": other})
    key = store.put([b"something larger"], session="some")

    def refuse(session: str) -> int:
        raise RefusedError("no right to that")

    monkeypatch.setattr(one, "end", refuse)
    with pytest.raises(RefusedError, match="no right"):
        store.end("some")
    assert store.get(key) is None
