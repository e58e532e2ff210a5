"""Streams over ZeroMQ: the publisher binds, every subscriber that is there gets every message.

At most once: nothing is kept, and what is sent before a subscriber is there never comes to it. While
publisher and subscriber live nothing is dropped: a slow subscriber makes the publisher wait.

Both sides show by CURVE, which encrypts as well, that they have the secret that nodes share (docs/node.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from proxystore_core import forks
from proxystore_core.connectors.arguments import check_port, check_seconds, check_text
from proxystore_core.connectors.node_place import load_secret
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.stream.broker import Message, Unacknowledged, check_count, is_closed

__all__ = ["ZeroMQPublisher", "ZeroMQSubscriber"]

_LINGER = 5000  # milliseconds for what is not sent yet when the publisher closes
_LONGEST = 64 << 10, 4 << 20  # bytes of what a publisher takes (names of topics), and a subscriber
_LONGEST_WAIT = 1e6  # seconds: milliseconds are counted in 32 bits
_BROKEN = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_NONE = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH  # ZeroMQ tries no more
_REFUSALS = 3  # handshakes in a row that break: a publisher that is killed may break one
_REMEDY = "Give all hosts the same PROXYSTORE_NODE_SECRET or secret file (docs/node.md)."


def _pair(secret: str | None, side: bytes, where: str) -> tuple[bytes, bytes]:
    """CURVE's public and secret key of one side."""
    try:
        key = load_secret(secret, None, None, where)
    except StoreError:  # some are OSErrors, too
        raise
    except OSError as error:
        raise ConfigurationError(
            f"no secret, and no place to keep one: {error}", store=where, remedy=_REMEDY
        ) from error
    own = z85.encode(hashlib.blake2b(key, digest_size=32, person=b"stream " + side).digest())
    return zmq.curve_public(own), own


