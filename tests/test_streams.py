"""Streams: what holds with every broker, and what each guarantees when producers and consumers are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kafka_broker
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_servers import Server, serving

from proxystore_core import Proxy, Store, extract, get_key, is_resolved
from proxystore_core.connectors.base import USER_SESSION
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    GoneError,
    RefusedError,
    UnreachableError,
)
from proxystore_core.stream import (
    End,
    Event,
    Publisher,
    QueuePublisher,
    QueueSubscriber,
    StreamConsumer,
    StreamProducer,
    Subscriber,
)
from proxystore_core.stream.events import decode, encode
from proxystore_core.stream.kafka import KafkaPublisher, KafkaSubscriber
from proxystore_core.stream.redis_lists import RedisQueuePublisher, RedisQueueSubscriber
from proxystore_core.stream.redis_pubsub import RedisPublisher, RedisSubscriber
from proxystore_core.stream.redis_streams import RedisStreamPublisher, RedisStreamSubscriber
from proxystore_core.stream.zmq import ZeroMQPublisher, ZeroMQSubscriber

WAIT = 30.0
# A group waits half its session for those who may join, too.
GROUP = {"session.timeout.ms": 1500, "heartbeat.interval.ms": 200}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with kafka_broker.broker() as bootstrap:
        yield bootstrap


@pytest.fixture
def store() -> Iterator[Store[Any]]:
    with Store.from_url(f"shm://{secrets.token_hex(4)}", name=secrets.token_hex(4)) as store:
        yield store
        store.close(clear=True)


class Broker:
    """Makes publishers and subscribers of one kind."""

    shared = True  # a message goes to one subscriber of a group

    def __init__(self, topics: int = 1) -> None:
        self.topics = [f"t{secrets.token_hex(4)}" for _ in range(topics)]

    @property
    def topic(self) -> str:
        return self.topics[0]

    def publisher(self) -> Publisher:
        raise NotImplementedError

    def subscriber(self, *topics: str) -> Subscriber:
        raise NotImplementedError


class QueueBroker(Broker):
    def __init__(self) -> None:
        super().__init__(2)
        self._publisher = QueuePublisher()

    def publisher(self) -> Publisher:
        return self._publisher

    def subscriber(self, *topics: str) -> Subscriber:
        return QueueSubscriber(self._publisher, topics or self.topic)


class RedisKind(Broker):
    def __init__(self, server: Server, publisher: Any, subscriber: Any, shared: bool) -> None:
        super().__init__(2)
        self._kinds = publisher, subscriber
        self._port = server.port
        self.shared = shared

    def publisher(self) -> Publisher:
        return self._kinds[0]("127.0.0.1", self._port)

    def subscriber(self, *topics: str) -> Subscriber:
        return self._kinds[1]("127.0.0.1", self._port, topics or self.topic)


class ZeroMQKind(Broker):
    shared = False

    def __init__(self) -> None:
        super().__init__(2)
        self._publisher: ZeroMQPublisher | None = None

    def publisher(self) -> Publisher:
        self._publisher = self._publisher or ZeroMQPublisher(timeout=WAIT)
        return self._publisher

    def subscriber(self, *topics: str) -> Subscriber:
        self.publisher()
        assert self._publisher is not None
        return ZeroMQSubscriber("127.0.0.1", self._publisher.port, topics or self.topic)


class KafkaKind(Broker):
    def __init__(self, bootstrap: str) -> None:
        super().__init__(0)
        self.topics = [kafka_broker.new_topic(bootstrap) for _ in range(2)]
        self._bootstrap = bootstrap

    def publisher(self) -> Publisher:
        return KafkaPublisher(self._bootstrap)

    def subscriber(self, *topics: str) -> Subscriber:
        return KafkaSubscriber(self._bootstrap, topics or self.topic, group=self.topic, options=GROUP)


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


def left(store: Store[Any]) -> list[str]:
    from pathlib import Path

    return [path.name for path in Path(store.connector.store_dir).rglob("*") if path.is_file()]


# What holds with every broker.


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
    for metadata in ({"a": object()}, {"a": float("nan")}, {"a": "x" * 2_000_000}):
        with pytest.raises(ConfigurationError):
            producer.send(broker.topic, 1, metadata=metadata)
        assert not left(store)
        producer._topics.clear()
    with pytest.raises(ConfigurationError, match="no store"):
        StreamProducer[Any](producer.publisher, {"other": store}).send(broker.topic, 1)
    options: list[dict[str, Any]] = [
        {"batch_size": 0},
        {"max_pending": 0},
        {"batch_size": 5, "max_pending": 4},
    ]
    for wrong in options:
        with pytest.raises(ConfigurationError):
            StreamProducer[Any](producer.publisher, store, **wrong)
    with pytest.raises(ConfigurationError, match="producers"):
        StreamConsumer[Any](consumer.subscriber, producers=0)
    producer.send(broker.topic, [1])
    producer.close()
    producer.close()
    with pytest.raises(ConfigurationError, match="closed"):
        producer.send(broker.topic, 1)
    assert list(consumer.iter_objects()) == [[1]]
    consumer.close()
    consumer.close()


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


# The format.

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

metadata = st.dictionaries(st.text(), plain)


@given(
    st.lists(
        st.tuples(
            st.text(), st.integers(0, 2**60), st.text(), st.booleans(), st.dictionaries(st.text(), plain)
        ),
        min_size=1,
        max_size=5,
    ),
    st.text(),
)
def test_events_survive(items: list[Any], recipe: str) -> None:
    events = [Event(key, recipe, *rest) for key, *rest in items]
    assert decode(encode(events)) == events


@given(
    st.binary(max_size=100) | st.text().map(str.encode) | plain.map(lambda value: json.dumps(value).encode())
)
def test_anything_else_is_corrupt(message: bytes) -> None:
    try:
        found = decode(message)
    except CorruptError:
        return
    assert isinstance(found, End) or all(isinstance(event, Event) for event in found)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[2,null,[]]",
        b'[1,null,"x"]',
        b"[1,null,[1]]",
        b'[1,"shm://",[["k","1","",true,{}]]]',
        b'[1,"shm://",[["k",1,"",1,{}]]]',
        b'[1,5,[["k",1,"",true,{}]]]',
        b"[" * 100_000,
        b" " * (2 << 20),
    ],
)
def test_what_is_not_an_event(message: bytes) -> None:
    with pytest.raises(CorruptError):
        decode(message)
    assert decode(encode(End(frozenset("ab")))) == End(frozenset("ab"))
    assert len(encode([Event("node.user.0123456789abcdef0123", "shm://", 10, "numpy:ndarray")])) < 100


# What is guaranteed when somebody dies.

CONSUMER = """
import os, pickle, sys, time
from proxystore_core.stream import StreamConsumer
kind, args, options = pickle.loads(bytes.fromhex(sys.argv[1]))
consumer = StreamConsumer(kind(*args, **options))
for obj in consumer.iter_objects():
    print(obj, flush=True)
    if obj == int(sys.argv[2]):
        time.sleep(600)       # killed while it works on this one
