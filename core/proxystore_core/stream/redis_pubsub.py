"""Streams over Redis pub/sub: every subscriber gets every message that is sent while it is there.

At most once: nothing is kept. The server drops a subscriber that is too slow (client-output-buffer-limit),
and what is sent while its connection is down never comes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from proxystore_core.connectors.redis_errors import FAILURES
from proxystore_core.stream.broker import Message, topics_of
from proxystore_core.stream.redis_broker import RedisBroker

__all__ = ["RedisPublisher", "RedisSubscriber"]

_BLOCK = 5.0  # seconds between two signs of life
_WAIT = 30.0  # seconds to wait for the server's word that it has subscribed us


class RedisPublisher(RedisBroker):
    """Publishes on one channel a topic. Arguments as `RedisBroker`."""

    def send(self, topic: str, message: bytes) -> None:
        self._requests.run([("PUBLISH", self._key(topic), message)])

    def send_end(self, topic: str, message: bytes) -> None:
        self.send(topic, message)


class RedisSubscriber(RedisBroker):
    """Subscribes to channels, from when it is made.

    Args:
        hostname: as `RedisBroker`.
        port: as `RedisBroker`.
        topics: one topic, or several.
        options: as `RedisBroker`.
    """

    def __init__(self, hostname: str, port: int, topics: str | Sequence[str], **options: Any) -> None:
        super().__init__(hostname, port, **options)
        self._topics = topics_of(topics)
        self._pubsub: Any = None
        self._requests.persist(self._subscribe)

    @property
    def topics(self) -> tuple[str, ...]:
        return self._topics

    def receive(self, timeout: float | None) -> Message | None:
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return None
            found = self._requests.persist(lambda client, left=left: self._next(client, min(left, _BLOCK)))
            if found is not None and found["type"] == "message":
                return Message(self._topic(found["channel"]), found["data"])

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
        if self._pubsub is not None:
            self._pubsub.unsubscribe(self._key(topic))

    def close(self) -> None:
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None
        super().close()

    def _next(self, client: Any, seconds: float) -> Any:
        try:
            if self._pubsub is None:
                self._subscribe(client)
            return self._pubsub.get_message(timeout=seconds)
        except FAILURES:
            if self._pubsub is not None:
                self._pubsub.close()
            self._pubsub = None
            raise

    def _subscribe(self, client: Any) -> None:
        pubsub = client.pubsub()
        pubsub.subscribe(*map(self._key, self._topics))
        for _ in self._topics:
            pubsub.get_message(timeout=_WAIT)
        self._pubsub = pubsub
