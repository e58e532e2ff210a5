"""Objects in the shared memory of each node; other nodes fetch them over ZeroMQ.

Requests and replies are those of `proxystore_core.connectors.node_protocol`: a DEALER asks a ROUTER, each
request is one frame, and each reply one, or two where data are large. Nobody without the secret that the
nodes share can even shake hands, as a router keeps all frames of a message, however many, until the last
has come. Where it is asked for, CURVE does that, with keys that come from the secret, and encrypts all; else
it is PLAIN, whose password comes from the secret as well, and is there for who listens to read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from proxystore_core import forks
from proxystore_core.connectors.arguments import check_flag
from proxystore_core.connectors.base import Buffer
from proxystore_core.connectors.node import NodeConnector
from proxystore_core.connectors.node_protocol import LONGEST_REQUEST, REPLY_HEAD, Guard, guard_of
from proxystore_core.connectors.node_server import TICK, Respond, Responding
from proxystore_core.errors import ConfigurationError, DeadlineError, RefusedError, UnreachableError
from proxystore_core.urls import flag

__all__ = ["ZeroMQConnector", "connect", "listen"]

_COPIED = 64 << 10  # bytes up to which a copy is cheaper than keeping account of who still needs them
_BEAT = 2_000, 8_000  # milliseconds between two signs of life, and of silence after which a peer is dead
_LOOK = 100  # milliseconds between two looks at whether the peer is still there
_BROKEN = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED
_REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_USER = b"node"
_DOOR = "inproc://zeromq.zap.01"  # where ZeroMQ asks who is let in (RFC 27)
_contexts: dict[int, zmq.Context[Any]] = {}  # by process; never closed, as sockets of any thread may be open
_lock = forks.lock()


class ZeroMQConnector(NodeConnector):
    """Keeps objects on the node that stores them; ``zmq://name:port?interface=eth0``.

    Args:
        port: of this node's server; by default one that is free.
        interface: network interface at which the server listens; loopback by default.
        address: instead, an address of this host or a network in which it has one (``10.0.0.0/8``).
        curve: encrypt what goes between nodes. With the libsodium of pyzmq's wheels that is some 30 MB/s
            (docs/node.md); without, everything is authenticated, and nothing is secret.
        options: as `NodeConnector`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("zmq",)
    _module: ClassVar[str] = __name__
    _parameters: ClassVar[dict[str, Callable[[str], Any]]] = {"curve": flag}

    def __init__(
        self,
        port: int = 0,
        interface: str | None = None,
        address: str | None = None,
        *,
        curve: bool | None = None,
        **options: Any,
    ) -> None:
        if curve is not None:
            check_flag("curve", curve)
        self._curve = bool(curve)
        super().__init__(port, interface, address, {"curve": curve or None}, **options)

    def _transport(self, address: str) -> dict[str, Any]:
        return {"curve": self._curve}

    def _connect(self, address: str, port: int, until: float) -> _Channel:
        return connect(address, port, self._key(), self._curve, until)


def _context() -> zmq.Context[Any]:
    process = os.getpid()
    with _lock:
        if process not in _contexts:
            _contexts[process] = zmq.Context()
        return _contexts[process]


def _pair(key: bytes, side: bytes) -> tuple[bytes, bytes]:
    """CURVE's public and secret key of one side."""
    secret = z85.encode(hashlib.blake2b(key, digest_size=32, person=b"curve " + side).digest())
    return zmq.curve_public(secret), secret


def _password(key: bytes) -> bytes:
    """PLAIN's: whoever has listened to it can connect, and sign nothing."""
    return hashlib.blake2b(key, digest_size=24, person=b"plain").hexdigest().encode()


def connect(address: str, port: int, key: bytes, curve: bool, until: float) -> _Channel:
    """A connection to a node server, its handshake done.

    Raises:
        RefusedError: the server has another secret, or is none of ours.
        UnreachableError: nobody answers there.
    """
    try:
        socket = _context().socket(zmq.DEALER)
    except zmq.ZMQError as error:  # too many are open
        raise UnreachableError(f"no connection: {error}") from error
    monitor = None
    try:
        socket.linger = 0
        socket.immediate = 1
        socket.reconnect_ivl = -1
        socket.maxmsgsize = LONGEST_REQUEST
        socket.heartbeat_ivl, socket.heartbeat_timeout = _BEAT
        if curve:
            socket.curve_publickey, socket.curve_secretkey = _pair(key, b"client")
            socket.curve_serverkey, _ = _pair(key, b"server")
        else:
            socket.plain_username, socket.plain_password = _USER, _password(key)
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | _REFUSED | _BROKEN)
        monitor.linger = 0
        socket.connect(f"tcp://{address}:{port}")
        _shake_hands(monitor, until)
    except BaseException:
        _close(socket, monitor)
        raise
    return _Channel(socket, monitor)


def _shake_hands(monitor: zmq.Socket[bytes], until: float) -> None:
    while True:
        if not monitor.poll(max(0, round((until - time.monotonic()) * 1000))):
            raise UnreachableError("no connection in time")
        event = recv_monitor_message(monitor)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return
        if event & _REFUSED:
            raise RefusedError(
                "no handshake: the server there has another secret than this process, is of another version, "
                "or is no node server",
                remedy="Give all hosts the same PROXYSTORE_NODE_SECRET or secret file (docs/node.md).",
            )
        raise UnreachableError("no connection: nobody listens there")


