r"""Values of Redis servers, read from redis-py's connections straight to where they are wanted.

redis-py has no reading into a buffer: it collects a value's bytes, joins them and returns a copy.
Here its pools open and log in to connections, and lose those on which anything went wrong; the
replies in between are taken from the socket: ``$<size>\r\n<bytes>\r\n``, or ``$-1\r\n`` for none
(https://redis.io/docs/latest/develop/reference/protocol-spec/).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import exceptions as said

from proxystore_core.connectors.base import Key
from proxystore_core.errors import CorruptError
from proxystore_core.moving import moved

__all__ = ["Part", "receive"]

_LINE = 4 << 10  # bytes read at once for the first line of a reply; of a small value it is all


class Part(NamedTuple):
    """A value that is wanted: what to ask for, and where its bytes go."""

    key: Key
    command: tuple[Any, ...]
    view: memoryview

    def corrupt(self) -> CorruptError:
        return CorruptError("a part has another length than was stored", key=self.key)


def receive(pools: Sequence[Any], parts: Sequence[Part], until: float, window: int) -> list[bool] | None:
    """Ask for all parts and read each into its view.

    Args:
        pools: for each part, redis-py's pool of connections to the server that has it.
        parts: what is wanted.
        until: the time by which all should be there (``time.monotonic``).
        window: bytes asked for before those before them are read: so much a server holds for us.

    Returns:
        Whether each part was there; None, with nothing read, when a pool's connections have no
        socket that reads into a buffer.

    Raises:
        CorruptError: a part has another size than its view.
        RedisError, OSError: as redis-py would raise it.
    """
    lanes: dict[Any, _Lane] = {}
    sound = False
    try:
        for pool, part in zip(pools, parts, strict=True):
            lane = lanes.get(pool)
            if lane is None:
                lane = lanes[pool] = _Lane(pool, until, window)
            lane.wanted.append(part)
        found = None
        if all(lane.is_plain() for lane in lanes.values()):
            for lane in lanes.values():
                lane.ask()
            found = [lanes[pool].read(part) for pool, part in zip(pools, parts, strict=True)]
        sound = True
        return found
    finally:
        for lane in lanes.values():
            lane.leave(sound)


class _Lane:
    """One connection: parts that are still to be asked for, and those whose replies are on their way."""

    def __init__(self, pool: Any, until: float, window: int) -> None:
        self.wanted: deque[Part] = deque()
        self._pool = pool
        self._until = until
        self._window = window
        self._owed = 0  # bytes that were asked for and not yet read
        self._spare = b""  # read, and not yet used
        self._connection = pool.get_connection()
        self._wire: Any = getattr(self._connection, "_sock", None)

    def leave(self, sound: bool) -> None:
        """Give the connection back; who knows what one would still say on which anything went wrong."""
        try:
            if not sound:
                self._connection.disconnect()
            elif self.is_plain():
                self._wire.settimeout(self._connection.socket_timeout)
        finally:
            self._pool.release(self._connection)

    def is_plain(self) -> bool:
        return hasattr(self._wire, "recv_into")

    def ask(self) -> None:
        """Send requests as far as the bound allows."""
        commands = []
        while self.wanted and self._owed < self._window:
            part = self.wanted.popleft()
            commands.append(part.command)
            self._owed += part.view.nbytes
        if commands:
            self._connection.send_packed_command(self._connection.pack_commands(commands))

    def read(self, part: Part) -> bool:
        """Read the next reply, which is that to ``part``; whether there is such a value."""
        line = self._line()
        if line[:1] == b"-":
            raise self._connection._parser.parse_error(line[1:].decode("utf-8", "replace"))
        size = part.view.nbytes
        if line != b"$%d" % size and line != b"$-1":
            if line[:1] == b"$":
                raise part.corrupt()
            raise said.InvalidResponse(f"Protocol Error: {line[:40]!r}")
        if line != b"$-1":
            self._fill(part.view)
            moved(size)
            if self._line():
                raise said.InvalidResponse("Protocol Error: more bytes than announced")
        self._owed -= size
        if 2 * self._owed <= self._window:
            self.ask()
        return line != b"$-1"

    def _line(self) -> bytes:
        while b"\r\n" not in self._spare:
            if len(self._spare) > _LINE:
                raise said.InvalidResponse(f"Protocol Error: {self._spare[:40]!r}")
            more = bytearray(_LINE)
            self._spare += more[: self._receive(memoryview(more))]
        line, _, self._spare = self._spare.partition(b"\r\n")
        return line

    def _fill(self, view: memoryview) -> None:
        done = min(len(self._spare), view.nbytes)
        view[:done] = self._spare[:done]
        self._spare = self._spare[done:]
        while done < view.nbytes:
            done += self._receive(view[done:])

    def _receive(self, view: memoryview) -> int:
        left = self._until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._wire.settimeout(min(left, self._connection.socket_timeout))
            count: int = self._wire.recv_into(view)
        except TimeoutError as error:
            raise said.TimeoutError("Timeout reading from socket") from error
        if not count:
            raise said.ConnectionError("Connection closed by server.")
        return count
