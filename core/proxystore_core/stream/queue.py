"""Streams within one process: a queue a topic."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from proxystore_core.stream.broker import Message, Unacknowledged, is_closed

__all__ = ["QueuePublisher", "QueueSubscriber"]


class _Broker:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.messages: dict[str, deque[bytes]] = {}


class QueuePublisher:
    """Sends to the subscribers of this process that are made from it: `QueueSubscriber`."""

    def __init__(self) -> None:
        self.broker = _Broker()

    def send(self, topic: str, message: bytes) -> None:
        with self.broker.changed:
            self.broker.messages.setdefault(topic, deque()).append(message)
            self.broker.changed.notify_all()

    def send_end(self, topic: str, message: bytes) -> None:
        self.send(topic, message)

    def close(self) -> None:
        pass


class QueueSubscriber(Unacknowledged):
    """Receives from a publisher of this process; each message goes to one subscriber.

    Args:
        publisher: the publisher.
        topics: one topic, or several.
    """

    def __init__(self, publisher: QueuePublisher, topics: str | Sequence[str]) -> None:
        super().__init__(topics)
        self._publisher = publisher
        self._closed = False

    def receive(self, timeout: float | None) -> Message | None:
        broker = self._publisher.broker
        until = None if timeout is None else time.monotonic() + timeout
        with broker.changed:
            while True:
                if self._closed:  # whoever still waits here would take a message that is another's
                    raise is_closed("subscriber")
                for topic in self._topics:
                    if broker.messages.get(topic):
                        return Message(topic, broker.messages[topic].popleft())
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return None
                broker.changed.wait(left)

    def share(self, end: Message, data: bytes) -> None:
        self._publisher.send(end.topic, data)

    def close(self) -> None:
        with self._publisher.broker.changed:
            self._closed = True
            self._publisher.broker.changed.notify_all()
