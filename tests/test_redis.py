"""Redis and what speaks its language: the contract on real servers, and the hazards of servers."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.crc
from hypothesis import given
from hypothesis import strategies as st
from measures import peaks
from parts import wholes
from redis_servers import REDIS_6, REDIS_TLS, Server, binary, free_port, serving, serving_cluster
from waiting import until

from proxystore_core.buffers import split
from proxystore_core.connectors import redis as layout
from proxystore_core.connectors.base import Batched, Connector, Key, Leased
from proxystore_core.connectors.redis import RedisConnector, RedisTLSConnector, RedisUnixConnector
from proxystore_core.connectors.redis_cluster import RedisClusterConnector, RedisSentinelConnector
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    GoneError,
    RefusedError,
    UnreachableError,
)
from proxystore_core.recipe import open_connector
from proxystore_core.store import Store
from proxystore_core.testing import ConnectorContract, in_fork, in_new_process

PART = 1 << 20
ACL = (
    "on >secret ~ps:* &ps:* +select +hset +hget +hdel +hexists +hkeys +unlink +eval +ttl +pttl +expire "
    "+pexpire +multi +exec +scan +publish +subscribe +unsubscribe"
)
NO_TLS = "no redis-server with TLS here: apt-get install redis-server"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    with serving(place / "plain") as server:
        yield server


@pytest.fixture(scope="module")
def locked(place: Path) -> Iterator[Server]:
    """A server that knows an administrator, a user of some keys, and one who may hardly do anything."""
    rules = {
        "default": "off",
        "admin": "on >root ~* +@all",
        "alice": "on >secret ~acl.* +@all -@admin -@dangerous",
        "carol": ACL,
        "bob": "on >secret ~acl.* -@all +hget",
    }
    options = [word for user, rule in rules.items() for word in ("--user", user, "reset", *rule.split())]
    with serving(place / "locked", *options, witness={"username": "admin", "password": "root"}) as server:
        yield server


@pytest.fixture(scope="module")
def secured(place: Path) -> Iterator[tuple[Server, dict[str, Any]]]:
    """A server that speaks TLS only, to clients with a certificate only; and such a client's paths."""
    if binary(REDIS_TLS) is None:
        pytest.skip(NO_TLS)
    import trustme

    authority = trustme.CA()
    (place / "pem").mkdir()
    files: dict[str, Any] = {name: str(place / "pem" / f"{name}.pem") for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(files["ca"])
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    options = ["--port", "0", "--tls-port", "PORT", "--tls-cert-file", files["cert"]]
    options += ["--tls-key-file", files["key"], "--tls-ca-cert-file", files["ca"]]
    with serving(place / "tls", *options, kind=REDIS_TLS) as server:
        yield server, files


@pytest.fixture(scope="module")
def keydb(place: Path) -> Iterator[Server]:
    with serving(place / "six", kind=REDIS_6) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[list[Server]]:
    with serving_cluster(place / "cluster") as servers:
        yield servers


def hashes(connector: RedisConnector, witnesses: list[redis.Redis]) -> Iterator[tuple[redis.Redis, bytes]]:
    for witness in witnesses:
        for key in witness.scan_iter(f"{connector._prefix}:*"):
            yield witness, key


class RedisContract(ConnectorContract):
    servers: list[Server]

    @property
    def prefix(self) -> str:
        return f"t{secrets.token_hex(4)}"

    def witnesses(self) -> list[redis.Redis]:
        return [server.witness for server in self.servers]

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        assert isinstance(connector, RedisConnector)
        parts: dict[str, dict[int, bytes]] = defaultdict(dict)
        found: dict[str, bytes] = {}
        for witness, key in hashes(connector, self.witnesses()):
            session = key.decode().partition("{")[2].partition(":")[0]
            fields: dict[bytes, bytes] = witness.hgetall(key)  # type: ignore[assignment]
            for field, data in fields.items():
                if field.endswith(b".-"):
                    found[f"reserved {session}.{field.decode()}"] = data
                elif field != b"lease":
                    name, _, part = field.decode().rpartition(".")
                    parts[f"{session}.{name}"][int(part)] = data
        return found | wholes(parts)

    def corrupt(self, connector: Connector, key: Key) -> bool:
        assert isinstance(connector, RedisConnector)
        field = f"{key.partition('.')[2]}.0"
        for witness, place in hashes(connector, self.witnesses()):
            data: Any = witness.hget(place, field)
            if data is not None:
                middle = len(data) // 2
                changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
                witness.hset(place, field, changed)
                return True
        raise AssertionError("the object is not where it should be")

    # What every server's connector can do besides.

    def test_big_objects_are_in_parts(self, connector: Connector, session: str) -> None:
        assert isinstance(connector, Leased)
        for size in (PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 5):
            data = os.urandom(size)
            view = memoryview(data)
            key = connector.put(
                [view[: PART - 3], view[PART - 3 : PART + 3], view[PART + 3 :]], session=session
            )
            assert connector.get(key) == data
            assert self.raw_objects(connector) == {key: data}
            assert connector.exists(key)
            connector.evict(key)
            assert not connector.exists(key)
            assert not self.raw_objects(connector)
        assert connector.end(session) == 0

    def test_a_part_that_is_missing(self, connector: Connector) -> None:
        assert isinstance(connector, RedisConnector)
        key = connector.put([bytes(2 * PART)])
        field = f"{key.partition('.')[2]}.1"
        assert sum(witness.hdel(place, field) for witness, place in hashes(connector, self.witnesses())) == 1
        assert connector.get(key) is None
        assert not connector.exists(key)
        connector.evict(key)
        assert not self.raw_objects(connector)

    def test_every_hash_of_a_session_expires(self, connector: Connector, session: str) -> None:
        assert isinstance(connector, RedisConnector)
        assert self.expiries(connector) == []
        for _ in range(40):
            connector.put([b"before anyone renewed"], session=session)
        expiries = self.expiries(connector)
        assert expiries
        assert all(590 < left <= 600 for left in expiries)
        connector.renew(session, 5000)
        keys = [connector.put([b"data"], session=session) for _ in range(40)]
        connector.evict_batch(keys)
        connector.put([b"data"], session=session)
        expiries = self.expiries(connector)
        assert len(expiries) == 16
        assert all(4990 < left <= 5000 for left in expiries)

    def test_a_hash_that_was_emptied_keeps_its_lease(self, connector: Connector, session: str) -> None:
        assert isinstance(connector, RedisConnector)
        connector.renew(session, 5000)
        for _ in range(40):
            connector.evict(connector.put([b"data"], session=session))
        assert len(self.expiries(connector)) == 16
        assert all(4990 < left <= 5000 for left in self.expiries(connector))

    def expiries(self, connector: RedisConnector) -> list[float]:
        """Seconds left of every hash; -1 of one that is there for ever."""
        return [witness.pttl(key) / 1000 for witness, key in hashes(connector, self.witnesses())]

    def test_the_server_ends_what_nobody_renews(self, connector: Connector, session: str) -> None:
        assert isinstance(connector, RedisConnector)
        kept = connector.put([b"kept"])
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, type(connector).__module__, type(connector).__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert owner.stdin is not None
        assert owner.stdout is not None
        with owner:
            owner.stdin.write(f"{connector.url}\n{session}\n")
            owner.stdin.flush()
            keys = [owner.stdout.readline().strip() for _ in range(3)]
            assert all(connector.get(key) is not None for key in keys)
            time.sleep(1.5)  # longer than the lease: it is renewed
            assert all(connector.get(key) is not None for key in keys)
            assert session in connector.sessions()
            owner.send_signal(signal.SIGKILL)
        until(lambda: list(self.raw_objects(connector)) == [kept])
        assert {
            place.partition(b"{")[2].partition(b":")[0] for _, place in hashes(connector, self.witnesses())
        } == {b"user"}
        assert session not in connector.sessions()

    def test_batches(self, connector: Connector, session: str) -> None:
        assert isinstance(connector, Batched)
        assert connector.put_batch([]) == []
        assert connector.get_batch([]) == []
        items = [[os.urandom(size), b"+"] for size in (0, 1, 10_000, PART, 2 * PART + 1)]
        items += [[b"%d" % number] for number in range(2000)]
        keys = connector.put_batch(items, session=session)
        assert len(set(keys)) == len(items)
        connector.evict(keys[1])
        got = connector.get_batch([*keys, keys[0]])
        assert got.pop(1) is None
        wanted = [b"".join(item) for item in [items[0], *items[2:], items[0]]]
        assert [bytes(data or b"") for data in got] == wanted
        assert got[0] is not got[-1]
        connector.evict_batch([*keys, keys[0]])
        assert not self.raw_objects(connector)

    def test_a_store_uses_batches(self, connector: Connector) -> None:
        assert isinstance(connector, RedisConnector)
        calls: list[Any] = []

        def spy(*args: Any, call: Callable[..., Any]) -> Any:
            calls.append(args)
            return call(*args)

        with Store(secrets.token_hex(4), connector) as store, pytest.MonkeyPatch.context() as patch:
            for name in ("run", "read"):
                call = functools.partial(spy, call=getattr(connector._requests, name))
                patch.setattr(connector._requests, name, call)
            store.put("warm")
            calls.clear()
            objects: list[Any] = [[number] for number in range(300)]
            references = store.reference_batch(objects)
            assert len(calls) == 1
            assert store.load_batch(references) == objects
            assert len(calls) == 2
            keys = [reference.key for reference in references]
            first, again = store.get_batch([keys[0], keys[0]])
            first.append("mine")
            assert again == [0]
            store.evict(keys[3])
            assert store.get_batch(keys[2:5], default="none") == [[2], "none", [4]]
            with pytest.raises(GoneError):
                store.load_batch(references)
            big = store.put(bytes(80_000_000))
            one, other = store.get_batch([big, big])
            assert len(one) == len(other) == 80_000_000
            store.close(clear=True)


OWNER = """
import importlib, sys, time
from proxystore_core.lifetimes import Session
module, name = sys.argv[1:]
connector = getattr(importlib.import_module(module), name).from_url(input())
session = Session(connector, lease=1.0, name=input())
for size in (10, 1000, 20_000_000):
    print(connector.put([bytes(size)], session=session.name), flush=True)
time.sleep(600)
"""


class TestRedisConnector(RedisContract):
    @pytest.fixture(autouse=True)
    def on(self, server: Server) -> None:
        self.servers = [server]

    def make(self) -> Connector:
        return RedisConnector("127.0.0.1", self.servers[0].port, prefix=self.prefix)


class TestUnixSocketWithUser(RedisContract):
    @pytest.fixture(autouse=True)
    def on(self, locked: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.servers = [locked]
        monkeypatch.setenv("PROXYSTORE_REDIS_PASSWORD", "secret")

    def make(self) -> Connector:
        return RedisUnixConnector(self.servers[0].socket, username="alice", prefix=f"acl.{self.prefix}")


class TestTLS(RedisContract):
    @pytest.fixture(autouse=True)
    def on(self, secured: tuple[Server, dict[str, Any]]) -> None:
        self.servers, self.files = [secured[0]], secured[1]

    def make(self) -> Connector:
        return RedisTLSConnector("127.0.0.1", self.servers[0].port, prefix=self.prefix, **self.files)


class TestKeyDB(RedisContract):
    @pytest.fixture(autouse=True)
    def on(self, keydb: Server) -> None:
        self.servers = [keydb]

    def make(self) -> Connector:
        return open_connector(f"keydb://{self.servers[0].address}/?prefix={self.prefix}")


class TestAnotherDatabase(RedisContract):
    @pytest.fixture(autouse=True)
    def on(self, server: Server) -> Iterator[None]:
        self.servers = [server]
        self.other = redis.Redis(unix_socket_path=server.socket, db=3)
        yield
        self.other.close()

    def witnesses(self) -> list[redis.Redis]:
        return [self.other]

    def make(self) -> Connector:
        return open_connector(f"redis://{self.servers[0].address}/3?prefix={self.prefix}")


class TestCluster(RedisContract):
    @pytest.fixture(autouse=True)
    def on(self, cluster: list[Server]) -> None:
        self.servers = cluster

    def make(self) -> Connector:
        return RedisClusterConnector([self.servers[1].address], prefix=self.prefix)

    def test_objects_are_on_all_servers(self, connector: Connector, session: str) -> None:
        assert isinstance(connector, RedisConnector)
        connector.put_batch([[b"data"]] * 100, session=session)
        counts = [len(list(hashes(connector, [server.witness]))) for server in self.servers]
        assert all(counts)

    def test_a_slot_that_moves(self, connector: Connector, session: str) -> None:
        assert isinstance(connector, RedisConnector)
        before = connector.put([b"before"])
        place = connector._hash(session, 0)
        slot = redis.crc.key_slot(place.encode())
        assert slot == self.servers[0].witness.execute_command("CLUSTER KEYSLOT", place)
        source = self.servers[min(slot * 3 // 16384, 2)]
        target = self.servers[0] if source is not self.servers[0] else self.servers[1]
        ids = {server: server.witness.execute_command("CLUSTER MYID").decode() for server in self.servers}
        if source.witness.execute_command("CLUSTER COUNTKEYSINSLOT", slot):
            pytest.fail("the slot is in use")

        def put_there() -> Key:
            while True:
                key = connector.put([b"data"], session=session)
                if key.partition(".")[2].startswith("0"):
                    return key

        target.witness.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
        source.witness.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
        try:
            asked = put_there()
            assert target.witness.execute_command("CLUSTER COUNTKEYSINSLOT", slot) == 1
            assert connector.get(asked) == b"data"
            for server in (target, source):
                server.witness.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
            assert connector.get(asked) == b"data"
            assert connector.get(put_there()) == b"data"
            connector.end(session)
        finally:
            for server in (source, target, *self.servers):
                server.witness.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[source])
        assert connector.get(before) == b"before"
        assert connector.get(put_there()) == b"data"


def test_sentinel(place: Path) -> None:
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(serving(place / "primary"))
        replica = stack.enter_context(
            serving(
                place / "replica",
                "--replicaof",
                f"127.0.0.1 {primary.port}",
                "--repl-diskless-sync-delay",
                "0",
            )
        )
        config = place / "sentinel.conf"
        config.write_text(
            f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds main 500\n"
            "sentinel failover-timeout main 5000\n"
        )
        sentinel = stack.enter_context(serving(place / "sentinel", str(config), "--sentinel"))
        nobody = free_port()
        connector = open_connector(
            f"redis+sentinel://127.0.0.1:{nobody},{sentinel.address}/main?connect_timeout=20&deadline=40"
        )
        assert isinstance(connector, RedisSentinelConnector)
        key = connector.put([b"before"])
        assert type(connector).from_url(connector.url).get(key) == b"before"
        assert type(connector).from_config(connector.config()).get(key) == b"before"
        until(lambda: replica.witness.info("replication")["master_link_status"] == "up")
        until(lambda: len(sentinel.witness.sentinel_slaves("main")) == 1)
        until(lambda: replica.witness.dbsize() == 1)
        primary.kill()
        after = connector.put([b"after"])
        assert connector.get(after) == b"after"
        assert connector.get(key) == b"before"
        assert replica.witness.info("replication")["role"] == "master"
        with pytest.raises(ConfigurationError, match="no service 'other'"):
            open_connector(f"redis+sentinel://{sentinel.address}/other").put([b"data"])
        connector.close()


# The peer's defects.


@pytest.mark.parametrize("scheme", ["redis", "unix"])
def test_password(scheme: str, locked: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    where = locked.address if scheme == "redis" else locked.socket
    connector = open_connector(f"{scheme}://alice:secret@{where}?prefix=acl.p")
    key = connector.put([b"data"])
    assert connector.get(key) == b"data"
    assert "alice@" in connector.url
    for text in (connector.url, repr(connector), str(connector.config()), repr(vars(connector))):
        assert "secret" not in text
    with Store("locked", connector) as store:
        assert b"secret" not in pickle.dumps(store.proxy([1, 2]))
        assert "secret" not in store.recipe
        assert "secret" not in repr(store.config())
    kind, url = type(connector), connector.url
    with pytest.raises(RefusedError, match="PROXYSTORE_REDIS_PASSWORD") as caught:
        kind.from_url(url).get(key)
    assert caught.value.store == url
    monkeypatch.setenv("PROXYSTORE_REDIS_PASSWORD", "secret")
    assert kind.from_url(url).get(key) == b"data"
    monkeypatch.setenv("PROXYSTORE_REDIS_PASSWORD", "wrong")
    with pytest.raises(RefusedError) as caught:
        kind.from_url(url).get(key)
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    monkeypatch.setenv("PROXYSTORE_STORE", f"{scheme}://alice:secret@{where}")
    assert kind.from_url(url).get(key) == b"data"  # the same server and user comes first
    monkeypatch.setenv("PROXYSTORE_STORE", f"{scheme}://bob:secret@{where}")
    with pytest.raises(RefusedError):
        kind.from_url(url).get(key)
    monkeypatch.setenv("PROXYSTORE_STORE", f"{scheme}://alice:secret@{where}")
    connector.evict(key)
    for it in (connector, store):
        it.close(clear=True)


def test_a_password_for_all_does_no_harm_at_a_server_that_wants_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXYSTORE_REDIS_PASSWORD", "secret")
    connector = RedisConnector("127.0.0.1", server.port)
    connector.evict(connector.put([b"data"]))
    with pytest.raises(RefusedError, match="without any password"):
        RedisConnector("127.0.0.1", server.port, password="given").put([b"data"])


@pytest.mark.parametrize(
    "user",
    ["alice:wrong@", "nobody:secret@", "", ":secret@", "bob:secret@"],
    ids="alice nobody none default bob".split(),
)
def test_who_is_refused_is_told_at_once(user: str, locked: Server) -> None:
    connector = open_connector(
        f"redis://{user}{locked.address}?prefix=acl.q&deadline=3600&connect_timeout=3600"
    )
    for use in (lambda: connector.put([b"data"]), lambda: connector.put([b"data"], session="s")):
        with pytest.raises(RefusedError) as caught:
            use()
        assert caught.value.store == connector.url
        assert "secret" not in str(caught.value)
    assert not locked.witness.keys("acl.q*")


def test_the_rights_that_the_documentation_names_are_enough(locked: Server) -> None:
    guide = Path(__file__).parent.parent / "docs" / "redis.md"
    assert f"ACL SETUSER alice {ACL}" in guide.read_text()
    connector = open_connector(f"redis://carol:secret@{locked.address}")
    assert isinstance(connector, Leased)
    connector.renew("s", 600)
    for session in ("user", "s", "t"):
        key = connector.put([bytes(PART), b"data"], session=session)
        assert connector.get(key) == bytes(PART) + b"data"
        assert connector.exists(key)
        connector.evict(key)
        connector.put([b"data"], session=session)
        later = connector.reserve(session=session)
        assert not connector.wait(later, 0.01)
        connector.set(later, [b"data"])
        assert connector.wait(later, 1)
        connector.evict(later)
    assert connector.sessions().keys() == {"s", "t"}
    assert connector.sweep() == []
    assert [connector.end(session) for session in ("user", "s", "t")] == [1, 1, 1]


def test_keys_that_this_user_may_not_touch(locked: Server) -> None:
    connector = open_connector(f"redis://alice:secret@{locked.address}?prefix=other")
    with pytest.raises(RefusedError, match="ermission"):
        connector.put([b"data"])


def test_a_server_that_drops_keys_is_announced(tmp_path: Path) -> None:
    with serving(tmp_path / "s", "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru") as server:
        connector = RedisConnector("127.0.0.1", server.port)
        with pytest.warns(RuntimeWarning, match="maxmemory-policy is allkeys-lru") as seen:
            key = connector.put([b"data"])
        assert len(seen) == 1
        assert connector.get(key) == b"data"
        RedisConnector("127.0.0.1", server.port).put([b"once is enough"])
    with serving(tmp_path / "t", "--maxmemory", "50mb", "--maxmemory-policy", "noeviction") as server:
        RedisConnector("127.0.0.1", server.port).put([b"data"])


def test_more_than_the_server_takes_in_one_value(server: Server) -> None:
    block = os.urandom(1 << 20)
    connector = RedisConnector("127.0.0.1", server.port)
    key = connector.put([block] * 600)
    got = connector.get(key)
    assert got is not None
    view = memoryview(got)
    assert view.nbytes == 600 << 20
    assert all(view[start : start + len(block)] == block for start in range(0, view.nbytes, len(block)))
    connector.evict(key)
    assert not connector.exists(key)


@pytest.mark.parametrize("kind", ["redis", "unix", "rediss"])
def test_memory(kind: str, server: Server, request: pytest.FixtureRequest) -> None:
    url = {"redis": f"redis://{server.address}", "unix": f"unix://{server.socket}"}.get(kind)
    if url is None:
        tls, files = request.getfixturevalue("secured")
        url = f"rediss://{tls.address}?" + "&".join(f"{name}={path}" for name, path in files.items())
    put, get = in_new_process(peaks, url, 200_000_000)
    assert put < 0.2
    assert get < 1.2


# Parts.


@given(st.lists(st.integers(0, 50), max_size=12))
def test_objects_are_cut_where_parts_end(sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_PART", 16)
        whole = bytes(number % 251 for number in range(sum(sizes)))
        ends = list(itertools.accumulate(sizes))
        views = [memoryview(whole)[end - size : end] for size, end in zip(sizes, ends, strict=True) if size]
        parts = [b"".join(part) for part in split(views, layout._PART)]
        assert b"".join(parts) == whole
        assert len(parts) == layout._parts(len(whole))
        assert all(len(part) == 16 for part in parts[:-1])


# Servers that fail.


def test_nobody_is_there() -> None:
    connector = open_connector(f"redis://127.0.0.1:{free_port()}?connect_timeout=0.2")
    for use in (lambda: connector.put([b"data"]), lambda: connector.get(f"s.{'0' * 20}.5")):
        with pytest.raises(UnreachableError, match="Check host and port") as caught:
            use()
        assert caught.value.store == connector.url


def test_no_such_host() -> None:
    with pytest.raises(UnreachableError):
        open_connector("redis://no-such-host.invalid?connect_timeout=0.1").put([b"data"])


def test_no_such_socket(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        RedisUnixConnector(tmp_path / "s", connect_timeout=0.1).put([b"data"])


def test_no_such_database(server: Server) -> None:
    with pytest.raises(ConfigurationError, match="DB index"):
        open_connector(f"redis://{server.address}/999").put([b"data"])


def test_a_cluster_that_is_none(server: Server) -> None:
    with pytest.raises(ConfigurationError, match="cluster support"):
        open_connector(f"redis+cluster://{server.address}").put([b"data"])


def test_a_single_server_of_a_cluster(cluster: list[Server]) -> None:
    connector = open_connector(f"redis://{cluster[0].address}")
    with pytest.raises(ConfigurationError, match=r"redis\+cluster://"):
        connector.evict_batch([f"s.{digit}{'0' * 19}.5" for digit in "0123456789abcdef"])  # type: ignore[attr-defined]


def test_tls_to_a_plain_port(server: Server) -> None:
    with pytest.raises(UnreachableError, match="Does this port speak TLS"):
        open_connector(f"rediss://{server.address}?connect_timeout=0.5").put([b"data"])


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
def test_tls_to_a_port_that_says_nothing(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connector = open_connector(f"{scheme}://127.0.0.1:{port}?connect_timeout=0.2&deadline=3600")
        with pytest.raises(UnreachableError, match="Does this port speak TLS"):
            connector.get(f"s.{'0' * 20}.5")


def test_a_plain_connection_to_a_tls_port(secured: tuple[Server, dict[str, Any]]) -> None:
    with pytest.raises(UnreachableError, match="rediss://"):
        open_connector(f"redis://{secured[0].address}?connect_timeout=0.2").put([b"data"])


@pytest.mark.parametrize("given", [[], ["ca"], ["cert", "key"]], ids=["nothing", "authority", "certificate"])
def test_who_is_not_trusted(given: list[str], secured: tuple[Server, dict[str, Any]]) -> None:
    server, files = secured
    connector = RedisTLSConnector("127.0.0.1", server.port, **{name: files[name] for name in given})
    with pytest.raises(RefusedError, match=r"\?ca="):
        connector.put([b"data"])


def test_something_else_on_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    plug, _ = listener.accept()
                    with plug:
                        plug.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        plug.recv(1000)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UnreachableError, match="no Redis server"):
            RedisConnector("127.0.0.1", listener.getsockname()[1], connect_timeout=0.1).put([b"data"])
        listener.shutdown(socket.SHUT_RDWR)


def test_killed_and_restarted(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as server:
        connector = RedisConnector("127.0.0.1", server.port, connect_timeout=0.5)
        lost = connector.put([b"data"])
        killer = threading.Timer(0.3, server.kill)

        def work() -> None:
            while True:
                connector.evict(connector.put([bytes(PART)] * 8, session="s"))

        killer.start()
        with pytest.raises(UnreachableError) as caught:
            work()
        assert caught.value.store == connector.url
        killer.join()
        server.start()
        key = connector.put([b"data"])
        assert connector.get(key) == b"data"
        assert connector.get(lost) is None


def test_a_restart_in_the_midst_is_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path / "s", "--appendonly", "yes", "--appendfsync", "always") as server:
        connector = RedisConnector("127.0.0.1", server.port, connect_timeout=30)
        stop = threading.Event()

        def work() -> list[Key]:
            keys = []
            while not stop.is_set():
                keys.append(connector.put([b"data"], session="s"))
                assert connector.get(keys[-1]) == b"data"
            return keys

        with ThreadPoolExecutor(4) as executor:
            futures = [executor.submit(work) for _ in range(4)]
            for _ in range(2):
                time.sleep(0.2)
                server.kill()
                time.sleep(0.1)
                server.start()
            stop.set()
            for future in futures:
                assert all(connector.get_batch(future.result()))


def test_no_answer_in_time(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as server:
        connector = RedisConnector("127.0.0.1", server.port, deadline=0.5)
        key = connector.put([b"data"])
        server.freeze()
        for use in (
            lambda: connector.get(key),
            lambda: connector.put([b"data"]),
            lambda: connector.evict(key),
        ):
            with pytest.raises(DeadlineError, match="deadline="):
                use()
        server.thaw()
        until(lambda: connector.get(key) in (b"data", None), 5)


def test_full(tmp_path: Path) -> None:
    with serving(tmp_path / "s", "--maxmemory", "30mb") as server:
        connector = RedisConnector("127.0.0.1", server.port)
        connector.renew("s", 600)
        small = connector.put([b"data"], session="s")
        for session in ("user", "s"):
            with pytest.raises(FullError, match="maxmemory") as caught:
                connector.put([bytes(PART)] * 64, session=session)
            assert caught.value.store == connector.url
        fields = [field for key in server.witness.keys("ps:*") for field in server.witness.hkeys(key)]
        assert sorted(set(fields)) == sorted([b"lease", f"{small.partition('.')[2]}.0".encode()])
        blocks = []

        def fill() -> None:
            while True:
                blocks.append(connector.put([bytes(1 << 20)], session="s"))

        with pytest.raises(FullError):
            fill()
        connector.renew("s", 5000)  # a lease is not lost because there is no room
        assert connector.sessions()["s"] > 4990
        assert connector.get(small) == b"data"
        connector.evict_batch(blocks)
        assert connector.put([b"room again"])


# Processes.


def test_a_fork_has_connections_of_its_own(server: Server) -> None:
    connector = RedisConnector("127.0.0.1", server.port)
    data = {connector.put([bytes([number]) * 100_000]): number for number in range(20)}

    def check() -> bool:
        return all(connector.get(key) == bytes([number]) * 100_000 for key, number in data.items())

    done = threading.Event()

    def forks() -> list[bool]:
        try:
            return [in_fork(check) for _ in range(5)]
        finally:
            done.set()

    with ThreadPoolExecutor(2) as executor:
        forked = executor.submit(forks)
        while not done.is_set():
            assert check()
        assert forked.result() == [True] * 5
    connector.close(clear=True)


@pytest.mark.parametrize("window", [1, PART, 3 * PART, 1 << 30])
def test_how_much_is_asked_for_at_a_time_does_not_matter(window: int, server: Server) -> None:
    connector = RedisConnector("127.0.0.1", server.port)
    connector._window = window
    items = [os.urandom(size) for size in (5 * PART + 1, 10, 0, 2 * PART, 700_000, 700_000)]
    keys = connector.put_batch([[item] for item in items])
    assert [bytes(data or b"") for data in connector.get_batch(keys)] == items
    connector.close(clear=True)
    assert connector.get_batch(keys) == [None] * len(keys)


def test_connections_are_used_again(server: Server) -> None:
    connector = RedisConnector("127.0.0.1", server.port)
    connector.put([b"warm"])
    before = server.witness.info("stats")["total_connections_received"]
    for _ in range(100):
        connector.get(connector.put([b"data"]))
    assert server.witness.info("stats")["total_connections_received"] == before
    server.witness.client_kill_filter(_type="normal", skipme=True)
    assert connector.get(connector.put([b"again"])) == b"again"  # those that the server closed are replaced
    connector.close(clear=True)


def test_a_fork_reaches_a_cluster(cluster: list[Server]) -> None:
    connector = RedisClusterConnector([server.address for server in cluster])
    data = {connector.put([bytes([number]) * 10_000]): number for number in range(20)}

    def check() -> bool:
        return all(connector.get(key) == bytes([number]) * 10_000 for key, number in data.items())

    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            assert check()

    with ThreadPoolExecutor(2) as executor:
        futures = [executor.submit(work) for _ in range(2)]
        assert [in_fork(check) for _ in range(5)] == [True] * 5
        stop.set()
        for future in futures:
            future.result()
    connector.close(clear=True)


# Without the library.

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "redis":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from proxystore_core import MissingExtraError
from proxystore_core.recipe import open_connector
for url in sys.argv[1:]:
    try:
        open_connector(url)
    except MissingExtraError as error:
        print(error)
"""


def test_without_the_library_the_error_says_what_to_install() -> None:
    schemes = ["redis", "rediss", "unix", "keydb", "keydbs"]
    schemes += [f"{scheme}+{kind}" for scheme in ("redis", "rediss") for kind in ("cluster", "sentinel")]
    urls = [f"{scheme}://host" for scheme in schemes]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *urls], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f'{scheme}:// needs redis, which is not installed. Run: pip install "proxystore-integrations[redis]".'
        for scheme in schemes
    ]


# URLs and arguments.


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:6379",
        "redis://user@host:6379/2?prefix=mine&deadline=2.5",
        "redis://[::1]:6379",
        "redis://u%40x@host:1",
        "rediss://host:6380/1",
        "unix:///run/redis%20x.sock?db=2",
        "unix://user@/run/redis.sock",
        "redis+cluster://host:7000,host:7001",
        "rediss+cluster://user@host",
        "redis+sentinel://host:26379,other/main/2",
        "rediss+sentinel://host/main?connect_timeout=1.5",
        "keydb://host:6379/0".removesuffix("/0"),
        "keydbs://host:6379",
    ],
)
def test_urls(url: str) -> None:
    connector = open_connector(url)
    assert connector.url == url
    again = type(connector).from_config(connector.config())
    assert again.url == url
    assert again.config() == connector.config()
    assert connector.url.partition(":")[0] == connector.schemes[0]


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("redis://host/x", "database"),
        ("redis://host/-1", "database"),
        ("redis://a,b", "redis\\+cluster"),
        ("redis://host?deadline=soon", "deadline"),
        ("redis://host?deadline=0", "deadline"),
        ("redis://host?connect_timeout=-1", "connect_timeout"),
        ("redis://host?prefix=a:b", "prefix"),
        ("redis://host?ca=/x", "ca"),
        ("rediss://host?ca=/no/such/file", "certificate"),
        ("unix://host/s", "socket"),
        ("unix://", "socket"),
        ("redis+cluster://", "host:port"),
        ("redis+cluster://h:x", "bad port"),
        ("redis+cluster://h:x,g", "host:port"),
        ("redis+cluster://h/1", "database"),
        ("redis+sentinel://h", "service"),
    ],
)
def test_what_is_no_url(url: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        open_connector(url)


def test_arguments() -> None:
    assert RedisConnector("localhost", 6379).url == "redis://localhost:6379"
    assert RedisConnector().url == "redis://localhost:6379"
    with pytest.raises(TypeError):
        RedisConnector("localhost", 6379, no_such="x")
    with pytest.raises(ConfigurationError, match="database"):
        RedisConnector(db=-1)
    with pytest.raises(ConfigurationError, match="expected redis://"):
        RedisConnector.from_url("unix:///s")


def test_forged_sizes(server: Server) -> None:
    connector = RedisConnector("127.0.0.1", server.port)
    key = connector.put([b"data"])
    name = key.rpartition(".")[0]
    for size in ("04", "f" * 11, "", "-1", "5.0"):
        with pytest.raises(RefusedError):
            connector.get(f"{name}.{size}")
    for size in ("5", "1000000", "fffffff"):
        assert connector.get(f"{name}.{size}") is None
        assert not connector.exists(f"{name}.{size}")
        connector.evict(f"{name}.{size}")
    assert connector.get(key) == b"data"
    connector.close(clear=True)


def test_keys_of_others_are_left_alone(server: Server) -> None:
    server.witness.set("psx", "theirs")
    server.witness.hset("ps2:{user:0}", "f", "theirs")
    connector = RedisConnector("127.0.0.1", server.port)
    connector.put([b"data"])
    assert connector.sessions() == {}
    connector.end("user")
    assert server.witness.get("psx") == b"theirs"
    assert server.witness.hget("ps2:{user:0}", "f") == b"theirs"
    server.witness.delete("psx", "ps2:{user:0}")


def _total(numbers: list[int]) -> int:
    return sum(numbers)


def test_references_are_short(server: Server) -> None:
    with Store("example", connector=RedisConnector("localhost", server.port), register=True) as store:
        proxy = store.proxy(list(range(1000)))
        assert len(pickle.dumps(proxy)) <= 200
        assert in_new_process(_total, proxy) == 499500
        store.close(clear=True)
