"""What an endpoint knows of itself, in a directory of its own (mode 0700):

endpoint.toml   its settings
secret          the group's token: endpoints with the same one trust each other
token           what local clients show; another one at each start
socket          where they connect
lock            locked while the daemon runs
log             what it says
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from proxystore_core.errors import ConfigurationError
from proxystore_core.private import read_private, write_private

__all__ = ["DIRECTORY", "ENDPOINT", "SECRET", "EndpointSettings", "configured", "relay_token", "sign"]

DIRECTORY = "PROXYSTORE_ENDPOINTS"
"""Variable that names the directory of all endpoints' directories."""

ENDPOINT = "PROXYSTORE_ENDPOINT"
"""Variable that says which of this host's endpoints a process uses: a name or an id."""

SECRET = "PROXYSTORE_ENDPOINT_SECRET"
"""Variable with the token of a group of endpoints, for ``proxystore endpoint configure``."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value) is not None


def _is_relay(value: object) -> bool:
    return isinstance(value, str) and (not value or re.match(r"wss?://[^/]", value) is not None)


def _is_addresses(value: object) -> bool:
    try:
        return isinstance(value, tuple) and all(
            _is_text(each) and ipaddress.ip_address(each) for each in value
        )
    except ValueError:
        return False


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_id, "32 hexadecimal digits"),
    "relay": (_is_relay, "wss://host:port"),
    "relay_ca": (_is_text, "the path of a certificate"),
    "stun": (_is_text, "host:port, relay, or nothing"),
    "addresses": (_is_addresses, "a list of this host's IP addresses"),
    "spill": (_is_text, "the path of a directory"),
    "pages": (lambda value: type(value) is int and -1 <= value <= 65535, "a port, 0 for any or -1 for none"),
    "most": (lambda value: type(value) is int and value > 0, "a number of bytes, more than 0"),
}
"""What is asked of each setting, and in words."""


@dataclasses.dataclass(frozen=True)
class EndpointSettings:
    """One endpoint's settings.

    Attributes:
        name: what this host calls it.
        id: what the world calls it: 32 hexadecimal digits.
        relay: URL of the relay, ``wss://host:port`` (``ws://`` on loopback); empty for none.
        relay_ca: path of the certificate of the authority that vouches for the relay; the system's if empty.
        stun: ``host:port`` of a STUN server, "relay" for the one in the relay, empty for none.
        addresses: this host's addresses to use for peers; all but loopback if empty.
        spill: directory for what has no room in shared memory.
        pages: port on loopback of the health and metrics pages; 0 for any, -1 for none.
        most: bytes of objects that clients without this host's shared memory may have on their way.
    """

    name: str
    id: str
    relay: str = ""
    relay_ca: str = ""
    stun: str = "relay"
    addresses: tuple[str, ...] = ()
    spill: str = ""
    pages: int = -1
    most: int = 256 << 20

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"{self.name!r} names no endpoint: use at most 32 letters, digits, - and _"
            )
        for name, (good, expected) in _EXPECTED.items():
            value = getattr(self, name)
            if not good(value):
                raise ConfigurationError(
                    f"{name} of endpoint {self.name!r} is {value!r}: expected {expected}"
                )

    @property
    def directory(self) -> Path:
        return all_directory() / self.name

    @property
    def shared(self) -> str:
        """Name of the endpoint's shared memory."""
        return f"e-{self.id[:16]}"

    @property
    def spill_directory(self) -> str:
        return self.spill or str(self.directory / "spill")

    @classmethod
    def create(cls, name: str, secret: str | None = None, **settings: Any) -> EndpointSettings:
        """Make an endpoint, or change the settings of one that is there (it keeps its id).

        Args:
            name: what this host calls it.
            secret: its group's token; another endpoint's, or a new one.
            settings: see the attributes.

        Raises:
            ConfigurationError: a setting is wrong.
        """
        before: dict[str, Any] = {"id": uuid.uuid4().hex}
        if _NAME.fullmatch(name) and (all_directory() / name / "endpoint.toml").exists():
            before = dataclasses.asdict(cls.load(name))
        made = cls(**{**before, "name": name, **settings})
        if secret is not None and not _TOKEN.fullmatch(secret):
            raise ConfigurationError(
                "the group's token is none",
                remedy="Take another endpoint's, or leave it out to get a new one.",
            )
        made.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(made.directory, 0o700)
        kept = made.directory / "secret"
        if secret is not None or not kept.exists():
            write_private(kept, secret or secrets.token_urlsafe(32))
        lines = [
            f"{field} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
            for field, value in dataclasses.asdict(made).items()
            if field != "name"
        ]
        # Last, and whole: there is an endpoint as soon as this file is there, for all who look.
        write_private(made.directory / "endpoint.toml", "\n".join(lines))
        return made

    @classmethod
    def load(cls, name: str) -> EndpointSettings:
        """The settings of an endpoint of this host.

        Raises:
            ConfigurationError: there is none of that name, or its file is wrong.
        """
        path = all_directory() / name / "endpoint.toml"
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigurationError(
                f"this host has no endpoint {name!r}", remedy=f"Run: proxystore endpoint configure {name}"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is no TOML: {error}") from None
        known = {field.name for field in dataclasses.fields(cls)} - {"name"}
        if found.keys() - known:
            raise ConfigurationError(
                f"unknown setting {min(found.keys() - known)!r} in {path}; known: {', '.join(sorted(known))}"
            )
        if isinstance(found.get("addresses"), list):
            found["addresses"] = tuple(found["addresses"])
        try:
            return cls(name=name, **found)
        except TypeError as error:
            raise ConfigurationError(f"{path}: {error}") from None
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error.problem}", remedy=error.remedy) from None

    def secret(self) -> str:
        """The group's token."""
        return read_private(self.directory / "secret", what="token")

    def token(self) -> str:
        """What local clients show."""
        return read_private(self.directory / "token", what="token")

    @property
    def running(self) -> bool:
        """Whether its daemon runs."""
        try:
            with open(self.directory / "lock", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextlib.contextmanager
    def address(self) -> Iterator[str]:
        """The socket's path, in a form that is short enough for one wherever the directory is."""
        fd = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}/socket"
        finally:
            os.close(fd)

    def connect(self, timeout: float) -> socket.socket:
        """A connection to the daemon. Raises OSError."""
        until = time.monotonic() + timeout
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(timeout)
        try:
            with self.address() as path:
                while True:
                    try:
                        link.connect(path)
                        return link
                    except (
                        BlockingIOError
                    ):  # as many as may wait at the door do so: it does not wait with them
                        if time.monotonic() > until:
                            raise
                        time.sleep(0.01)
        except BaseException:
            link.close()
            raise


def all_directory() -> Path:
    """Where this user's endpoints are."""
    given = os.environ.get(DIRECTORY)
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(given) if given else Path(state, "proxystore", "endpoints")


def configured() -> list[EndpointSettings]:
    """All endpoints of this host and user, by name."""
    return [
        EndpointSettings.load(path.parent.name) for path in sorted(all_directory().glob("*/endpoint.toml"))
    ]


def relay_token(secret: str) -> str:
    """What a relay knows of a group's token: enough to let its endpoints in, not to speak for them."""
    return hashlib.sha256(b"proxystore relay\0" + secret.encode()).hexdigest()


def sign(secret: str, *words: str) -> str:
    """The mark of words that only the group can have said: a relay in between cannot change them."""
    key = hashlib.sha256(b"proxystore peer\0" + secret.encode()).digest()
    return hmac.new(key, "\0".join(words).encode(), hashlib.sha256).hexdigest()
