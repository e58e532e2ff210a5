"""How to reach and log in to a Redis server: options, password from the environment, certificates."""

from __future__ import annotations

import dataclasses
import os
import re
import ssl
import urllib.parse
from collections.abc import Sequence
from typing import Any, ClassVar

import redis
from redis._parsers import Encoder
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer, PythonRespSerializer
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

from proxystore_core.connectors.arguments import check_seconds
from proxystore_core.errors import ConfigurationError
from proxystore_core.urls import StoreURL

__all__ = ["Login", "Options", "TLSConnection", "addresses_of", "database"]

PASSWORD = "PROXYSTORE_REDIS_PASSWORD"  # the variable's name
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_READ = 256 << 10  # bytes of a connection's buffer


@dataclasses.dataclass(frozen=True)
class Options:
    """What all Redis connectors take, also as parameters of the URL.

    Attributes:
        prefix: start of all keys.
        deadline: seconds that an operation may take, besides moving its bytes.
        connect_timeout: seconds for opening a connection, and for a server to come back.
        ca: with TLS, path of the certificate of the authority to trust; the system's by default.
        cert: with TLS, path of this client's certificate.
        key: with TLS, path of its private key; by default it is in ``cert``.
    """

    prefix: str = "ps"
    deadline: float = 30.0
    connect_timeout: float = 5.0
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    PLAIN: ClassVar[dict[str, Any]] = {"prefix": str, "deadline": float, "connect_timeout": float}
    TLS: ClassVar[dict[str, Any]] = {**PLAIN, "ca": str, "cert": str, "key": str}

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigurationError(
                f"{self.prefix!r} is no prefix of keys: use at most 32 letters, digits, - _ and ."
            )
        for name in ("deadline", "connect_timeout"):
            object.__setattr__(self, name, check_seconds(name, getattr(self, name)))

    def given(self) -> dict[str, Any]:
        """Those that are no default."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }


def database(text: str) -> int:
    """The number of a database.

    Raises:
        ConfigurationError: it is none.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigurationError(f"{text!r} is no number of a database: expected 0, 1, ...")
    return int(text)


def addresses_of(hosts: Sequence[str], port: int) -> list[tuple[str, int]]:
    """Servers from ``host``, ``host:port`` or ``[host]:port``.

    Raises:
        ConfigurationError: one of them is nothing like that.
    """
    found: list[tuple[str, int]] = []
    for host in hosts:
        parts = urllib.parse.urlsplit(f"//{host}")
        try:
            found.append((parts.hostname or "", parts.port or port))
        except ValueError:
            parts = parts._replace(netloc="")
        if not parts.netloc or not parts.hostname:
            raise ConfigurationError(f"{host!r} names no server: expected host:port")
    if not found:
        raise ConfigurationError("no server is named: expected host:port,host:port")
    return found


class TLSConnection(redis.SSLConnection):
    """The handshake is part of connecting: a port without TLS may say nothing for ever."""

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        sock.settimeout(self.socket_connect_timeout)
        secured = super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
        secured.settimeout(self.socket_timeout)
        return secured


class Login:
    """Who connects, and how: what redis-py's connections are made with.

    Args:
        url: the store's, for messages and to find its password in the environment.
        username: None for the server's default user.
        password: None for the environment's.
        options: deadlines and certificates.
        tls: whether connections are encrypted.

    Raises:
        ConfigurationError: a certificate cannot be read.
    """

    def __init__(
        self, url: str, username: str | None, password: str | None, options: Options, tls: bool
    ) -> None:
        self.tls = tls
        self._username = username
        self._password = password or _password_of_same(url)
        self._lenient = not self._password
        if self._lenient:
            self._password = os.environ.get(PASSWORD) or None
        self._options = options
        if tls:
            _check_certificates(url, options)

    def go_without(self) -> bool:
        """Forget a password that was meant for any server, now that one wants none; whether there was one."""
        if not (self._lenient and self._password):
            return False
        self._password = None
        return True

    def transport(self) -> dict[str, Any]:
        """Arguments of a connection to any server, sentinels too."""
        options = self._options
        found: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": options.deadline,
            "socket_connect_timeout": options.connect_timeout,
        }
        if self.tls:
            found |= {"ssl_ca_certs": options.ca, "ssl_certfile": options.cert, "ssl_keyfile": options.key}
            found |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        return found

    def pool(self) -> dict[str, Any]:
        """Arguments of a pool of connections to servers that have objects."""
        packer = _Packer()
        login = {"username": self._username, "password": self._password}
        return {**self.transport(), **login, "command_packer": packer, "socket_read_size": _READ}


class _Packer:
    """Packs commands by hiredis, which is quick, but for values that it would copy twice."""

    def __init__(self) -> None:
        self._copyless: Any = PythonRespSerializer(6000, Encoder("utf-8", "strict", False).encode)
        # redis-py ignores a hiredis that is older than it likes: no error says so before the first command.
        self._quick: Any = HiredisRespSerializer() if HIREDIS_AVAILABLE else self._copyless

    def pack(self, *args: Any) -> Any:
        return (self._copyless if memoryview in map(type, args) else self._quick).pack(*args)


def _password_of_same(url: str) -> str | None:
    """The password in PROXYSTORE_STORE, if that is this server and user."""
    try:
        ours, theirs = StoreURL.parse(url), StoreURL.parse(os.environ.get("PROXYSTORE_STORE", ""))
    except ConfigurationError:
        return None

    def who(parts: StoreURL) -> tuple[object, ...]:
        socket = parts.path if parts.scheme == "unix" else ""
        return parts.scheme, parts.host or "localhost", parts.port or 6379, socket, parts.username or None

    return theirs.password if who(ours) == who(theirs) else None


def _check_certificates(url: str, options: Options) -> None:
    try:
        context = ssl.create_default_context(cafile=options.ca)
        if options.cert is not None:
            context.load_cert_chain(options.cert, options.key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"a certificate cannot be read: {error}",
            store=url,
            remedy="?ca=, &cert= and &key= are paths of PEM files on every host.",
        ) from error
