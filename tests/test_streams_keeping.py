"""Objects of a stream that nobody will consume do not stay, and those that somebody may are not lost."""

from __future__ import annotations

import math
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis_servers import Server
from stream_kinds import WAIT, dies_at, left
from waiting import until

from proxystore_core import Store, buffers
from proxystore_core.connectors import file
from proxystore_core.connectors.base import USER_SESSION, lapse_of, session_until
from proxystore_core.errors import ConfigurationError
from proxystore_core.lifetimes import ContextLifetime, Session
from proxystore_core.stream import End, QueuePublisher, QueueSubscriber, StreamConsumer, StreamProducer
from proxystore_core.stream.events import decode
from proxystore_core.stream.redis_pubsub import RedisPublisher
from proxystore_core.stream.redis_streams import RedisStreamPublisher, RedisStreamSubscriber

HOUR = 3600.0


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kind, name = request.param, secrets.token_hex(4)
    if kind == "redis":
        return f"redis://{request.getfixturevalue('server').address}?prefix={name}"
    return f"{kind}://{tmp_path}" if kind == "file" else f"{kind}://{name}"


def later(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let leases that this process looks at be so much older."""
    now = time.time
    patch.setattr(time, "time", lambda: now() + seconds)


def sessions_of_streams(store: Store[Any]) -> list[str]:
    return [session for session in store.connector.sessions() if lapse_of(session) is not None]


STUCK = """
import sys, time
from proxystore_core import Store
from proxystore_core.stream import QueuePublisher, StreamProducer
class Stuck(QueuePublisher):
    def send(self, topic, message):
        print(message.hex(), flush=True)
        time.sleep(600)       # killed when the object is stored and the event is not sent
StreamProducer(Stuck(), Store.from_url(sys.argv[1]), keep=float(sys.argv[2])).send("topic", b"x" * 2_000_000)
"""


@pytest.mark.parametrize("url", ["shm", "file", "zmq", "redis"], indirect=True)
def test_what_a_killed_producer_stored_and_did_not_send_goes(
    url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = url.startswith("redis")
    command = [sys.executable, "-c", STUCK, url, "2" if native else "3600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        message = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    batch = decode(bytes.fromhex(message.decode()))
    assert not isinstance(batch, End)
    [event] = batch
    with Store.from_url(url) as store:
        if native:
            until(lambda: not request.getfixturevalue("server").witness.keys(f"{url.rpartition('=')[2]}:*"))
        else:
            store.connector.sweep()
            assert store.exists(event.key)
            later(monkeypatch, HOUR * 9 / 8 + 1)
            session = Session(store.connector)
            until(lambda: not store.exists(event.key))
            session.end()
        assert not store.exists(event.key)
        assert not store.connector.keys(USER_SESSION)
        assert not sessions_of_streams(store)


def test_the_next_producer_takes_away_what_has_lapsed(
    store: Store[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    StreamProducer[Any](QueuePublisher(), store, keep=HOUR).send("topic", 1)
    later(monkeypatch, 2 * HOUR)
    publisher = QueuePublisher()
    StreamProducer[Any](publisher, store, keep=HOUR).send("topic", 2)
    until(lambda: len(left(store)) == 1)
    with StreamConsumer[Any](QueueSubscriber(publisher, "topic"), timeout=WAIT) as consumer:
        assert consumer.next_object() == 2


def test_what_nobody_is_subscribed_to_goes(server: Server) -> None:
    prefix = secrets.token_hex(4)
    with Store.from_url(f"redis://{server.address}?prefix={prefix}") as store:
        with StreamProducer[Any](RedisPublisher("127.0.0.1", server.port), store, keep=0.2) as producer:
            producer.send("topic", np.zeros(300_000))
        until(lambda: not server.witness.keys(f"{prefix}:*"))


@pytest.mark.parametrize("url", ["shm", "file", "redis"], indirect=True)
def test_nothing_stays_when_all_is_consumed(url: str, request: pytest.FixtureRequest) -> None:
    publisher = QueuePublisher()
    with Store.from_url(url) as store:
        with StreamProducer[Any](publisher, store, keep=HOUR, batch_size=2) as producer:
            producer.send_batch("topic", [np.zeros(size) for size in (1, 200_000, 400_000)])
        assert len(sessions_of_streams(store)) == 1
        with StreamConsumer[Any](QueueSubscriber(publisher, "topic"), timeout=WAIT) as consumer:
            assert [obj.size for obj in consumer.iter_objects()] == [1, 200_000, 400_000]
        assert not sessions_of_streams(store)
        if url.startswith("redis"):
            witness = request.getfixturevalue("server").witness
            assert not witness.keys(f"{url.rpartition('=')[2]}:*")
        else:
            assert not left(store)


@pytest.mark.parametrize("url", ["shm", "file"], indirect=True)
def test_a_session_is_emptied_while_an_object_is_written(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    with Store.from_url(url) as store:
        session = session_until("test", time.time() + HOUR)
        last = store.connector.put([b"last"], session=session)

        def write(fd: int, data: Any) -> None:
            store.evict(last)
            written.append(fd)
            buffers.write_file(fd, data)

        monkeypatch.setattr(file, "write_file", write)
        key = store.connector.put([b"next"], session=session)
        assert store.connector.get(key) == b"next"
        store.evict(key)
        assert len(written) == 1
        assert not left(store)


def test_what_was_sent_waits_for_as_long_as_its_event(server: Server, store: Store[Any]) -> None:
    place = ("127.0.0.1", server.port)
    with StreamProducer[Any](RedisStreamPublisher(*place, keep=100 * HOUR), store) as producer:
        producer.send("waits", 1)
    [session] = sessions_of_streams(store)
    assert 100 * HOUR - WAIT < store.connector.sessions()[session] <= 9 / 8 * 100 * HOUR
    store.connector.sweep()
    with StreamConsumer[Any](RedisStreamSubscriber(*place, "waits"), timeout=WAIT) as consumer:
        assert list(consumer.iter_objects()) == [1]
    with StreamProducer[Any](RedisStreamPublisher(*place, keep=None), store) as producer:
        producer.send("for ever", 1)
    assert len(store.connector.keys(USER_SESSION)) == 1


def test_leases_are_renewed_for_what_comes_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = StreamProducer[Any](QueuePublisher(), Store.from_url("memory://"), keep=8 * HOUR)
    [store] = producer._stores.values()
    found = set()
    for _ in range(24):
        producer.send("topic", 1)
        found |= set(sessions_of_streams(store))
        later(monkeypatch, HOUR / 2)
        store.connector.sweep()
    assert len(found) in (12, 13)
    assert 8 * HOUR - 1 < max(store.connector.sessions().values()) + HOUR / 2 < 9 * HOUR + 1
    assert 16 <= sum(len(store.connector.keys(session)) for session in found) <= 18
    store.close()


def test_whose_the_objects_are(store: Store[Any]) -> None:
    def sessions(owner: Store[Any], **options: Any) -> list[bool]:
        """Of what consumers evict and what they do not: whether it is in the session that was asked for."""
        publisher = QueuePublisher()
        wanted = options.get("session") or owner.session
        with StreamProducer[Any](publisher, owner, batch_size=4, **options) as producer:
            for evict in (True, False, False, True):
                producer.send("topic", evict, evict=evict)
        with StreamConsumer[Any](QueueSubscriber(publisher, "topic"), timeout=WAIT) as consumer:
            items = list(consumer.items())
        assert [item.proxy == item.event.evict for item in items] == [True] * 4
        return [f".{wanted}." in item.event.key for item in items]

    assert sessions(store) == [False, True, True, False]
    assert sessions(store, keep=math.inf) == [True] * 4
    session = Session(store.connector)
    with ContextLifetime() as lifetime:
        own = Store(store.name + "-own", store.connector, session=session.name)
        assert sessions(own) == [True] * 4
        assert sessions(store, session=lifetime.session_in(store)) == [True] * 4
    session.end()
    nothing: list[Any] = [0, -1, "1 h", math.nan, True]
    for wrong in nothing:
        with pytest.raises(ConfigurationError, match="keep"):
            StreamProducer[Any](QueuePublisher(), store, keep=wrong)


@pytest.mark.parametrize("url", ["shm", "redis"], indirect=True)
def test_an_object_stays_until_its_item_is_acknowledged(url: str, server: Server) -> None:
    place = ("127.0.0.1", server.port, f"t{secrets.token_hex(4)}")
    with Store.from_url(url) as store:
        with StreamProducer[Any](RedisStreamPublisher(*place[:2]), store) as producer:
            producer.send_batch(place[2], range(4))
        [session] = sessions_of_streams(store)
        assert dies_at(2, RedisStreamSubscriber, *place) == [0, 1, 2]
        assert len(store.connector.keys(session)) == 2
        with StreamConsumer[Any](RedisStreamSubscriber(*place, idle=0.05), timeout=WAIT) as consumer:
            assert sorted(consumer.iter_objects()) == [2, 3]
        assert not store.connector.keys(session)
