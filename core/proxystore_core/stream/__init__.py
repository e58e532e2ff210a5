"""Streams of objects: small events travel by a broker, the objects by a store.

Whoever only hands items on (a dispatcher) has their proxies, and never touches the data.

Example:
    producer = StreamProducer(RedisStreamPublisher("localhost", 6379), store)
    producer.send("frames", array)

    consumer = StreamConsumer(RedisStreamSubscriber("localhost", 6379, "frames", group="workers"))
    for array in consumer.iter_objects():
        ...
"""

from __future__ import annotations

from proxystore_core.stream.broker import Message, Publisher, Subscriber
from proxystore_core.stream.consumer import Item, StreamConsumer
from proxystore_core.stream.events import End, Event
from proxystore_core.stream.producer import StreamProducer
from proxystore_core.stream.queue import QueuePublisher, QueueSubscriber

__all__ = [
    "End",
    "Event",
    "Item",
    "Message",
    "Publisher",
    "QueuePublisher",
    "QueueSubscriber",
    "StreamConsumer",
    "StreamProducer",
    "Subscriber",
]
