"""Streams over Redis pub/sub: every subscriber gets every message that is sent while it is there.

At most once: nothing is kept. The server drops a subscriber that is too slow (client-output-buffer-limit),
and what is sent while its connection is down never comes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from proxystore_core.connectors.redis_errors import FAILURES
from proxystore_core.stream.broker import Message, Unacknowledged
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


class RedisSubscriber(Unacknowledged, RedisBroker):
    """Subscribes to channels, from when it is made.

    Args:
        hostname: as `RedisBroker`.
        port: as `RedisBroker`.
        topics: one topic, or several.
        options: as `RedisBroker`.
    """

    def __init__(self, hostname: str, port: int, topics: str | Sequence[str], **options: Any) -> None:
        Unacknowledged.__init__(self, topics)
        RedisBroker.__init__(self, hostname, port, **options)
        self._pubsub: Any = None
        self._requests.persist(self._subscribe)

    def receive(self, timeout: float | None) -> Message | None:
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return None
            found = self._requests.persist(lambda client, left=left: self._next(client, min(left, _BLOCK)))
            if found is not None and found["type"] == "message":
                return Message(self._topic(found["channel"]), found["data"])

    def leave(self, topic: str) -> None:
        super().leave(topic)
        if self._pubsub is not None:
            self._pubsub.unsubscribe(self._key(topic))

    def close(self) -> None:
        super().close()
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            pubsub.close()

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
        except Exception:  # anything, of redis-py, when another thread closes this
            if self._requests.ended:
                return None
            raise

    def _subscribe(self, client: Any) -> None:
        pubsub = client.pubsub()
        pubsub.subscribe(*map(self._key, self._topics))
        for _ in self._topics:
            pubsub.get_message(timeout=_WAIT)
        self._pubsub = pubsub
