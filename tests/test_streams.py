"""Streams: what holds with every broker."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import pickle
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from redis_servers import Server
from stream_kinds import WAIT, Broker, KafkaKind, QueueBroker, RedisKind, ZeroMQKind, left
from waiting import until

from proxystore_core import Proxy, Store, extract, get_key, is_resolved
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    GoneError,
    RefusedError,
    SerializationError,
    UnreachableError,
)
from proxystore_core.stream import (
    Event,
    Publisher,
    QueuePublisher,
    QueueSubscriber,
    StreamConsumer,
    StreamProducer,
    Subscriber,
)
from proxystore_core.stream.events import encode
from proxystore_core.stream.kafka import KafkaPublisher, KafkaSubscriber
from proxystore_core.stream.redis_lists import RedisQueuePublisher, RedisQueueSubscriber
from proxystore_core.stream.redis_pubsub import RedisPublisher, RedisSubscriber
from proxystore_core.stream.redis_streams import RedisStreamPublisher, RedisStreamSubscriber
from proxystore_core.stream.zmq import ZeroMQPublisher, ZeroMQSubscriber


@pytest.fixture(params=["queue", "redis streams", "redis lists", "redis pubsub", "zmq", "kafka"])
def broker(request: pytest.FixtureRequest) -> Broker:
    kind: str = request.param
    if kind == "queue":
        return QueueBroker()
    if kind == "zmq":
        return ZeroMQKind()
    if kind == "kafka":
        return KafkaKind(request.getfixturevalue("bootstrap"))
    server = request.getfixturevalue("server")
    kinds: dict[str, tuple[Any, Any, bool]] = {
        "redis streams": (RedisStreamPublisher, RedisStreamSubscriber, True),
        "redis lists": (RedisQueuePublisher, RedisQueueSubscriber, True),
        "redis pubsub": (RedisPublisher, RedisSubscriber, False),
    }
    return RedisKind(server, *kinds[kind])


def test_proxies(broker: Broker, store: Store[Any]) -> None:
    with StreamConsumer[Any](broker.subscriber(), timeout=WAIT) as consumer:
        assert isinstance(consumer.subscriber, Subscriber)
        with StreamProducer[Any](broker.publisher(), store) as producer:
            assert isinstance(producer.publisher, Publisher)
            for number in range(5):
                producer.send(broker.topic, np.full(1000, number), metadata={"number": number})
        items = list(consumer.items())
    assert [item.metadata["number"] for item in items] == list(range(5))
    assert {item.topic for item in items} == {broker.topic}
    for number, item in enumerate(items):
        assert type(item.proxy) is Proxy
        assert not is_resolved(item.proxy)
        assert item.event.size > 8000
        handed_on = pickle.loads(pickle.dumps(item.proxy))  # to a worker
        assert store.exists(item.event.key)
        assert extract(handed_on)[0] == number
        assert not store.exists(item.event.key)
    assert not left(store)


def test_objects(broker: Broker, store: Store[Any]) -> None:
    with StreamConsumer[Any](broker.subscriber(), timeout=WAIT) as consumer:
        with StreamProducer[Any](broker.publisher(), store, batch_size=3) as producer:
            producer.send_batch(broker.topic, range(7))
            producer.send(broker.topic, 7, metadata={"last": True}, evict=False)
        objects = consumer.iter_objects_with_metadata()
        first = next(objects)
        assert len(left(store)) == 8  # dealt with when the next is asked for
        assert next(objects) == (1, {})
        assert len(left(store)) == 7
        assert [first, (1, {}), *objects] == [*((n, {}) for n in range(7)), (7, {"last": True})]
    assert len(left(store)) == 1


def test_several_topics_stores_and_producers(broker: Broker, store: Store[Any]) -> None:
    with Store.from_url(f"shm://{secrets.token_hex(4)}", name=secrets.token_hex(4)) as other:
        first, second = broker.topics
        with StreamConsumer[Any](broker.subscriber(first, second), producers=2, timeout=WAIT) as consumer:
            one = StreamProducer[Any](broker.publisher(), {first: store, None: other})
            two = StreamProducer[Any](broker.publisher(), {first: store, second: other})
            one.send(first, 1)
            two.send(second, 2)
            one.send(second, 3)
            one.close_topics(first, second)
            two.send(first, 4)
            two.close_topics(first, second)
            items = list(consumer.items())
            assert sorted((item.topic == first, extract(item.proxy)) for item in items) == [
                (False, 2),
                (False, 3),
                (True, 1),
                (True, 4),
            ]
            assert {item.event.recipe for item in items if item.topic == second} == {other.recipe}
            with pytest.raises(StopIteration):
                consumer.next()
            for producer in (one, two):
                producer.close()
        assert not left(other)


def test_filters_and_aggregators(broker: Broker, store: Store[Any]) -> None:
    with StreamConsumer[Any](
        broker.subscriber(), filter_=lambda metadata: metadata["n"] == 1, timeout=WAIT
    ) as consumer:
        with StreamProducer[Any](
            broker.publisher(),
            store,
            aggregator=sum,
            batch_size=2,
            filter_=lambda metadata: metadata["n"] == 5,
        ) as producer:
            for number in range(7):
                producer.send(broker.topic, number, metadata={"n": number})
        assert list(consumer.iter_objects()) == [2 + 3, 4 + 6]  # 0 + 1 carries n = 1: the consumer's filter
    assert not left(store)


def test_async_iteration(broker: Broker, store: Store[Any]) -> None:
    async def main() -> list[Any]:
        with StreamConsumer[Any](broker.subscriber(), timeout=WAIT) as consumer:
            objects = consumer.iter_objects_async()
            waiting = asyncio.ensure_future(anext(objects))
            await asyncio.sleep(0.05)
            waiting.cancel()  # what comes for it is not lost
            with pytest.raises(asyncio.CancelledError):
                await waiting
            producer = StreamProducer[Any](broker.publisher(), store)
            await asyncio.to_thread(producer.send_batch, broker.topic, range(4))
            await asyncio.to_thread(producer.close)
            found = [obj async for obj in consumer.iter_objects_async()]
            assert [proxy async for proxy in consumer] == []
            return found

    assert asyncio.run(main()) == [0, 1, 2, 3]
    assert not left(store)


def test_consumers_that_share(broker: Broker, store: Store[Any]) -> None:
    consumers = [StreamConsumer[Any](broker.subscriber(), timeout=WAIT) for _ in range(2)]
    with ThreadPoolExecutor(2) as executor:
        results = [executor.submit(list, consumer) for consumer in consumers]
        with StreamProducer[Any](broker.publisher(), store) as producer:
            if not broker.shared:
                time.sleep(0.2)  # a second subscriber is not waited for
            producer.send_batch(broker.topic, range(20))
        keys = [[get_key(proxy) for proxy in result.result()] for result in results]
    for consumer in consumers:
        consumer.close()
    if broker.shared:
        assert len({*keys[0], *keys[1]}) == len(keys[0]) + len(keys[1]) == 20
    else:
        assert keys[0] == keys[1]
        assert len(keys[0]) == 20


def test_back_pressure(broker: Broker, store: Store[Any]) -> None:
    with StreamConsumer[Any](broker.subscriber(), timeout=WAIT) as consumer:
        with StreamProducer[Any](broker.publisher(), store, max_pending=3) as producer:
            for number in range(3):
                producer.send(broker.topic, number, timeout=WAIT)
            with pytest.raises(DeadlineError, match="max_pending"):
                producer.send(broker.topic, 3, timeout=0.05)
            assert len(left(store)) == 3
            sending = threading.Thread(target=lambda: producer.send_batch(broker.topic, range(3, 12)))
            sending.start()
            seen = []
            for _ in range(12):
                seen.append(consumer.next_object())
                assert len(left(store)) <= 4
            sending.join()
        assert seen == list(range(12))
        assert list(consumer) == []
    assert not left(store)


def test_timeouts(broker: Broker, store: Store[Any]) -> None:
    with StreamConsumer[Any](broker.subscriber(), timeout=0.05) as consumer:
        with pytest.raises(DeadlineError, match="no item came"):
            consumer.next()
        with pytest.raises(DeadlineError):
            consumer.next_object(0.01)
        with StreamProducer[Any](broker.publisher(), store) as producer:
            producer.send(broker.topic, "late")
        assert consumer.next_object(WAIT) == "late"


def test_what_cannot_be_sent(broker: Broker, store: Store[Any]) -> None:
    consumer = StreamConsumer[Any](broker.subscriber(), timeout=WAIT)
    producer = StreamProducer[Any](broker.publisher(), store)
    wrongs: list[Any] = [{"a": object()}, {"a": float("nan")}, {"a": "x" * 2_000_000}, {1: 2}, [1], "a"]
    for metadata in wrongs:
        with pytest.raises(ConfigurationError):
            producer.send(broker.topic, 1, metadata=metadata)
        assert not left(store)
    topic: Any
    for topic in (None, "", 5):
        with pytest.raises(ConfigurationError, match="topic"):
            producer.send(topic, 1)
    with pytest.raises(ConfigurationError, match="no store"):
        StreamProducer[Any](producer.publisher, {"other": store}).send(broker.topic, 1)
    options: list[dict[str, Any]] = [
        {"batch_size": 0},
        {"max_pending": 0},
        {"batch_size": 5, "max_pending": 4},
        {"batch_size": "2"},
        {"batch_size": 1.5},
        {"max_pending": "3"},
    ]
    for wrong in options:
        with pytest.raises(ConfigurationError):
            StreamProducer[Any](producer.publisher, store, **wrong)
    for producers in (0, "2", 1.5, True, None):
        with pytest.raises(ConfigurationError, match=r"producers is .* expected a whole number"):
            StreamConsumer[Any](consumer.subscriber, producers=producers)  # type: ignore[arg-type]
    for timeout in ("2", -1, math.nan):
        with pytest.raises(ConfigurationError, match=r"timeout is .* expected seconds"):
            StreamConsumer[Any](consumer.subscriber, timeout=timeout)  # type: ignore[arg-type]
    for stores in (None, "shm://", {None: "shm://"}):
        with pytest.raises(ConfigurationError, match="expected a Store"):
            StreamProducer[Any](producer.publisher, stores)  # type: ignore[arg-type]
    producer.send(broker.topic, [1])
    producer.close()
    producer.close()
    with pytest.raises(ConfigurationError, match="closed"):
        producer.send(broker.topic, 1)
    assert list(consumer.iter_objects()) == [[1]]
    consumer.close()
    consumer.close()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_object_that_cannot_be_stored_stands_in_nobody_s_way(batch_size: int, store: Store[Any]) -> None:
    broker = QueueBroker()
    producer = StreamProducer[Any](broker.publisher(), store, batch_size=batch_size)
    consumer = StreamConsumer[Any](broker.subscriber(), timeout=math.inf)
    refused = 0
    for obj in (1, threading.Lock(), 2, 3):
        try:
            producer.send(broker.topic, obj)
        except SerializationError:
            refused += 1
    assert refused == 1
    producer.close()
    assert list(consumer.iter_objects()) == [1, 2, 3]
    assert not left(store)


def test_a_consumer_that_is_closed_while_it_waits(broker: Broker, store: Store[Any]) -> None:
    producer = StreamProducer[Any](broker.publisher(), store)
    first = StreamConsumer[Any](broker.subscriber())

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(first.iter_objects_async())

    asyncio.run(main())
    asked = first._asked
    first.close()
    assert asked is not None
    with pytest.raises(ConfigurationError, match="closed"):
        asked.result(WAIT)
    # Kafka's test broker keeps a member that left while it joined, and nobody else gets its partitions.
    if broker.shared and not isinstance(broker, KafkaKind):
        with StreamConsumer[Any](broker.subscriber(), timeout=WAIT) as second:
            producer.send(broker.topic, "for the second")
            producer.close()
            assert list(second.iter_objects()) == ["for the second"]
    with pytest.raises(ConfigurationError, match="closed"):
        first.next()
    with pytest.raises(ConfigurationError, match="closed"):
        first.subscriber.receive(WAIT)

    async def again() -> None:
        await anext(first.iter_objects_async())

    with pytest.raises(ConfigurationError, match="closed"):
        asyncio.run(again())


def test_an_error_of_an_asynchronous_consumer_is_told_once(store: Store[Any]) -> None:
    broker = QueueBroker()
    consumer = StreamConsumer[Any](broker.subscriber(), timeout=0.05)

    async def main() -> Any:
        with pytest.raises(DeadlineError):
            await anext(consumer.iter_objects_async())
        StreamProducer[Any](broker.publisher(), store).send(broker.topic, "late")
        return await anext(consumer.iter_objects_async())

    assert asyncio.run(main()) == "late"
    consumer.close()


def test_a_consumer_that_is_dropped_leaves_no_thread() -> None:
    def threads() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if each.name == "proxystore-stream"}

    async def main() -> None:
        consumer = StreamConsumer[Any](QueueSubscriber(QueuePublisher(), "t"), timeout=0.01)
        with pytest.raises(DeadlineError):
            await anext(consumer.iter_objects_async())

    before = threads()
    asyncio.run(main())

    def gone() -> bool:
        gc.collect()
        return threads() <= before

    until(gone)


def test_an_end_that_goes_round_is_no_item(broker: Broker, store: Store[Any]) -> None:
    consumer = StreamConsumer[Any](broker.subscriber(), producers=2, timeout=3)
    with StreamProducer[Any](broker.publisher(), store) as producer:
        producer.send(broker.topic, 1)
    found = []
    with pytest.raises(DeadlineError, match="no item came"):
        found += consumer.iter_objects()
    consumer.close()


@pytest.mark.parametrize("evict", [True, False])
def test_a_batch_with_more_metadata_than_a_message_holds(evict: bool, store: Store[Any]) -> None:
    broker = QueueBroker()
    consumer = StreamConsumer[Any](broker.subscriber(), timeout=WAIT)
    with StreamProducer[Any](broker.publisher(), store, batch_size=7, max_pending=100) as producer:
        for number in range(7):
            producer.send(broker.topic, number, evict=evict, metadata={"a": f"{number}" * 400_000})
    found = list(consumer.iter_objects_with_metadata())
    assert [(number, metadata["a"][:1]) for number, metadata in found] == [(n, f"{n}") for n in range(7)]
    assert len(left(store)) == (0 if evict else 7)


def test_a_batch_of_which_a_part_is_sent(store: Store[Any]) -> None:
    """What is sent is sent once, what is not is kept, and is not in the store meanwhile."""
    broker = QueueBroker()
    publisher: Any = broker.publisher()
    producer = StreamProducer[Any](publisher, store, batch_size=4)
    send, sent = publisher.send, []

    def breaks(topic: str, message: bytes) -> None:
        sent.append(message)
        if len(sent) == 2:
            raise UnreachableError("gone for a moment")
        send(topic, message)

    publisher.send = breaks
    metadata = {"a": "a" * 400_000}
    producer.send_batch(broker.topic, range(3), metadata=metadata)
    with pytest.raises(UnreachableError):
        producer.send(broker.topic, 3, metadata=metadata)
    assert len(left(store)) == 2
    producer.close()
    consumer = StreamConsumer[Any](broker.subscriber(), timeout=WAIT)
    assert list(consumer.iter_objects()) == [0, 1, 2, 3]
    assert not left(store)


@pytest.mark.parametrize("aggregator", [None, sum])
def test_too_much_metadata_is_told_to_who_sends_it(aggregator: Any, store: Store[Any]) -> None:
    broker = QueueBroker()
    producer = StreamProducer[Any](broker.publisher(), store, batch_size=3, aggregator=aggregator)
    producer.send(broker.topic, 1, metadata={"a": "a" * 500_000})
    # One character short of a message, which holds the store and the key, too.
    most = (1 << 20) - len('[1,"",[["",0,"",false,{"b":""}]]]')
    with pytest.raises(ConfigurationError, match="too big"):
        producer.send(broker.topic, 2, metadata={"b": "b" * most})
    if aggregator is not None:
        with pytest.raises(ConfigurationError, match=r"too big.*batch_size"):
            producer.send(broker.topic, 2, metadata={"b": "b" * 500_000})
    producer.send(broker.topic, 3, metadata={"a": "c" * 500_000})
    producer.close()
    found = list(StreamConsumer[Any](broker.subscriber(), timeout=WAIT).iter_objects())
    assert found == ([1, 3] if aggregator is None else [4])
    assert not left(store)


def test_the_interpreter_does_not_wait_for_a_consumer() -> None:
    program = """
