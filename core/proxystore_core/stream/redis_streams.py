"""Streams over Redis streams: consumer groups, and what a dead consumer had is claimed by another.

At least once: an entry stays pending until it is acknowledged. It is claimed from a consumer that has not
been heard of for ``idle`` seconds; set that longer than the work on one item may take.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from proxystore_core.connectors.arguments import check_seconds, check_text
from proxystore_core.errors import StoreError
from proxystore_core.stream.broker import Message, check_count, topics_of
from proxystore_core.stream.redis_broker import RedisBroker

__all__ = ["RedisStreamPublisher", "RedisStreamSubscriber"]

_AGAIN = 16  # messages that are taken over at a time
_NO_GROUP = "NOGROUP", "UNBLOCKED"  # what servers say of a group that is not there any more
_UNUSED = (
    "if redis.call('XLEN', KEYS[1]) == 0 and redis.call('PTTL', KEYS[1]) == -1 "
    "then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end"
)  # a topic that nobody sends to: its group alone stays no longer than a message would
_LOOK = 1.0  # seconds between two looks for what dead consumers had

_Entries: TypeAlias = list[tuple[bytes, dict[bytes, bytes] | None]]


class RedisStreamPublisher(RedisBroker):
    """Appends to one Redis stream a topic. Arguments as `RedisBroker`."""

    def send(self, topic: str, message: bytes) -> None:
        self._append("XADD", topic, "*", "m", message)

    def send_end(self, topic: str, message: bytes) -> None:
        self.send(topic, message)


class RedisStreamSubscriber(RedisBroker):
    """Reads Redis streams as one consumer of a group.

    Args:
        hostname: the server's host.
        port: its TCP port.
        topics: one topic, or several.
        group: each message goes to one consumer of each group. A new group starts with what is there.
        consumer: unique name in the group; made up when not given. A consumer that comes back under its
            name gets first what it had not acknowledged.
        prefetch: messages that are fetched at a time; others get none of them while this consumer lives.
        idle: seconds after which what a silent consumer had not acknowledged goes to another.
        options: as `RedisBroker`.
    """

    def __init__(
        self,
        hostname: str,
        port: int,
        topics: str | Sequence[str],
        *,
        group: str = "proxystore",
        consumer: str | None = None,
        prefetch: int = 1,
        idle: float = 60.0,
        **options: Any,
    ) -> None:
        super().__init__(hostname, port, **options)
        self.group = group
        self.consumer = consumer or secrets.token_hex(6)
        check_text("group", group)
        check_text("consumer", self.consumer)
        check_count("prefetch", prefetch)
        check_seconds("idle", idle)
        self.prefetch = prefetch
        self.idle = idle
        self._topics = topics_of(topics)
        self._ready: deque[Message] = deque()
        self._acknowledged: list[tuple[Any, ...]] = []  # which the server learns of with the next trip
        self._looked = 0.0
        # Where to read on, of each topic, in what a consumer of this name had not acknowledged.
        self._had = {} if consumer is None else dict.fromkeys(self._topics, b"0")
        self._make_groups()

    @property
    def topics(self) -> tuple[str, ...]:
        return self._topics

    def receive(self, timeout: float | None) -> Message | None:
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while self._had and not self._ready:
            self._read(self._had, None)
        while not self._ready:
            now = time.monotonic()
            if now - self._looked >= min(_LOOK, self.idle):
                self._looked = now
                self._claim()
                if self._ready:
                    break
            left = until - now
            if left <= 0 or not self._topics:
                return None
            self._read(dict.fromkeys(self._topics, b">"), min(left, self._block, _LOOK))
        return self._ready.popleft()

    def acknowledge(self, message: Message) -> None:
        self._acknowledged.append(("XACK", self._key(message.topic), self.group, message.mark))

    def flush(self) -> None:
        self._requests.run(self._acknowledged)
        self._acknowledged = []

    def share(self, end: Message, data: bytes) -> None:
        self._append("XADD", end.topic, "*", "m", data)

    def drained(self, topic: str, producers: int) -> bool:
        self.flush()
        (pending,) = self._run([("XPENDING", self._key(topic), self.group)])
        count = pending["pending"] if isinstance(pending, dict) else pending[0]
        return int(count) <= 1  # the end itself

    def close(self) -> None:
        try:
            self.flush()
        finally:
            super().close()

    def leave(self, topic: str) -> None:
        self._topics = tuple(other for other in self._topics if other != topic)
        self._had.pop(topic, None)

    def _run(self, commands: Sequence[tuple[Any, ...]], until: float | None = None) -> Any:
        """The replies. A group that has gone with its topic (old, or of a server in memory) is made again."""
        try:
            return self._requests.run(commands, until)
        except StoreError as error:
            if not any(word in error.problem for word in _NO_GROUP):
                raise
        self._make_groups()
        return self._requests.run(commands, until)

    def _make_groups(self) -> None:
        for topic in self._topics:
            self._requests.persist(lambda client, topic=topic: self._make_group(client, topic))

    def _make_group(self, client: Any, topic: str) -> None:
        import redis

        try:
            client.execute_command("XGROUP CREATE", self._key(topic), self.group, "0", "MKSTREAM")
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        if self.keep is not None:
            client.eval(_UNUSED, 1, self._key(topic), round(self.keep * 1000))

    def _read(self, starts: Mapping[str, bytes], seconds: float | None) -> None:
        """Read on from each topic's start: what is new within some seconds, or (None) what this one had."""
        count = _AGAIN if seconds is None else self.prefetch
        block = () if seconds is None else ("BLOCK", max(1, int(seconds * 1000)))
        places = ("STREAMS", *map(self._key, starts), *starts.values())
        command = ("XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count, *block, *places)
        until = time.monotonic() + (seconds or 0.0) + 30.0
        *_, found = self._run([*self._acknowledged, command], until)
        self._acknowledged = []
        read = {
            self._topic(key): _entries(those)
            for key, those in (found.items() if isinstance(found, dict) else found or ())
        }
        if seconds is None:
            self._had = {topic: entries[-1][0] for topic, entries in read.items() if entries}
        for topic, entries in read.items():
            self._take_in(topic, entries, again=seconds is None)

    def _claim(self) -> None:
        for topic in self._topics:
            key = self._key(topic)
            command = (
                "XAUTOCLAIM",
                key,
                self.group,
                self.consumer,
                int(self.idle * 1000),
                "0",
                "COUNT",
                _AGAIN,
            )
            (found,) = self._run([command])
            self._take_in(topic, _entries(found[1]), again=True)

    def _take_in(self, topic: str, entries: _Entries, *, again: bool) -> None:
        for mark, fields in entries:
            if fields is not None:  # else it was trimmed
                # What others add has no such field, and is told to be none of a stream.
                self._ready.append(Message(topic, fields.get(b"m", b""), mark, again))


def _entries(found: Any) -> _Entries:
    """Entries as redis-py gives them, whichever of its parsers is at work."""
    entries = found[0] if len(found) == 1 and found[0] and isinstance(found[0], list) else found
    return [
        (
            mark,
            fields
            if fields is None or isinstance(fields, dict)
            else dict(zip(fields[::2], fields[1::2], strict=True)),
        )
        for mark, fields in entries
    ]
