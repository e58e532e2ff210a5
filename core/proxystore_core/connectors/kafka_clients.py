"""A process's clients of some Kafka brokers: a producer, idle consumers, and topics made and removed.

They are safe in threads. A forked child has none of its parent's, and makes its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import random
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from proxystore_core import forks
from proxystore_core.connectors.kafka_errors import ENDS, STALE, failure, is_gone, is_refusal
from proxystore_core.connectors.kafka_login import Options
from proxystore_core.errors import DeadlineError, StoreError
from proxystore_core.moving import moved

__all__ = ["Clients", "Record"]

_IN_FLIGHT = 8 << 20  # bytes that the brokers have not confirmed yet; librdkafka has a copy of them
_AHEAD = 8 << 10  # kilobytes that come before they are asked for
_SMALL = 64 << 10  # bytes; who reads less had better not be sent what lies behind it
_TICK = 0.005  # seconds that a thread waits for its confirmations while another takes them in
_SILENCE = 0.5  # seconds without a record, after which brokers are asked what they have
_GLANCE = 0.3  # seconds after which a client that has no answer looks whether it was refused
_KNOWN = 1.0  # seconds for which a topic that was there is believed to be
_HOUR = 3600.0  # seconds that librdkafka lets a request of an administrator take at most
_NEVER = 1 << 62  # no log has so many records
_instances: weakref.WeakSet[Clients] = weakref.WeakSet()


class Record(NamedTuple):
    """What is at one place of a log."""

    offset: int
    key: bytes
    value: bytes | None


class Clients:
    """Clients of the brokers of one store, made when they are first needed.

    Args:
        url: the store's, for messages.
        settings: of librdkafka, for all clients.
        options: see `Options`.
    """

    def __init__(self, url: str, settings: Mapping[str, Any], options: Options) -> None:
        self._url = url
        self._settings = dict(settings)
        self._options = options
        self._producer: Any = None
        self._admin: Any = None
        self._partitions: dict[str, int] = {}  # of topics that are there
        # By whether for small objects; each with when it saw a topic last.
        self._consumers: dict[bool, list[tuple[Any, dict[str, float]]]] = {True: [], False: []}
        self._making = forks.lock()
        self._truncates = True  # as far as anybody knows
        self._last: Any = None  # what a client said of its connections
        _instances.add(self)

    def close(self) -> None:
        """Let go of all of them; the next use makes others."""
        self._close_consumers()
        self._producer = self._admin = None

    def _close_consumers(self) -> None:
        for consumers in self._consumers.values():
            while consumers:
                consumers.pop()[0].close()

    # Writing.

    def write(
        self,
        topic: str,
        partition: int | None,
        records: Callable[[], Iterable[tuple[bytes, bytes | None]]],
        until: float,
    ) -> tuple[int, list[int]]:
        """Write records to one partition of a topic, and return once the brokers have all of them.

        Args:
            topic: made if it is not there.
            partition: None for any but the first, if there is any other.
            records: keys and values; called once more when a first try has failed.
            until: when to give up, of ``time.monotonic()``.

        Returns:
            The partition, and the records' offsets in order; none when there is no such partition.
        """
        for last in (False, True):
            try:
                with self.failures():
                    wanted = 1 if partition == 0 else self._options.partitions + 1
                    producer, partitions = self._ready(topic, wanted)
                    where = random.randrange(1 % partitions, partitions) if partition is None else partition
                    if where >= partitions:
                        return where, []
                    sending = _Sending(producer, topic, where, until)
                    for key, value in records():
                        sending.send(key, value)
                    return where, sending.finish()
            except StoreError:
                if last or self._producer is not None or time.monotonic() > until:
                    raise
        raise AssertionError("the second try returns or raises")

    def note(self, topic: str, key: bytes, value: bytes | None) -> None:
        """Write a record to the first partition of a topic, without waiting for the brokers to have it."""
        producer = self._producer
        if producer is not None:
            with contextlib.suppress(BufferError, KafkaException):
                producer.produce(topic, value, key, partition=0)

    def flush(self, seconds: float) -> None:
        """Wait until the brokers have what was noted."""
        producer = self._producer
        if producer is not None:
            producer.flush(seconds)

    def _ready(self, topic: str, partitions: int) -> tuple[Any, int]:
        """A producer, and how many partitions the topic has, which is made with so many if missing."""
        producer = self._producer
        if producer is None:
            settings = {
                "enable.idempotence": True,
                "linger.ms": 0,
                "message.timeout.ms": round(self._options.deadline * 1000),
                "message.max.bytes": self._options.part + 10_000,
                "queue.buffering.max.kbytes": 1 << 20,
            }
            self._partitions.clear()
            producer = Producer(self._settings | settings | {"error_cb": self._say})
            self._producer = producer
        found = self._partitions.get(topic)
        if found is None:
            found = self._partitions[topic] = self.topics().get(topic) or self._make(topic, partitions)
        return producer, found

    def knows(self, topic: str) -> bool:
        """Whether the topic was there when it was last looked for."""
        return topic in self._partitions

    # Topics.

    def topics(self) -> dict[str, int]:
        """All topics that there are, and how many partitions each has. Nothing is made by asking."""
        producer = self._producer
        client = self._administrator() if producer is None else producer
        listed = self._list(client)
        return {name: len(topic.partitions) for name, topic in listed.items()}

    def _list(self, client: Any, *topic: str) -> Any:
        """What brokers say of topics. Who was refused does not wait for another answer."""
        until, glance = time.monotonic() + self._options.connect_timeout, _GLANCE
        while True:
            left = until - time.monotonic()
            last = left < 3 * glance  # what is left then is the longest try
            try:
                return client.list_topics(*topic, timeout=max(0.001, left if last else glance)).topics
            except KafkaException:
                client.poll(0)  # what its connections have to say
                if last or is_refusal(self._last):
                    raise
            glance *= 2

    def remove(self, topic: str) -> None:
        """Remove a topic with all that is in it; one that is not there is success.

        Whoever does so lets the producer go soon.
        """
        # Not with a request for its records on the way: librdkafka does not survive what Tansu answers then.
        _forget(topic)
        with self.failures():
            removed = self._administrator().delete_topics(
                [topic], request_timeout=min(self._options.deadline, _HOUR)
            )
            self._done(removed[topic], "the topic was not removed in time", KafkaError.UNKNOWN_TOPIC_OR_PART)
        _forget(topic)

    def let_producer_go(self) -> None:
        """The next write has another: this one counts the records of topics that were removed.

        It may also make them again when it looks for them, minutes later. Another one can take half a second
        to be ready for its first record.
        """
        self._producer = None

    def truncate(self, topic: str, partition: int, offset: int) -> bool:
        """Have the brokers drop what is before an offset, if they can; whether they are asked to."""
        if not self._truncates:
            return False

        def done(future: Any) -> None:
            self._truncates &= future.exception() is None

        where = TopicPartition(topic, partition, offset)
        try:
            asked = self._administrator().delete_records(
                [where], request_timeout=min(self._options.deadline, _HOUR)
            )
        except KafkaException:
            self._truncates = False
        else:
            for future in asked.values():
                future.add_done_callback(done)
        return self._truncates

    def _administrator(self) -> Any:
        with self._making:
            if self._admin is None:
                self._admin = AdminClient(self._settings | {"error_cb": self._say})
            admin: Any = self._admin
            return admin

    def _make(self, topic: str, partitions: int) -> int:
        options = self._options
        # A segment is cleaned or dropped once it is full or old, and not before.
        settings = {"cleanup.policy": "compact,delete", "segment.ms": "600000"}
        if options.retention is not None:
            endless = math.isinf(options.retention)
            settings["retention.ms"] = "-1" if endless else str(round(options.retention * 1000))
        new = NewTopic(topic, partitions, -1, config=settings)
        made = self._administrator().create_topics([new], request_timeout=min(options.deadline, _HOUR))
        # Another process may be faster.
        self._done(made[topic], "the topic was not made in time", KafkaError.TOPIC_ALREADY_EXISTS)
        until = time.monotonic() + options.deadline
        while not (found := self.topics().get(topic)):
            if time.monotonic() > until:
                raise DeadlineError("the new topic does not appear", store=self._url)
            time.sleep(_TICK)
        return found

    def _done(self, future: Any, late: str, but: int) -> None:
        try:
            future.result(self._options.deadline)
        except KafkaException as error:
            if error.args[0].code() != but:
                raise
        except TimeoutError:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, late)) from None

    # Reading.

    def read(
        self, topic: str, partition: int, first: int, last: int, size: int, until: float
    ) -> Iterator[Record]:
        """Records of a partition from one place of its log to another, as far as they are there.

        Args:
            topic: which.
            partition: of it.
            first: offset to begin at.
            last: offset to end at.
            size: bytes that all of them have, about.
            until: when to give up, of ``time.monotonic()``.
        """
        with self.failures(), _unless_gone(), self._consumer(topic, size <= _SMALL) as consumer:
            where = TopicPartition(topic, partition, first)
            consumer.assign([where])
            seen = time.monotonic()
            while True:
                now = time.monotonic()
                if now > until:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no record in time"))
                message = consumer.poll(min(_SILENCE, until - now))
                if message is None:
                    if now - seen >= _SILENCE and not self._is_within(consumer, where, first, last):
                        return
                    continue
                seen = now
                if (message.topic(), message.partition()) != (topic, partition):
                    continue  # what there is to say of an earlier read
                error = message.error()
                if error and error.code() in ENDS:
                    return
                if error and error.retriable() and not is_gone(error):
                    continue
                if error:  # and to this consumer a topic that was missing stays so for a while
                    raise KafkaException(error)
                if message.offset() > last:
                    return
                yield Record(message.offset(), message.key() or b"", message.value())
                if message.offset() == last:
                    return

    def scan(self, topic: str, until: float) -> Iterator[Record]:
        """All records that the first partition of a topic has now."""
        low = high = 0
        with self.failures(), _unless_gone(), self._consumer(topic, False) as consumer:
            where = TopicPartition(topic, 0)
            low, high = consumer.get_watermark_offsets(where, timeout=self._options.connect_timeout)
        if low < high:  # not to the end that was told: some brokers tell less than there is
            yield from self.read(topic, 0, low, _NEVER, 1 << 30, until)

    def _is_within(self, consumer: Any, where: TopicPartition, first: int, last: int) -> bool:
        """Whether the brokers still have, or ever had, these records."""
        low, high = consumer.get_watermark_offsets(where, timeout=self._options.connect_timeout)
        return bool(low <= first and last < high)

    @contextlib.contextmanager
    def _consumer(self, topic: str, small: bool) -> Iterator[Any]:
        """A consumer of no group, for one thread; kept for the next read unless something went wrong."""
        idle = self._consumers[small]
        try:
            consumer, seen = idle.pop()
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
            consumer, seen = Consumer(self._settings | settings | {"error_cb": self._say}), {}
        try:
            # librdkafka does not survive what Tansu answers who reads from a topic that was removed.
            if time.monotonic() - seen.get(topic, -_KNOWN) >= _KNOWN:
                listed = self._list(consumer, topic)
                if topic not in listed or listed[topic].error is not None:
                    raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC))
                if len(seen) > 1000:
                    seen.clear()
                seen[topic] = time.monotonic()
            yield consumer
            consumer.unassign()
        except GeneratorExit:
            consumer.unassign()  # whoever read has enough
            idle.append((consumer, seen))
            raise
        except BaseException:
            consumer.close()
            raise
        idle.append((consumer, seen))

    # What goes wrong.

    def _say(self, error: Any) -> None:
        # After a refusal librdkafka says that all brokers are down.
        if not is_refusal(self._last):
            self._last = error

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Errors of librdkafka as those of this package."""
        self._last = None
        try:
            yield
        except (KafkaException, BufferError) as error:
            found = error.args[0] if isinstance(error, KafkaException) else KafkaError(KafkaError._QUEUE_FULL)
            producer = self._producer
            if producer is not None:
                producer.poll(0)  # what its connections have to say
            if found.fatal() or found.code() in STALE:
                self._producer = None  # with what it still holds
            raise failure(found, self._last, self._url, self._options.protocol) from error


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """Nothing is read where there is nothing (any more)."""
    try:
        yield
    except KafkaException as error:
        if not is_gone(error.args[0]):
            raise


class _Sending:
    """Records on their way to the brokers."""

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


def _forget(topic: str) -> None:
    """Have no client of this process know a topic, as far as none is in use."""
    for clients in list(_instances):
        clients._partitions.pop(topic, None)
        clients._close_consumers()


_parents: list[Any] = []


@forks.in_child
def _after_fork() -> None:
    # A child has none of the threads of its parent's clients: it must not even free them.
    for clients in list(_instances):
        consumers = [consumer for idle in clients._consumers.values() for consumer, _ in idle]
        left = [clients._producer, clients._admin, *consumers]
        clients._producer = clients._admin = None
        clients._consumers = {True: [], False: []}
        for client in left:
            if client is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
                _parents.append(client)
