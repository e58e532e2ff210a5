"""What the tests of node servers share: the contract, far and near, and what other processes do."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hosts import Remote, two_hosts
from redis_servers import free_port

from proxystore_core.connectors.base import Connector, Key
from proxystore_core.connectors.multi import multi_url
from proxystore_core.connectors.node import NodeConnector
from proxystore_core.connectors.node_place import SECRET, Place
from proxystore_core.connectors.node_protocol import Request
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    GoneError,
    RefusedError,
    UnreachableError,
)
from proxystore_core.recipe import open_connector
from proxystore_core.testing import ConnectorContract, until


def stored(connector: Connector) -> dict[str, bytes]:
    """All objects of a node's store, under their keys."""
    assert isinstance(connector, NodeConnector)
    place = connector._node.process.enter()
    found = {}
    root = connector._node.memory.store_dir
    for directory, _, names in os.walk(root):  # which takes no offence at what goes while we look
        session = os.path.basename(directory)
        for name in names if directory != root else ():
            with contextlib.suppress(FileNotFoundError):
                if name != ".lease":
                    found[f"{place}.{session}.{name}"] = Path(directory, name).read_bytes()
    return found


def server_of(connector: NodeConnector) -> int:
    """The process id of a node's server: the one that has its lock."""
    path = os.path.join(connector._node.process.directory, "server")
    status = os.stat(path)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "->" not in fields and fields[1] == "FLOCK" and fields[5] == f"{device}:{status.st_ino}":
            return int(fields[4])
    raise AssertionError("no server")


def kill_server(connector: NodeConnector) -> None:
    """Kill a node's server, and return when it is dead."""
    process = server_of(connector)
    os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            if server_of(connector) == process:
                time.sleep(0.01)
                continue
        return
    raise AssertionError("it does not die")


class NodeContract(ConnectorContract):
    """The contract for a transport's connector; all tests of a class share a server."""

    kind: ClassVar[type[Any]]
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def server(cls) -> Iterator[None]:
        connector = cls.kind(name="kept", **cls.options)
        connector._node.process.enter()
        yield
        connector.close()

    def make(self) -> Connector:
        connector: Connector = self.kind(name=secrets.token_hex(4), **self.options)
        return connector

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        return stored(connector)


class FarContract(NodeContract):
    """The contract where every object is fetched from, and evicted by, the node's server.

    `kind` is a class of `afar.AsFromAfar` in a module that other processes can import.
    """


# What other processes are told to do.


def put(connector: str, data: bytes, session: str = "user") -> Key:
    """Store something through the connector of a URL, which this process keeps open."""
    return opened(connector).put([data], session=session)


def get(connector: str, key: Key) -> bytes | None:
    data = opened(connector).get(key)
    return None if data is None else bytes(data)


def opened(url: str, kind: type[Any] | None = None) -> Any:
    """The connector of a URL: one a process."""
    if url not in _open:
        _open[url] = open_connector(url) if kind is None else kind.from_url(url)
    return _open[url]


_open: dict[str, Any] = {}


def peak_of_get(kind: type[Any], url: str, key: Key, size: int) -> float:
    """How much memory of its own a process takes at most to get an object, over the object's size."""
    connector = opened(url, kind)
    connector.get(connector.put([b"warm"]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))

    before = status("VmRSS")
    data = connector.get(key)
    assert len(data) == size
    return (status("VmHWM") - before) / size