"""


def dies_at(last: int, kind: Any, *args: Any, **options: Any) -> list[int]:
    """What a consumer that is killed while it works on one item was given."""
    call = pickle.dumps((kind, args, options)).hex()
    given = []
    with subprocess.Popen([sys.executable, "-c", CONSUMER, call, str(last)], stdout=subprocess.PIPE) as child:
        while not given or given[-1] != last:
            given.append(int(child.stdout.readline()))
        child.send_signal(signal.SIGKILL)
    return given


def test_redis_streams_lose_nothing_with_a_consumer(server: Server, store: Store[Any]) -> None:
    topic = f"t{secrets.token_hex(4)}"
    place = ("127.0.0.1", server.port, topic)
    with StreamProducer[Any](RedisStreamPublisher(*place[:2]), store) as producer:
        producer.send_batch(topic, range(6))
    given = dies_at(2, RedisStreamSubscriber, *place)
    with StreamConsumer[Any](RedisStreamSubscriber(*place, idle=0.05), timeout=WAIT) as consumer:
        rest = list(consumer.iter_objects())
    assert given == [0, 1, 2]
    assert sorted(rest) == [2, 3, 4, 5]  # the one it died of comes again, what it was done with does not
    assert not left(store)


def test_a_consumer_that_comes_back_gets_what_it_had(server: Server, store: Store[Any]) -> None:
    topic = f"t{secrets.token_hex(4)}"
    place = ("127.0.0.1", server.port, topic)
    with StreamProducer[Any](RedisStreamPublisher(*place[:2]), store) as producer:
        producer.send_batch(topic, range(4))
    assert dies_at(1, RedisStreamSubscriber, *place, consumer="me") == [0, 1]
    with StreamConsumer[Any](RedisStreamSubscriber(*place, consumer="me"), timeout=WAIT) as consumer:
        assert list(consumer.iter_objects()) == [1, 2, 3]


def test_an_item_that_was_dealt_with_but_not_acknowledged_is_skipped(
    server: Server, store: Store[Any]
) -> None:
    topic = f"t{secrets.token_hex(4)}"
    place = ("127.0.0.1", server.port, topic)
    with StreamProducer[Any](RedisStreamPublisher(*place[:2]), store) as producer:
        producer.send_batch(topic, range(3))
    first = StreamConsumer[Any](RedisStreamSubscriber(*place, consumer="me"), timeout=WAIT)
    assert first.next_object() == 0
    store.evict(first._given[0][1].key)  # it dies after it evicted the object
    with StreamConsumer[Any](RedisStreamSubscriber(*place, consumer="me"), timeout=WAIT) as consumer:
        assert list(consumer.iter_objects()) == [1, 2]


def test_a_message_whose_object_is_gone_is_an_error(store: Store[Any]) -> None:
    broker = QueueBroker()
    with StreamProducer[Any](broker.publisher(), store) as producer:
        producer.send(broker.topic, 1)
    consumer = StreamConsumer[Any](broker.subscriber(), timeout=WAIT)
    store.close(clear=True)
    with pytest.raises(GoneError):
        consumer.next_object()


def test_a_topic_does_not_stay_on_the_server_for_ever(server: Server, store: Store[Any]) -> None:
    topic = f"t{secrets.token_hex(4)}"
    for kind in (RedisStreamPublisher, RedisQueuePublisher):
        with StreamProducer[Any](kind("127.0.0.1", server.port, prefix=kind.__name__), store) as producer:
            producer.send(topic, 1)
        assert 600_000 < server.witness.ttl(f"{kind.__name__}:{topic}") <= 604_800
    with pytest.raises(ConfigurationError, match="keep"):
        RedisStreamPublisher("127.0.0.1", server.port, keep=0)


def test_redis_lists_lose_one_item_with_a_consumer(server: Server, store: Store[Any]) -> None:
    topic = f"t{secrets.token_hex(4)}"
    place = ("127.0.0.1", server.port, topic)
    with StreamProducer[Any](RedisQueuePublisher(*place[:2]), store) as producer:
        producer.send_batch(topic, range(6))
    assert dies_at(2, RedisQueueSubscriber, *place) == [0, 1, 2]
    with StreamConsumer[Any](RedisQueueSubscriber(*place), timeout=WAIT) as consumer:
        assert list(consumer.iter_objects()) == [3, 4, 5]


def test_kafka_loses_nothing_with_a_consumer(bootstrap: str, store: Store[Any]) -> None:
    topic = kafka_broker.new_topic(bootstrap)
    options: dict[str, Any] = {"group": topic, "options": GROUP}
    with StreamProducer[Any](KafkaPublisher(bootstrap), store) as producer:
        producer.send_batch(topic, range(6))
    assert dies_at(2, KafkaSubscriber, bootstrap, topic, **options) == [0, 1, 2]
    with StreamConsumer[Any](KafkaSubscriber(bootstrap, topic, **options), timeout=WAIT) as consumer:
        assert list(consumer.iter_objects()) == [2, 3, 4, 5]
    assert not left(store)


PRODUCER = """
import pickle, sys, time
from proxystore_core import Store
from proxystore_core.stream import StreamProducer
kind, args, url, topic = pickle.loads(bytes.fromhex(sys.argv[1]))
producer = StreamProducer(kind(*args), Store.from_url(url))
for number in range(10**6):
    producer.send(topic, number)
    if number == 5:
        print("sent", flush=True)
