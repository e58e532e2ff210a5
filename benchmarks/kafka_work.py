"""What goes through a Kafka broker: put and get beside confluent-kafka alone, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from benchmarks import test_servers
from benchmarks.contenders import OURS, attempt
from benchmarks.objects_work import sample_of
from benchmarks.rows import Plan, Row
from benchmarks.timing import Absent, Sample, interleave

__all__ = ["WORKS"]

CONFLUENT = "confluent-kafka"
KILOBYTE = 1_000
HUNDRED_MB = 100_000_000
PART = 900_000  # bytes of a record, for both


def put_get(plan: Plan) -> Iterator[Row]:
    """Put and get 1 kB and 100 MB: a store, and the library alone with the same records and settings."""
    for size in (KILOBYTE, min(HUNDRED_MB, plan.sizes[-1])):
        with ExitStack() as stack:
            broker = attempt(partial(test_servers.kafka_broker, stack))
            samples: dict[str, Sample | Absent] = {CONFLUENT: broker, OURS: broker}
            if not isinstance(broker, Absent):
                samples = {
                    CONFLUENT: _plain(stack, broker.address, size),
                    OURS: _stored(stack, broker.address, size),
                }
            outcomes = interleave(samples, plan.repeat, budget=30)
        for figure in ("put", "get", "put + get"):
            row = Row(f"Store on Kafka (Tansu): {figure}", "s", outcomes.of(figure), size)
            if figure == "put + get":
                row.at_most_times(OURS, CONFLUENT, 1.5 if size == KILOBYTE else 1.3)
            yield row


def _stored(stack: ExitStack, address: str, size: int) -> Sample:
    from proxystore_core.store import Store

    store = stack.enter_context(Store.from_url(f"kafka://{address}/store", near=False, cache_size=0))
    keys: list[Any] = []
    return sample_of(
        size,
        lambda value: keys.append(store.put(value)),
        lambda: store.get(keys[-1]),
        lambda: store.evict(keys.pop()),
    )


def _plain(stack: ExitStack, address: str, size: int) -> Sample:
    """Confirmed records of a quiet topic, read from where they begin into one array."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "linger.ms": 0})
    consumer = Consumer({"bootstrap.servers": address, "group.id": "raw", "fetch.wait.max.ms": 1})
    stack.callback(consumer.close)
    offsets: list[int] = []

    def confirmed(error: Any, message: Any) -> None:
        assert error is None, error
        offsets.append(message.offset())

    def put(value: bytes) -> None:
        offsets.clear()
        for start in range(0, size, PART):
            part = value[start : start + PART]
            producer.produce("raw", part, partition=0, on_delivery=confirmed)
            producer.poll(0)
        producer.flush()

    def get() -> Any:
        whole = np.empty(size, np.uint8)
        consumer.assign([TopicPartition("raw", 0, min(offsets))])
        done = 0
        while done < size:
            message = consumer.poll(10)
            assert message is not None
            assert not message.error(), message.error()
            data = message.value() or b""
            whole[done : done + len(data)] = np.frombuffer(data, np.uint8)
            done += len(data)
        consumer.unassign()
        return whole

    return sample_of(size, put, get, lambda: None)


def allocation(plan: Plan) -> Iterator[Row]:
    """Peaks of memory while 100 MB are put and got, in a process that does nothing else."""
    size = min(HUNDRED_MB, plan.sizes[-1])
    with ExitStack() as stack:
        broker = attempt(partial(test_servers.kafka_broker, stack))
        sample = broker
        if not isinstance(broker, Absent):
            sample = partial(test_servers.peaks_of, f"kafka://{broker.address}/memory", size)
        outcomes = interleave({OURS: sample}, 3, warm=0)
    for step, limit in (("put", 0.2), ("get", 1.2)):
        # The bytes that are put are there before: what counts is what comes on top of them.
        row = Row(f"Memory, Kafka: resident, gained at the peak of {step}", "B", outcomes.of(step), size)
        row.at_most(OURS, size * limit)
        yield row


WORKS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {
    "kafka-store": put_get,
    "kafka-allocation": allocation,
}