class NodeTests:
    """What every transport's node has to do besides the contract."""

    kind: ClassVar[type[Any]]
    far: ClassVar[type[Any]]
    """As `kind`, of `afar.AsFromAfar`."""

    @pytest.fixture
    def name(self) -> str:
        return secrets.token_hex(4)

    @pytest.fixture
    def near(self, name: str) -> Iterator[Any]:
        yield from _cleared(self.kind(name=name))

    @pytest.fixture
    def afar(self, near: Any, name: str) -> Iterator[Any]:
        connector = self.far(name=name, deadline=5, connect_timeout=0.5)
        yield connector
        connector.close()

    def test_the_server_starts_with_its_first_user_and_stops_with_its_last(self, name: str) -> None:
        one, other = self.kind(name=name, deadline=29), self.kind(name=name)
        directory = Path(one._node.process.directory)
        until(lambda: not directory.exists())
        one.evict(one.put([b"data"]))
        other.evict(other.put([b"data"]))
        server = server_of(one)
        one.close()
        other.evict(other.put([b"data"]))
        assert server_of(other) == server
        other.close(clear=True)
        until(lambda: not directory.exists())

    def test_a_killed_server_comes_back_where_it_was(self, near: Any, afar: Any) -> None:
        key = near.put([b"x" * 3_000_000])
        assert afar.get(key) == b"x" * 3_000_000
        kill_server(near)
        with pytest.raises(UnreachableError, match="node"):
            afar.get(key)
        assert near.get(key) == b"x" * 3_000_000
        other = near.put([b"more"])
        assert afar.get(other) == b"more"
        assert afar.get(key) == b"x" * 3_000_000

    def test_a_frozen_server(self, near: Any, name: str) -> None:
        afar = self.far(name=name, deadline=1, connect_timeout=0.5)
        key = near.put([b"data"])
        assert afar.get(key) == b"data"
        server = server_of(near)
        os.kill(server, signal.SIGSTOP)
        try:
            with pytest.raises((DeadlineError, UnreachableError)):
                afar.get(key)
        finally:
            os.kill(server, signal.SIGCONT)
        assert afar.get(key) == b"data"
        afar.close()

    def test_killed_users(self, name: str) -> None:
        url = self.kind(name=name, deadline=28).url
        connector = self.kind.from_url(url)
        directory = Path(connector._node.process.directory)
        users = [Remote() for _ in range(2)]
        keys = [user.call(put, url, b"data") for user in users]
        for user in users:
            user.kill()
        for user in users:
            user.close()
        until(lambda: not directory.exists())
        assert [connector.get(key) for key in keys] == [b"data"] * 2
        connector.end("user")
        connector.close()

    def test_a_killed_client_s_objects_are_served_until_its_lease_lapses(self, name: str) -> None:
        url = self.kind(name=name, deadline=27).url
        connector = self.kind.from_url(url)
        client = Remote()
        session = client.call(begin_session, url, 3.0)
        key = client.call(put, url, b"data", session)
        client.kill()
        client.close()
        afar = self.far.from_url(url)
        assert afar.get(key) == b"data"
        afar.close()
        directory = Path(connector._node.process.directory)
        until(lambda: not directory.exists())
        assert not os.path.exists(os.path.join(connector._node.memory.store_dir, session))
        connector.close()

    def test_many_start_at_the_same_time(self, name: str) -> None:
        url = self.kind(name=name, deadline=26).url
        users = [Remote() for _ in range(4)]
        for user in users:
            user.start(put, url, b"data")
        keys = [user.answer() for user in users]
        assert len({key.partition(".user.")[0] for key in keys}) == 1
        connector = self.kind.from_url(url)
        assert [connector.get(key) for key in keys] == [b"data"] * 4
        connector.end("user")
        connector.close()
        for user in users:
            user.close()

    def test_another_secret(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        mine = self.kind(name=name, secret="a secret of 16 characters")
        theirs = self.kind(name=name, secret="another one of 16 characters", deadline=5)
        same = self.far(name=name, secret="a secret of 16 characters")
        key = mine.put([b"data"])
        for use in (theirs.get, theirs.exists, theirs.evict):
            with pytest.raises(RefusedError, match="secret"):
                use(key)
        assert same.get(key) == b"data"
        monkeypatch.setenv(SECRET, "a secret of 16 characters")
        again = self.far.from_url(mine.url)
        assert "characters" not in again.url
        assert again.get(key) == b"data"
        mine.evict(key)
        for connector in (mine, theirs, same, again):
            connector.close()

    def test_nobody_listens(self, near: Any, name: str) -> None:
        reader = self.kind(name=name, deadline=5, connect_timeout=0.3)
        place = Place(reader._node.host, free_port())
        key = near.put([b"data"]).replace(str(near._node.process.enter()), str(place))
        near._node.memory.end("user")
        for use in (reader.get, reader.exists, reader.evict):
            with pytest.raises(UnreachableError, match=str(place)):
                use(key)
        reader.close()

    def test_evicting_what_a_node_had_at_another_port(self, near: Any) -> None:
        """It came back at this one, and nobody listens at that."""
        here = str(near._node.process.enter())
        there = str(Place(near._node.host, free_port()))
        key, reserved = near.put([b"data"]), near.reserve()
        near.evict(key.replace(here, there))
        assert near.get(key) is None
        near.evict(reserved.replace(here, there))
        with pytest.raises(RefusedError):
            near.set(reserved, [b"data"])

    def test_a_node_that_comes_back_at_another_port(self, name: str, tmp_path: Path) -> None:
        """For who uses it, it is the same: what it had is here, and what it has no more is nowhere."""
        one, other = (self.kind(name=name, spill=tmp_path, connect_timeout=0.3) for _ in range(2))
        kept, gone = one.put([b"data"]), other.put([b"data"])
        reserved, forgotten = one.reserve(), other.reserve()
        with moved(one) as (before, after):
            assert other.put([b"new"]).startswith(f"{after}.")  # also where another user has started it
            assert all(key.startswith(f"{before}.") for key in (kept, gone, reserved, forgotten))
            for key in (gone, forgotten):
                other.evict(key)
            for connector in (one, other):
                assert connector.get(kept) == b"data"
                assert connector.exists(kept)
                assert not connector.wait(reserved, 0.01)
                assert connector.get(gone) is None
                assert not connector.exists(gone)
                connector.evict(gone)
                with pytest.raises(GoneError):
                    connector.wait(forgotten, 1)
                with pytest.raises(RefusedError, match="reserved"):
                    connector.set(forgotten, [b"data"])
            one.set(reserved, [b"there"])
            assert other.wait(reserved, 1)
            assert other.get(reserved) == b"there"
            one.end("user")
        one.close()
        other.close()

    def test_a_port_that_is_taken(self, name: str) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            connector = self.kind(port=taken.getsockname()[1], name=name)
            with pytest.raises(ConfigurationError, match="listen"):
                connector.put([b"data"])
            connector.close()

    def test_objects_of_many_clients(self, near: Any, afar: Any) -> None:
        objects = [os.urandom(1_500_000 + number) for number in range(4)]
        keys = [near.put([data]) for data in objects]
        with ThreadPoolExecutor(16) as executor:
            found = list(executor.map(afar.get, keys * 8))
        assert found == objects * 8

    def test_memory(self, near: Any) -> None:
        size = 80_000_000
        key = near.put([bytes(size)])
        reader = Remote()
        assert reader.call(peak_of_get, self.far, near.url, key, size) < 1.2
        reader.close()

    def test_an_evicted_object_while_it_is_fetched(self, near: Any, afar: Any) -> None:
        size = 20_000_000
        stop = threading.Event()
        keys = [near.put([bytes([number]) * size]) for number in range(5)]

        def evict() -> None:
            for key in keys:
                time.sleep(0.01)
                near.evict(key)
            stop.set()

        thread = threading.Thread(target=evict)
        thread.start()
        while not stop.is_set():
            for number, key in enumerate(keys):
                assert afar.get(key) in (None, bytes([number]) * size)
        thread.join()

    def test_what_is_asked_after_an_object_went_midway(
        self, near: Any, afar: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was asked for ahead is answered, too: those are no answers to who comes next."""
        key, other = near.put([bytes(20_000_000)]), near.put([b"data"])
        reply, evicted = afar._client._reply, []

        def evict_after_first(channel: Any, request: Request, *rest: Any) -> Any:
            answer = reply(channel, request, *rest)
            if not evicted:
                evicted.append(key)
                afar.evict(key)
            return answer

        monkeypatch.setattr(afar._client, "_reply", evict_after_first)
        assert afar.get(key) is None
        assert afar.get(other) == b"data"


class TwoHostsTests:
    """What every transport does between two hosts."""

    scheme: ClassVar[str]

    @property
    def url(self) -> str:
        return f"{self.scheme}://?interface=cable"

    @pytest.fixture
    def hosts(self) -> Iterator[tuple[Remote, Remote]]:
        secret = {SECRET: "a secret of two hosts"}
        with two_hosts() as (one, other):
            remotes = Remote(one, **secret), Remote(other, **secret)
            yield remotes
            for remote in remotes:
                remote.close()

    def test_objects(self, hosts: tuple[Remote, Remote]) -> None:
        one, other = hosts
        data = os.urandom(5_000_000)
        key = one.call(put, self.url, data)
        assert key.startswith("10.97.0.1:")
        assert other.call(get, self.url, key) == data
        back = other.call(put, self.url, b"back")
        assert back.startswith("10.97.0.2:")
        assert one.call(get, self.url, back) == b"back"
        assert one.call(look, "exists", self.url, back)
        one.call(look, "evict", self.url, back)
        assert not other.call(look, "exists", self.url, back)

    def test_a_session_of_both(self, hosts: tuple[Remote, Remote]) -> None:
        one, other = hosts
        session = one.call(begin_session, self.url, 100.0)
        keys = [host.call(put, self.url, b"data", session) for host in hosts]
        # The other node takes over what is left of the lease, not the usual ten minutes.
        assert 90 < other.call(look, "sessions", self.url)[session] <= 100
        one.call(look, "renew", self.url, session, 200.0)
        assert 190 < other.call(look, "sessions", self.url)[session] <= 200
        other.call(look, "renew", self.url, session, 300.0)
        assert [290 < host.call(look, "sessions", self.url)[session] <= 300 for host in hosts] == [True, True]
        for seconds, host in zip((400.0, 500.0), hosts, strict=True):
            assert host.call(look, "extend", self.url, session, seconds)
            left = [host.call(look, "sessions", self.url)[session] for host in hosts]
            assert seconds - 10 < min(left) <= max(left) <= seconds
        assert one.call(look, "end", self.url, session) == 2
        assert [host.call(look, "extend", self.url, session, 100.0) for host in hosts] == [False, False]
        for host in hosts:
            assert [host.call(get, self.url, key) for key in keys] == [None, None]
            assert host.call(look, "sessions", self.url) == {}

    def test_a_session_that_is_ended_from_elsewhere(self, hosts: tuple[Remote, Remote]) -> None:
        one, other = hosts
        session = one.call(begin_session, self.url, 100.0)
        for host in hosts:
            host.call(put, self.url, b"data", session)
        assert other.call(look, "end", self.url, session) == 2
        assert [host.call(look, "sessions", self.url) for host in hosts] == [{}, {}]

    @pytest.mark.parametrize("second", ["zmq://?interface=cable", "ucx://?interface=cable", "its own"])
    def test_a_session_of_several_stores(self, hosts: tuple[Remote, Remote], second: str) -> None:
        """Of which each has its own nodes, which know of its objects."""
        if second == self.url:
            pytest.skip("that is the first")
        parts: dict[str, dict[str, Any]] = {
            "a": {"url": self.url, "max_size": 10},
            "b": {"url": f"{self.url}&spill=/dev/shm/spill" if second == "its own" else second},
        }
        url, (one, other) = multi_url(parts), hosts
        session = one.call(begin_session, url, 100.0)
        for host in (other, one):
            for data in (b"a", b"something for b"):
                host.call(put, url, data, session)
        one.call(look, "renew", url, session, 200.0)
        assert [190 < host.call(look, "sessions", url)[session] <= 200 for host in hosts] == [True, True]
        assert one.call(look, "end", url, session) == 4
        assert [host.call(look, "sessions", url) for host in hosts] == [{}, {}]

    def test_a_node_that_comes_back_at_another_port(self, hosts: tuple[Remote, Remote]) -> None:
        """Others hear so from the session's home, which is told by who puts something there."""
        one, other = hosts
        url = f"{self.url}&connect_timeout=0.3"
        session = one.call(begin_session, url, 100.0)
        kept, gone = [other.call(put, url, b"data", session) for _ in range(2)]
        reserved = other.call(look, "reserve", url)
        other.call(move, url)
        for method, *args in ("get",), ("exists",), ("evict",), ("wait", 1), ("set", [b"data"]):
            for key in (kept, reserved):
                with pytest.raises(UnreachableError, match=r"10\.97\.0\.2"):
                    one.call(look, method, url, key, *args)
        later = other.call(put, url, b"later", session)
        assert later.partition(".user")[0].partition(session)[0] != kept.partition(session)[0]
        for _ in range(2):
            assert one.call(get, url, kept) == one.call(get, url, gone) == b"data"
            assert one.call(look, "exists", url, kept)
        one.call(look, "evict", url, gone)
        assert not one.call(look, "exists", url, gone)
        assert other.call(get, url, gone) is None
        one.call(look, "renew", url, session, 200.0)
        assert [190 < host.call(look, "sessions", url)[session] <= 200 for host in hosts] == [True, True]
        assert one.call(look, "end", url, session) == 2

    def test_a_session_s_home_that_comes_back_at_another_port(self, hosts: tuple[Remote, Remote]) -> None:
        one, other = hosts
        url = f"{self.url}&connect_timeout=0.3"
        session = one.call(begin_session, url, 100.0)
        for host in hosts:
            host.call(put, url, b"data", session)
        one.call(move, url)
        one.call(look, "renew", url, session, 200.0)
        assert [190 < host.call(look, "sessions", url)[session] <= 200 for host in hosts] == [True, True]
        with pytest.raises(UnreachableError, match=r"10\.97\.0\.1"):
            other.call(look, "renew", url, session, 300.0)
        assert 290 < other.call(look, "sessions", url)[session] <= 300  # of what it has itself, all the same
        assert one.call(look, "extend", url, session, 200.0)
        assert one.call(look, "end", url, session) == 2
        assert [host.call(look, "sessions", url) for host in hosts] == [{}, {}]

    def test_another_node_at_the_old_port(self, hosts: tuple[Remote, Remote]) -> None:
        """It has none of these objects, and says neither that they are gone nor that they are evicted."""
        one, other = hosts
        url = f"{self.url}&connect_timeout=0.3"
        key, reserved = other.call(put, url, b"data"), other.call(look, "reserve", url)
        port = int(key.partition(":")[2].partition(".")[0])
        other.call(kill_server_of, url)
        other.call(put, f"{self.scheme}://:{port}?interface=cable&spill=/dev/shm/spill", b"another node's")
        for method, *args in ("get",), ("exists",), ("evict",), ("wait", 1), ("set", [b"data"]):
            with pytest.raises(UnreachableError, match="another node"):
                one.call(look, method, url, reserved if args else key, *args)
        assert other.call(get, url, key) == b"data"

    def test_a_session_of_two_stores_of_the_same_nodes(self, hosts: tuple[Remote, Remote]) -> None:
        """Which has one home."""
        a, b = (f"{self.scheme}://{name}?interface=cable" for name in "ab")
        url, (one, other) = multi_url({"a": {"url": a, "max_size": 10}, "b": {"url": b}}), hosts
        session = one.call(begin_session, url, 100.0)
        assert session.count("-") == 1
        for data in (b"a", b"something for b"):
            other.call(put, url, data, session)
        assert one.call(look, "end", url, session) == 2
        assert [host.call(look, "sessions", url) for host in hosts] == [{}, {}]

    def test_a_writer_that_is_killed_as_it_first_puts(self, hosts: tuple[Remote, Remote]) -> None:
        one, other = hosts
        session = one.call(begin_session, self.url, 100.0)
        other.call(put_and_die, self.url, session)
        assert len(other.call(look, "keys", self.url, session)) == 1
        assert one.call(look, "end", self.url, session) == 1
        assert other.call(look, "keys", self.url, session) == []

    def test_a_future_across_hosts(self, hosts: tuple[Remote, Remote]) -> None:
        one, other = hosts
        key = one.call(look, "reserve", self.url)
        other.start(wait_and_get, self.url, key)
        one.call(look, "set", self.url, key, [b"here"])
        assert other.answer() == b"here"
        theirs = one.call(look, "reserve", self.url)
        one.start(wait_and_get, self.url, theirs)
        data = os.urandom(3_000_000)
        other.call(look, "set", self.url, theirs, [data])
        assert one.answer() == data

    def test_a_host_that_is_gone(self, hosts: tuple[Remote, Remote]) -> None:
        one, other = hosts
        url = f"{self.url}&connect_timeout=0.3"
        key = other.call(put, url, b"data")
        assert one.call(get, url, key) == b"data"
        other.call(kill_server_of, url)
        with pytest.raises(UnreachableError, match=r"10\.97\.0\.2"):
            one.call(get, url, key)

    def test_a_host_that_is_full(self, hosts: tuple[Remote, Remote]) -> None:
        one, other = hosts
        url = f"{self.url}&spill=/dev/shm/spill"
        other.call(shrink_memory, "8m")
        kept, key = other.call(put, url, b"kept"), other.call(look, "reserve", url)
        for use in (
            lambda: one.call(look, "set", url, key, [bytes(20_000_000)]),
            lambda: other.call(put, url, bytes(20_000_000)),
        ):
            with pytest.raises(FullError):
                use()
        assert one.call(get, url, kept) == b"kept"
        one.call(look, "set", url, key, [b"there is room for less"])
        assert other.call(get, url, key) == b"there is room for less"

    def test_loopback_is_another_place_on_every_host(self, hosts: tuple[Remote, Remote]) -> None:
        one, other = hosts
        key = one.call(put, f"{self.scheme}://", b"data")
        with pytest.raises(UnreachableError, match="loopback") as caught:
            other.call(get, f"{self.scheme}://", key)
        assert "interface" in str(caught.value)


def look(method: str, url: str, *args: Any) -> Any:
    return getattr(opened(url), method)(*args)


def wait_and_get(url: str, key: str) -> bytes:
    connector = opened(url)
    assert connector.wait(key, 20)
    return bytes(connector.get(key))


def shrink_memory(size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", "/dev/shm"], check=True)


def kill_server_of(url: str) -> None:
    kill_server(opened(url))


@contextlib.contextmanager
def moved(connector: NodeConnector) -> Iterator[tuple[Place, Place]]:
    """While somebody else listens where a node's server did, which was killed; places, before and after."""
    before = connector._node.process.enter()
    kill_server(connector)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        until(lambda: _is_bound(taken, (connector._node.address, before.port)))  # and lets nobody in
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # nor listen beside it
        after = connector._node.process.enter()
        assert after.port != before.port
        yield before, after


def _is_bound(taken: socket.socket, place: tuple[str, int]) -> bool:
    """The kernel takes a moment for a killed process's connections, as another client may for the port."""
    with contextlib.suppress(OSError):
        taken.bind(place)
        return True
    return False


def move(url: str) -> None:
    """As `moved`, for the rest of this process's life."""
    _moves.enter_context(moved(opened(url)))


_moves = contextlib.ExitStack()


def put_and_die(url: str, session: str) -> None:
    """Be killed, in a fork, when the first object has been written and nobody else knows of it."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    memory = opened(url)._node.memory
    write = memory.put

    def written(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    memory.put = written
    opened(url).put([b"data"], session=session)


def begin_session(url: str, lease: float) -> str:
    connector = opened(url)
    session: str = connector.new_session()
    connector.renew(session, lease)
    return session


def _cleared(connector: Any) -> Iterator[Any]:
    yield connector
    for session in ["user", *connector.sessions()]:
        connector.end(session)
    connector.close(clear=True)
