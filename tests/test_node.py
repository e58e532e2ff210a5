"""The parts of node servers that no transport is needed for: format, requests, places, secrets."""

from __future__ import annotations

import os
import pickle
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxystore_core.connectors.base import Buffer
from proxystore_core.connectors.node_client import NodeClient, _chunks
from proxystore_core.connectors.node_place import (
    ADDRESS,
    LOOPBACK,
    SECRET,
    Place,
    address_of,
    home_of,
    load_secret,
    name_of_session,
)
from proxystore_core.connectors.node_process import NodeProcess
from proxystore_core.connectors.node_protocol import (
    CHUNK,
    LONGEST_HEAD,
    REPLY_HEAD,
    ForgedError,
    Guard,
    MalformedError,
    Operation,
    Reply,
    Request,
    Status,
    digest_of,
    guard_of,
    parse_request,
)
from proxystore_core.connectors.node_server import NodeServer
from proxystore_core.connectors.shm import ShmConnector, node
from proxystore_core.connectors.ucx import UCXConnector
from proxystore_core.connectors.zmq import ZeroMQConnector
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.recipe import open_connector

KEY = bytes(range(32))
words = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-.:", max_size=255)
numbers = st.integers(0, 2**64 - 1)
requests = st.builds(
    Request,
    st.sampled_from(Operation),
    words,
    words,
    words,
    words,
    numbers,
    numbers,
    st.floats(allow_nan=False),
    st.binary(max_size=100),
    st.binary(min_size=16, max_size=16),
)


