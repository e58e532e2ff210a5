"""Objects in the shared memory of each node; other nodes fetch them through UCX, or TCP.

Requests and replies are those of `proxystore_core.connectors.node_protocol`. They go over a TCP
connection, which tells at once when a peer dies and listens at one address only; the data of big
replies go by UCX where that has better than TCP, into the buffer that is handed out.

    request     length (4 bytes), request, body
    reply       head, and data; those of more than 32 kB come by UCX, tagged with the request's nonce,
                if both sides have agreed to that

The first request of a connection is a greeting. Its body is the address of the asking side's UCX
worker, its text the version of UCX; the size in the answer says whether data come by UCX.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from ucxx._lib.arr import Array

from proxystore_core.connectors.base import Buffer
from proxystore_core.connectors.node import NodeConnector
from proxystore_core.connectors.node_protocol import CHUNK, REPLY_HEAD, Operation, Reply, Request, count_of
from proxystore_core.connectors.ucx_library import VERSION, is_ours, new_worker, tag_of, ucx
from proxystore_core.errors import CorruptError, DeadlineError, RefusedError, UnreachableError

__all__ = ["UCXConnector", "connect"]

T = TypeVar("T", bytes, int)

_SMALL = 32 << 10  # bytes up to which a reply's data come with it, and are read together
_LENGTH = struct.Struct("!I")
_PATIENCE = struct.Struct("@ll")  # seconds and microseconds, as sockets want them
_SPIN = 0.002  # seconds that a transfer is looked after without a pause: being woken takes longer than a step
_LOOK = 0.5  # seconds between two looks at a worker that should have told


class UCXConnector(NodeConnector):
    """Keeps objects on the node that stores them; ``ucx://name:port?interface=eth0``.

    UCX is used where there are devices for RDMA, and where ``UCX_TLS`` tells it what to use; its other
    variables (``UCX_NET_DEVICES``) apply. Without either all goes by TCP.

    Args:
        port: of this node's server; by default one that is free.
        interface: network interface at which the server listens; loopback by default.
        address: instead, an address of this host or a network in which it has one (``10.0.0.0/8``).
        options: as `NodeConnector`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("ucx",)
    _module: ClassVar[str] = "proxystore_core.connectors.ucx_server"

    def __init__(
        self, port: int = 0, interface: str | None = None, address: str | None = None, **options: Any
    ) -> None:
        super().__init__(port, interface, address, {}, **options)

    def _connect(self, address: str, port: int, until: float) -> Channel:
        return connect(address, port, self._key(), until)


def connect(address: str, port: int, key: bytes, until: float) -> Channel:
    """A connection to a node server, both sides sure of each other.

    Raises:
        RefusedError: the server has another secret, or is none of ours.
        UnreachableError: nobody answers there.
    """
    try:
        wire = socket.create_connection((address, port), max(0.01, until - time.monotonic()))
    except OSError as error:
        raise UnreachableError(f"no connection: {error}") from error
    channel = Channel(wire)
    try:
        worker = new_worker(address)
        mine = bytes(memoryview(worker.address)) if worker is not None else b""
        greeting = Request(Operation.GREET, text=VERSION, body=mine)
        channel.send([greeting.pack(key), greeting.body])
        try:
            head, _ = channel.receive(None, until)
        except DeadlineError as error:
            raise UnreachableError("whoever listens there says nothing") from error
        except UnreachableError as error:
            raise RefusedError(
                "no handshake: whoever listens there is no node server, or has another secret"
            ) from error
        if Reply.parse(head, key, greeting.nonce).size:
            channel.use(worker)
    except BaseException:
        channel.close()
        raise
    return channel


class Channel:
    """See `node_client.Channel`."""

    window = 8

    def __init__(self, wire: socket.socket) -> None:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel's timeouts: with Python's own each call is two.
        wire.settimeout(None)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE.pack(0, round(_LOOK * 1e6)))
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE.pack(30, 0))
        self._wire = wire
        self._held = b""  # what came before it was asked for
        self._worker: Any = None

    def use(self, worker: Any) -> None:
        """Have the data of big replies come by UCX."""
        self._worker = worker
        self._poll = select.poll()
        self._poll.register(self._wire, select.POLLIN)
        self._poll.register(worker.epoll_file_descriptor, select.POLLIN)

    def send(self, message: Sequence[Buffer]) -> None:
        size = sum(memoryview(part).nbytes for part in message)
        try:
            if size <= _SMALL:
                self._wire.sendall(b"".join([_LENGTH.pack(size), *message]))
                return
            self._wire.sendall(_LENGTH.pack(size), socket.MSG_MORE)
            for part in message:
                self._wire.sendall(part)
        except OSError as error:
            raise UnreachableError(f"the connection is broken: {error}") from error

    def receive(self, into: memoryview | None, until: float) -> tuple[Buffer, Buffer]:
        head = self._read(REPLY_HEAD, until)
        count, nonce = count_of(head)
        if count > CHUNK:
            raise CorruptError(f"a reply of {count} bytes")
        fits = into is not None and count <= into.nbytes
        if count <= _SMALL and not (fits and count):
            return head, self._read(count, until)
        data = into[:count] if into is not None and fits else memoryview(bytearray(count))
        if count <= _SMALL or self._worker is None:
            self._read_into(data, until)
        else:
            self._receive(data, nonce, until)
        return head, into if into is not None and data.nbytes == into.nbytes else data

    def _read(self, count: int, until: float) -> bytes:
        """The next bytes, a few: more that has come is held."""
        held = self._held
        while len(held) < count:
            # Not looked out for without a pause: with other work on all processors that costs fourfold.
            held += _received(functools.partial(self._wire.recv, _SMALL), until)
            if len(held) < count:
                _look(until)
        self._held = held[count:]
        return held[:count]

    def _read_into(self, view: memoryview, until: float) -> None:
        held = self._held[: view.nbytes]
        self._held = self._held[len(held) :]
        view[: len(held)] = held
        done = len(held)
        while done < view.nbytes:
            # All of it in one call, unless it takes so long that somebody has to look at the clock.
            receive = functools.partial(self._wire.recv_into, view[done:], 0, socket.MSG_WAITALL)
            done += _received(receive, until)
            if done < view.nbytes:
                _look(until)

    def _receive(self, view: memoryview, nonce: bytes, until: float) -> None:
        request = self._worker.tag_recv(Array(view), tag_of(nonce))
        spin = time.monotonic() + _SPIN
        while not request.completed:
            self._worker.progress()
            if request.completed:
                break
            if time.monotonic() < spin:
                time.sleep(0)  # to others that can go on
                continue
            if not self._worker.arm():
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
            more = self._wire.recv(_SMALL, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._held += more
        return bool(more)

    def close(self) -> None:
        self._wire.close()
        # What it still waits for would be written into memory that is somebody else's by then.
        if self._worker is not None and is_ours():
            with contextlib.suppress(ucx.UCXError):
                self._worker.cancel_inflight_requests()


def _look(until: float) -> None:
    if time.monotonic() > until:
        raise DeadlineError("no answer in time")


def _received(receive: Callable[[], T], until: float) -> T:
    """What a call on the connection gives, which gives up now and then: the next bytes, or how many."""
    while True:
        try:
            got = receive()
        except BlockingIOError:
            _look(until)
            continue
        except OSError as error:
            raise UnreachableError(f"the connection is broken: {error}") from error
        if not got:
            raise UnreachableError("the connection is broken: the server, or its host, is down")
        return got
