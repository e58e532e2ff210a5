"""Streams over ZeroMQ: the publisher binds, every subscriber that is there gets every message.

At most once: nothing is kept, and what is sent before a subscriber is there never comes to it. While
publisher and subscriber live nothing is dropped: a slow subscriber makes the publisher wait.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import zmq

from proxystore_core import forks
from proxystore_core.errors import ConfigurationError, DeadlineError, UnreachableError
from proxystore_core.stream.broker import Message, topics_of

__all__ = ["ZeroMQPublisher", "ZeroMQSubscriber"]

_LINGER = 5000  # milliseconds for what is not sent yet when the publisher closes


class ZeroMQPublisher:
    """Publishes from an address of this host.

    Args:
        hostname: address to listen on.
        port: its TCP port; 0 for a free one, which `port` tells.
        subscribers: how many have to be there, to each topic, before its first message is sent.
        timeout: seconds to wait for them, and for slow ones.

    Raises:
        UnreachableError: the address cannot be bound.
    """

    def __init__(
        self,
        hostname: str = "127.0.0.1",
        port: int = 0,
        *,
        subscribers: int = 1,
        timeout: float = 60.0,
    ) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._socket.setsockopt(zmq.LINGER, _LINGER)
        self._socket.setsockopt(zmq.SNDTIMEO, round(timeout * 1000))
        self.port = port
        try:
            if port:
                self._socket.bind(f"tcp://{hostname}:{port}")
            else:
                self.port = self._socket.bind_to_random_port(f"tcp://{hostname}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise UnreachableError(
                f"cannot listen on {hostname}:{port}: {error}", remedy="Name a free port of this host, or 0."
            ) from error
        self.hostname = hostname
        self._subscribers = subscribers
        self._timeout = timeout
        self._there: dict[bytes, int] = {}
        self._lock = forks.lock()

    def __repr__(self) -> str:
        return f"ZeroMQPublisher({self.hostname!r}, {self.port})"

    def send(self, topic: str, message: bytes) -> None:
        name = topic.encode() + b"\0"
        with self._lock:
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
        if not self._socket.closed:
            self._socket.close()
            self._context.term()

    def _await(self, name: bytes, topic: str) -> None:
        until = time.monotonic() + self._timeout
        first = name not in self._there
        while True:
            patience = 0.0
            if first and self._there.get(name, 0) < self._subscribers:
                patience = until - time.monotonic()
                if patience <= 0:
                    raise DeadlineError(
                        f"{self._there.get(name, 0)} of {self._subscribers} subscribers of {topic!r} came "
                        f"within {self._timeout:g} s",
                        remedy="Start them, or give the publisher subscribers=0: what nobody hears is lost.",
                    )
            if not self._socket.poll(round(patience * 1000)):
                if patience <= 0:
                    self._there.setdefault(name, 0)
                    return
                continue
            word = self._socket.recv()
            self._there[word[1:]] = self._there.get(word[1:], 0) + (1 if word[:1] == b"\1" else -1)


class ZeroMQSubscriber:
    """Subscribes to a publisher, which need not be there yet.

    Args:
        hostname: the publisher's host.
        port: its TCP port.
        topics: one topic, or several.
    """

    def __init__(self, hostname: str, port: int, topics: str | Sequence[str]) -> None:
        if not 0 < port < 65536:
            raise ConfigurationError(f"{port!r} is no TCP port of a publisher")
        self._topics = topics_of(topics)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        for topic in self._topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode() + b"\0")
        self._socket.connect(f"tcp://{hostname}:{port}")

    @property
    def topics(self) -> tuple[str, ...]:
        return self._topics

    def receive(self, timeout: float | None) -> Message | None:
        if not self._socket.poll(None if timeout is None else round(timeout * 1000)):
            return None
        name, data = self._socket.recv_multipart()
        return Message(name[:-1].decode(), data)

    def acknowledge(self, message: Message) -> None:
        pass

    def flush(self) -> None:
        pass

    def share(self, end: Message, data: bytes) -> None:
        pass  # all others have it

    def drained(self, topic: str, producers: int) -> bool:
        return True

    def leave(self, topic: str) -> None:
        self._topics = tuple(other for other in self._topics if other != topic)
        with contextlib.suppress(zmq.ZMQError):
            self._socket.setsockopt(zmq.UNSUBSCRIBE, topic.encode() + b"\0")

    def close(self) -> None:
        if not self._socket.closed:
            self._socket.close()
            self._context.term()
