"""Streams over Redis: consumers that are killed, a server that is, and what it keeps."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from redis_servers import Server, serving
from stream_kinds import WAIT, dies_at, left

from proxystore_core import Store
from proxystore_core.errors import ConfigurationError, CorruptError
from proxystore_core.stream import StreamConsumer, StreamProducer
from proxystore_core.stream.redis_lists import RedisQueuePublisher, RedisQueueSubscriber
from proxystore_core.stream.redis_streams import RedisStreamPublisher, RedisStreamSubscriber


def test_redis_streams_lose_nothing_with_a_consumer(server: Server, store: Store[Any]) -> None:
    topic = f"t{secrets.token_hex(4)}"
    place = ("127.0.0.1", server.port, topic)
    with StreamProducer[Any](RedisStreamPublisher(*place[:2]), store) as producer:
        producer.send_batch(topic, range(6))
    given = dies_at(2, RedisStreamSubscriber, *place)
    assert len(left(store)) == 4
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


def test_it_gets_all_of_it_and_in_order(server: Server, store: Store[Any]) -> None:
    topic = f"t{secrets.token_hex(4)}"
    place = ("127.0.0.1", server.port, topic)
    with StreamProducer[Any](RedisStreamPublisher(*place[:2]), store) as producer:
        producer.send_batch(topic, range(50))
    assert dies_at(0, RedisStreamSubscriber, *place, consumer="me", prefetch=40) == [0]
    with StreamConsumer[Any](RedisStreamSubscriber(*place, consumer="me"), timeout=WAIT) as consumer:
        assert list(consumer.iter_objects()) == list(range(50))


def test_a_topic_that_nobody_sends_to_goes_by_itself(server: Server) -> None:
    topic = f"t{secrets.token_hex(4)}"
    place = ("127.0.0.1", server.port, topic)
    subscriber = RedisStreamSubscriber(*place, keep=1000)
    key = subscriber._key(topic)
    assert 900 < server.witness.ttl(key) <= 1000
    RedisStreamSubscriber(*place, group="other", keep=5000).close()
    assert 900 < server.witness.ttl(key) <= 1000  # it was there
    assert server.witness.delete(key)
    assert subscriber.receive(0.01) is None  # and is made again
    assert 900 < server.witness.ttl(key) <= 1000
    RedisStreamPublisher(*place[:2], keep=None).send(topic, b"kept for ever")
    assert server.witness.ttl(key) == -1
    RedisStreamSubscriber(*place, group="another").close()
    assert server.witness.ttl(key) == -1
    subscriber.close()


def test_what_others_add_to_a_topic_is_told_once(server: Server, store: Store[Any]) -> None:
    topic = f"t{secrets.token_hex(4)}"
    place = ("127.0.0.1", server.port, topic)
    publisher = RedisStreamPublisher(*place[:2])
    publisher._requests.run([("XADD", publisher._key(topic), "*", "other", "field")])
    publisher.send(topic, b"no event")
    with StreamProducer[Any](publisher, store) as producer:
        producer.send(topic, 1)
    with StreamConsumer[Any](RedisStreamSubscriber(*place, idle=0.05), timeout=WAIT) as consumer:
        for _ in range(2):
            with pytest.raises(CorruptError, match="none of a stream"):
                consumer.next_object()
        assert list(consumer.iter_objects()) == [1]  # and ends


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
    assert len(left(store)) == 1  # of what was lost; it lapses


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
