"""One connection to a Redis server: requests written buffer by buffer, replies read into their place.

The protocol (RESP2) is small. Speaking it here instead of through a general client is what lets a
put write the caller's buffers without joining them, a get read into the one buffer that is handed
out, and a deadline hold for the whole operation rather than for each system call.
"""

from __future__ import annotations

import dataclasses
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from proxystore_core.buffers import fresh_buffer
from proxystore_core.connectors.base import Buffer

__all__ = ["Address", "Login", "Reply", "Request", "ServerError", "Wire", "command"]

Address: TypeAlias = tuple[str, int] | str
"""Host and port, or the path of a unix socket."""

Reply: TypeAlias = Any
"""bytes (a status), `ServerError`, int, bytearray or memoryview (a value), None, or a list of these."""

_JOINED = 32 << 10  # bytes up to which a copy is cheaper than another system call
_READ = 64 << 10


class ServerError(Exception):
    """An error that the server answered with; ``code`` is its first word."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


@dataclasses.dataclass(slots=True)
class Request:
    """One or several commands that belong together and concern one key; the answer is the last reply.

    Attributes:
        frames: the commands as they are sent (a memoryview is one of bytes).
        slot: hash slot of the key.
        replies: how many replies the commands have.
        into: where a value of exactly this length is read to.
    """

    frames: Sequence[Buffer]
    slot: int = 0
    replies: int = 1
    into: memoryview | None = None


@dataclasses.dataclass(frozen=True)
class Login:
    """Who connects, and how.

    Attributes:
        username: None for the server's default user.
        password: None for none.
        db: number of the database.
        tls: None for a plain connection.
        lenient: go on when the server turns out to want no password.
    """

    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = None
    lenient: bool = False


def command(*words: bytes) -> bytes:
    """A command as it is sent."""
    return b"*%d\r\n%b" % (len(words), b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words]))


class Wire:
    """A connection that is used by one thread at a time.

    Args:
        address: the server.
        login: who connects.
        until: time (`time.monotonic`) by which it must be open.

    Raises:
        OSError: no connection, no TLS, or not in time (TimeoutError).
        ServerError: the server refuses the login.
    """

    def __init__(self, address: Address, login: Login, until: float) -> None:
        self.fresh = True  # nothing was ever answered here
        self._buffer = bytearray(_READ)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._until = until
        self._socket = _connect(address, until)
        try:
            if login.tls is not None and not isinstance(address, str):
                self._socket = login.tls.wrap_socket(self._socket, server_hostname=address[0])
            self._log_in(login, until)
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        if "_socket" in self.__dict__:
            self._socket.close()

    def close(self) -> None:
        self._socket.close()

    def exchange(self, requests: Sequence[Request], until: float) -> list[list[Reply]]:
        """Send all requests in one go, then read their replies.

        After an exception the connection is of no use any more.

        Raises:
            OSError: it broke, or did not answer in time (TimeoutError).
        """
        self._until = until
        self._send([frame for request in requests for frame in request.frames])
        answers = [[self._reply(request.into) for _ in range(request.replies)] for request in requests]
        self.fresh = False
        return answers

    def _log_in(self, login: Login, until: float) -> None:
        words = []
        if login.password is not None:
            user = [login.username.encode()] if login.username else []
            words.append(command(b"AUTH", *user, login.password.encode()))
        if login.db:
            words.append(command(b"SELECT", b"%d" % login.db))
        if not words:
            return
        [replies] = self.exchange([Request([b"".join(words)], replies=len(words))], until)
        for reply in replies:
            if isinstance(reply, ServerError) and not (
                login.lenient and "without any password" in str(reply)
            ):
                raise reply

    def _send(self, frames: Sequence[Buffer]) -> None:
        joined = bytearray()
        for frame in frames:
            small = len(frame) <= _JOINED
            if small:
                joined += frame
            if joined and (not small or len(joined) > _JOINED):
                self._send_one(joined)
                joined = bytearray()
            if not small:
                self._send_one(frame)
        if joined:
            self._send_one(joined)

    def _send_one(self, buffer: Buffer) -> None:
        # The timeout of sendall is one for all of it.
        self._socket.settimeout(_left(self._until))
        self._socket.sendall(buffer)

    def _receive_into(self, view: memoryview) -> int:
        self._socket.settimeout(_left(self._until))
        count = self._socket.recv_into(view)
        if not count:
            raise ConnectionResetError("the server closed the connection")
        return count

    def _line(self) -> bytes:
        while True:
            end = self._buffer.find(b"\r\n", self._start, self._end)
            if end >= 0:
                line = bytes(self._view[self._start : end])
                self._start = end + 2
                return line
            if self._start:  # what is left is a part of a line
                left = bytes(self._view[self._start : self._end])
                self._buffer[: len(left)] = left
                self._start, self._end = 0, len(left)
            if self._end == _READ:
                raise ConnectionAbortedError("this is no Redis server: its line does not end")
            self._end += self._receive_into(self._view[self._end :])

    def _reply(self, into: memoryview | None = None) -> Reply:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"-":
            return ServerError(rest.decode(errors="replace"))
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._value(size, into)
        if kind == b"*":
            return [self._reply() for _ in range(int(rest))] if rest != b"-1" else None
        raise ConnectionAbortedError(f"this is no Redis server: it answered {line[:40]!r}")

    def _value(self, size: int, into: memoryview | None) -> bytearray | memoryview:
        there = self._end - self._start
        if size + 2 <= there and into is None:  # all of it was read along with the line before
            value = self._buffer[self._start : self._start + size]
            self._start += size + 2
            return value
        place = into if into is not None and into.nbytes == size else fresh_buffer(size)
        view = memoryview(place)
        done = min(there, size)
        view[:done] = self._view[self._start : self._start + done]
        self._start += done
        while done < size:
            done += self._receive_into(view[done:])
        self._line()
        return place


def _connect(address: Address, until: float) -> socket.socket:
    if isinstance(address, str):
        plug = socket.socket(socket.AF_UNIX)
        try:
            plug.settimeout(_left(until))
            plug.connect(address)
        except BaseException:
            plug.close()
            raise
        return plug
    plug = socket.create_connection(address, _left(until))
    plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return plug


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("out of time")
    return left
