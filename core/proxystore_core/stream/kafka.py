"""Streams over Kafka: consumer groups, offsets committed when an item is dealt with, transactions.

At least once: the items after the last committed offset come again. With ``transactional_id`` every
message is sent in a transaction, and is there whole or not at all, and once: a producer that comes back
under its id fences the one that was there. Brokers without transactions say so.

Exactly once, for who consumes and produces: a subscriber that is given such a publisher commits its offsets
in the publisher's transactions (KIP-98, KIP-447). What is sent while an item is dealt with, and that it is
dealt with, are one transaction.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import confluent_kafka as kafka

from proxystore_core import forks
from proxystore_core.connectors.arguments import check_seconds, check_text
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.stream.broker import Message, is_closed, topics_of
from proxystore_core.stream.events import End, decode

__all__ = ["KafkaPublisher", "KafkaSubscriber"]

_QUIET = {"log_level": 2}
_FULL = 0.1  # seconds to wait for room among the messages that librdkafka keeps


class KafkaPublisher:
    """Produces to one Kafka topic a topic.

    Args:
        bootstrap: servers, ``host:port,host:port``.
        transactional_id: send each message in a transaction under this id, unique to this producer.
        deadline: seconds for a message to be stored by the broker.
        options: of librdkafka, for example ``{"security.protocol": "SSL"}``.

    Raises:
        ConfigurationError: an option is wrong.
        UnreachableError, DeadlineError: no broker answers, where transactions are wanted.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        transactional_id: str | None = None,
        deadline: float = 30.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        check_text("bootstrap", bootstrap)
        deadline = check_seconds("deadline", deadline)
        self.bootstrap = bootstrap
        self._deadline = deadline
        self._transactional = transactional_id is not None
        settings: dict[str, Any] = {
            **_QUIET,
            "bootstrap.servers": bootstrap,
            "linger.ms": 0,
            "message.timeout.ms": round(deadline * 1000),
            "enable.idempotence": self._transactional,
        }
        if transactional_id is not None:
            settings["transactional.id"] = transactional_id
        with _translated(bootstrap):
            self._producer = kafka.Producer({**settings, **(options or {})})
            if self._transactional:
                self._producer.init_transactions(deadline)
        self._lock = forks.lock()
        self._joined = False  # a subscriber says when a transaction ends
        self._open = False

    def __repr__(self) -> str:
        return f"KafkaPublisher({self.bootstrap!r})"

    def send(self, topic: str, message: bytes) -> None:
        self._send(topic, [(message, -1)])

    def send_end(self, topic: str, message: bytes) -> None:
        self._send(topic, [(message, partition) for partition in self.partitions(topic)])

    def partitions(self, topic: str) -> list[int]:
        """The partitions of a topic. Raises as `send`."""
        with _translated(self.bootstrap):
            found = self._producer.list_topics(topic, timeout=self._deadline).topics[topic]
        return sorted(found.partitions) or [-1]

    def send_to(self, topic: str, message: bytes, partition: int) -> None:
        """Send to one partition. Raises as `send`."""
        self._send(topic, [(message, partition)])

    def close(self) -> None:
        if self._open:
            with self._lock, _translated(self.bootstrap):
                self._commit()
        self._producer.flush(self._deadline)

    def join(self) -> None:
        """From here on a subscriber ends the transactions, with `commit` or `abort`.

        Raises:
            ConfigurationError: the publisher has no ``transactional_id``, or another subscriber.
        """
        if not self._transactional or self._joined:
            raise ConfigurationError(
                "a subscriber's publisher sends in transactions, for that subscriber alone",
                store=self.bootstrap,
                remedy="Give it transactional_id=, and each subscriber a publisher of its own.",
            )
        self._joined = True

    def commit(self, offsets: Sequence[Any], group: Any) -> None:
        """Commit what was sent since the last time, and a consumer's offsets, as one.

        Args:
            offsets: as confluent-kafka's ``send_offsets_to_transaction``.
            group: likewise.

        Raises:
            RefusedError: another producer or consumer has taken over; nothing was committed.
            UnreachableError, DeadlineError: as their names say.
        """
        with self._lock, _translated(self.bootstrap):
            self._begin()
            with self._aborting():
                self._producer.send_offsets_to_transaction(list(offsets), group, self._deadline)
            self._commit()

    def abort(self) -> None:
        """Take back what was sent since the last `commit`. Raises as `commit`."""
        with self._lock, _translated(self.bootstrap):
            if self._open:
                self._open = False
                self._producer.abort_transaction(self._deadline)

    def _begin(self) -> None:
        if not self._open:
            self._producer.begin_transaction()
            self._open = True

    def _commit(self) -> None:
        with self._aborting():
            self._producer.commit_transaction(self._deadline)
        self._open = False

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        try:
            yield
        except kafka.KafkaException as error:
            self._open = False
            if error.args[0].txn_requires_abort():
                self._producer.abort_transaction(self._deadline)
            raise

    def _late(self) -> DeadlineError:
        return DeadlineError(
            f"the broker did not store a message within {self._deadline:g} s",
            store=self.bootstrap,
            remedy="Is it there, and does it have the topic? Or give deadline= more seconds.",
        )

    def _send(self, topic: str, messages: Sequence[tuple[bytes, int]]) -> None:
        failed: list[Any] = []

        def delivered(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error)

        with self._lock if self._transactional else contextlib.nullcontext(), _translated(self.bootstrap):
            if self._transactional:
                self._begin()
            until = time.monotonic() + self._deadline
            for message, partition in messages:
                while True:
                    try:
                        self._producer.produce(topic, message, partition=partition, on_delivery=delivered)
                        break
                    except BufferError as error:  # so many of a transaction wait for the broker
                        if time.monotonic() > until:
                            raise self._late() from error
                        self._producer.poll(_FULL)
            if self._joined:
                self._producer.poll(0)
            elif self._transactional:
                self._commit()
            elif self._producer.flush(self._deadline):
                raise self._late()
            if failed:
                raise kafka.KafkaException(failed[0])


