"""A store's URL taken apart, with errors that say what was expected."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from proxystore_core.errors import ConfigurationError

__all__ = ["StoreURL", "flag", "redact", "redact_all", "without_password"]


# Parameters whose value is nobody's business; where a file is that holds one, is.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_SECRET = re.compile(
    r"([?&][^=&#]*(?:pass|pwd|secret|token|credential|signature|access_key|api_?key)[^=&#]*=)[^&#]*",
    re.IGNORECASE,
)


_NUMBERS: dict[Any, str] = {float: "expected a number", int: "expected a whole number"}


def flag(text: str) -> bool:
    """What a parameter says that is true or false.

    Raises:
        ValueError: it is neither.
    """
    if text.lower() not in ("1", "0", "true", "false"):
        raise ValueError("expected true or false")
    return text.lower() in ("1", "true")


def redact(url: str) -> str:
    """The URL, its password hidden, and what parameters of it say that are named like one. For people."""
    return _SECRET.sub(r"\1***", _with_password(url, ":***"))


def without_password(url: str) -> str:
    """The URL as it may travel: without its password, and without parameters that are named like one."""
    before, mark, query = _with_password(url, "").partition("?")
    kept = [parameter for parameter in query.split("&") if not _SECRET.match(f"&{parameter}")]
    return f"{before}{mark if any(kept) else ''}{'&'.join(kept)}"


def _with_password(url: str, password: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        found = parts.password
    except ValueError:  # nobody knows where in it a password is
        return f"{url.partition('://')[0][:20]}://***"
    if found is None:
        return url
    user, host = f"{parts.username or ''}{password}", parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}@{host}" if user else host).geturl()


def redact_all(text: str) -> str:
    """A text, with each URL in it redacted."""
    return _URL.sub(lambda match: redact(match[0]), text)


@dataclasses.dataclass(frozen=True)
class StoreURL:
    """The parts of a URL such as ``redis://user@host:6379/0?timeout=5``.

    Attributes:
        url: the whole, redacted, for messages.
        scheme: lower case.
        host: as written (case kept), without port; empty when absent; the whole list where there are several.
        port: None when absent.
        hosts: the servers that the URL names, as written, each with its port if it has one.
        path: decoded, with its leading slash.
        query: parameters; a repeated one keeps its last value.
    """

    url: str
    scheme: str
    host: str
    port: int | None
    path: str
    username: str | None
    password: str | None
    query: dict[str, str]
    hosts: list[str]

    @classmethod
    def parse(cls, url: str) -> StoreURL:
        """Take a URL apart.

        Raises:
            ConfigurationError: it has no scheme, or its port is no number.
        """
        problem = ""
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError as error:
            # Of characters that are like others it shows all, the password, too.
            problem = "characters that are like others" if "netloc" in str(error) else str(error)
        if problem:  # raised here, where no error that shows the URL is its context
            raise ConfigurationError(f"bad host in a store's URL: {problem}")
        shown = redact(url)
        if not parts.scheme or "://" not in url:
            raise ConfigurationError(
                f"{shown!r} is not a store's URL: expected scheme://..., for example shm:// or file:///scratch/me"
            )
        host = parts.netloc.rpartition("@")[2]
        hosts = host.split(",") if host else []
        try:
            port = parts.port if len(hosts) < 2 else None
        except ValueError as error:
            raise ConfigurationError(f"bad port in {shown!r}: {error}") from None
        if len(hosts) < 2:
            host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return cls(
            url=shown,
            scheme=parts.scheme.lower(),
            host=urllib.parse.unquote(host),
            port=port,
            path=urllib.parse.unquote(parts.path),
            username=parts.username and urllib.parse.unquote(parts.username),
            password=parts.password and urllib.parse.unquote(parts.password),
            query=dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True)),
            hosts=hosts,
        )

    def expect(self, *, host: bool = False, port: bool = False, path: bool = False) -> None:
        """Check that only the named parts are there.

        Raises:
            ConfigurationError: another part is there.
        """
        for there, allowed, name in (
            (self.host, host, "a host or name"),
            (self.port is not None, port, "a port"),
            (self.path.strip("/"), path, "a path"),
            (self.username or self.password, False, "a user"),
        ):
            if there and not allowed:
                raise ConfigurationError(
                    f"{self.scheme}:// takes no {name[2:]}, found {name} in {self.url!r}"
                )

    def options(self, known: dict[str, Callable[[str], Any]], spare: Iterable[str] = ()) -> dict[str, Any]:
        """The query's parameters, converted.

        Args:
            known: parameter names with their converters (raising ValueError).
            spare: names that are someone else's.

        Raises:
            ConfigurationError: unknown name or bad value; says which are known.
        """
        found = {}
        for name, value in self.query.items():
            if name in spare:
                continue
            if name not in known:
                expected = ", ".join(sorted(known)) or "none"
                raise ConfigurationError(f"unknown parameter {name!r} in {self.url!r}; known: {expected}")
            try:
                found[name] = known[name](value)
            except ValueError as error:
                said = _NUMBERS.get(known[name], error)
                raise ConfigurationError(
                    f"bad value {value!r} of {name!r} in {self.url!r}: {said}"
                ) from error
        return found
