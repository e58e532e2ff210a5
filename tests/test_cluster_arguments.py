"""What a hurried user gives connectors and streams of a cluster: each error names the argument."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import kafka_broker
import pytest
import redis_servers

from proxystore_core.connectors.arguments import check_seconds
from proxystore_core.connectors.base import Connector
from proxystore_core.connectors.kafka import KafkaConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.connectors.multi import MultiConnector, Policy
from proxystore_core.connectors.objects import AzureConnector, GCSConnector, S3Connector
from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.redis_cluster import RedisClusterConnector, RedisSentinelConnector
from proxystore_core.connectors.sftp import SFTPConnector
from proxystore_core.connectors.ucx import UCXConnector
from proxystore_core.connectors.zmq import ZeroMQConnector
from proxystore_core.errors import ConfigurationError, FullError, UnreachableError
from proxystore_core.recipe import open_connector
from proxystore_core.stream.kafka import KafkaPublisher, KafkaSubscriber
from proxystore_core.stream.redis_lists import RedisQueuePublisher
from proxystore_core.stream.zmq import ZeroMQPublisher, ZeroMQSubscriber

NOBODY = "127.0.0.1:1"
SECONDS = ("deadline", "connect_timeout")
MAKES: dict[str, Any] = {
    "zmq": ZeroMQConnector,
    "ucx": UCXConnector,
    "kafka": lambda **options: KafkaConnector(NOBODY, **options),
    "s3": lambda **options: S3Connector("bucket", endpoint=f"http://{NOBODY}", **options),
    "sftp": lambda **options: SFTPConnector("127.0.0.1", "/store", port=1, **options),
    "cluster": lambda **options: RedisClusterConnector([NOBODY], **options),
}


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", ["30", None, True, 0, -1.0, math.nan, b"3"])
def test_what_is_no_number_of_seconds(kind: str, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is .*expected seconds"):
        MAKES[kind](**{name: value})


@pytest.mark.parametrize("kind", MAKES)
def test_deadlines_without_an_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    for options in (
        {"deadline": math.inf, "connect_timeout": 0.2},
        {"deadline": 1e300, "connect_timeout": 0.2},
    ):
        connector: Connector = MAKES[kind](**options)
        if kind in ("zmq", "ucx"):
            connector.evict(connector.put([b"data"]))
        else:
            with pytest.raises(UnreachableError, match=r"no connection|Kafka says"):
                connector.put([b"data"])
        connector.close()
        open_connector(connector.url).close()
    MAKES[kind](connect_timeout=math.inf).close()


def test_a_finite_deadline_is_as_it_was() -> None:
    assert check_seconds("deadline", 3) == 3
    assert ZeroMQConnector(deadline=31).config()["deadline"] == 31


def test_a_topic_of_kafka_is_made_within_any_deadline() -> None:
    """librdkafka lets no request of an administrator take longer than an hour."""
    with kafka_broker.serving() as broker:
        connector = KafkaConnector(broker.address, deadline=math.inf, retention=math.inf)
        assert connector.get(connector.put([b"data"])) == b"data"
        session = connector.put([b"data"], session="some")
        assert session
        assert connector.end("some") == 1
        connector.close()


WRONG: dict[str, tuple[Any, str]] = {
    "port": (lambda: ZeroMQConnector("5555"), "'5555' is no port"),  # type: ignore[arg-type]
    "port of a float": (lambda: ZeroMQConnector(5555.0), "no port"),  # type: ignore[arg-type]
    "port True": (lambda: UCXConnector(True), "no port"),
    "name": (lambda: ZeroMQConnector(name=3), "name is 3"),
    "secret": (lambda: ZeroMQConnector(secret=b"0123456789abcdef0"), "secret is of bytes: expected text"),
    "interface": (lambda: ZeroMQConnector(interface=3), "interface is 3"),  # type: ignore[arg-type]
    "address": (lambda: UCXConnector(address=""), "address is empty"),
    "spill": (lambda: open_connector("zmq://?spill="), "spill is empty"),
    "curve": (lambda: ZeroMQConnector(curve="false"), "curve is 'false'"),  # type: ignore[arg-type]
    "brokers": (lambda: KafkaConnector([]), "no broker is named"),
    "a broker": (lambda: KafkaConnector([3]), "a broker of hosts is 3"),  # type: ignore[list-item]
    "hosts": (lambda: KafkaConnector(9092), "hosts is 9092"),  # type: ignore[arg-type]
    "topic": (lambda: KafkaConnector(NOBODY, None), "topic is None"),  # type: ignore[arg-type]
    "partitions": (lambda: KafkaConnector(NOBODY, partitions=1.5), "partitions is 1.5"),
    "part": (lambda: KafkaConnector(NOBODY, part="big"), "part is 'big'"),
    "bucket": (lambda: S3Connector(3), "bucket is 3"),  # type: ignore[arg-type]
    "endpoint": (lambda: GCSConnector("b", endpoint=3), "endpoint is 3"),  # type: ignore[arg-type]
    "its port": (lambda: S3Connector("b", endpoint="http://h:99999"), "bad port"),
    "its other port": (lambda: S3Connector("b", endpoint="http://h:x"), "bad port"),
    "its brackets": (lambda: S3Connector("b", endpoint="http://[::1"), "bad host"),
    "its scheme": (
        lambda: S3Connector("b", endpoint="minio:9000"),
        "endpoint is 'minio:9000': expected http://",
    ),
    "a number": (lambda: open_connector("zmq://?stock=1GB"), "'1GB' of 'stock' .*expected a whole number"),
    "seconds": (lambda: open_connector("sftp://h/d?deadline=long"), "'deadline' .*: expected a number"),
    "its query": (
        lambda: S3Connector("b", endpoint="http://h/?token=hunter2"),
        r"endpoint is 'http://h/\?token=\*",
    ),
    "ca": (lambda: S3Connector("b", ca=3), "ca is 3"),
    "multipart": (lambda: S3Connector("b", multipart="no"), "multipart is 'no'"),  # type: ignore[arg-type]
    "ssh's port": (lambda: SFTPConnector("h", "/x", port=99999), "99999 is no port"),
    "ssh's host": (lambda: SFTPConnector(3, "/x"), "host is 3"),  # type: ignore[arg-type]
    "directory": (lambda: SFTPConnector("h", 3), "store_dir is 3"),  # type: ignore[arg-type]
    "servers": (lambda: RedisClusterConnector(None), "hosts is None"),  # type: ignore[arg-type]
    "sentinels": (lambda: RedisSentinelConnector([3], "s"), r"hosts is \[3\]"),  # type: ignore[list-item]
    "parts": (lambda: MultiConnector([]), "no stores"),  # type: ignore[arg-type]
    "a class": (lambda: MultiConnector({"a": MemoryConnector}), "expected a connector"),
    "a triple": (lambda: MultiConnector({"a": (MemoryConnector(""), Policy(), 3)}), "expected a connector"),
    "a part's name": (lambda: MultiConnector({3: MemoryConnector("")}), "no name"),  # type: ignore[dict-item]
    "max_size": (lambda: Policy(max_size="10 MB"), "max_size is '10 MB'"),  # type: ignore[arg-type]
    "priority": (lambda: Policy(priority="high"), "priority is 'high'"),  # type: ignore[arg-type]
    "tags": (lambda: Policy(tags=3), "tags is 3"),  # type: ignore[arg-type]
    "keep": (lambda: RedisQueuePublisher(keep="7"), "keep is '7'"),  # type: ignore[arg-type]
    "a server": (lambda: RedisQueuePublisher(3), "hostname is 3"),  # type: ignore[arg-type]
    "group": (lambda: KafkaSubscriber(NOBODY, "t", group=""), "group is empty"),
    "bootstrap": (lambda: KafkaPublisher([NOBODY]), "bootstrap is"),  # type: ignore[arg-type]
    "a broker's deadline": (lambda: KafkaPublisher(NOBODY, deadline=0), "deadline is 0"),
    "a publisher's port": (lambda: ZeroMQPublisher(port=99999), "no port"),
    "subscribers": (lambda: ZeroMQPublisher(subscribers=-1), "subscribers is -1"),
    "timeout": (lambda: ZeroMQPublisher(timeout="3"), "timeout is '3'"),  # type: ignore[arg-type]
    "a subscriber's port": (lambda: ZeroMQSubscriber("h", "5555", "t"), "no port"),  # type: ignore[arg-type]
    "a subscriber's host": (lambda: ZeroMQSubscriber("a host", 5555, "t"), "names no host"),
}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("unix:///nowhere/redis.sock", "Check the socket's path"),
        (
            f"redis+sentinel://{NOBODY}/main",
            "no sentinel names a server of 'main' that is up.*Check the sentinels",
        ),
        ("webrtc://", "this host has no endpoint .*proxystore endpoint configure"),
    ],
)
def test_who_is_not_there_is_named(
    url: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXYSTORE_ENDPOINTS", str(tmp_path))
    monkeypatch.delenv("PROXYSTORE_ENDPOINT", raising=False)
    connector = open_connector(url if url == "webrtc://" else f"{url}?connect_timeout=0.2")
    with pytest.raises(UnreachableError, match=words) as found:
        connector.put([b"data"])
    assert " object at 0x" not in str(found.value)


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what: str) -> None:
    make, words = WRONG[what]
    with pytest.raises(ConfigurationError, match=words) as found:
        make()
    assert "hunter2" not in str(found.value)
    assert "0123456789abcdef0" not in str(found.value)


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.1", "255.255.255.255"])
def test_an_address_of_no_host(address: str) -> None:
    """At the first the server listened to all networks, and every host took its keys for its own."""
    connector = ZeroMQConnector(address=address)
    with pytest.raises(ConfigurationError, match="no address of this host"):
        connector.put([b"data"])
    connector.close()


def test_several_hosts_in_one_text() -> None:
    assert KafkaConnector("a:1,b:2").config()["hosts"] == ["a:1", "b:2"]
    assert RedisClusterConnector("a:1,b:2").config()["hosts"] == ["a:1", "b:2"]


def test_who_gives_up_after_half_a_second_was_told_of_no_failing_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the library says of its tries, `retry_timeout: 500ms`, was taken for a status of 500."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    connector = AzureConnector("b", account="me", endpoint=f"http://{NOBODY}", connect_timeout=0.5)
    with pytest.raises(UnreachableError, match="no connection"):
        connector.put([b"data"])


def test_a_key_of_redis_that_boasts(tmp_path: Path) -> None:
    """There is no memory for a tebibyte, which nobody stored either: it is not there, and the others are."""
    with redis_servers.serving(tmp_path / "r") as server:
        connector = RedisConnector("127.0.0.1", server.port)
        key, boast = connector.put([b"data"]), f"user.{'0' * 20}.ffffffffff"
        assert connector.get(boast) is None
        assert connector.get_batch([boast, key, boast]) == [None, b"data", None]
        field = boast.removeprefix("user.")
        for place in connector._hashes("user"):
            server.witness.hset(place, f"{field}.0", b"x")
        with pytest.raises(FullError, match="no memory here"):
            connector.get(boast)
        connector.close()
