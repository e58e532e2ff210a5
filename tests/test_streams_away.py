"""Redis streams whose topic, server or patience goes away while a consumer waits; filters of long batches."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis_servers
from redis_servers import Server

from proxystore_core.store import Store
from proxystore_core.stream.consumer import StreamConsumer
from proxystore_core.stream.events import Event
from proxystore_core.stream.producer import StreamProducer
from proxystore_core.stream.queue import QueuePublisher, QueueSubscriber
from proxystore_core.stream.redis_streams import RedisStreamPublisher, RedisStreamSubscriber


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with redis_servers.serving(tmp_path / "r") as found:
        yield found


def test_a_topic_that_has_grown_old(server: Server) -> None:
    """The server drops it `keep` seconds after its last message, and the consumers' group with it."""
    url = f"redis://{server.address}"
    publisher = RedisStreamPublisher(url, keep=0.3)
    subscriber = RedisStreamSubscriber(url, 6379, "topic")
    publisher.send("topic", b"1")
    found = subscriber.receive(5)
    assert found
    assert subscriber.receive(1.5) is None
    assert subscriber.drained("topic", 1)
    subscriber.acknowledge(found)
    publisher.keep = 60
    publisher.send("topic", b"2")
    found = subscriber.receive(5)
    assert found
    assert found.data == b"2"
    subscriber.close()
    publisher.close()


def test_a_server_that_comes_back_empty(server: Server) -> None:
    url = f"redis://{server.address}"
    publisher, subscriber = RedisStreamPublisher(url), RedisStreamSubscriber(url, 6379, "topic")
    server.kill()
    server.start()
    publisher.send("topic", b"1")
    found = subscriber.receive(5)
    assert found
    assert found.data == b"1"
    subscriber.close()
    publisher.close()


@pytest.mark.parametrize("kind", ["redis_streams", "redis_lists", "redis_pubsub"])
def test_a_deadline_shorter_than_a_wait(kind: str, server: Server) -> None:
    module = importlib.import_module(f"proxystore_core.stream.{kind}")
    publisher_kind, subscriber_kind = (getattr(module, name) for name in module.__all__)
    subscriber = subscriber_kind(f"redis://{server.address}?deadline=0.3", 6379, "topic")
    assert subscriber.receive(1.2) is None
    publisher = publisher_kind(f"redis://{server.address}", keep=math.inf)
    publisher.send("topic", b"1")
    found = subscriber.receive(2)
    assert found
    assert found.data == b"1"
    subscriber.close()
    publisher.close()


def test_a_filter_compares_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch of ten thousand that would be fifty million comparisons."""
    publisher = QueuePublisher()
    with Store.from_url("memory://filtered", name="filtered", register=True) as store:
        producer: StreamProducer[int] = StreamProducer(publisher, store, batch_size=20)
        producer.send_batch("topic", range(10), metadata={"wanted": False})
        producer.send_batch("topic", range(10), metadata={"wanted": True})

        def compare(one: Event, other: object) -> bool:
            raise AssertionError("compared")

        monkeypatch.setattr(Event, "__eq__", compare)
        subscriber = QueueSubscriber(publisher, "topic")
        consumer: StreamConsumer[int] = StreamConsumer(
            subscriber, filter_=lambda metadata: not metadata["wanted"], timeout=5
        )
        assert [consumer.next_object() for _ in range(10)] == list(range(10))
        consumer.close()
        producer.close(topics=False)
