"""Objects in the shared memory of each node; other nodes fetch them through UCX.

Requests and replies are those of `proxystore_core.connectors.node_protocol`. They go over a TCP
connection, which tells at once when a peer dies and listens at one address only; the data of big
replies go by UCX, over the fastest way that both hosts have (shared memory, RDMA, TCP), into the buffer
that is handed out.

    request     length (4 bytes), request, body
    reply       head, and data of up to 32 kB; more comes by UCX, tagged with the request's nonce

The first request of a connection is a greeting, whose body is the address of the asking side's UCX
worker; without one all data come with their replies.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")  # ucxx sets some itself

import ucxx._lib.libucxx as ucx
from ucxx._lib.arr import Array
from ucxx.types import Tag

from proxystore_core import forks
from proxystore_core.connectors.base import Buffer
from proxystore_core.connectors.node import NodeConnector
from proxystore_core.connectors.node_place import LOOPBACK
from proxystore_core.connectors.node_protocol import (
    CHUNK,
    LONGEST_REQUEST,
    REPLY_HEAD,
    ForgedError,
    MalformedError,
    Operation,
    Reply,
    Request,
    Status,
    count_of,
    guard_of,
    parse_request,
)
from proxystore_core.connectors.node_server import TICK, Respond
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    RefusedError,
    UnreachableError,
)

__all__ = ["UCXConnector", "connect", "listen"]

_INLINE = 32 << 10  # bytes of data up to which a reply is one message
_LENGTH = struct.Struct("!I")
_PATIENCE = struct.Struct("@ll")  # seconds and microseconds, as sockets want them
_AHEAD = 4 << 20  # bytes that a peer may leave unread before no more of its requests are looked at
_CLOSING = 10**9  # nanoseconds that UCX may take at most to let go of a peer
_PEERS = 4096  # connections at a time
_GREETING = 12_000  # bytes of the first request, before it is known who asks
_SPIN = 0.002  # seconds that a transfer is looked after without a pause: being woken takes longer than a step
_LOOK = 0.5  # seconds between two looks at a worker that should have told
_context: Any = None  # never closed
_user = 0  # the process that used UCX first: a child finds its locks as another thread left them
_lock = forks.lock()


class UCXConnector(NodeConnector):
    """Keeps objects on the node that stores them; ``ucx://name:port?interface=eth0``.

    Which transports UCX uses is its own to choose; its variables (``UCX_TLS``, ``UCX_NET_DEVICES``) apply.

    Args:
        port: of this node's server; by default one that is free.
        interface: network interface at which the server listens; loopback by default.
        address: instead, an address of this host or a network in which it has one (``10.0.0.0/8``).
        options: as `NodeConnector`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("ucx",)
    _module: ClassVar[str] = __name__

    def __init__(
        self, port: int = 0, interface: str | None = None, address: str | None = None, **options: Any
    ) -> None:
        super().__init__(port, interface, address, {}, **options)

    def _connect(self, address: str, port: int, until: float) -> _Channel:
        return connect(address, port, self._key(), until)


def _worker(address: str) -> Any:
    """A UCX worker, which reaches no further than loopback if that is where it is to talk.

    None in a child that was forked after UCX was used.
    """
    global _context, _user
    with _lock:
        _user = _user or os.getpid()
        if _user != os.getpid():
            return None
        if _context is None:
            options = {"RNDV_FRAG_MEM_TYPE": "host", **({"NET_DEVICES": "lo"} if address == LOOPBACK else {})}
            given = {name: value for name, value in options.items() if f"UCX_{name}" not in os.environ}
            _context = ucx.UCXContext(given)
        worker = ucx.UCXWorker(_context)
        worker.init_blocking_progress_mode()
        return worker


def _tag(nonce: bytes) -> Any:
    return Tag(int.from_bytes(nonce[:8], "big"))


