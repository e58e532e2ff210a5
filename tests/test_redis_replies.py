"""Replies read straight from a connection: however they are cut, and whatever else comes instead."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as said
from redis_servers import Server, serving
from waiting import until

from proxystore_core.connectors.base import Key
from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.redis_replies import Part, receive
from proxystore_core.errors import CorruptError, DeadlineError, UnreachableError
from proxystore_core.testing import ConnectorContract

WINDOW = 64


class ScriptedPool:
    """Stands in for a pool of redis-py: one connection, at whose other end a script is read out."""

    def __init__(self, pieces: Sequence[bytes], *, timeout: float = 5.0, stay: bool = False) -> None:
        self._sock, self.far = socket.socketpair()
        self.socket_timeout = timeout
        self._parser = redis._parsers._RESP2Parser(4096)
        self.lost = self.released = False
        self.sent: list[Any] = []
        self.reader = threading.Thread(target=self._read_out, args=(pieces, stay))
        self.reader.start()

    def _read_out(self, pieces: Sequence[bytes], stay: bool) -> None:
        for piece in pieces:
            self.far.sendall(piece)
        if not stay:
            self.far.shutdown(socket.SHUT_WR)

    def get_connection(self) -> ScriptedPool:
        return self

    def pack_commands(self, commands: Sequence[Any]) -> Sequence[Any]:
        return commands

    def send_packed_command(self, commands: Sequence[Any]) -> None:
        self.sent += commands

    def disconnect(self) -> None:
        self.lost = True

    def release(self, connection: ScriptedPool) -> None:
        assert connection is self
        self.released = True

    def close(self) -> None:
        self.reader.join()
        self._sock.close()
        self.far.close()


def wanted(sizes: Sequence[int]) -> list[Part]:
    return [
        Part(f"key {number}", ("GET", number), memoryview(bytearray(size)))
        for number, size in enumerate(sizes)
    ]


def reply(data: bytes | None) -> bytes:
    return b"$-1\r\n" if data is None else b"$%d\r\n%b\r\n" % (len(data), data)


def cut(text: bytes, at: Sequence[int]) -> list[bytes]:
    ends = sorted({min(end, len(text)) for end in at} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


@given(
    values=st.lists(st.none() | st.binary(max_size=100), min_size=1, max_size=20),
    at=st.lists(st.integers(0, 2200), max_size=30),
)
def test_replies_may_be_cut_anywhere(values: list[bytes | None], at: list[int]) -> None:
    parts = wanted([7 if value is None else len(value) for value in values])
    pool = ScriptedPool(cut(b"".join(map(reply, values)), at))
    try:
        found = receive([pool] * len(parts), parts, time.monotonic() + 5, WINDOW)
        assert found == [value is not None for value in values]
        got = [bytes(part.view) for part in parts]
        assert got == [bytes(7) if value is None else value for value in values]
        assert pool.sent == [part.command for part in parts]
        assert pool.released
        assert not pool.lost
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"", said.ConnectionError),
        (b"$4\r\nab", said.ConnectionError),
        (b"$4\r\nabcd", said.ConnectionError),
        (b"$4\r\nabcdef\r\n", said.InvalidResponse),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", said.InvalidResponse),
        (b":4\r\n", said.InvalidResponse),
        (b"x" * 100_000, said.InvalidResponse),
        (b"$5\r\nabcde\r\n", CorruptError),
        (b"$3\r\nabc\r\n", CorruptError),
        (b"$99999999999999999999\r\n", CorruptError),
        (b"$04\r\nabcd\r\n", CorruptError),
        (b"$-2\r\n", CorruptError),
        (b"$\r\n", CorruptError),
        (b"-LOADING Redis is loading the dataset in memory\r\n", said.BusyLoadingError),
        (b"-NOPERM this user has no permissions\r\n", said.NoPermissionError),
        (b"-MOVED 866 127.0.0.1:7001\r\n", said.MovedError),
        (b"-\xff\r\n", said.ResponseError),
    ],
)
def test_what_is_no_such_reply(text: bytes, kind: type[Exception]) -> None:
    first = b"first"
    pool = ScriptedPool([reply(first) + text])
    parts = wanted([len(first), 4])
    try:
        with pytest.raises(kind):
            receive([pool, pool], parts, time.monotonic() + 5, WINDOW)
        assert pool.lost
        assert pool.released
    finally:
        pool.close()


def test_a_hiredis_that_redis_py_does_not_like(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxystore_core.connectors.redis_login.HIREDIS_AVAILABLE", False)
    monkeypatch.delattr("redis.connection.hiredis")
    connector = RedisConnector("127.0.0.1", server.port)
    key = connector.put([b"some", bytes(3_000_000)])
    data = connector.get(key)
    assert data is not None
    assert bytes(data) == b"some" + bytes(3_000_000)
    connector.evict(key)
    connector.close()


def test_a_trickle_ends_with_the_deadline() -> None:
    pool = ScriptedPool([b"$1000\r\n", b"x" * 10], stay=True)
    try:
        begin = time.monotonic()
        with pytest.raises(said.TimeoutError):
            receive([pool], wanted([1000]), begin + 0.2, WINDOW)
        assert time.monotonic() - begin < pool.socket_timeout
        assert pool.lost
    finally:
        pool.close()


def test_connections_without_a_socket_are_left_to_redis_py() -> None:
    pool = ScriptedPool([])
    try:
        sock, pool._sock = pool._sock, None  # type: ignore[assignment]
        assert receive([pool], wanted([4]), time.monotonic() + 5, WINDOW) is None
        assert not pool.sent
        assert not pool.lost
        assert pool.released
        pool._sock = sock
    finally:
        pool.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(tmp_path_factory.mktemp("r") / "s") as server:
        yield server


class TestByRedisPyItself(ConnectorContract):
    """The contract, with parts read as where there is no socket."""

    @pytest.fixture(autouse=True)
    def on(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        monkeypatch.setattr("proxystore_core.connectors.redis_requests.receive", lambda *_: None)

    def make(self) -> RedisConnector:
        return RedisConnector("127.0.0.1", self.server.port, prefix=f"t{time.monotonic_ns()}")


@pytest.mark.parametrize("size", [10, 5_000_000])
def test_a_part_of_another_size(size: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    connector = RedisConnector("127.0.0.1", server.port)
    key = connector.put([bytes(size)])
    place, field = connector._field(*connector._parse(key)[:2], 0)
    server.witness.hset(place, field, b"other")
    for _ in range(2):
        with pytest.raises(CorruptError, match="another length") as caught:
            connector.get(key)
        assert caught.value.key == key
        assert caught.value.store == connector.url
        monkeypatch.setattr("proxystore_core.connectors.redis_requests.receive", lambda *_: None)
    connector.close(clear=True)


def test_a_server_that_freezes_in_the_midst_of_parts(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as server:
        connector = RedisConnector("127.0.0.1", server.port, deadline=0.5)
        key = connector.put([bytes(1 << 20)] * 64)
        freezer = threading.Timer(0.1, server.freeze)
        freezer.start()
        with pytest.raises(DeadlineError):
            get_for_ever(connector, key)
        freezer.join()
        server.thaw()
        until(lambda: connector.get(key) is not None)
        connector.close()


def test_a_server_that_dies_in_the_midst_of_parts(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as server:
        connector = RedisConnector("127.0.0.1", server.port, connect_timeout=0.3)
        key = connector.put([bytes(1 << 20)] * 64)
        killer = threading.Timer(0.1, server.kill)
        killer.start()
        with pytest.raises(UnreachableError):
            get_for_ever(connector, key)
        killer.join()
        server.start()
        assert connector.get(key) is None
        connector.close()


def get_for_ever(connector: RedisConnector, key: Key) -> None:
    while True:
        assert connector.get(key) is not None
