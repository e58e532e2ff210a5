"""Kafka: the contract on brokers that speak its protocol, and the hazards of brokers."""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from hosts import Remote
from hypothesis import given
from hypothesis import strategies as st
from kafka_broker import REAL, Tansu, mocking, serving
from measures import peaks
from redis_servers import free_port
from waiting import until

from proxystore_core.connectors import kafka_clients
from proxystore_core.connectors.base import leased
from proxystore_core.connectors.kafka import KafkaConnector, KafkaTopicConnector, Place
from proxystore_core.connectors.kafka_errors import failure
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    FullError,
    GoneError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.recipe import open_connector
from proxystore_core.store import Store
from proxystore_core.testing import ConnectorContract, in_new_process

PART = 900_000


@pytest.fixture(scope="module")
def broker() -> Iterator[Tansu]:
    with serving() as broker:
        yield broker


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    with mocking() as address:
        yield address


class KafkaContract(ConnectorContract):
    address: str

    def make(self) -> KafkaTopicConnector:
        return KafkaConnector(self.address.split(","), f"t{secrets.token_hex(4)}")

    def test_its_own_keys_are_kept_as_everywhere(self, connector: KafkaConnector) -> None:
        assert isinstance(
            connector._own, OwnKeys
        )  # so the contract looks whether those of the gone are forgotten

    def test_objects_are_records_of_the_topic(self, connector: KafkaConnector) -> None:
        data = os.urandom(2 * PART + 5)
        key = connector.put([data[:100], data[100:]])
        place = connector._parse(key)
        assert place.size == len(data)
        values = [value for name, value in records(connector, place) if name.startswith(place.name)]
        assert values == [data[:PART], data[PART : 2 * PART], data[2 * PART :]]
        connector.evict(key)
        values = [value for name, value in records(connector, place) if name.startswith(place.name)]
        assert values[-3:] == [None] * 3

    def test_objects_that_lie_among_each_other(self, connector: KafkaConnector) -> None:
        config = {**connector.config(), "part": 1000}
        one, other = KafkaConnector.from_config(config), KafkaConnector.from_config(config)
        data = [bytes([number]) * (30_000 + number) for number in range(12)]
        keys: dict[int, str] = {}

        def put(first: int) -> None:
            for number in range(first, 12, 4):
                keys[number] = (one, other)[first % 2].put([data[number]])

        threads = [threading.Thread(target=put, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [one.get(keys[number]) for number in range(12)] == data
        one.close()
        other.close()

    def test_a_key_of_another_objects_place_reads_nothing(self, connector: KafkaConnector) -> None:
        place = connector._parse(connector.put([b"secret"]))
        forged = str(place._replace(name=secrets.token_bytes(8)))
        assert connector.get(forged) is None
        assert not connector.exists(forged)
        connector.evict(forged)
        assert connector.get(str(place)) == b"secret"

    def test_places_that_nothing_is_at(self, connector: KafkaConnector) -> None:
        place = connector._parse(connector.put([b"data"]))
        for changed in (
            place._replace(first=10**9),
            place._replace(span=3, size=3 * PART),
            place._replace(size=0),
        ):
            try:
                assert connector.get(str(changed)) is None
            except CorruptError:
                assert changed.first == place.first

    def test_gone_objects(self, connector: KafkaConnector) -> None:
        with Store(secrets.token_hex(4), connector) as store:
            reference = store.reference([1, 2, 3])
            assert store.load(reference) == [1, 2, 3]
            store.evict(reference.key)
            with pytest.raises(GoneError):
                store.load(reference)


def records(connector: KafkaConnector, place: Place) -> list[tuple[bytes, bytes | None]]:
    """All records of a partition, read by the library alone."""
    consumer = Consumer({**connector._settings, "group.id": "witness", "enable.partition.eof": True})
    consumer.assign([TopicPartition(connector._topic, place.partition, 0)])
    found = []
    while (message := consumer.poll(10)) is not None and not message.error():
        found.append((message.key() or b"", message.value()))
    consumer.close()
    return found


class TestTansu(KafkaContract):
    @pytest.fixture(autouse=True)
    def on(self, broker: Tansu) -> None:
        self.address = broker.address


class TestMock(KafkaContract):
    """On librdkafka's mock of brokers, which makes topics only by the way."""

    @pytest.fixture(autouse=True)
    def on(self, mock: str) -> None:
        self.address = mock

    def make(self) -> KafkaTopicConnector:
        return on_mock(self.address)

    def test_it_keeps_no_leases(self, connector: KafkaTopicConnector) -> None:
        assert leased(connector) is None
        for name in ("", "a/b", "x" * 65):
            with pytest.raises(RefusedError):
                connector.put([b"data"], session=name)


def on_mock(address: str) -> KafkaTopicConnector:
    topic = f"t{secrets.token_hex(4)}"
    assert Producer({"bootstrap.servers": address}).list_topics(topic, timeout=5).topics
    return KafkaTopicConnector(address.split(","), topic)


@pytest.mark.skipif(not REAL, reason="no KAFKA_BOOTSTRAP_SERVERS")
class TestRealBroker(KafkaContract):
    address = REAL


# Sessions, and what is done about what nobody needs.


def test_a_session_has_a_topic_which_goes_with_it(broker: Tansu) -> None:
    connector = KafkaConnector([broker.address], f"t{secrets.token_hex(4)}")
    topic = connector._topic
    key = connector.put([b"data"], session="run")
    assert set(connector._clients.topics()) >= {f"{topic}.s.run"}
    # Nobody has renewed it: it has ten minutes from when somebody looks.
    assert 590 < connector.sessions()["run"] <= 600
    assert connector.held()["run"] == (1, 4)
    connector.renew("run", 0.001)
    other = KafkaConnector([broker.address], topic)
    until(lambda: other.sweep() == ["run"])
    assert f"{topic}.s.run" not in connector._clients.topics()
    assert connector.get(key) is None
    connector.evict(key)
    assert f"{topic}.s.run" not in connector._clients.topics()
    for each in (connector, other):
        each.close()


def test_a_session_ends_with_the_producer_that_is_there(
    broker: Tansu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one can take half a second to be ready."""
    made = []

    def producer(*args: Any, **options: Any) -> Producer:
        made.append(1)
        return Producer(*args, **options)

    monkeypatch.setattr(kafka_clients, "Producer", producer)
    connector = KafkaConnector(broker.address, f"t{secrets.token_hex(4)}")
    connector.renew("s", 60)
    connector.put([b"data"], session="s")
    assert connector.end("s") == 1
    assert made == [1]
    assert connector.get(connector.put([b"again"], session="s")) == b"again"
    assert made == [1, 1]  # the first one has counted what was in a topic of that name
    for name in ("a", "b"):
        connector.put([b"data"], session=name)
        connector.renew(name, 0.001)
    until(lambda: all(left < 0 for name, left in connector.sessions().items() if name in "ab"))
    assert set(connector.sweep()) == {"a", "b"}
    assert made == [1, 1]
    connector.end("s")
    connector.close()


def test_no_consumer_is_open_when_a_topic_is_removed(broker: Tansu, monkeypatch: pytest.MonkeyPatch) -> None:
    """librdkafka may crash on the answer to a request that is on its way then."""
    connector = KafkaConnector(broker.address, f"t{secrets.token_hex(4)}")
    other = open_connector(connector.url)
    assert isinstance(other, KafkaConnector)
    key = connector.put([b"data"], session="s")
    assert connector.get(key) == other.get(key) == b"data"
    remove = AdminClient.delete_topics
    open_then = []

    def removing(admin: AdminClient, *args: Any, **options: Any) -> Any:
        idle = [clients._consumers.values() for clients in (connector._clients, other._clients)]
        open_then.append(sum(len(consumers) for kinds in idle for consumers in kinds))
        return remove(admin, *args, **options)

    monkeypatch.setattr(AdminClient, "delete_topics", removing)
    assert connector.end("s") == 1
    assert open_then == [0]
    connector.close()
    other.close()


def test_a_killed_clients_objects_go_with_its_lease(broker: Tansu) -> None:
    connector = KafkaConnector([broker.address], f"t{secrets.token_hex(4)}")
    client = Remote()
    client.call(begin_session, connector.url)
    client.kill()
    client.close()
    assert connector.keys("dead")
    until(lambda: connector.sweep() == ["dead"])
    assert connector.sessions() == {}
    connector.close()


def begin_session(url: str) -> None:
    connector = open_connector(url)
    connector.renew("dead", 1)
    connector.put([b"data"], session="dead")
    connector.keys("dead")  # it is told to those who look


class Truncating:
    """A fake of a broker's administrator: no broker here deletes records."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def delete_records(self, where: list[TopicPartition], **options: Any) -> dict[Any, Any]:
        self.asked += [(place.topic, place.partition, place.offset) for place in where]
        return {}


def test_the_beginning_of_a_log_is_dropped_when_it_is_of_no_use(broker: Tansu) -> None:
    topic = f"t{secrets.token_hex(4)}"
    connector = KafkaConnector([broker.address], topic, partitions=1)
    keys = [connector.put([bytes(2 * PART)]) for _ in range(4)]
    admin = connector._clients._admin = Truncating()
    connector.evict(keys[0])
    connector.evict(keys[3])
    connector.evict(keys[2])
    assert admin.asked == []  # the second is needed
    connector.evict(keys[1])
    # All objects and tombstones: two records of each.
    assert admin.asked == [(topic, 1, 16)]
    connector.close()


def test_a_broker_that_drops_nothing_is_asked_once(broker: Tansu) -> None:
    connector = KafkaConnector([broker.address], f"t{secrets.token_hex(4)}")
    key = connector.put([b"data"])
    connector._clients.truncate(connector._topic, 1, 0)
    until(lambda: not connector._clients._truncates)
    assert not connector._clients.truncate(connector._topic, 1, 0)
    assert connector.get(key) == b"data"
    connector.close()


@pytest.mark.skipif(not REAL, reason="no KAFKA_BOOTSTRAP_SERVERS")
def test_a_real_broker_drops_the_beginning_of_a_log() -> None:
    connector = KafkaConnector(REAL.split(","), f"t{secrets.token_hex(4)}", partitions=1)
    for key in [connector.put([bytes(PART)]) for _ in range(6)]:
        connector.evict(key)
    consumer = Consumer({**connector._settings, "group.id": "witness"})
    until(lambda: consumer.get_watermark_offsets(TopicPartition(connector._topic, 1))[0] >= 5)
    consumer.close()
    connector._clients.remove(connector._topic)
    connector.close()


# Keys and parts.

PLACES = st.builds(
    Place,
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**62 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**40 - 1),
    st.binary(min_size=8, max_size=8),
)


@given(PLACES)
def test_keys(place: Place) -> None:
    connector = KafkaConnector(["localhost:9092"])
    key = str(place)
    if place.span + 1 >= connector._count(place):
        assert connector._parse(key) == place
    else:
        with pytest.raises(RefusedError):
            connector._parse(key)


@given(st.text(max_size=90) | st.from_regex(r"[0-9a-z.]{1,80}"))
def test_what_is_no_key(text: str) -> None:
    connector = KafkaConnector(["localhost:9092"])
    try:
        assert str(connector._parse(text)) == text
    except RefusedError:
        pass


# Brokers that fail.


def test_a_part_of_another_length(broker: Tansu) -> None:
    connector = KafkaConnector([broker.address], f"t{secrets.token_hex(4)}")
    place = connector._parse(connector.put([b"data"]))
    with pytest.raises(CorruptError, match="another length"):
        connector.get(str(place._replace(size=5)))
    connector.close()


def test_nobody_is_there() -> None:
    connector = open_connector(f"kafka://127.0.0.1:{free_port()}/t?connect_timeout=1&deadline=2")
    for use in (lambda: connector.put([b"data"]), lambda: connector.get(f"user.0.0.0.4.{'0' * 16}")):
        with pytest.raises(UnreachableError, match="Check host and port") as caught:
            use()
        assert caught.value.store == connector.url
    connector.close()


def test_no_such_host() -> None:
    with pytest.raises(UnreachableError):
        open_connector("kafka://no-such-host.invalid/t?connect_timeout=1").put([b"data"])


def test_something_silent_on_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connector = open_connector(
            f"kafka://127.0.0.1:{listener.getsockname()[1]}/t?connect_timeout=1&deadline=1"
        )
        with pytest.raises((UnreachableError, DeadlineError)):
            connector.put([b"data"])


def test_a_broker_that_dies() -> None:
    with serving() as broker:
        connector = KafkaConnector([broker.address], "t", deadline=2, connect_timeout=1)
        key = connector.put([b"data"])
        killer = threading.Timer(0.3, broker.stop)
        killer.start()
        with pytest.raises((UnreachableError, DeadlineError)) as caught:
            put_for_ever(connector)
        assert caught.value.store == connector.url
        killer.join()
        with pytest.raises((UnreachableError, DeadlineError)):
            connector.get(key)
        broker.start()
        assert connector.get(connector.put([b"again"])) == b"again"
        assert connector.get(key) is None  # it kept everything in memory
        connector.close()


def put_for_ever(connector: KafkaConnector) -> None:
    while True:
        connector.put([bytes(20 * PART)])


@pytest.mark.parametrize(
    ("code", "connection", "kind"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, None, ConfigurationError),
        (KafkaError.KAFKA_STORAGE_ERROR, None, FullError),
        (KafkaError._QUEUE_FULL, None, FullError),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, None, RefusedError),
        (KafkaError._MSG_TIMED_OUT, None, DeadlineError),
        (KafkaError._MSG_TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, UnreachableError),
        (KafkaError._TIMED_OUT, KafkaError._AUTHENTICATION, RefusedError),
        (KafkaError._FATAL, None, StoreError),
    ],
)
def test_errors_that_no_broker_here_gives(code: int, connection: int | None, kind: type[StoreError]) -> None:
    told = connection and KafkaError(connection)
    error = failure(KafkaError(code), told, "kafka://host/t", "plaintext")
    assert type(error) is kind
    assert error.store == "kafka://host/t"
    assert error.remedy