class KafkaSubscriber:
    """Consumes Kafka topics as one of a group.

    Args:
        bootstrap: servers, ``host:port,host:port``.
        topics: one topic, or several. A new group starts with what is there.
        group: each message goes to one consumer of each group.
        deadline: seconds for a commit.
        publisher: one with a ``transactional_id``, for this subscriber alone: what it sends between two items
            is committed with the first one's being dealt with, or not at all.
        options: of librdkafka, for example ``{"session.timeout.ms": 6000}``: after so long what a dead
            consumer had goes to another.

    Raises:
        ConfigurationError: an option is wrong.
    """

    def __init__(
        self,
        bootstrap: str,
        topics: str | Sequence[str],
        *,
        group: str = "proxystore",
        deadline: float = 30.0,
        publisher: KafkaPublisher | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        check_text("bootstrap", bootstrap)
        check_text("group", group)
        if not group:  # confluent-kafka would end the process
            raise ConfigurationError("group is empty: expected a name")
        deadline = check_seconds("deadline", deadline)
        self.bootstrap = bootstrap
        self._topics = topics_of(topics)
        self._joint = publisher
        self._left: set[str] = set()
        self._deadline = deadline
        self._ends: dict[tuple[str, int], set[str]] = {}
        self._revoked: set[tuple[str, int]] = set()
        self._publisher: KafkaPublisher | None = None
        self._polling = forks.lock()
        self._closed = False
        settings = {
            **_QUIET,
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 100,
            # A topic that is made after its consumers are there: they learn of it then.
            "allow.auto.create.topics": True,
            "topic.metadata.refresh.interval.ms": 2000,
        }
        with _translated(bootstrap):
            self._consumer = kafka.Consumer({**settings, **(options or {})})
            if publisher is not None:
                publisher.join()
            self._consumer.subscribe(list(self._topics), on_revoke=self._revoke)

    def __repr__(self) -> str:
        return f"KafkaSubscriber({self.bootstrap!r}, {self._topics})"

    @property
    def topics(self) -> tuple[str, ...]:
        return self._topics

    @property
    def transactional(self) -> bool:
        """Whether an item counts as dealt with only once what came of it is committed."""
        return self._joint is not None

    def receive(self, timeout: float | None) -> Message | None:
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return None
            with _translated(self.bootstrap), self._polling:  # nobody closes it meanwhile
                if self._closed:
                    raise is_closed("subscriber")
                found = self._consumer.poll(min(left, 1.0))
                if found is None:
                    continue
                error = found.error()
                if error is not None:
                    if error.retriable() or error.code() in _NOT_YET:
                        continue
                    raise kafka.KafkaException(error)
            topic, partition, data = found.topic(), found.partition(), found.value() or b""
            assert topic is not None
            assert partition is not None
            self._note_end((topic, partition), data)
            if topic not in self._left:
                # Whether it came before nobody says: that its object is gone tells.
                return Message(topic, data, (topic, partition, found.offset()), True)

    def acknowledge(self, message: Message) -> None:
        topic, partition, offset = message.mark
        if (topic, partition) in self._revoked:
            if self._joint is not None:
                self._joint.abort()
            return  # another's now, who gets it again
        done = [kafka.TopicPartition(topic, partition, offset + 1)]
        if self._joint is not None:
            self._joint.commit(done, self._consumer.consumer_group_metadata())
            return
        with _translated(self.bootstrap):
            self._consumer.commit(offsets=done, asynchronous=False)

    def flush(self) -> None:
        pass  # a commit is at the broker when it returns

    def share(self, end: Message, data: bytes) -> None:
        if self._publisher is None:
            self._publisher = KafkaPublisher(self.bootstrap, deadline=self._deadline)
        self._publisher.send_to(end.topic, data, end.mark[1])

    def drained(self, topic: str, producers: int) -> bool:
        with _translated(self.bootstrap):
            mine = [each for each in self._consumer.assignment() if each.topic == topic]
        return all(len(self._ends.get((topic, each.partition), ())) >= producers for each in mine)

    def leave(self, topic: str) -> None:
        self._left.add(topic)
        if self._left.issuperset(self._topics):
            self._leave_group()  # its partitions are for those who wait for the end

    def close(self) -> None:
        self._closed = True
        if self._publisher is not None:
            self._publisher.close()
        if self._joint is not None:
            self._joint.abort()  # of an item that was not dealt with
        self._leave_group()

    def _leave_group(self) -> None:
        with self._polling, contextlib.suppress(RuntimeError):  # it has left
            self._consumer.close()

    def _note_end(self, place: tuple[str, int], data: bytes) -> None:
        self._revoked.discard(place)
        with contextlib.suppress(CorruptError):  # which who decodes it will say
            batch = decode(data)
            if isinstance(batch, End):
                self._ends.setdefault(place, set()).update(batch.producers)

    def _revoke(self, _: Any, partitions: Sequence[Any]) -> None:
        self._revoked.update((each.topic, each.partition) for each in partitions)


_ERROR = kafka.KafkaError
_NOT_YET = frozenset({_ERROR._PARTITION_EOF, _ERROR.UNKNOWN_TOPIC_OR_PART, _ERROR._UNKNOWN_TOPIC})
_FENCED = frozenset(
    {_ERROR._FENCED, _ERROR.PRODUCER_FENCED, _ERROR.INVALID_PRODUCER_EPOCH, _ERROR.ILLEGAL_GENERATION}
)
_LATE = frozenset({_ERROR._TIMED_OUT, _ERROR._MSG_TIMED_OUT, _ERROR.REQUEST_TIMED_OUT})
_AWAY = frozenset({_ERROR._TRANSPORT, _ERROR._ALL_BROKERS_DOWN, _ERROR._RESOLVE})


@contextlib.contextmanager
def _translated(bootstrap: str) -> Iterator[None]:
    try:
        yield
    except kafka.KafkaException as error:
        found = error.args[0]
        code, text = found.code(), found.str()
        kind: type[StoreError] = RefusedError
        remedy = "See the broker's log."
        if code in _FENCED:
            remedy = "Another producer has this transactional_id, or another consumer these items: end one."
        if code in _LATE or code in _AWAY:
            kind = DeadlineError if code in _LATE else UnreachableError
            remedy = "Check bootstrap, and that the broker runs and has the topic."
        elif code == _ERROR._INVALID_ARG:
            kind, remedy = ConfigurationError, "See librdkafka's list of options."
        raise kind(f"the broker says: {text}", store=bootstrap, remedy=remedy) from error
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"an option for Kafka is wrong: {error}") from error