class _Channel:
    """See `node_client.Channel`."""

    window = 3

    def __init__(self, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor = monitor
        socket.rcvtimeo = _LOOK

    def send(self, message: Sequence[Buffer]) -> None:
        whole = message[0] if len(message) == 1 else b"".join(message)
        try:
            self._socket.send(whole, zmq.NOBLOCK)
        except zmq.Again:
            raise UnreachableError("the connection is broken") from None

    def receive(self, into: memoryview | None, until: float) -> tuple[Buffer, Buffer]:
        while True:
            try:
                head = self._socket.recv()  # for _LOOK at most; polling two sockets costs more
                break
            except zmq.Again:
                pass
            if time.monotonic() > until:
                raise DeadlineError("no answer in time")
            broken = self._monitor.poll(0) and recv_monitor_message(self._monitor)["event"] & _BROKEN
            if broken and not self._socket.poll(0):
                raise UnreachableError("the connection is broken: the server, or its host, is down")
        if len(head) > REPLY_HEAD or not self._socket.getsockopt(zmq.RCVMORE):
            whole = memoryview(head)
            data = whole[REPLY_HEAD:]
            if into is not None and data.nbytes == into.nbytes:
                into[:] = data
                data = into
            return whole[:REPLY_HEAD], data
        if into is not None:
            count = self._socket.recv_into(into)
            if count != into.nbytes:
                return head, into[: min(count, into.nbytes)]
            return head, into
        return head, self._socket.recv()

    def close(self) -> None:
        _close(self._socket, self._monitor)


def _close(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes] | None) -> None:
    with contextlib.suppress(zmq.ZMQError):
        socket.disable_monitor()
    if monitor is not None:
        monitor.close(0)
    socket.close(0)


def listen(address: str, ports: Sequence[int], key: bytes, options: dict[str, Any]) -> _Listener:
    """Listen at an address, at the first of some ports that is free (0: at any).

    Raises:
        ConfigurationError: none of them is.
    """
    return _Listener(address, ports, key, options["curve"])


def _keep_door(password: bytes) -> None:
    """Let in, from now on, who has a password: in all of this process, which is one server's."""
    door = _context().socket(zmq.REP)
    door.bind(_DOOR)

    def keep() -> None:
        while True:
            version, number, *_, mechanism, user, given = door.recv_multipart()
            known = mechanism == b"PLAIN" and user == _USER and hmac.compare_digest(given, password)
            verdict = (b"200", b"OK") if known else (b"400", b"another secret")
            door.send_multipart([version, number, *verdict, b"", b""])

    threading.Thread(target=keep, name="proxystore-door", daemon=True).start()


class _Listener(Responding[bytes]):
    """See `node_server.Listener`."""

    def __init__(self, address: str, ports: Sequence[int], key: bytes, curve: bool) -> None:
        super().__init__()
        self.guard = Guard.SEAL if curve else guard_of(address)
        self._router = _context().socket(zmq.ROUTER)
        self._router.linger = 1000
        self._router.maxmsgsize = LONGEST_REQUEST  # more ends the connection before memory is taken
        self._router.heartbeat_ivl, self._router.heartbeat_timeout = _BEAT
        if curve:
            self._router.curve_server = True
            self._router.curve_publickey, self._router.curve_secretkey = _pair(key, b"server")
        else:
            self._router.plain_server = True
            self._router.zap_domain = _USER
            _keep_door(_password(key))
        self.port = self._bind(address, ports)
        # Where threads of this process ring; waiting for one socket alone costs less than for two.
        self._bell = f"inproc://bell-{id(self)}"
        self._router.bind(self._bell)
        self._router.rcvtimeo = round(TICK * 1000)

    def _bind(self, address: str, ports: Sequence[int]) -> int:
        problem: zmq.ZMQError | None = None
        for port in ports:
            try:
                self._router.bind(f"tcp://{address}:{port or '*'}")
            except zmq.ZMQError as error:
                problem = error
            else:
                return int(self._router.last_endpoint.rpartition(b":")[2])
        raise ConfigurationError(f"cannot listen at {address}:{ports[-1]}: {problem}")

    def wake(self) -> None:
        with _context().socket(zmq.DEALER) as ringer:
            ringer.connect(self._bell)
            ringer.send(b"")  # no request: what is answered reaches nobody

    def serve(
        self,
        handle: Callable[[Buffer, Respond], None],
        tick: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        self._thread = threading.get_ident()
        ticked = time.monotonic()
        while not stop():
            try:
                peer = self._router.recv()
                message = self._router.recv()
                while self._router.getsockopt(zmq.RCVMORE):
                    message = b""  # no request has several frames
                    self._router.recv()
                handle(message, functools.partial(self._respond, peer))
            except zmq.Again:
                pass
            self._send_late()
            if time.monotonic() - ticked > TICK:
                ticked = time.monotonic()
                tick()

    def _send(self, peer: bytes, head: bytes, data: Buffer) -> None:
        self._router.send(peer, zmq.SNDMORE)
        if len(data) <= _COPIED:
            self._router.send(head + data)
        else:
            self._router.send(head, zmq.SNDMORE)
            self._router.send(data, copy=False)