import asyncio
from proxystore_core.stream import StreamConsumer
from proxystore_core.stream.queue import QueuePublisher, QueueSubscriber

publisher = QueuePublisher()
consumer = StreamConsumer(QueueSubscriber(publisher, "nothing"))

async def main():
    try:
        async with asyncio.timeout(0.05):
            await anext(consumer.iter_objects_async())
    except TimeoutError:
        print("cancelled")

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["cancelled"]


def test_messages_of_others(broker: Broker, store: Store[Any]) -> None:
    consumer = StreamConsumer[Any](broker.subscriber(), timeout=WAIT)
    publisher = broker.publisher()
    publisher.send(broker.topic, pickle.dumps(Evil()))
    with pytest.raises(CorruptError, match="none of a stream"):
        consumer.next()
    publisher.send(broker.topic, encode([Event("nothing", store.recipe)]))
    with StreamProducer[Any](publisher, store) as producer:
        producer.send(broker.topic, 1)
    assert not Evil.ran
    consumer.close(acknowledge=False)


def test_stores_that_nobody_gave(store: Store[Any], tmp_path: Any) -> None:
    with Store.from_url(f"file://{tmp_path}/theirs") as theirs:
        broker = QueueBroker()
        with StreamProducer[Any](broker.publisher(), {None: theirs}) as producer:
            producer.send(broker.topic, Evil())
        consumer = StreamConsumer[Any](broker.subscriber(), timeout=WAIT, stores=[store])
        with pytest.raises(RefusedError, match="stores="):
            consumer.next_object()
        assert not Evil.ran


