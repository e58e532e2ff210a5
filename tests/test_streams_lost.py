"""What brokers lose, and what not, when a producer, a consumer or the broker itself is killed."""

from __future__ import annotations

import pickle
import secrets
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kafka_broker
import pytest
from redis_servers import Server, serving
from stream_kinds import GROUP, WAIT
from waiting import until

from proxystore_core import Store
from proxystore_core.errors import DeadlineError
from proxystore_core.stream import StreamConsumer, StreamProducer
from proxystore_core.stream.kafka import KafkaPublisher, KafkaSubscriber
from proxystore_core.stream.redis_lists import RedisQueuePublisher, RedisQueueSubscriber
from proxystore_core.stream.redis_pubsub import RedisPublisher, RedisSubscriber
from proxystore_core.stream.redis_streams import RedisStreamPublisher, RedisStreamSubscriber
from proxystore_core.stream.zmq import ZeroMQPublisher, ZeroMQSubscriber

DIES = """
import pickle, sys, time
from proxystore_core import Store
from proxystore_core.stream import StreamConsumer, StreamProducer
kind, args, url, topic = pickle.loads(bytes.fromhex(sys.argv[1]))
if url:
    producer = StreamProducer(kind(*args), Store.from_url(url))
    for number in range(100):
        producer.send(topic, number, evict=False)
        time.sleep(0.001)
        print(number, flush=True)
else:
    for obj in StreamConsumer(kind(*args, topic)).iter_objects():
        print(obj, flush=True)
        if obj == 1:
            time.sleep(600)
"""


@pytest.fixture
def topic() -> str:
    return f"t{secrets.token_hex(4)}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def dying(kind: Any, args: Any, topic: str, url: str = "") -> subprocess.Popen[bytes]:
    call = pickle.dumps((kind, args, url, topic)).hex()
    return subprocess.Popen([sys.executable, "-c", DIES, call], stdout=subprocess.PIPE)


def killed_at(child: subprocess.Popen[bytes], last: int) -> None:
    with child:
        while int(child.stdout.readline()) != last:
            pass
        child.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("kind", ["streams", "lists", "pubsub", "zmq", "kafka"])
def test_a_killed_producer_leaves_whole_items(
    kind: str, request: pytest.FixtureRequest, store: Store[Any], topic: str
) -> None:
    options: dict[str, Any] = {}
    place: tuple[Any, ...] = ("127.0.0.1", free_port())
    if kind == "kafka":
        place = (request.getfixturevalue("bootstrap"),)
        topic = kafka_broker.new_topic(place[0])
        options = {"group": topic, "options": GROUP}
    elif kind != "zmq":
        place = ("127.0.0.1", request.getfixturevalue("server").port)
    publisher, subscriber = {
        "streams": (RedisStreamPublisher, RedisStreamSubscriber),
        "lists": (RedisQueuePublisher, RedisQueueSubscriber),
        "pubsub": (RedisPublisher, RedisSubscriber),
        "zmq": (ZeroMQPublisher, ZeroMQSubscriber),
        "kafka": (KafkaPublisher, KafkaSubscriber),
    }[kind]
    consumer = StreamConsumer[Any](subscriber(*place, topic, **options), timeout=WAIT)
    with ThreadPoolExecutor(1) as executor:
        # ZeroMQ subscribes anew in the thread that receives.
        consumed = executor.submit(list, consumer.iter_objects())
        killed_at(dying(publisher, place, topic, store.connector.url), 5)
        with StreamProducer[Any](publisher(*place), store) as successor:
            successor.send(topic, -1)
        found = consumed.result(WAIT)
    consumer.close()
    assert found.pop() == -1
    assert found == list(range(len(found)))
    # What a ZeroMQ producer had not got rid of dies with it; Redis has all that `send` returned for.
    assert len(found) >= (1 if kind == "zmq" else 6)


@pytest.mark.parametrize("kind", ["pubsub", "zmq"])
def test_what_is_sent_while_a_subscriber_is_away_is_lost_to_it_alone(
    kind: str, server: Server, store: Store[Any], topic: str
) -> None:
    if kind == "zmq":
        publisher: Any = ZeroMQPublisher(subscribers=2, timeout=WAIT)
        subscriber: Any = ZeroMQSubscriber
        place = ("127.0.0.1", publisher.port)
    else:
        place = ("127.0.0.1", server.port)
        publisher, subscriber = RedisPublisher(*place), RedisSubscriber
    with StreamConsumer[Any](subscriber(*place, topic), timeout=WAIT) as other:
        child = dying(subscriber, place, topic)
        if kind == "pubsub":
            until(lambda: server.witness.pubsub_numsub(f"ps.stream:{topic}")[0][1] == 2)
        with StreamProducer[Any](publisher, store) as producer:
            producer.send_batch(topic, range(3), evict=False)
            killed_at(child, 1)
            producer.send(topic, 3, evict=False)
            with StreamConsumer[Any](subscriber(*place, topic)) as again:
                for number in range(4, 100):
                    producer.send(topic, number, evict=False)
                    try:
                        first = again.next_object(0.2)
                        break
                    except DeadlineError:  # its subscription is on its way
                        continue
            assert first == number
        assert list(other.iter_objects()) == list(range(number + 1))


def test_a_redis_list_survives_its_server_and_a_channel_does_not(
    store: Store[Any], topic: str, tmp_path: Any
) -> None:
    with serving(tmp_path / "r", "--appendonly", "yes", "--appendfsync", "always") as server:
        place = ("127.0.0.1", server.port)
        kept = StreamConsumer[Any](RedisQueueSubscriber(*place, topic), timeout=WAIT)
        lost = StreamConsumer[Any](RedisSubscriber(*place, topic), timeout=WAIT)
        producers = [
            StreamProducer[Any](kind(*place), store) for kind in (RedisQueuePublisher, RedisPublisher)
        ]
        for number in range(3):
            for producer in producers:
                producer.send(topic, number)
        assert kept.next_object() == 0
        assert lost.next_object() == 0
        server.kill()
        server.start()
        for producer in producers:
            producer.send(topic, 3)
        assert [kept.next_object() for _ in range(3)] == [1, 2, 3]
        # What had come to the subscriber's socket is read from there; nobody was subscribed when 3 was sent.
        rest: list[int] = []
        producers[1].send(topic, 4)
        while 5 not in rest:
            try:
                rest.append(lost.next_object(0.1))
            except DeadlineError:
                producers[1].send(topic, 5)
        assert 3 not in rest
        for each in (*producers, kept, lost):
            each.close()


def test_a_kafka_broker_that_keeps_nothing(store: Store[Any]) -> None:
    """Tansu's memory goes with it: a broker with a disk, or replicas, is what the guarantee needs."""
    with kafka_broker.serving() as server:
        topic = kafka_broker.new_topic(server.address)

        def consumer(group: str) -> StreamConsumer[Any]:
            return StreamConsumer[Any](
                KafkaSubscriber(server.address, topic, group=group, options=GROUP), timeout=WAIT
            )

        producer = StreamProducer[Any](KafkaPublisher(server.address), store)
        producer.send_batch(topic, range(3))
        with consumer("before") as before:
            assert before.next_object() == 0
        server.stop()
        with pytest.raises(DeadlineError):
            StreamProducer[Any](KafkaPublisher(server.address, deadline=0.5), store).send(topic, 3)
        server.start()
        kafka_broker.new_topic(server.address, name=topic)
        producer.send(topic, 4)
        producer.close()
        with consumer("after") as after:
            assert list(after.iter_objects()) == [4]