def connect(address: str, port: int, key: bytes, until: float) -> _Channel:
    """A connection to a node server, both sides sure of each other.

    Raises:
        RefusedError: the server has another secret, or is none of ours.
        UnreachableError: nobody answers there.
    """
    try:
        wire = socket.create_connection((address, port), max(0.01, until - time.monotonic()))
    except OSError as error:
        raise UnreachableError(f"no connection: {error}") from error
    channel = _Channel(wire, _worker(address))
    try:
        worker = channel.worker
        greeting = Request(Operation.GREET, body=bytes(memoryview(worker.address)) if worker else b"")
        channel.send([greeting.pack(key), greeting.body])
        try:
            head, _ = channel.receive(None, until)
        except DeadlineError as error:
            raise UnreachableError("whoever listens there says nothing") from error
        except UnreachableError as error:
            raise RefusedError(
                "no handshake: whoever listens there is no node server, or has another secret"
            ) from error
        Reply.parse(head, key, greeting.nonce)
    except BaseException:
        channel.close()
        raise
    return channel


class _Channel:
    """See `node_client.Channel`."""

    def __init__(self, wire: socket.socket, worker: Any) -> None:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel's timeouts: with Python's own each call is two.
        wire.settimeout(None)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE.pack(0, round(_LOOK * 1e6)))
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE.pack(30, 0))
        self._wire = wire
        self._held = bytearray()  # what came before it was asked for
        self.worker = worker
        self._poll = select.poll()
        self._poll.register(wire, select.POLLIN)
        if worker is not None:
            self._poll.register(worker.epoll_file_descriptor, select.POLLIN)

    def send(self, message: Sequence[Buffer]) -> None:
        whole = b"".join(message)
        try:
            self._wire.sendall(_LENGTH.pack(len(whole)) + whole)
        except OSError as error:
            raise UnreachableError(f"the connection is broken: {error}") from error

    def receive(self, into: memoryview | None, until: float) -> tuple[Buffer, Buffer]:
        head = bytearray(REPLY_HEAD)
        self._read(memoryview(head), until)
        count, nonce = count_of(head)
        if count > CHUNK:
            raise CorruptError(f"a reply of {count} bytes")
        data = into[:count] if into is not None and count <= into.nbytes else memoryview(bytearray(count))
        if count <= _INLINE or self.worker is None:
            self._read(data, until)
        else:
            self._receive(data, nonce, until)
        return head, into if into is not None and data.nbytes == into.nbytes and count else data

    def _read(self, view: memoryview, until: float) -> None:
        while True:
            count = min(len(self._held), view.nbytes)
            if count:
                view[:count] = memoryview(self._held)[:count]
                del self._held[:count]
                view = view[count:]
            if not view.nbytes:
                return
            try:
                if view.nbytes > _INLINE:
                    count = self._wire.recv_into(view)
                    view = view[count:]
                else:
                    more = self._wire.recv(_INLINE)
                    count = len(more)
                    self._held += more
            except BlockingIOError:
                if time.monotonic() > until:
                    raise DeadlineError("no answer in time") from None
                continue
            except OSError as error:
                raise UnreachableError(f"the connection is broken: {error}") from error
            if not count:
                raise UnreachableError("the connection is broken: the server, or its host, is down")

    def _receive(self, view: memoryview, nonce: bytes, until: float) -> None:
        request = self.worker.tag_recv(Array(view), _tag(nonce))
        spin = time.monotonic() + _SPIN
        while not request.completed:
            self.worker.progress()
            if request.completed:
                break
            if time.monotonic() < spin:
                time.sleep(0)  # to others that can go on
                continue
            if not self.worker.arm():
                continue
            left = min(_LOOK, until - time.monotonic())
            ready = self._poll.poll(max(0.0, left) * 1000)
            if any(fd == self._wire.fileno() for fd, _ in ready) and not self._is_alive():
                raise UnreachableError("the connection is broken: the server, or its host, is down")
            if time.monotonic() > until:
                raise DeadlineError("no answer in time")
        try:
            request.check_error()
        except ucx.UCXError as error:
            raise UnreachableError(f"the connection is broken: {error}") from error

    def _is_alive(self) -> bool:
        """Whether the connection is; what has come over it is held, so that nobody is woken for it again."""
        try:
            more = self._wire.recv(_INLINE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._held += more
        return bool(more)

    def close(self) -> None:
        self._wire.close()
        # What it still waits for would be written into memory that is somebody else's by then.
        if self.worker is not None and os.getpid() == _user:
            with contextlib.suppress(ucx.UCXError):
                self.worker.cancel_inflight_requests()


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
    unsent: bytearray = dataclasses.field(default_factory=bytearray)
    sends: collections.deque[tuple[Any, Buffer]] = dataclasses.field(default_factory=collections.deque)
    endpoint: Any = None
    greeted: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)
    open: bool = True
    watched: int = selectors.EVENT_READ

    def backlog(self) -> int:
        return len(self.unsent) + sum(memoryview(data).nbytes for _, data in self.sends)


