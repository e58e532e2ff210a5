"""The node server's side of UCX: one thread looks after TCP connections and UCX's worker."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ucxx._lib.arr import Array

from proxystore_core.connectors.base import Buffer
from proxystore_core.connectors.node_protocol import (
    LONGEST_REQUEST,
    ForgedError,
    MalformedError,
    Operation,
    Reply,
    Status,
    count_of,
    guard_of,
    parse_request,
)
from proxystore_core.connectors.node_server import TICK, Respond, Responding
from proxystore_core.connectors.ucx_library import endpoint_to, new_worker, tag_of, ucx
from proxystore_core.errors import ConfigurationError

__all__ = ["listen"]

_INLINE = 32 << 10  # bytes of data up to which a reply is one message
_LENGTH = struct.Struct("!I")
_AHEAD = 4 << 20  # bytes that a peer may leave unread before no more of its requests are looked at
_CLOSING = 10**9  # nanoseconds that UCX may take at most to let go of a peer
_PEERS = 4096  # connections at a time
_GREETING = 12_000  # bytes of the first request, before it is known who asks
_READ = 256 << 10  # bytes that are read of a peer at a time
_PARTS = 64  # parts of what is to be sent that go into one call
_PART = 500  # bytes of memory that each of them takes, besides its own
_LOOK = 0.5  # seconds between two looks at a worker that should have told


def listen(address: str, ports: Sequence[int], key: bytes, options: dict[str, Any]) -> _Listener:
    """Listen at an address, at the first of some ports that is free (0: at any).

    Raises:
        ConfigurationError: none of them is.
    """
    return _Listener(address, ports, key)


@dataclasses.dataclass(eq=False)
class _Peer:
    """A connection of the server's."""

    wire: socket.socket
    read: bytearray = dataclasses.field(default_factory=bytearray)
    unsent: collections.deque[memoryview] = dataclasses.field(default_factory=collections.deque)
    left: int = 0  # bytes of them
    sends: collections.deque[tuple[Any, Buffer]] = dataclasses.field(default_factory=collections.deque)
    endpoint: Any = None
    greeted: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)
    open: bool = True
    watched: int = selectors.EVENT_READ

    def backlog(self) -> int:
        mine = self.left + _PART * len(self.unsent)
        return mine + (sum(memoryview(data).nbytes for _, data in self.sends) if self.sends else 0)

    def say(self, *parts: Buffer) -> None:
        """Send what goes at once, without a copy of it; the rest is kept for `flush`.

        Raises:
            OSError: the connection is broken.
        """
        for part in parts:
            view = memoryview(part).cast("B")
            if view.nbytes:
                self.unsent.append(view)
                self.left += view.nbytes
        self.flush()

    def flush(self) -> None:
        """Send of what is left as much as goes. Raises as `say`."""
        while self.unsent:
            try:
                sent = self.wire.sendmsg(list(itertools.islice(self.unsent, _PARTS)))
            except BlockingIOError:
                return
            self.left -= sent
            while sent:
                first = self.unsent.popleft()
                if sent < first.nbytes:
                    self.unsent.appendleft(first[sent:])
                    break
                sent -= first.nbytes