class TestFormat:
    @given(requests)
    def test_requests(self, request: Request) -> None:
        message = request.pack(KEY) + bytes(request.body)
        assert len(message) <= LONGEST_HEAD + len(request.body)
        assert parse_request(message, KEY) == request

    @given(requests, st.data())
    def test_one_changed_byte(self, request: Request, data: st.DataObject) -> None:
        message = bytearray(request.pack(KEY) + bytes(request.body))
        place = data.draw(st.integers(0, len(message) - 1))
        message[place] ^= data.draw(st.integers(1, 255))
        with pytest.raises((MalformedError, ForgedError)):
            parse_request(message, KEY)

    @given(requests, st.integers(0, 2000))
    def test_truncated(self, request: Request, length: int) -> None:
        message = request.pack(KEY) + bytes(request.body)
        if length < len(message):
            with pytest.raises((MalformedError, ForgedError)):
                parse_request(message[:length], KEY)

    @given(st.binary(max_size=2000))
    def test_anything(self, message: bytes) -> None:
        with pytest.raises((MalformedError, ForgedError)):
            parse_request(message, KEY)

    @given(st.sampled_from(Status), numbers, st.binary(max_size=100), st.sampled_from(Guard))
    def test_replies(self, status: Status, size: int, data: bytes, guard: Guard) -> None:
        nonce = os.urandom(16)
        head = Reply.pack(KEY, nonce, status, size, data, guard)
        assert len(head) == REPLY_HEAD
        reply = Reply.parse(head, KEY, nonce)
        assert (reply.status, reply.size, reply.count) == (status, size, len(data))
        reply.check(data, KEY)
        with pytest.raises(CorruptError):
            reply.check(data + b"x", KEY)
        for key, asked in ((os.urandom(32), nonce), (KEY, os.urandom(16))):
            with pytest.raises(RefusedError, match="secret"):
                Reply.parse(head, key, asked)

    @given(st.binary(max_size=100))
    def test_any_reply(self, head: bytes) -> None:
        with pytest.raises(RefusedError):
            Reply.parse(head, KEY, bytes(16))

    @pytest.mark.parametrize("guard", [Guard.SUM, Guard.SIGNATURE])
    def test_altered_data(self, guard: Guard) -> None:
        reply = Reply(Status.CONTENT, 4, 4, digest_of(b"data", guard, KEY), guard)
        reply.check(b"data", KEY)
        with pytest.raises(CorruptError, match="altered"):
            reply.check(b"dato", KEY)

    def test_what_leaves_the_host_is_signed(self) -> None:
        assert guard_of(LOOPBACK) is Guard.SUM
        assert guard_of("10.0.0.1") is Guard.SIGNATURE
        assert digest_of(b"data", Guard.SIGNATURE, KEY) != digest_of(b"data", Guard.SIGNATURE, bytes(32))

    @given(st.lists(st.integers(0, 3 * CHUNK // 2), max_size=4))
    @settings(max_examples=20, deadline=None)
    def test_chunks(self, sizes: list[int]) -> None:
        views = [memoryview(bytes([number]) * size) for number, size in enumerate(sizes) if size]
        chunks = list(_chunks(views))
        assert b"".join(bytes(body) for _, body in chunks) == b"".join(views)
        assert [offset for offset, _ in chunks] == list(range(0, max(1, sum(sizes)), CHUNK))
        assert all(memoryview(body).nbytes <= CHUNK for _, body in chunks)


def test_an_error_of_a_node_s_directory_names_the_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = NodeProcess(str(tmp_path / "file" / "node"), "zmq://x", dict)
    with pytest.raises(StoreError) as caught:
        process.use()
    assert caught.value.store == "zmq://x"


class TestServer:
    @pytest.fixture
    def memory(self) -> Iterator[ShmConnector]:
        memory = ShmConnector(f"test-{secrets.token_hex(4)}", stock=0)
        yield memory
        for session in ["user", *memory.sessions()]:
            memory.end(session)
        memory.close(clear=True)

    @pytest.fixture
    def server(self, memory: ShmConnector) -> Iterator[NodeServer]:
        directory = Path(memory.store_dir).parent / f"proxystore-{os.geteuid()}.{memory.name}"
        directory.mkdir(mode=0o700)
        server = NodeServer(str(directory), memory.name, KEY, Guard.SUM)
        yield server
        for space in server._all_spaces():
            for session in space.sessions():
                space.end(session)
            space.close()
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()

    def ask(self, server: NodeServer, request: Request) -> tuple[Reply, bytes]:
        replies: list[tuple[bytes, Buffer]] = []
        server.handle(
            request.pack(KEY) + bytes(request.body), lambda head, data: replies.append((head, data))
        )
        ((head, data),) = replies
        reply = Reply.parse(head, KEY, request.nonce)
        reply.check(data, KEY)
        return reply, bytes(data)

    def test_chunks_of_an_object(self, memory: ShmConnector, server: NodeServer) -> None:
        data = os.urandom(2 * CHUNK + 5)
        name = memory.put([data]).rpartition(".")[2]
        found = b""
        for offset in (0, CHUNK, 2 * CHUNK):
            reply, part = self.ask(
                server, Request(Operation.GET, server.prefix, "user", name, offset=offset, length=CHUNK)
            )
            assert (reply.status, reply.size) == (Status.CONTENT, len(data))
            found += part
        assert found == data
        assert not server._maps  # the last chunk is the last that anyone wants

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(requests)
    def test_authenticated_nonsense(self, server: NodeServer, request: Request) -> None:
        # Whoever has the secret may be of another version.
        if request.operation is not Operation.WAIT:
            request.space = server.prefix
            reply, _ = self.ask(server, request)
            assert reply.status in set(Status)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=500) | st.builds(pickle.dumps, st.lists(st.text())))
    def test_nonsense(self, memory: ShmConnector, server: NodeServer, message: bytes) -> None:
        key = memory.put([b"data"])
        replies: list[bytes] = []
        server.handle(message, lambda head, data: replies.append(head))
        assert Reply.parse(replies[0], KEY, bytes(16)).status is Status.REFUSED
        assert memory.get(key) == b"data"

    def test_a_request_that_is_repeated_does_the_same(self, memory: ShmConnector, server: NodeServer) -> None:
        """Whoever saw it can do so: nobody remembers what was asked. No object's name comes twice."""

        def repeated(request: Request) -> tuple[Reply, bytes]:
            once, again = self.ask(server, request), self.ask(server, request)
            assert once == again
            return again

        key, other = memory.put([b"data"]), memory.put([b"other"])
        name = key.rpartition(".")[2]
        read = Request(Operation.GET, server.prefix, "user", name, length=CHUNK)
        assert repeated(read)[1] == b"data"
        assert repeated(Request(Operation.EVICT, server.prefix, "user", name))[0].status is Status.DONE
        assert repeated(read)[0].status is Status.MISSING
        assert memory.get(other) == b"other"

    @pytest.mark.parametrize(
        ("session", "name"),
        [("..", "0" * 20), ("user", "../../../etc/passwd"), ("user", ".lease"), ("", ""), ("user", "0" * 21)],
    )
    def test_names_that_lead_elsewhere(self, server: NodeServer, session: str, name: str) -> None:
        for operation in (Operation.GET, Operation.EXISTS, Operation.EVICT, Operation.SET):
            reply, _ = self.ask(server, Request(operation, server.prefix, session, name, length=1, body=b"x"))
            assert reply.status in (Status.REFUSED, Status.FULL)

    @pytest.mark.parametrize("session", ["../../elsewhere", "nul\0", "a/b", "x" * 65])
    def test_sessions_that_lead_elsewhere(self, server: NodeServer, session: str) -> None:
        for operation in set(Operation) - {Operation.WAIT}:  # which answers later
            asked = Request(operation, server.prefix, session, "0" * 20, "10.0.0.2:1", seconds=1.0)
            assert self.ask(server, asked)[0].status is Status.REFUSED

    @pytest.mark.parametrize("space", ["..", "a/b", "x" * 65])
    def test_stores_that_are_none(self, server: NodeServer, space: str) -> None:
        assert self.ask(server, Request(Operation.END, space, "user"))[0].status is Status.REFUSED

    @pytest.mark.parametrize("space", ["", "zmq-0123456789ab", "zmq-0123456789ab-name"])
    def test_what_is_asked_of_another_node(self, server: NodeServer, space: str) -> None:
        for operation in set(Operation) - {Operation.GREET, Operation.WAIT}:
            asked = Request(operation, space, "user", "0" * 20)
            assert self.ask(server, asked)[0].status is Status.ELSEWHERE

    @pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
    def test_leases_that_are_none(self, server: NodeServer, seconds: float) -> None:
        asked = Request(Operation.RENEW, server.prefix, "s", seconds=seconds)
        assert self.ask(server, asked)[0].status is Status.REFUSED

    def test_too_much_at_a_time(self, memory: ShmConnector, server: NodeServer) -> None:
        name = memory.put([b"data"]).rpartition(".")[2]
        for offset, length in ((0, 2**64 - 1), (2**64 - 1, CHUNK), (5, CHUNK)):
            reply, data = self.ask(
                server, Request(Operation.GET, server.prefix, "user", name, offset=offset, length=length)
            )
            assert reply.status is Status.REFUSED
            assert b"data" not in data

    def test_sessions(self, memory: ShmConnector, server: NodeServer) -> None:
        memory.renew("run", 100)
        join = Request(Operation.JOIN, server.prefix, "run", text="10.0.0.2:5000")
        for _ in range(2):
            reply, _ = self.ask(server, join)
            assert (reply.status, round(reply.size, -4)) == (Status.DONE, 100_000)
        for session, place, status in (
            ("other", "10.0.0.2:1", Status.MISSING),
            ("run", "x/y", Status.REFUSED),
        ):
            wrong = Request(Operation.JOIN, server.prefix, session, text=place)
            assert self.ask(server, wrong)[0].status is status
        told = self.ask(server, Request(Operation.MEMBERS, server.prefix, "run"))
        assert (told[0].status, told[1]) == (Status.DONE, b"10.0.0.2:5000\n")
        memory.put([b"data"], session="run")
        assert server.is_needed()
        reply, data = self.ask(server, Request(Operation.END, server.prefix, "run"))
        assert (reply.size, data) == (1, b"10.0.0.2:5000\n")
        assert self.ask(server, Request(Operation.END, server.prefix, "run"))[1] == b""
        assert not server.is_needed()

    def test_lapsed_sessions_go_once_a_minute(
        self, memory: ShmConnector, server: NodeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("proxystore_core.connectors.file.UNRENEWED", -1.0)
            memory.put([b"data"], session="over")
        memory.renew("live", 100)
        server._swept = time.monotonic() - 55
        server.tick()
        assert set(memory.sessions()) == {"over", "live"}
        server._swept -= 6
        server.tick()
        assert set(memory.sessions()) == {"live"}

    def test_an_object_that_is_set_in_chunks(self, memory: ShmConnector, server: NodeServer) -> None:
        name = memory.reserve().rpartition(".")[2]

        def chunk(offset: int, body: bytes, upload: str = "one") -> Status:
            request = Request(Operation.SET, server.prefix, "user", name, upload, offset, 8, body=body)
            return self.ask(server, request)[0].status

        assert chunk(4, b"data") is Status.REFUSED  # no beginning
        assert chunk(0, b"some") is Status.DONE
        assert chunk(0, b"other", "two") is Status.DONE
        assert chunk(4, b"more than there is") is Status.REFUSED
        assert chunk(0, b"some") is Status.DONE
        assert chunk(4, b"data") is Status.DONE
        assert chunk(4, b"data") is Status.DONE  # its answer was lost
        assert chunk(5, b"one", "two") is Status.REFUSED  # set already
        assert memory.get(f"{memory.node}.user.{name}") == b"somedata"


class Liar:
    """A connection to a server that answers what it likes, with the right secret."""

    window = 8

    def __init__(self, replies: list[tuple[Status, int, bytes]]) -> None:
        self.replies = replies
        self.nonces: list[bytes] = []

    def send(self, message: Any) -> None:
        self.nonces.append(parse_request(message[0], KEY).nonce)

    def receive(self, into: memoryview | None, until: float) -> tuple[Buffer, Buffer]:
        status, size, data = self.replies.pop(0)
        return Reply.pack(KEY, self.nonces.pop(0), status, size, data, Guard.SUM), data

    def close(self) -> None:
        pass


class TestClient:
    def fetch(self, *replies: tuple[Status, int, bytes]) -> Buffer | None:
        client = NodeClient("x://", lambda *_: Liar(list(replies)), lambda: KEY, 5, 0.1)
        try:
            return client.fetch(Place(node(), 1), "", "user", "0" * 20)
        finally:
            client.close()

    def test_sizes_that_are_not_true(self) -> None:
        assert self.fetch((Status.CONTENT, 4, b"data")) == b"data"
        assert self.fetch((Status.MISSING, 0, b"")) is None
        with pytest.raises(CorruptError):
            self.fetch((Status.CONTENT, 10, b"data"))
        with pytest.raises(CorruptError):
            self.fetch((Status.CONTENT, CHUNK + 5, bytes(CHUNK)), (Status.CONTENT, CHUNK + 5, b"four"))
        with pytest.raises(FullError, match="no memory"):
            self.fetch((Status.CONTENT, 2**63, bytes(CHUNK)))

    def test_what_the_server_says(self) -> None:
        with pytest.raises(RefusedError, match="says: no") as caught:
            self.fetch((Status.REFUSED, 0, b"no"))
        assert f"node {node()}:1" in str(caught.value)
        with pytest.raises(FullError, match="says: full"):
            self.fetch((Status.FULL, 0, b"full"))


class TestPlaces:
    @given(st.text(max_size=80))
    def test_any_text(self, text: str) -> None:
        place = Place.parse(text)
        assert place is None or str(place) == text

    def test_addresses(self) -> None:
        assert Place("10.0.0.1", 5).address("zmq://") == "10.0.0.1"
        assert Place.at(LOOPBACK, 5).address("zmq://") == LOOPBACK
        with pytest.raises(UnreachableError, match="other-1a2b3c4d"):
            Place("other-1a2b3c4d", 5).address("zmq://")
        for forged in ("example.org", "localhost", "10.0.0.300", "1"):
            with pytest.raises(RefusedError):
                Place(forged, 5).address("zmq://")

    def test_sessions_tell_their_home(self) -> None:
        place = Place("10.20.30.40", 65535)
        session = name_of_session(place, "mark")
        assert home_of(session, "mark") == place
        assert session != name_of_session(place, "mark")
        assert home_of(name_of_session(Place.at(LOOPBACK, 1234), "mark"), "mark") is None
        for other in ("0123456789ab", "user", "my-session", "mark" + "00000000" + "0000-" + "0" * 12):
            assert home_of(other, "mark") is None

    def test_sessions_tell_several_homes(self) -> None:
        places = {
            "some": Place("10.20.30.40", 1),
            "more": Place("10.20.30.40", 2),
            "last": Place("9.9.9.9", 3),
        }
        session = ""
        for mark, place in places.items():
            session = name_of_session(place, mark, session)
        assert len(session) <= 64
        assert {mark: home_of(session, mark) for mark in places} == places
        assert name_of_session(places["some"], "some", session) == session  # of another store of these nodes
        with pytest.raises(ConfigurationError, match=r"three networks of nodes.*interface"):
            name_of_session(Place("9.9.9.9", 4), "none", session)

    def test_what_tells_the_nodes_of_one_store_from_another_s(self) -> None:
        def mark(**options: Any) -> str:
            return ZeroMQConnector(**options)._mark

        assert mark() == mark(name="a", deadline=3) == ZeroMQConnector.from_url("zmq://b")._mark
        others = (
            {"port": 5000},
            {"interface": "eth0"},
            {"address": "10.0.0.0/8"},
            {"curve": True},
            {"spill": "/x"},
        )
        found = {mark(), UCXConnector()._mark, *(mark(**options) for options in others)}
        assert len(found) == 2 + len(others)
        assert all(len(each) == 4 and each.islower() and each.isalpha() for each in found)

    def test_where_a_node_listens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(ADDRESS, raising=False)
        assert address_of(None, None, "zmq://") == LOOPBACK
        assert address_of("lo", None, "zmq://") == LOOPBACK
        assert address_of(None, "127.0.0.0/8", "zmq://") == LOOPBACK
        assert address_of(None, "127.0.0.1", "zmq://") == LOOPBACK
        for interface, address, match in (
            ("none0", None, "no interface 'none0'.*It has: "),
            (None, "203.0.113.7", "no address of this host.*interface="),
            (None, "203.0.113.0/24", "no address in 203.0.113.0/24"),
            (None, "1/2/3", "no network"),
        ):
            with pytest.raises(ConfigurationError, match=match):
                address_of(interface, address, "zmq://")
        monkeypatch.setenv(ADDRESS, "203.0.113.7")
        with pytest.raises(ConfigurationError, match=r"203\.0\.113\.7"):
            address_of("lo", None, "zmq://")


class TestSecrets:
    def test_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(SECRET, raising=False)
        path = tmp_path / "secret"
        with pytest.raises(ConfigurationError, match="no secret in"):
            load_secret(None, str(path), None, "zmq://")
        path.write_text("one of 16 or more characters\n")
        path.chmod(0o640)
        with pytest.raises(RefusedError, match="chmod 600"):
            load_secret(None, str(path), None, "zmq://")
        path.chmod(0o600)
        secret = load_secret(None, str(path), None, "zmq://")
        assert secret == load_secret("one of 16 or more characters", None, None, "zmq://")
        monkeypatch.setenv(SECRET, "another one of 16 or more characters")
        assert load_secret(None, str(path), None, "zmq://") == secret
        assert load_secret(None, None, None, "zmq://") != secret
        monkeypatch.setenv(SECRET, "short")
        with pytest.raises(ConfigurationError, match="at least 16"):
            load_secret(None, None, None, "zmq://")

    def test_one_is_made_when_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(SECRET, raising=False)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
        secret = load_secret(None, None, None, "zmq://")
        (path,) = (tmp_path / "configuration" / "proxystore").iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        assert load_secret(None, None, None, "zmq://") == secret
        assert load_secret(None, None, str(tmp_path), "zmq://") != secret


class TestURLs:
    @pytest.mark.parametrize(
        ("url", "match"),
        [
            ("zmq://10.0.0.1:5000", "no name.*address="),
            ("zmq://name:70000", "port"),
            ("zmq://?interface=a&address=b", "not both"),
            ("zmq://?deadline=0", "deadline"),
            ("zmq://?curve=maybe", "curve"),
            ("zmq:///path", "path"),
            ("zmq://user@", "user"),
        ],
    )
    def test_bad_ones(self, url: str, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            open_connector(url)

    def test_good_ones(self) -> None:
        url = "zmq://name:5000?address=10.0.0.0/8&curve=true&deadline=5.0"
        assert open_connector(url).url == url
        connector = ZeroMQConnector(5000, "eth0", name="name", secret="a secret of 16 characters")
        assert connector.url == "zmq://name:5000?interface=eth0"
        assert "secret of" not in repr(connector) + repr(connector.config())