class _Listener:
    """See `node_server.Listener`."""

    def __init__(self, address: str, ports: Sequence[int], key: bytes) -> None:
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
        self._worker = _worker(address)
        self._peers: set[_Peer] = set()
        # Replies of other threads: the worker is one thread's.
        self._late: collections.deque[tuple[_Peer, bytes, Buffer]] = collections.deque()
        self._thread = 0
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
            while self._late:
                self._send(*self._late.popleft())
            if time.monotonic() - ticked > TICK:
                ticked = time.monotonic()
                self._worker.progress()
                for peer in [peer for peer in self._peers if not peer.greeted and ticked - peer.since > TICK]:
                    self._drop(peer)
                tick()

    def _patience(self, handle: Callable[[Buffer, Respond], None]) -> float:
        """Seconds until the next look: none while UCX has more to do than it could tell.

        While nothing is being sent nobody looks after UCX: that costs more than a small request.
        """
        sending = any(peer.sends for peer in self._peers)
        if sending:
            self._worker.progress()
            self._settle(handle)
            sending = any(peer.sends for peer in self._peers)
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
        for peer in list(self._peers):
            waited = peer.backlog() > _AHEAD
            while peer.sends and peer.sends[0][0].completed:
                peer.sends.popleft()
            if waited and peer.backlog() <= _AHEAD:
                self._obey(peer, handle)

    def _attend(self, peer: _Peer, handle: Callable[[Buffer, Respond], None]) -> None:
        try:
            if peer.unsent:
                del peer.unsent[: peer.wire.send(peer.unsent)]
            if peer.backlog() <= _AHEAD:
                data = peer.wire.recv(1 << 18)
                if not data:
                    self._drop(peer)
                    return
                peer.read += data
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
            if len(request.body):
                address = ucx.UCXAddress.create_from_buffer(bytes(request.body))
                peer.endpoint = ucx.UCXEndpoint.create_from_worker_address(self._worker, address, True)
            peer.greeted = True
        except (MalformedError, ForgedError, ucx.UCXError, ValueError):
            self._send(peer, Reply.pack(self._key, bytes(16), Status.REFUSED, 0, b"", self.guard), b"")
            self._drop(peer)
        else:
            self._send(peer, Reply.pack(self._key, request.nonce, Status.DONE, 0, b"", self.guard), b"")

    def _respond(self, peer: _Peer, head: bytes, data: Buffer) -> None:
        if threading.get_ident() == self._thread:
            self._send(peer, head, data)
        else:
            self._late.append((peer, head, data))
            self.wake()

    def _send(self, peer: _Peer, head: bytes, data: Buffer) -> None:
        if not peer.open:
            return
        size = memoryview(data).nbytes
        peer.unsent += head
        inline = size <= _INLINE or peer.endpoint is None
        if inline:
            peer.unsent += data
        with contextlib.suppress(OSError):
            del peer.unsent[: peer.wire.send(peer.unsent)]
        if not inline:
            try:
                peer.sends.append((peer.endpoint.tag_send(Array(data), _tag(count_of(head)[1])), data))
            except ucx.UCXError:
                self._drop(peer)
                return
        self._watch(peer)

    def _watch(self, peer: _Peer) -> None:
        if peer.open:
            wanted = selectors.EVENT_WRITE if peer.unsent else 0
            if peer.backlog() <= _AHEAD or not wanted:
                wanted |= selectors.EVENT_READ
            if wanted != peer.watched:
                peer.watched = wanted
                self._select.modify(peer.wire, wanted, peer)

    def _drop(self, peer: _Peer) -> None:
        peer.open = False
        self._peers.discard(peer)
        with contextlib.suppress(KeyError, ValueError):
            self._select.unregister(peer.wire)
        peer.wire.close()
        if peer.endpoint is not None:
            with contextlib.suppress(ucx.UCXError):
                # At once: with error handling UCX lets go of a peer without asking it.
                peer.endpoint.close_blocking(period=_CLOSING, max_attempts=1)
            peer.endpoint = None
            peer.sends.clear()
