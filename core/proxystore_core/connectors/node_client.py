"""Asks other nodes' servers: pooled connections, deadlines, tries, chunks into one buffer, typed errors."""

from __future__ import annotations

import os
import secrets
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from proxystore_core import forks
from proxystore_core.buffers import fresh_buffer
from proxystore_core.connectors.base import Buffer
from proxystore_core.connectors.node_place import Place
from proxystore_core.connectors.node_protocol import CHUNK, Operation, Reply, Request, Status
from proxystore_core.errors import (
    CorruptError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.moving import moved

__all__ = ["Channel", "Connect", "NodeClient"]

T = TypeVar("T")

_SLOWEST = 4e6  # bytes a second that a network moves at least: big objects get so much more time
_IDLE = 4  # connections to each node that are kept
_KEPT = 100  # to all nodes: each of ZeroMQ's takes four descriptors, and three of a thousand sockets
_PAUSES = 0.02, 0.5  # seconds between two tries: first, and longest
_ANSWERS = Status.CONTENT, Status.DONE, Status.MISSING


class Channel(Protocol):
    """One connection to a node server, used by one thread at a time; replies come in order."""

    window: int
    """Chunks that may be asked for and not here yet: more than caches hold slows down others who ask."""

    def send(self, message: Sequence[Buffer]) -> None:
        """Send the concatenation of ``message``; may return before it has left.

        Raises:
            UnreachableError: the connection is broken.
        """
        ...

    def receive(self, into: memoryview | None, until: float) -> tuple[Buffer, Buffer]:
        """The next reply's head, and its data.

        Args:
            into: where the data go if they fit; else they are returned in memory of their own.
            until: when to give up, of ``time.monotonic()``.

        Raises:
            DeadlineError, UnreachableError: as their names say.
        """
        ...

    def close(self) -> None:
        """Drop the connection."""
        ...


Connect = Callable[[str, int, float], Channel]
"""Opens a connection to an address and port until a time of ``time.monotonic()``.

It raises as `Channel.receive`, and RefusedError when whoever listens does not trust this process."""


class NodeClient:
    """This process's connections to other nodes. Safe in threads and after a fork.

    Every request may be made twice: an answer may be lost, and the request is then made again.

    Args:
        store: the connector's URL, for messages.
        connect: opens a connection.
        key: of the MACs.
        deadline: seconds that an operation may take, besides moving its bytes.
        patience: seconds for a connection to open, and for a server to come back.
    """

    def __init__(
        self, store: str, connect: Connect, key: Callable[[], bytes], deadline: float, patience: float
    ) -> None:
        self._store = store
        self._connect = connect
        self._key = key
        self._deadline = deadline
        self._patience = patience
        self._lock = forks.lock()
        self._idle: dict[tuple[int, Place], list[Channel]] = {}  # with the process: none is used by a child
        self._down: set[Place] = set()  # and whoever asked has been told
        self._finalizer = weakref.finalize(self, _close_all, self._idle)

    def close(self) -> None:
        """Close all connections; the next request opens others."""
        with self._lock:
            _close_all(self._idle)

    def ask(self, place: Place, request: Request, *, seconds: float = 0.0) -> tuple[Reply, Buffer]:
        """The reply to a request, and its data.

        Args:
            place: whom to ask.
            request: what.
            seconds: how much longer than an operation usually may this one may take.

        Raises:
            RefusedError, FullError, StoreError: the node says so.
            UnreachableError, DeadlineError: no answer in time.
        """

        def exchange(channel: Channel, until: float) -> tuple[Reply, Buffer]:
            channel.send((request.pack(self._key()), request.body))
            return self._reply(channel, request, None, until)

        return self._persist(place, exchange, self._until(seconds))

    def fetch(self, place: Place, space: str, session: str, name: str) -> Buffer | None:
        """An object of another node, in memory of the caller's own; None when it is not there.

        Raises:
            CorruptError: the bytes were altered on their way.
            StoreError: as `ask`.
        """

        def wanted(offset: int) -> Request:
            return Request(Operation.GET, space, session, name, "", offset, CHUNK)

        def exchange(channel: Channel, until: float) -> Buffer | None:
            key = self._key()
            first = wanted(0)
            channel.send((first.pack(key),))
            reply, data = self._reply(channel, first, None, until)
            if reply.status is Status.MISSING:
                return None
            if reply.size == reply.count:
                return bytearray(data)
            whole = self._room(reply.size)
            view = memoryview(whole)
            if reply.count != CHUNK:
                raise CorruptError("a chunk has another length than was asked for")
            view[:CHUNK] = data
            moved(CHUNK)
            del data
            until += reply.size / _SLOWEST
            asked: deque[Request] = deque()
            offset = arrived = CHUNK
            while arrived < reply.size:
                while offset < reply.size and len(asked) < channel.window:
                    asked.append(wanted(offset))
                    channel.send((asked[-1].pack(key),))
                    offset += CHUNK
                request = asked.popleft()
                part = view[request.offset : request.offset + CHUNK]
                more, got = self._reply(channel, request, part, until)
                if more.status is Status.MISSING:  # evicted meanwhile
                    while asked:  # else whoever has the connection next takes those answers for his
                        self._reply(channel, asked.popleft(), None, until)
                    return None
                if got is not part:
                    raise CorruptError("a chunk has another length than was asked for")
                arrived += part.nbytes
                moved(part.nbytes)
            return whole

        return self._persist(place, exchange, self._until())

    def upload(self, place: Place, space: str, session: str, name: str, data: Sequence[Buffer]) -> None:
        """Set an object of another node. Raises as `ask`."""
        upload = secrets.token_hex(16)
        views = [memoryview(buffer).cast("B") for buffer in data if memoryview(buffer).nbytes]
        size = sum(view.nbytes for view in views)
        asked: deque[Request] = deque()

        def exchange(channel: Channel, until: float) -> None:
            asked.clear()
            for offset, body in _chunks(views):
                request = Request(Operation.SET, space, session, name, upload, offset, size, body=body)
                asked.append(request)
                channel.send((request.pack(self._key()), body))
                moved(len(body))
                if len(asked) >= channel.window:
                    self._reply(channel, asked.popleft(), None, until)
            while asked:
                self._reply(channel, asked.popleft(), None, until)

        self._persist(place, exchange, self._until(size / _SLOWEST))

    # How.

    def _until(self, seconds: float = 0.0) -> float:
        return time.monotonic() + self._deadline + seconds

    def _room(self, size: int) -> bytearray | memoryview:
        try:
            return fresh_buffer(size)
        except (MemoryError, OSError, OverflowError, ValueError) as error:
            raise FullError(
                f"no memory here for {size} bytes", remedy="Does the object have this size?"
            ) from error

    def _reply(
        self, channel: Channel, request: Request, into: memoryview | None, until: float
    ) -> tuple[Reply, Buffer]:
        head, data = channel.receive(into, until)
        key = self._key()
        reply = Reply.parse(head, key, request.nonce)
        reply.check(data, key)
        if reply.status in _ANSWERS:
            return reply, data
        said = f"the node server says: {_text(data)}"
        if reply.status is Status.REFUSED:
            raise RefusedError(said)
        if reply.status is Status.FULL:
            raise FullError(said, remedy="Evict objects, or give that host more memory.")
        if reply.status is Status.ELSEWHERE:
            raise UnreachableError("another node listens there now")
        raise StoreError(said, remedy="See its log.")

    def _persist(self, place: Place, do: Callable[[Channel, float], T], until: float) -> T:
        address = place.address(self._store)
        patient_until = 0.0
        pause = _PAUSES[0]
        while True:
            try:
                channel = self._open(place, address, until)
                try:
                    outcome = do(channel, until)
                except BaseException:
                    channel.close()
                    raise
                self._keep(place, channel)
                self._down.discard(place)
                return outcome
            except UnreachableError as error:
                # It may be restarting; but who was told already that it is down is told so at once.
                now = time.monotonic()
                patient_until = patient_until or now + (0.0 if place in self._down else self._patience)
                if now + pause > min(until, patient_until):
                    self._down.add(place)
                    self._name(error, place)
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _PAUSES[1])
            except StoreError as error:
                self._name(error, place)
                raise

    def _name(self, error: StoreError, place: Place) -> None:
        error.store = error.store or self._store
        if str(place) not in error.problem:
            error.problem = f"{error.problem} (node {place})"
        if error.remedy is None and isinstance(error, UnreachableError | DeadlineError):
            error.remedy = "Its last user may have left, or its host is down or cannot be reached from here."

    def _open(self, place: Place, address: str, until: float) -> Channel:
        """A connection that nobody else uses."""
        with self._lock:
            idle = self._idle.setdefault((os.getpid(), place), [])
            if idle:
                return idle.pop()
        return self._connect(address, place.port, min(until, time.monotonic() + self._patience))

    def _keep(self, place: Place, channel: Channel) -> None:
        """Leave a connection in good order to whoever comes next, unless all were closed meanwhile."""
        known, too_many = (os.getpid(), place), [channel]
        with self._lock:
            idle = self._idle.pop(known, None)
            if idle is not None:
                if len(idle) < _IDLE:
                    idle.append(too_many.pop())
                self._idle[known] = idle  # last, as it was used last
                too_many += self._least_used()
        for each in too_many:
            each.close()

    def _least_used(self) -> list[Channel]:
        """Take connections away, as far as too many are kept."""
        if len(self._idle) * _IDLE <= _KEPT:
            return []
        mine = [channels for (process, _), channels in self._idle.items() if process == os.getpid()]
        spare = sum(map(len, mine)) - _KEPT
        taken: list[Channel] = []
        for channels in mine:
            while channels and len(taken) < spare:
                taken.append(channels.pop(0))
        return taken


def _chunks(views: Sequence[memoryview]) -> Iterator[tuple[int, Buffer]]:
    """Chunks of all views with their offsets; parts that lie in several views are joined. Never none."""
    parts: list[memoryview] = []
    held = offset = 0
    for view in views:
        start = 0
        while start < view.nbytes:
            part = view[start : start + CHUNK - held]
            parts.append(part)
            start += part.nbytes
            held += part.nbytes
            if held == CHUNK:
                yield offset, parts[0] if len(parts) == 1 else b"".join(parts)
                offset += held
                parts, held = [], 0
    if parts or not offset:
        yield offset, parts[0] if len(parts) == 1 else b"".join(parts)


def _text(data: Buffer) -> str:
    return bytes(data)[:500].decode(errors="replace")


def _close_all(idle: dict[tuple[int, Place], list[Channel]]) -> None:
    for (process, _), channels in list(idle.items()):
        if process == os.getpid():
            while channels:
                channels.pop().close()
            idle.pop((process, _), None)
