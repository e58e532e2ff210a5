"""How to reach and log in to Kafka brokers: options, password from the environment, a client's properties."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from proxystore_core.connectors.arguments import check_seconds, check_text
from proxystore_core.errors import ConfigurationError
from proxystore_core.urls import StoreURL

__all__ = ["Options", "client_settings"]

PASSWORD = "PROXYSTORE_KAFKA_PASSWORD"
PROPERTIES = "PROXYSTORE_KAFKA_CONFIG"
_PROTOCOLS = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")
_SMALLEST, _LARGEST = 1_000, 90_000_000


@dataclasses.dataclass(frozen=True)
class Options:
    """What the connector takes besides servers and topic, also as parameters of the URL.

    Attributes:
        deadline: seconds that an operation may take, besides moving its bytes.
        connect_timeout: seconds for the first answer of any broker.
        part: bytes of a record at most; below the brokers' ``message.max.bytes``.
        partitions: of the topic, if it has to be created.
        retention: seconds that brokers keep records of a topic that has to be created; theirs by default.
        protocol: ``plaintext``, ``ssl``, ``sasl_plaintext`` or ``sasl_ssl``.
        mechanism: with SASL, ``PLAIN``, ``SCRAM-SHA-256``, ``SCRAM-SHA-512``, ...
        ca: with TLS, path of the certificate of the authority to trust; the system's by default.
        cert: with TLS, path of this client's certificate.
        key: with TLS, path of its private key.
    """

    deadline: float = 30.0
    connect_timeout: float = 5.0
    part: int = 900_000
    partitions: int = 4
    retention: float | None = None
    protocol: str = "plaintext"
    mechanism: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    PARAMETERS: ClassVar[dict[str, Any]] = {
        "deadline": float,
        "connect_timeout": float,
        "part": int,
        "partitions": int,
        "retention": float,
        "protocol": str,
        "mechanism": str,
        "ca": str,
        "cert": str,
        "key": str,
    }

    def __post_init__(self) -> None:
        for name in ("deadline", "connect_timeout"):
            object.__setattr__(self, name, check_seconds(name, getattr(self, name)))
        if self.retention is not None:
            check_seconds("retention", self.retention)
        if type(self.partitions) is not int or self.partitions < 1:
            raise ConfigurationError(f"partitions is {self.partitions!r}: expected a number, more than 0")
        for name in ("protocol", "mechanism", "ca", "cert", "key"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        if type(self.part) is not int or not _SMALLEST <= self.part <= _LARGEST:
            raise ConfigurationError(f"part is {self.part!r}: expected {_SMALLEST} to {_LARGEST} bytes")
        if self.protocol not in _PROTOCOLS:
            raise ConfigurationError(f"protocol is {self.protocol!r}: expected {', '.join(_PROTOCOLS)}")

    def given(self) -> dict[str, Any]:
        """Those that are no default."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }


def client_settings(
    url: str, hosts: Sequence[str], username: str | None, password: str | None, options: Options
) -> dict[str, Any]:
    """Settings of librdkafka that all clients of a store share. The password is in no other place.

    Args:
        url: the store's, to find its password in the environment.
        hosts: some of the brokers, each ``host:port``.
        username: with SASL.
        password: None for the environment's.
        options: see `Options`.

    Raises:
        ConfigurationError: a host is none, an option needs another protocol, the properties' file is none.
    """
    if not hosts:
        raise ConfigurationError("no broker is named: expected host:port")
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ConfigurationError(f"{host!r} names no broker: expected host:port")
    settings: dict[str, Any] = {
        "bootstrap.servers": ",".join(hosts),
        "security.protocol": options.protocol,
        "sasl.mechanism": options.mechanism,
        "sasl.username": username,
        "sasl.password": password or _password_of_same(url) or os.environ.get(PASSWORD) or None,
        "ssl.ca.location": options.ca,
        "ssl.certificate.location": options.cert,
        "ssl.key.location": options.key,
        "socket.connection.setup.timeout.ms": max(1000, round(options.connect_timeout * 1000)),
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 0,  # what matters comes as an error
    }
    if "sasl" not in options.protocol:
        settings = {name: value for name, value in settings.items() if not name.startswith("sasl.")}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= _properties()
    protocol = str(settings["security.protocol"]).lower()
    sasl = {"a user": username, "mechanism": options.mechanism}
    tls = {"ca": options.ca, "cert": options.cert, "key": options.key}
    for lacking, given in (("sasl", sasl), ("ssl", tls)):
        named = [name for name, value in given.items() if value is not None]
        if named and lacking not in protocol:
            expected = " or ".join(each for each in _PROTOCOLS if lacking in each)
            raise ConfigurationError(
                f"protocol is {protocol!r}, which makes no use of {' and '.join(named)}: expected {expected}"
            )
    return settings


def _password_of_same(url: str) -> str | None:
    """The password in PROXYSTORE_STORE, if that is of these brokers and this user."""
    try:
        ours, theirs = StoreURL.parse(url), StoreURL.parse(os.environ.get("PROXYSTORE_STORE", ""))
    except ConfigurationError:
        return None
    same = (ours.scheme, ours.hosts, ours.username) == (theirs.scheme, theirs.hosts, theirs.username)
    return theirs.password if same else None


def _properties() -> dict[str, str]:
    """Settings of a client in a file of lines ``name=value``, the usual form of Kafka's own tools."""
    path = os.environ.get(PROPERTIES)
    if not path:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{PROPERTIES} names a file that cannot be read: {error}") from error
    pairs = [line.partition("=") for line in lines if line and not line.startswith(("#", "!"))]
    return {name.strip(): value.strip() for name, _, value in pairs}
