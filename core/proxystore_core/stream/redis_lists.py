"""Streams over Redis lists: a queue that any number of consumers share.

At most once: a message that was popped is its consumer's, and is lost with it. What nobody has popped
is kept by the server, as far as that keeps anything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from proxystore_core.stream.broker import Message, Unacknowledged
from proxystore_core.stream.redis_broker import RedisBroker

__all__ = ["RedisQueuePublisher", "RedisQueueSubscriber"]


class RedisQueuePublisher(RedisBroker):
    """Appends to one list a topic. Arguments as `RedisBroker`."""

    def send(self, topic: str, message: bytes) -> None:
        self._append("RPUSH", topic, message)

    def send_end(self, topic: str, message: bytes) -> None:
        self.send(topic, message)


class RedisQueueSubscriber(Unacknowledged, RedisBroker):
    """Pops from lists.

    Args:
        hostname: as `RedisBroker`.
        port: as `RedisBroker`.
        topics: one topic, or several.
        options: as `RedisBroker`.
    """

    def __init__(self, hostname: str, port: int, topics: str | Sequence[str], **options: Any) -> None:
        Unacknowledged.__init__(self, topics)
        RedisBroker.__init__(self, hostname, port, **options)

    def receive(self, timeout: float | None) -> Message | None:
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while self._topics:
            left = min(until - time.monotonic(), self._block)
            if left <= 0:
                return None
            command = ("BLPOP", *map(self._key, self._topics), f"{max(left, 0.001):.3f}")  # 0: for ever
            (found,) = self._requests.run([command], time.monotonic() + left + 30.0)
            if found is not None:
                return Message(self._topic(found[0]), found[1])
        return None

    def share(self, end: Message, data: bytes) -> None:
        self._append("RPUSH", end.topic, data)