class _Listener(Responding[_Peer]):
    """See `node_server.Listener`."""

    def __init__(self, address: str, ports: Sequence[int], key: bytes) -> None:
        super().__init__()
        self._key = key
        self.guard = guard_of(address)
        self._wire = socket.socket()
        self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        problem: OSError | None = None
        for port in ports:
            try:
                self._wire.bind((address, port))
                self._wire.listen(128)
                break
            except OSError as error:
                problem = error
        else:
            raise ConfigurationError(f"cannot listen at {address}:{ports[-1]}: {problem}")
        self._wire.setblocking(False)
        self.port: int = self._wire.getsockname()[1]
        self._worker = new_worker(address)  # or none: all goes by TCP
        self._peers: set[_Peer] = set()
        self._sending: set[_Peer] = set()  # those whose data UCX is sending
        self._buffer = memoryview(bytearray(_READ))
        self._watching = False
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._ring.setblocking(False)
        self._select = selectors.DefaultSelector()

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ring.send(b"!")

    def serve(
        self,
        handle: Callable[[Buffer, Respond], None],
        tick: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        self._thread = threading.get_ident()
        self._select.register(self._wire, selectors.EVENT_READ, self._accept)
        self._select.register(self._bell, selectors.EVENT_READ, self._hear)
        ticked = time.monotonic()
        while not stop():
            ready = self._select.select(self._patience(handle))
            for entry, _ in ready:
                if isinstance(entry.data, _Peer):
                    self._attend(entry.data, handle)
                else:
                    entry.data()
            self._send_late()
            if time.monotonic() - ticked > TICK:
                ticked = time.monotonic()
                if self._worker is not None:
                    self._worker.progress()
                for peer in [peer for peer in self._peers if not peer.greeted and ticked - peer.since > TICK]:
                    self._drop(peer)
                tick()

    def _patience(self, handle: Callable[[Buffer, Respond], None]) -> float:
        """Seconds until the next look: none while UCX has more to do than it could tell.

        While nothing is being sent nobody looks after UCX: that costs more than a small request.
        """
        if self._sending:
            self._worker.progress()
            self._settle(handle)
        sending = bool(self._sending)
        if sending is not self._watching:
            self._watching = sending
            if sending:
                fd = self._worker.epoll_file_descriptor
                self._select.register(fd, selectors.EVENT_READ, lambda: None)
            else:
                self._select.unregister(self._worker.epoll_file_descriptor)
        if not sending:
            return TICK
        return _LOOK if self._worker.arm() else 0.0

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            wire, _ = self._wire.accept()
            if len(self._peers) >= _PEERS:
                wire.close()
                return
            wire.setblocking(False)
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = _Peer(wire)
            self._peers.add(peer)
            self._select.register(wire, peer.watched, peer)

    def _settle(self, handle: Callable[[Buffer, Respond], None]) -> None:
        """Let go of what has been sent, and go on with those that waited for it."""
        for peer in list(self._sending):
            waited = peer.backlog() > _AHEAD
            while peer.sends and peer.sends[0][0].completed:
                peer.sends.popleft()
            if not peer.sends:
                self._sending.discard(peer)
            if waited and peer.backlog() <= _AHEAD:
                self._obey(peer, handle)

    def _attend(self, peer: _Peer, handle: Callable[[Buffer, Respond], None]) -> None:
        try:
            if peer.unsent:
                peer.flush()
            if peer.backlog() <= _AHEAD:
                count = peer.wire.recv_into(self._buffer)
                if not count:
                    self._drop(peer)
                    return
                peer.read += self._buffer[:count]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(peer)
            return
        self._obey(peer, handle)

    def _obey(self, peer: _Peer, handle: Callable[[Buffer, Respond], None]) -> None:
        while peer.open and len(peer.read) >= _LENGTH.size and peer.backlog() <= _AHEAD:
            (length,) = _LENGTH.unpack_from(peer.read)
            if length > (LONGEST_REQUEST if peer.greeted else _GREETING):
                self._drop(peer)  # before any memory is taken for it
                return
            if len(peer.read) < _LENGTH.size + length:
                break
            message = bytes(memoryview(peer.read)[_LENGTH.size : _LENGTH.size + length])
            del peer.read[: _LENGTH.size + length]
            if not peer.greeted:
                self._greet(peer, message)
            else:
                handle(message, lambda head, data: self._respond(peer, head, data))
        self._watch(peer)

    def _greet(self, peer: _Peer, message: bytes) -> None:
        try:
            request = parse_request(message, self._key)
            if request.operation is not Operation.GREET or len(request.body) > 10_000:
                raise MalformedError("no greeting")
        except (MalformedError, ForgedError):
            self._send(peer, Reply.pack(self._key, bytes(16), Status.REFUSED, 0, b"", self.guard), b"")
            self._drop(peer)
            return
        if self._worker is not None and len(request.body):
            peer.endpoint = endpoint_to(self._worker, bytes(request.body), request.text)
        peer.greeted = True
        agreed = int(peer.endpoint is not None)
        self._send(peer, Reply.pack(self._key, request.nonce, Status.DONE, agreed, b"", self.guard), b"")

    def _send(self, peer: _Peer, head: bytes, data: Buffer) -> None:
        if not peer.open:
            return
        size = memoryview(data).nbytes
        if size <= _INLINE and not peer.unsent:
            with contextlib.suppress(OSError):  # the rest, or all of it, goes the way of what is big
                message = head + data
                sent = peer.wire.send(message)
                if sent == len(message):
                    return
                head, data = message[sent:], b""
        inline = size <= _INLINE or peer.endpoint is None
        with contextlib.suppress(OSError):  # whoever reads of it sees that it is broken
            peer.say(*((head, data) if inline else (head,)))
        if not inline:
            try:
                peer.sends.append((peer.endpoint.tag_send(Array(data), tag_of(count_of(head)[1])), data))
            except ucx.UCXError:
                self._drop(peer)
                return
            self._sending.add(peer)
        self._watch(peer)

    def _watch(self, peer: _Peer) -> None:
        if peer.open and (peer.unsent or peer.watched != selectors.EVENT_READ):
            wanted = selectors.EVENT_WRITE if peer.unsent else 0
            if peer.backlog() <= _AHEAD or not wanted:
                wanted |= selectors.EVENT_READ
            if wanted != peer.watched:
                peer.watched = wanted
                self._select.modify(peer.wire, wanted, peer)

    def _drop(self, peer: _Peer) -> None:
        peer.open = False
        self._peers.discard(peer)
        self._sending.discard(peer)
        with contextlib.suppress(KeyError, ValueError):
            self._select.unregister(peer.wire)
        peer.wire.close()
        peer.unsent.clear()
        if peer.endpoint is not None:
            with contextlib.suppress(ucx.UCXError):
                # At once: with error handling UCX lets go of a peer without asking it.
                peer.endpoint.close_blocking(period=_CLOSING, max_attempts=1)
            peer.endpoint = None
            peer.sends.clear()
