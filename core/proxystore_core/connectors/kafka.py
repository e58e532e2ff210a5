"""Objects in a topic of Kafka: each is one or more records, known by their place in the log.

<topic>, one partition for each object
    key    <id, 8 bytes><number of the part, 4 bytes>
    value  the part's bytes; nothing (a tombstone) once the object is evicted

A key is ``<partition>.<first offset>.<last - first>.<bytes>.<id>``, numbers in hexadecimal. Records
of others may lie between those of an object; nobody has the key before the brokers confirmed all parts.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import re
import secrets
import time
import urllib.parse
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from proxystore_core import forks
from proxystore_core.buffers import byte_views, fresh_buffer, split
from proxystore_core.connectors.base import USER_SESSION, Buffer, Key, check_session
from proxystore_core.connectors.kafka_errors import STALE, failure, is_gone
from proxystore_core.connectors.kafka_login import Options, client_settings
from proxystore_core.errors import ConfigurationError, CorruptError, DeadlineError, RefusedError, StoreError
from proxystore_core.moving import moved
from proxystore_core.urls import StoreURL

__all__ = ["KafkaConnector"]

_IN_FLIGHT = 8 << 20  # bytes that the brokers have not confirmed yet; librdkafka has a copy of them
_AHEAD = 8 << 10  # kilobytes that come before they are asked for
_SMALL = 64 << 10  # bytes; who reads less had better not be sent what lies behind it
_SLOWEST = 4e6  # bytes a second that a network moves at least: big objects get so much more time
_TICK = 0.005  # seconds that a thread waits for its confirmations while another takes them in
_SILENCE = 0.5  # seconds without a record, after which brokers are asked what they have
_KEY = re.compile(r"([0-9a-f]{1,8})\.([0-9a-f]{1,16})\.([0-9a-f]{1,8})\.([0-9a-f]{1,10})\.([0-9a-f]{16})")
_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
_REMEMBERED = 100_000  # evicted objects: brokers go on giving them until they clean up
_evicted: dict[bytes, None] = {}  # names, by this process
_instances: weakref.WeakSet[KafkaConnector] = weakref.WeakSet()


class Place(NamedTuple):
    """Where an object is."""

    partition: int
    first: int
    span: int
    size: int
    name: bytes

    def __str__(self) -> str:
        numbers = (self.partition, self.first, self.span, self.size)
        return f"{'.'.join(f'{number:x}' for number in numbers)}.{self.name.hex()}"


class KafkaConnector:
    """Keeps objects in a topic; ``kafka://user@host:9092,host:9093/topic``.

    Brokers remove what is evicted when they clean their logs, and what nobody evicts when the topic's
    retention ends: that, not a lease, is what remains of a dead session. An evicted object is gone at
    once for the process that evicts it, and for others when the brokers have cleaned up.

    Args:
        hosts: some of the brokers, each ``host:port``.
        topic: where objects are; created if missing.
        username: with SASL.
        password: used here, and never part of the URL. By default the one in ``PROXYSTORE_STORE`` if
            that names the same brokers and user, else ``PROXYSTORE_KAFKA_PASSWORD``.
        options: see `Options`.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("kafka",)
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False
    far: ClassVar[bool] = True

    def __init__(
        self,
        hosts: Sequence[str],
        topic: str = "proxystore",
        *,
        username: str | None = None,
        password: str | None = None,
        **options: Any,
    ) -> None:
        hosts = [hosts] if isinstance(hosts, str) else list(hosts)
        if not _TOPIC.fullmatch(topic):
            raise ConfigurationError(f"{topic!r} is no topic: use at most 249 letters, digits, - _ and .")
        self._options = Options(**options)
        self._topic = topic
        given = self._options.given()
        self._config = {"hosts": hosts, "topic": topic, "username": username, **given}
        user = f"{urllib.parse.quote(username, safe='')}@" if username else ""
        query = urllib.parse.urlencode(given, safe="/:")
        self._url = f"kafka://{user}{','.join(hosts)}/{topic}{'?' if query else ''}{query}"
        self._settings = client_settings(self._url, hosts, username, password, self._options)
        self._producer: Any = None
        self._partitions = 0
        self._consumers: dict[bool, list[Any]] = {True: [], False: []}  # by whether for small objects
        self._own: set[tuple[int, Key]] = set()  # with the process that put it: a fork owns nothing
        self._last: Any = None  # what a client said of its connections
        _instances.add(self)

    def __repr__(self) -> str:
        return f"KafkaConnector({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> KafkaConnector:
        return cls(**config)

    @classmethod
    def from_url(cls, url: str) -> KafkaConnector:
        parts = StoreURL.parse(url)
        options = parts.options(Options.PARAMETERS)
        hosts = parts.hosts or ["localhost"]
        topic = parts.path.strip("/") or "proxystore"
        return cls(hosts, topic, username=parts.username or None, password=parts.password or None, **options)

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        check_session(session, self._url)
        views = byte_views(data)
        size = sum(view.nbytes for view in views)
        name = secrets.token_bytes(8)
        until = time.monotonic() + self._options.deadline + size / _SLOWEST

        def parts() -> Iterator[bytes]:
            for frames in split(views, self._options.part):
                yield b"".join(frames)  # librdkafka takes bytes alone, and copies them

        partition, offsets = self._write(name, parts, until)
        place = Place(partition, offsets[0], offsets[-1] - offsets[0], size, name)
        key = str(place)
        if session == USER_SESSION:
            self._own.add((os.getpid(), key))
        return key

    def get(self, key: Key) -> Buffer | None:
        place = self._parse(key)
        if place.name in _evicted:
            return None
        whole: Buffer = b""
        done = found = 0
        for data in self._parts(place, self._count(place)):
            if len(data) != min(place.size - done, self._options.part):
                raise CorruptError("a part has another length than was stored", store=self._url, key=key)
            whole = whole or fresh_buffer(place.size)  # not for a key that somebody made up
            memoryview(whole)[done : done + len(data)] = data
            moved(len(data))
            done += len(data)
            found += 1
        return whole if found == self._count(place) else None

    def exists(self, key: Key) -> bool:
        place = self._parse(key)
        return place.name not in _evicted and bool(list(self._parts(place, 1)))

    def evict(self, key: Key) -> None:
        place = self._parse(key)
        if place.name not in _evicted:
            until = time.monotonic() + self._options.deadline
            tombstones = itertools.repeat(None, self._count(place))
            self._write(place.name, lambda: tombstones, until, place.partition)
            while len(_evicted) >= _REMEMBERED:
                _evicted.pop(next(iter(_evicted)), None)
            _evicted[place.name] = None
        self._own.discard((os.getpid(), key))

    def close(self, *, clear: bool = False) -> None:
        if clear:
            for process, key in list(self._own):
                if process == os.getpid():
                    self.evict(key)
        for consumers in self._consumers.values():
            while consumers:
                consumers.pop().close()
        self._producer = None

    def _parse(self, key: Key) -> Place:
        match = _KEY.fullmatch(key)
        if match is not None:
            partition, first, span, size = (int(number, 16) for number in match.groups()[:4])
            place = Place(partition, first, span, size, bytes.fromhex(match[5]))
            if str(place) == key and place.span + 1 >= self._count(place) and place.first < 1 << 62:
                return place
        raise RefusedError("not a key of a Kafka store", store=self._url, key=key[:200])

    def _count(self, place: Place) -> int:
        return max(1, -(-place.size // self._options.part))

    def _write(
        self,
        name: bytes,
        values: Callable[[], Iterable[bytes | None]],
        until: float,
        partition: int | None = None,
    ) -> tuple[int, list[int]]:
        """Write an object's records to a partition, or to any; which one, and their offsets in order."""
        for last in (False, True):
            try:
                with self._failures():
                    partitions = self._ready()
                    where = random.randrange(partitions) if partition is None else partition
                    if where >= partitions:
                        return where, []  # there is no such object to write a tombstone of
                    sending = _Sending(self._producer, self._topic, where, until)
                    for number, value in enumerate(values()):
                        sending.send(_record(name, number), value)
                    return where, sending.finish()
            except StoreError:
                if last or self._producer is not None or time.monotonic() > until:
                    raise
        raise AssertionError("the second try returns or raises")

    def _ready(self) -> int:
        """Have a producer and the topic; the number of its partitions."""
        if self._producer is None:
            settings = {
                "enable.idempotence": True,
                "linger.ms": 0,
                "message.timeout.ms": round(self._options.deadline * 1000),
                "message.max.bytes": self._options.part + 10_000,
                "queue.buffering.max.kbytes": 1 << 20,
            }
            self._partitions = 0
            self._producer = Producer(self._settings | settings | {"error_cb": self._note})
        if not self._partitions:
            self._partitions = self._find_topic() or self._make_topic()
        return self._partitions

    def _find_topic(self) -> int:
        """The topic's partitions; 0 when there is no such topic."""
        listed = self._producer.list_topics(timeout=self._options.connect_timeout)
        found = listed.topics.get(self._topic)
        return len(found.partitions) if found is not None else 0

    def _make_topic(self) -> int:
        options = self._options
        settings = {"cleanup.policy": "compact,delete"}
        if options.retention is not None:
            settings["retention.ms"] = str(round(options.retention * 1000))
        topic = NewTopic(self._topic, options.partitions, -1, config=settings)
        admin = AdminClient(self._settings | {"error_cb": self._note})
        made = admin.create_topics([topic], request_timeout=options.deadline)
        try:
            made[self._topic].result(options.deadline)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was faster
                raise
        except TimeoutError:
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, "the topic was not made in time")
            ) from None
        until = time.monotonic() + options.deadline
        while not (partitions := self._find_topic()):
            if time.monotonic() > until:
                raise DeadlineError("the new topic does not appear", store=self._url)
            time.sleep(_TICK)
        return partitions

    def _parts(self, place: Place, count: int) -> Iterator[bytes]:
        """The first parts of an object in order, as far as they are there."""
        until = time.monotonic() + self._options.deadline + place.size / _SLOWEST
        small = place.size <= _SMALL
        with self._failures(), self._consumer(small) as consumer:
            where = TopicPartition(self._topic, place.partition, place.first)
            consumer.assign([where])
            wanted, seen = 0, time.monotonic()
            while wanted < count:
                now = time.monotonic()
                if now > until:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no record in time"))
                message = consumer.poll(min(_SILENCE, until - now))
                if message is None:
                    if now - seen >= _SILENCE and not self._is_within(consumer, where, place):
                        return
                    continue
                seen = now
                if message.error():
                    if is_gone(message.error()):
                        return
                    if message.error().retriable():
                        continue
                    raise KafkaException(message.error())
                if message.offset() > place.first + place.span:
                    return
                if message.key() == _record(place.name, wanted):
                    if message.value() is None:
                        return
                    wanted += 1
                    yield message.value()

    def _is_within(self, consumer: Any, where: TopicPartition, place: Place) -> bool:
        """Whether the brokers still have, or ever had, records where the object is."""
        try:
            low, high = consumer.get_watermark_offsets(where, timeout=self._options.connect_timeout)
        except KafkaException as error:
            if is_gone(error.args[0]):
                return False
            raise
        return bool(low <= place.first and place.first + place.span < high)

    @contextlib.contextmanager
    def _consumer(self, small: bool) -> Iterator[Any]:
        """A consumer of no group, for one thread; kept for the next read unless something went wrong."""
        idle = self._consumers[small]
        try:
            consumer = idle.pop()
        except IndexError:
            settings = {
                "group.id": "proxystore",  # librdkafka wants one; it is never joined
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "allow.auto.create.topics": False,
                "fetch.wait.max.ms": 1,
                "fetch.error.backoff.ms": 20,
                "fetch.queue.backoff.ms": 1,
                "fetch.message.max.bytes": _SMALL if small else 4 << 20,
                "queued.min.messages": 1,
                "queued.max.messages.kbytes": _AHEAD,
            }
            consumer = Consumer(self._settings | settings | {"error_cb": self._note})
        try:
            yield consumer
            consumer.unassign()
        except BaseException:
            consumer.close()
            raise
        idle.append(consumer)

    def _note(self, error: Any) -> None:
        self._last = error

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Errors of librdkafka as those of this package."""
        self._last = None
        try:
            yield
        except (KafkaException, BufferError) as error:
            found = error.args[0] if isinstance(error, KafkaException) else KafkaError(KafkaError._QUEUE_FULL)
            if self._producer is not None:
                self._producer.poll(0)  # what its connections have to say
            if found.fatal() or found.code() in STALE:
                self._producer = None  # with what it still holds
            raise failure(found, self._last, self._url, self._options.protocol) from error


class _Sending:
    """Records of one object on their way to the brokers."""

    def __init__(self, producer: Any, topic: str, partition: int, until: float) -> None:
        self._producer = producer
        self._where = {"topic": topic, "partition": partition}
        self._until = until
        self._out = self._records = 0
        self._offsets: list[int] = []
        self._error: Any = None

    def send(self, key: bytes, value: bytes | None) -> None:
        size = len(value or b"")
        self._wait(_IN_FLIGHT - size)

        def confirmed(error: Any, message: Any) -> None:
            self._out -= size
            self._records -= 1
            if error is None:
                moved(size)
                self._offsets.append(message.offset())
            else:
                self._error = error

        self._out += size
        self._records += 1
        self._producer.produce(**self._where, key=key, value=value, on_delivery=confirmed)
        self._producer.poll(0)

    def finish(self) -> list[int]:
        """The offsets of all records, in order, now that the brokers have them."""
        self._wait(0, records=0)
        return sorted(self._offsets)

    def _wait(self, most: int, records: int = 10_000) -> None:
        while self._error is None and (self._out > max(0, most) or self._records > records):
            self._producer.poll(_TICK)
            if time.monotonic() > self._until:
                raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT, "no confirmation in time"))
        if self._error is not None:
            raise KafkaException(self._error)


def _record(name: bytes, part: int) -> bytes:
    return name + part.to_bytes(4, "big")


_parents: list[Any] = []


@forks.in_child
def _after_fork() -> None:
    # A child has none of the threads of its parent's clients: it must not even free them.
    for connector in list(_instances):
        left = [connector._producer, *connector._consumers[True], *connector._consumers[False]]
        connector._producer = None
        connector._consumers = {True: [], False: []}
        for client in left:
            if client is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
                _parents.append(client)