class Evil:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import test_streams; test_streams.Evil.ran = True",)


def test_a_message_whose_object_is_gone_is_an_error(store: Store[Any]) -> None:
    broker = QueueBroker()
    with StreamProducer[Any](broker.publisher(), store) as producer:
        producer.send(broker.topic, 1)
    consumer = StreamConsumer[Any](broker.subscriber(), timeout=WAIT)
    for session in store.connector.sessions():
        store.connector.end(session)
    with pytest.raises(GoneError):
        consumer.next_object()


def test_brokers_that_are_not_there(store: Store[Any]) -> None:
    def unheard() -> None:
        with contextlib.closing(ZeroMQPublisher(timeout=0.1)) as publisher:
            StreamProducer[Any](publisher, store).send("t", 1)

    makers: list[Callable[[], Any]] = [
        lambda: StreamProducer[Any](
            RedisStreamPublisher("127.0.0.1", 1, connect_timeout=0.1, deadline=0.5), store
        ).send("t", 1),
        lambda: RedisStreamSubscriber("127.0.0.1", 1, "t", connect_timeout=0.1, deadline=0.5),
        lambda: RedisSubscriber("127.0.0.1", 1, "t", connect_timeout=0.1, deadline=0.5),
        lambda: StreamProducer[Any](KafkaPublisher("127.0.0.1:1", deadline=1), store).send("t", 1),
        lambda: ZeroMQPublisher("192.0.2.1", 1),
        unheard,
    ]
    for make in makers:
        with pytest.raises((UnreachableError, DeadlineError)):
            make()
    assert not left(store)


def test_wrong_arguments(server: Server, bootstrap: str) -> None:
    makers: list[Callable[[], Any]] = [
        lambda: RedisStreamSubscriber("127.0.0.1", server.port, ()),
        lambda: RedisStreamPublisher("shm://"),
        lambda: ZeroMQSubscriber("127.0.0.1", 0, "t"),
        lambda: KafkaPublisher(bootstrap, options={"no.such.option": 1}),
        lambda: KafkaSubscriber(bootstrap, [""]),
        lambda: QueueSubscriber(QueuePublisher(), 5),  # type: ignore[arg-type]
        lambda: RedisStreamSubscriber("127.0.0.1", server.port, "t", prefetch=0.5),  # type: ignore[arg-type]
    ]
    for make in makers:
        with pytest.raises(ConfigurationError):
            make()
    assert "redis://127.0.0.1" in repr(RedisStreamPublisher(f"redis://127.0.0.1:{server.port}"))