"""


@pytest.mark.parametrize("kind", ["redis streams", "kafka"])
def test_a_killed_producer_leaves_whole_items(
    kind: str, request: pytest.FixtureRequest, store: Store[Any]
) -> None:
    if kind == "kafka":
        bootstrap = request.getfixturevalue("bootstrap")
        topic = kafka_broker.new_topic(bootstrap)
        publisher: tuple[Any, ...] = (KafkaPublisher, (bootstrap,))
        subscriber: Subscriber = KafkaSubscriber(bootstrap, topic, group=topic, options=GROUP)
    else:
        server = request.getfixturevalue("server")
        topic = f"t{secrets.token_hex(4)}"
        publisher = (RedisStreamPublisher, ("127.0.0.1", server.port))
        subscriber = RedisStreamSubscriber("127.0.0.1", server.port, topic)
    call = pickle.dumps((*publisher, store.connector.url, topic)).hex()
    with subprocess.Popen([sys.executable, "-c", PRODUCER, call], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"sent\n"
        child.send_signal(signal.SIGKILL)
    with StreamProducer[Any](publisher[0](*publisher[1]), store) as successor:
        successor.send(topic, -1)
    with StreamConsumer[Any](subscriber, timeout=WAIT) as consumer:
        found = list(consumer.iter_objects())
    assert found.pop() == -1
    assert found == list(range(len(found)))
    assert len(found) >= 6
    left = store.connector.keys(USER_SESSION)
    assert len(left) <= 1  # stored by the one that died before it could send
    for key in left:
        store.evict(key)


def test_kafka_transactions(bootstrap: str, store: Store[Any]) -> None:
    topic = kafka_broker.new_topic(bootstrap)
    first = KafkaPublisher(bootstrap, transactional_id=topic)
    with StreamProducer[Any](first, store, batch_size=2) as producer:
        producer.send_batch(topic, range(6))
    with StreamConsumer[Any](
        KafkaSubscriber(bootstrap, topic, group=topic, options=GROUP), timeout=WAIT
    ) as consumer:
        assert list(consumer.iter_objects()) == list(range(6))


TENFOLD = """
import sys, time
from proxystore_core import Store
from proxystore_core.stream import StreamConsumer, StreamProducer
from proxystore_core.stream.kafka import KafkaPublisher, KafkaSubscriber
bootstrap, source, sink, url, last = sys.argv[1:]
options = {"session.timeout.ms": 1500, "heartbeat.interval.ms": 200}
store = Store.from_url(url)
publisher = KafkaPublisher(bootstrap, transactional_id=source)
subscriber = KafkaSubscriber(bootstrap, source, group=source, publisher=publisher, options=options)
with StreamProducer(publisher, store) as producer, StreamConsumer(subscriber, timeout=30) as consumer:
    for number in consumer.iter_objects():
        producer.send(sink, 10 * number)
        if number == int(last):
            print("sent", flush=True)
            time.sleep(600)  # killed before the next item is asked for