class _Wire:
    """A socket in a context of its own, which goes with whoever has it."""

    def __init__(self, kind: int, pair: tuple[bytes, bytes], longest: int, linger: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.curve_publickey, self._socket.curve_secretkey = pair
        self._socket.maxmsgsize = longest  # more ends the connection before memory is taken
        self._socket.setsockopt(zmq.LINGER, linger)
        self._sockets: list[Any] = [self._socket]
        # A context that is garbage with an open socket waits for it, for ever, in the midst of anything.
        self._close = weakref.finalize(self, _close, self._context, self._sockets)
        self._close.atexit = linger > 0


def _close(context: Any, sockets: list[Any]) -> None:
    while sockets:
        sockets.pop().close()
    context.term()


class ZeroMQPublisher(_Wire):
    """Publishes from an address of this host.

    Args:
        hostname: address to listen on.
        port: its TCP port; 0 for a free one, which `port` tells.
        subscribers: how many have to be there, to each topic, before its first message is sent.
        timeout: seconds to wait for them, and for slow ones.
        secret: that the subscribers have as well; by default the one that nodes share.

    Raises:
        UnreachableError: the address cannot be bound.
        ConfigurationError, RefusedError: no secret, or others can read its file.
    """

    def __init__(
        self,
        hostname: str = "127.0.0.1",
        port: int = 0,
        *,
        subscribers: int = 1,
        timeout: float = 60.0,
        secret: str | None = None,
    ) -> None:
        check_text("hostname", hostname)
        check_port(port, least=0)
        check_count("subscribers", subscribers, least=0)
        timeout = check_seconds("timeout", timeout)
        pair = _pair(secret, b"server", f"zmq://{hostname}:{port}")
        super().__init__(zmq.XPUB, pair, _LONGEST[0], _LINGER)
        self._socket.curve_server = True
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._socket.setsockopt(zmq.SNDTIMEO, round(timeout * 1000))
        self.port = port
        try:
            if port:
                self._socket.bind(f"tcp://{hostname}:{port}")
            else:
                self.port = self._socket.bind_to_random_port(f"tcp://{hostname}")
        except zmq.ZMQError as error:
            self._close()
            raise UnreachableError(
                f"cannot listen on {hostname}:{port}: {error}", remedy="Name a free port of this host, or 0."
            ) from error
        self.hostname = hostname
        self._subscribers = subscribers
        self._timeout = timeout
        self._there: dict[bytes, int] = {}
        self._begun: set[bytes] = set()  # topics that something was sent to
        self._lock = forks.lock()

    def __repr__(self) -> str:
        return f"ZeroMQPublisher({self.hostname!r}, {self.port})"

    def send(self, topic: str, message: bytes) -> None:
        name = topic.encode() + b"\0"
        with self._lock:
            if self._socket.closed:
                raise is_closed("publisher")
            self._await(name, topic)
            try:
                self._socket.send_multipart([name, message])
            except zmq.Again as error:
                raise DeadlineError(
                    f"a subscriber of {topic!r} takes nothing for {self._timeout:g} s",
                    remedy="Is it stopped? Give the publisher timeout= more seconds.",
                ) from error

    def send_end(self, topic: str, message: bytes) -> None:
        self.send(topic, message)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _await(self, name: bytes, topic: str) -> None:
        until = time.monotonic() + self._timeout
        while True:
            patience = 0.0
            if name not in self._begun and self._there.get(name, 0) < self._subscribers:
                patience = until - time.monotonic()
                if patience <= 0:
                    raise DeadlineError(
                        f"{self._there.get(name, 0)} of {self._subscribers} subscribers of {topic!r} came "
                        f"within {self._timeout:g} s",
                        remedy=(
                            "Start them, with the same PROXYSTORE_NODE_SECRET or secret file, or give the "
                            "publisher subscribers=0: what nobody hears is lost."
                        ),
                    )
            if self._socket.poll(round(patience * 1000)):
                self._count(self._socket.recv_multipart())
            elif not patience:
                self._begun.add(name)
                return

    def _count(self, frames: list[bytes]) -> None:
        if len(frames) > 1 or frames[0][:1] not in (b"\0", b"\1"):
            return  # no word of who comes or goes
        name = frames[0][1:]
        there = self._there.pop(name, 0) + (1 if frames[0][:1] == b"\1" else -1)
        if there > 0:
            self._there[name] = there


class ZeroMQSubscriber(Unacknowledged, _Wire):
    """Subscribes to a publisher, which need not be there yet.

    Args:
        hostname: the publisher's host.
        port: its TCP port.
        topics: one topic, or several.
        secret: as the publisher's.

    Raises:
        ConfigurationError, RefusedError: no secret, or others can read its file.
    """

    def __init__(
        self, hostname: str, port: int, topics: str | Sequence[str], *, secret: str | None = None
    ) -> None:
        check_text("hostname", hostname)
        check_port(port)
        Unacknowledged.__init__(self, topics)
        self._where = f"zmq://{hostname}:{port}"
        serverkey, _ = _pair(secret, b"server", self._where)
        _Wire.__init__(self, zmq.SUB, _pair(secret, b"client", self._where), _LONGEST[1], 0)
        self._socket.curve_serverkey = serverkey
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | _BROKEN | _NONE)
        self._monitor.linger = 0
        self._refusals, self._over = 0, False
        self._receiving = threading.Lock()
        self._closed = False
        self._waker, woken = socket.socketpair()
        self._sockets += [self._monitor, self._waker, woken]
        self._poller = zmq.Poller()
        for each in (self._socket, self._monitor, woken):
            self._poller.register(each, zmq.POLLIN)
        for topic in self._topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode() + b"\0")
        try:
            self._socket.connect(f"tcp://{hostname}:{port}")
        except zmq.ZMQError as error:
            self._close()
            raise ConfigurationError(f"{hostname!r} names no host: {error}", store=self._where) from error

    def receive(self, timeout: float | None) -> Message | None:
        with self._receiving:  # nobody closes what is waited at
            return self._receive(None if timeout is None else time.monotonic() + timeout)

    def _receive(self, until: float | None) -> Message | None:
        while True:
            if self._closed:
                raise is_closed("subscriber")
            if self._over:
                raise self._refused()
            left = None if until is None else min(_LONGEST_WAIT, max(0.0, until - time.monotonic()))
            patience = None if left is None else round(left * 1000)
            ready = dict(self._poller.poll(patience))
            if self._closed:
                continue
            if self._socket in ready:
                return self._message(self._socket.recv_multipart())
            if not ready:
                if left == _LONGEST_WAIT:
                    continue
                return None
            event = recv_monitor_message(self._monitor)["event"]
            self._over = bool(event & _NONE)
            self._refusals = self._refusals + 1 if event & _BROKEN else 0
            if self._refusals >= _REFUSALS:
                self._refusals = 0
                raise self._refused()

    def _refused(self) -> RefusedError:
        return RefusedError(
            f"no handshake with {self._where}: the publisher there has another secret than this process, "
            "or is none",
            store=self._where,
            remedy=_REMEDY,
        )

    def _message(self, frames: list[bytes]) -> Message:
        try:
            name, data = frames
            return Message(name[:-1].decode(), data)
        except ValueError as error:
            raise CorruptError(
                f"a message of {len(frames)} parts is none of a stream", store=self._where
            ) from error

    def leave(self, topic: str) -> None:
        super().leave(topic)
        with contextlib.suppress(zmq.ZMQError):
            self._socket.setsockopt(zmq.UNSUBSCRIBE, topic.encode() + b"\0")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._waker.send(b"closed")  # to who waits in another thread
            with self._receiving:
                self._socket.disable_monitor()
                self._close()
