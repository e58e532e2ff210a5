"""How to log in to a Redis server: options, password from the environment, certificates."""

from __future__ import annotations

import dataclasses
import os
import re
import ssl
import threading
import urllib.parse
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from proxystore_core.connectors.redis_client import Client
from proxystore_core.connectors.resp import Address, Login, Request, command
from proxystore_core.errors import ConfigurationError, DeadlineError, StoreError, UnreachableError
from proxystore_core.urls import StoreURL

__all__ = ["Options", "addresses_of", "database", "login_for", "warn_once_if_keys_may_be_dropped"]

PASSWORD = "PROXYSTORE_REDIS_PASSWORD"  # the variable's name
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,32}")


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
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}: expected seconds, more than 0")

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


def addresses_of(hosts: Sequence[str], port: int) -> list[Address]:
    """Servers from ``host``, ``host:port`` or ``[host]:port``.

    Raises:
        ConfigurationError: one of them is nothing like that.
    """
    found: list[Address] = []
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


def login_for(
    url: str, username: str | None, password: str | None, db: int, options: Options, tls: bool
) -> Login:
    """The login, with the password from the environment when none is given.

    Raises:
        ConfigurationError: a certificate cannot be read.
    """
    lenient = False
    if not password:
        password = _password_of_same(url)
    if not password:
        # Meant for any server: one that wants none is no mistake.
        password, lenient = os.environ.get(PASSWORD) or None, True
    return Login(username, password, db, _context(url, options) if tls else None, lenient)


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


def _context(url: str, options: Options) -> ssl.SSLContext:
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
    return context


_asked: set[str] = set()
_lock = threading.Lock()


def warn_once_if_keys_may_be_dropped(client: Client) -> None:
    """Warn when the server drops keys as it runs full: to us that is objects lost."""
    with _lock:
        if client.url in _asked:
            return
        _asked.add(client.url)
    question = Request([command(b"CONFIG", b"GET", b"maxmemory*")])
    try:
        answer = client.run([question])[0]
    except (UnreachableError, DeadlineError):
        _asked.discard(client.url)
        return
    except StoreError:  # not every user may ask
        return
    found = dict(zip(map(bytes, answer[::2]), map(bytes, answer[1::2]), strict=True))
    policy = found.get(b"maxmemory-policy", b"noeviction").decode()
    if policy != "noeviction" and found.get(b"maxmemory") != b"0":
        warnings.warn(
            f"the server of {client.url} may drop stored objects when it runs full: its maxmemory-policy is "
            f"{policy}. Let it say so instead: CONFIG SET maxmemory-policy noeviction.",
            RuntimeWarning,
            stacklevel=4,
        )
