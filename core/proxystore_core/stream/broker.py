"""What a stream needs of a broker: `Publisher` and `Subscriber`, one file of this package a broker.

| broker | who gets a message | guarantee |
|---|---|---|
| `queue` | one subscriber | in one process; what nobody acknowledged dies with it |
| `redis_streams` | one of each group | at least once: what a dead consumer had is claimed by another |
| `redis_lists` | one subscriber | at most once: a dead consumer's message is lost |
| `redis_pubsub` | every subscriber that is there | at most once; a slow one is dropped by the server |
| `zmq` | every subscriber that is there | at most once; nothing is dropped while both live |
| `kafka` | one of each group | at least once; exactly once from topic to topic, with transactions |
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from proxystore_core.errors import ConfigurationError

__all__ = [
    "Message",
    "Publisher",
    "Subscriber",
    "Unacknowledged",
    "check_count",
    "check_timeout",
    "is_closed",
    "topics_of",
]


@dataclasses.dataclass(frozen=True)
class Message:
    """One message as it came.

    Attributes:
        topic: its topic.
        data: its bytes.
        mark: what the subscriber acknowledges it by.
        again: whether somebody had it before, and did not acknowledge it.
    """

    topic: str
    data: bytes
    mark: Any = None
    again: bool = False


@runtime_checkable
class Publisher(Protocol):
    """Sends messages. Safe in threads."""

    def send(self, topic: str, message: bytes) -> None:
        """Send a message; it is the broker's, as far as its guarantee goes, when this returns.

        Raises:
            UnreachableError, DeadlineError, RefusedError: as their names say.
        """
        ...

    def send_end(self, topic: str, message: bytes) -> None:
        """Send the last message of a topic, which every subscriber has to see."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...


@runtime_checkable
class Subscriber(Protocol):
    """Receives messages of some topics. For one thread at a time."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics."""
        ...

    def receive(self, timeout: float | None) -> Message | None:
        """The next message; None when there is none within ``timeout`` seconds (None: for ever).

        Raises:
            UnreachableError, DeadlineError, RefusedError: as their names say.
        """
        ...

    def acknowledge(self, message: Message) -> None:
        """The message is dealt with: the broker learns of it with the next `receive` or `flush`."""
        ...

    def flush(self) -> None:
        """Let the broker know of all that is acknowledged."""
        ...

    def share(self, end: Message, data: bytes) -> None:
        """Put the end of a topic back behind all that is there, for others who share the topic's messages.

        Args:
            end: as it came.
            data: what to put in its place.
        """
        ...

    def drained(self, topic: str, producers: int) -> bool:
        """Whether nothing that came before the end of a topic may come (back) to this subscriber.

        Args:
            topic: whose end came.
            producers: so many ends make the end.
        """
        ...

    def leave(self, topic: str) -> None:
        """Receive nothing more of a topic."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice, and while another thread receives: it gets an error.

        Whoever still waited would take messages that are others'.
        """
        ...


class Unacknowledged:
    """What the subscribers of brokers share that learn of no acknowledgements: `Subscriber` but for its own.

    Args:
        topics: one topic, or several.
    """

    def __init__(self, topics: str | Sequence[str]) -> None:
        self._topics = topics_of(topics)

    @property
    def topics(self) -> tuple[str, ...]:
        return self._topics

    def acknowledge(self, message: Message) -> None:
        pass

    def flush(self) -> None:
        pass

    def share(self, end: Message, data: bytes) -> None:
        pass  # where every subscriber gets every message all others have it

    def drained(self, topic: str, producers: int) -> bool:
        return True

    def leave(self, topic: str) -> None:
        self._topics = tuple(other for other in self._topics if other != topic)


def topics_of(topics: Any) -> tuple[str, ...]:
    """One topic or several, as several.

    Raises:
        ConfigurationError: there is none.
    """
    several = topics if isinstance(topics, Iterable) else ()
    found = (topics,) if isinstance(topics, str) else tuple(several)
    if not found or not all(isinstance(topic, str) and topic for topic in found):
        raise ConfigurationError(f"{topics!r} names no topic: expected a name, or several")
    return found


def is_closed(what: str) -> ConfigurationError:
    """The error of using a publisher or subscriber that is closed, or of still waiting there when it is."""
    return ConfigurationError(f"this {what} is closed")


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Raise a `ConfigurationError` unless an argument is a whole number from ``least`` on."""
    given: object = value
    if isinstance(given, bool) or not isinstance(given, numbers.Integral) or int(given) < least:
        raise ConfigurationError(f"{name} is {value!r}: expected a whole number, {least} or more")


def check_timeout(name: str, value: Any) -> None:
    """Raise a `ConfigurationError` unless an argument is None or seconds."""
    if value is not None and not (isinstance(value, numbers.Real) and float(value) >= 0):
        raise ConfigurationError(f"{name} is {value!r}: expected seconds, or None for no end")