"""


def test_what_comes_of_an_item_and_that_it_is_dealt_with_are_one(bootstrap: str, store: Store[Any]) -> None:
    source, sink = (kafka_broker.new_topic(bootstrap) for _ in range(2))
    first = StreamProducer[Any](KafkaPublisher(bootstrap), store)
    first.send_batch(source, range(5))
    first.close(topics=False)
    command = [sys.executable, "-c", TENFOLD, bootstrap, source, sink, store.connector.url]
    with subprocess.Popen([*command, "2"], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"sent\n"
        child.send_signal(signal.SIGKILL)
    with StreamConsumer[Any](KafkaSubscriber(bootstrap, sink, group="early", options=GROUP)) as early:
        # Of the item that it died of nothing is to be seen.
        assert [extract(early.next(WAIT)) for _ in range(2)] == [0, 10]
        with pytest.raises(DeadlineError):
            early.next(0.3)
    with StreamProducer[Any](KafkaPublisher(bootstrap), store) as producer:
        producer.send(source, 5)  # its end is that of the topic
    subprocess.run([*command, "-1"], check=True)
    with StreamConsumer[Any](
        KafkaSubscriber(bootstrap, sink, group="late", options=GROUP), timeout=WAIT
    ) as late:
        found = [item.event.key for item in late.items()]
    numbers = [store.get(key) for key in found]
    assert numbers[:2] == [None, None]  # taken by the early one
    # Tansu shows what was aborted, too, once it was.
    assert numbers[2:] == [20, 30, 40, 50] if kafka_broker.REAL else numbers[-4:] == [20, 30, 40, 50]
    for key in store.connector.keys("user"):
        store.evict(key)  # also what was aborted: it was in the store already
    with pytest.raises(ConfigurationError, match="transactional_id"):
        KafkaSubscriber(bootstrap, sink, publisher=KafkaPublisher(bootstrap))


def test_several_partitions(bootstrap: str, store: Store[Any]) -> None:
    topic = kafka_broker.new_topic(bootstrap, partitions=3)
    consumers = [
        StreamConsumer[Any](KafkaSubscriber(bootstrap, topic, group=topic, options=GROUP), timeout=WAIT)
        for _ in range(2)
    ]
    with StreamProducer[Any](KafkaPublisher(bootstrap), store) as producer:
        producer.send_batch(topic, range(60))

    def consume(consumer: StreamConsumer[Any]) -> list[Any]:
        with consumer:
            return list(consumer.iter_objects())

    with ThreadPoolExecutor(2) as executor:
        found = [obj for part in executor.map(consume, consumers) for obj in part]
    assert set(found) == set(range(60))
    assert max(Counter(found).values()) <= 2


def test_a_redis_server_that_comes_back(tmp_path: Any, store: Store[Any]) -> None:
    with serving(tmp_path / "r", "--appendonly", "yes", "--appendfsync", "always") as server:
        place = ("127.0.0.1", server.port, "topic")
        consumer = StreamConsumer[Any](RedisStreamSubscriber(*place), timeout=WAIT)
        producer = StreamProducer[Any](RedisStreamPublisher(*place[:2]), store)
        producer.send_batch("topic", range(3))
        assert consumer.next_object() == 0
        server.kill()
        server.start()
        producer.send("topic", 3)
        producer.close()
        assert list(consumer.iter_objects()) == [1, 2, 3]
        consumer.close()


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
    ]
    for make in makers:
        with pytest.raises(ConfigurationError):
            make()
    assert "redis://127.0.0.1" in repr(RedisStreamPublisher(f"redis://127.0.0.1:{server.port}"))