def test_memory(broker: Tansu) -> None:
    put, get = in_new_process(peaks, f"kafka://{broker.address}/memory", 200_000_000)
    assert put < 0.2
    assert get < 1.2


# Credentials, URLs, arguments.


def test_credentials_are_in_no_reference(broker: Tansu, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "kafka://alice:secret@host:9092/t?protocol=sasl_ssl&mechanism=PLAIN"
    connector = open_connector(url)
    assert isinstance(connector, KafkaConnector)
    assert connector._settings["sasl.password"] == "secret"
    assert connector.url == "kafka://alice@host:9092/t?protocol=sasl_ssl&mechanism=PLAIN"
    with Store("locked", connector) as store:
        for text in (
            connector.url,
            repr(connector),
            str(connector.config()),
            store.recipe,
            repr(store.config()),
        ):
            assert "secret" not in text
    assert "sasl.password" not in KafkaConnector.from_url(connector.url)._settings
    monkeypatch.setenv("PROXYSTORE_KAFKA_PASSWORD", "general")
    assert KafkaConnector.from_url(connector.url)._settings["sasl.password"] == "general"
    monkeypatch.setenv("PROXYSTORE_STORE", url)
    assert KafkaConnector.from_url(connector.url)._settings["sasl.password"] == "secret"
    plain = KafkaConnector([broker.address])
    assert not any(name.startswith("sasl") for name in plain._settings)


def test_a_file_of_properties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "client.properties"
    file.write_text("# comment\n\nsasl.password = from=file\nclient.id=me\n")
    monkeypatch.setenv("PROXYSTORE_KAFKA_CONFIG", str(file))
    connector = KafkaConnector(["host"], protocol="sasl_ssl", username="me", password="other")
    assert connector._settings["sasl.password"] == "from=file"
    assert connector._settings["client.id"] == "me"
    assert "file" not in connector.url
    monkeypatch.setenv("PROXYSTORE_KAFKA_CONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="PROXYSTORE_KAFKA_CONFIG"):
        KafkaConnector(["host"])


@pytest.mark.parametrize(
    "url",
    [
        "kafka://host:9092/topic",
        "kafka://host:9092,other:9093/my.topic_1-2",
        "kafka://user@[::1]:9092/t?protocol=sasl_ssl&mechanism=SCRAM-SHA-256&ca=/x/ca.pem",
        "kafka://host/t?deadline=2.5&part=2000000&partitions=8&retention=3600.0",
    ],
)
def test_urls(url: str) -> None:
    connector = open_connector(url)
    again = type(connector).from_config(connector.config())
    assert again.url == connector.url
    assert again.config() == connector.config()
    assert type(connector).from_url(connector.url).config() == connector.config()
    assert connector.url.partition("?")[0] == url.partition("?")[0]


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("kafka://host/a/b", "topic"),
        ("kafka://host/..", "topic"),
        ("kafka://host/t?part=1", "part"),
        ("kafka://host/t?part=x", "part"),
        ("kafka://host/t?deadline=0", "deadline"),
        ("kafka://host/t?protocol=ftp", "protocol"),
        ("kafka://ho st/t", "host:port"),
        ("kafka://host,/t", "host:port"),
    ],
)
def test_what_is_no_url(url: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        open_connector(url)


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "confluent_kafka":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from proxystore_core import MissingExtraError
from proxystore_core.recipe import open_connector
try:
    open_connector("kafka://host/topic")
except MissingExtraError as error:
    print(error)
"""


def test_without_the_library_the_error_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "kafka:// needs confluent_kafka, which is not installed. "
        'Run: pip install "proxystore-integrations[kafka]".'
    )


def _total(numbers: list[int]) -> int:
    return sum(numbers)


def test_references_are_short(broker: Tansu) -> None:
    with Store("example", KafkaConnector([broker.address], "r"), register=True) as store:
        proxy = store.proxy(list(range(1000)))
        assert len(pickle.dumps(proxy)) <= 200
        assert in_new_process(_total, proxy) == 499500


def test_an_object_that_the_broker_has_dropped(mock: str) -> None:
    connector = on_mock(mock)
    place = connector._parse(connector.put([b"data"]))
    producer = Producer({"bootstrap.servers": mock})
    producer.produce(connector._topic, b"later", partition=place.partition)
    producer.flush(5)
    # As after compaction: the next record is of someone else.
    assert connector.get(str(place._replace(first=place.first + 1))) is None
    assert connector.get(str(place._replace(first=place.first + 1000))) is None
    connector.close()
