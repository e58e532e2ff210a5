"""Kafka's brokers that want a password, or speak TLS: who is not let in, and who is."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from kafka_broker import Tansu, secured, serving

from proxystore_core.connectors.base import Connector
from proxystore_core.errors import RefusedError, UnreachableError
from proxystore_core.recipe import open_connector

KEY = f"user.0.0.0.4.{'0' * 16}"
LONG = "deadline=3600&connect_timeout=60"  # whoever waits for those hangs
USES: list[Callable[[Any], object]] = [
    lambda connector: connector.put([b"data"]),
    lambda connector: connector.put([b"data"], session="s"),
    lambda connector: connector.get(KEY),
    lambda connector: connector.exists(KEY),
    lambda connector: connector.evict(KEY),
    lambda connector: connector.sessions(),
    lambda connector: connector.renew("s", 60),
    lambda connector: connector.end("s"),
]


@pytest.fixture(scope="module")
def plain() -> Iterator[Tansu]:
    with serving() as broker:
        yield broker


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's certificate, a client's, and another authority."""
    place = tmp_path_factory.mktemp("tls")
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(place / "ca"))
    other.cert_pem.write_to_path(str(place / "other"))
    ours.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(place / "server"))
    ours.issue_cert("elsewhere.invalid").private_key_and_cert_chain_pem.write_to_path(
        str(place / "elsewhere")
    )
    client = ours.issue_cert("client.invalid")
    client.private_key_pem.write_to_path(str(place / "key"))
    client.cert_chain_pems[0].write_to_path(str(place / "cert"))
    return place


def stored(connector: Connector, data: bytes) -> None:
    key = connector.put([data])
    assert connector.get(key) == data
    connector.evict(key)
    connector.close()


# Passwords.


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_who_is_refused_is_told_at_once(mechanism: str) -> None:
    word = secrets.token_hex(8)
    with serving("--authentication") as broker:
        url = f"kafka://alice:{word}@{broker.address}/t?protocol=sasl_plaintext&mechanism={mechanism}&{LONG}"
        connector = open_connector(url)
        for use in USES:
            with pytest.raises(RefusedError, match="PROXYSTORE_KAFKA_PASSWORD") as caught:
                use(connector)
            assert caught.value.store == connector.url
            assert word not in str(caught.value)
        connector.close()
        assert broker.process.poll() is None


def test_a_mechanism_that_the_broker_has_not(plain: Tansu) -> None:
    url = f"kafka://alice:word@{plain.address}/t?protocol=sasl_plaintext&mechanism=PLAIN&{LONG}"
    for use in USES:
        with pytest.raises(RefusedError, match="mechanism"):
            use(open_connector(url))
    stored(open_connector(f"kafka://{plain.address}/t"), b"data")


def test_no_password_where_one_is_wanted() -> None:
    with serving("--authentication") as broker:
        connector = open_connector(f"kafka://{broker.address}/t?deadline=2&connect_timeout=1")
        with pytest.raises(UnreachableError, match="protocol="):
            connector.put([b"data"])
        assert broker.process.poll() is None


# TLS.


def test_objects_over_tls(files: Path) -> None:
    with secured(files / "server") as port:
        url = f"kafka://127.0.0.1:{port}/t?protocol=ssl&ca={files / 'ca'}"
        stored(open_connector(url), bytes(2_000_000))


def test_a_certificate_of_the_client(files: Path) -> None:
    with secured(files / "server", ask=files / "ca") as port:
        url = f"kafka://127.0.0.1:{port}/t?protocol=ssl&ca={files / 'ca'}"
        own = f"&cert={files / 'cert'}&key={files / 'key'}"
        with pytest.raises((RefusedError, UnreachableError)):
            open_connector(f"{url}&connect_timeout=1").put([b"data"])
        stored(open_connector(url + own), b"data")


@pytest.mark.parametrize(("certificate", "ca"), [("server", "other"), ("server", None), ("elsewhere", "ca")])
def test_who_is_not_trusted(certificate: str, ca: str | None, files: Path) -> None:
    with secured(files / certificate) as port:
        trusted = "" if ca is None else f"&ca={files / ca}"
        connector = open_connector(f"kafka://127.0.0.1:{port}/t?protocol=ssl&{LONG}{trusted}")
        for use in USES[:3]:
            with pytest.raises(RefusedError, match=r"\?ca=") as caught:
                use(connector)
            assert caught.value.store == connector.url


def test_tls_to_a_plain_port(plain: Tansu) -> None:
    connector = open_connector(f"kafka://{plain.address}/t?protocol=ssl&connect_timeout=1&deadline=3600")
    with pytest.raises(UnreachableError, match="Does this port speak TLS"):
        connector.put([b"data"])
    stored(open_connector(f"kafka://{plain.address}/t"), b"data")


def test_a_plain_connection_to_a_tls_port(files: Path) -> None:
    with secured(files / "server") as port:
        connector = open_connector(f"kafka://127.0.0.1:{port}/t?connect_timeout=1&deadline=3600")
        with pytest.raises(UnreachableError, match=r"\?protocol=ssl"):
            connector.put([b"data"])
