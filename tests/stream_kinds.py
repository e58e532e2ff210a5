"""What tests of streams share: brokers of every kind, consumers that are killed."""

from __future__ import annotations

import os
import pickle
import secrets
import signal
import subprocess
import sys
from typing import Any

import kafka_broker
from redis_servers import Server

from proxystore_core import Store
from proxystore_core.stream import Publisher, QueuePublisher, QueueSubscriber, Subscriber
from proxystore_core.stream.kafka import KafkaPublisher, KafkaSubscriber
from proxystore_core.stream.zmq import ZeroMQPublisher, ZeroMQSubscriber

WAIT = 30.0
# A group waits half its session for those who may join, too.
GROUP = {"session.timeout.ms": 1500, "heartbeat.interval.ms": 200}


def left(store: Store[Any]) -> list[str]:
    """The files of such a store: objects, records of sessions, anything."""
    # Somebody may remove them meanwhile.
    return [name for _, _, names in os.walk(store.connector.store_dir) for name in names]


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
