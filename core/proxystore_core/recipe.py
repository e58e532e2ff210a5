"""How any process opens the store that a reference names: one short string.

A recipe is the connector's URL, with the store's name and options as fragment:
``shm://``, ``redis://localhost:6379/0#example``, ``file:///data#example&compression=lz4``.
It holds no credential: a process takes those from its own environment. ``encrypted=1`` says that the objects
are, so that a process without the secret neither takes nor stores what is not (see `proxystore_core.secret`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import sys
import urllib.parse
from collections.abc import Callable
from typing import Any

from proxystore_core import forks
from proxystore_core.connectors.base import Connector
from proxystore_core.errors import ConfigurationError, MissingExtraError
from proxystore_core.urls import StoreURL, redact

__all__ = [
    "Recipe",
    "check_url",
    "connector_class",
    "import_name",
    "imported",
    "named",
    "open_connector",
    "opener",
    "register_connector",
]

ENTRY_POINTS = "proxystore_core.connectors"
"""Entry-point group of connectors of other distributions: scheme = module:class."""

_SHIPPED = {
    "memory": "proxystore_core.connectors.memory:MemoryConnector",
    "file": "proxystore_core.connectors.file:FileConnector",
    "shm": "proxystore_core.connectors.shm:ShmConnector",
    "redis": "proxystore_core.connectors.redis:RedisConnector",
    "rediss": "proxystore_core.connectors.redis:RedisTLSConnector",
    "unix": "proxystore_core.connectors.redis:RedisUnixConnector",
    "redis+cluster": "proxystore_core.connectors.redis_cluster:RedisClusterConnector",
    "rediss+cluster": "proxystore_core.connectors.redis_cluster:RedisClusterTLSConnector",
    "redis+sentinel": "proxystore_core.connectors.redis_cluster:RedisSentinelConnector",
    "rediss+sentinel": "proxystore_core.connectors.redis_cluster:RedisSentinelTLSConnector",
    "keydb": "proxystore_core.connectors.keydb:KeyDBConnector",
    "keydbs": "proxystore_core.connectors.keydb:KeyDBTLSConnector",
    "globus": "proxystore_core.connectors.globus:GlobusConnector",
    "webrtc": "proxystore_core.connectors.webrtc:EndpointConnector",
    "daos": "proxystore_core.connectors.daos:DAOSConnector",
    "zmq": "proxystore_core.connectors.zmq:ZeroMQConnector",
    "ucx": "proxystore_core.connectors.ucx:UCXConnector",
    "margo+tcp": "proxystore_core.connectors.margo:MargoConnector",
    "s3": "proxystore_core.connectors.objects:S3Connector",
    "gs": "proxystore_core.connectors.objects:GCSConnector",
    "az": "proxystore_core.connectors.objects:AzureConnector",
    "http": "proxystore_core.connectors.http:HTTPConnector",
    "https": "proxystore_core.connectors.http:HTTPSConnector",
    "sftp": "proxystore_core.connectors.sftp:SFTPConnector",
    "kafka": "proxystore_core.connectors.kafka:KafkaConnector",
    "multi": "proxystore_core.connectors.multi:MultiConnector",
}
_EXTRAS = {scheme: "redis" for scheme, path in _SHIPPED.items() if ".redis" in path or ".keydb" in path}
_EXTRAS |= dict.fromkeys(("s3", "gs", "az", "http", "https"), "obstore")
_EXTRAS |= {
    "globus": "globus",
    "webrtc": "webrtc",
    "sftp": "sftp",
    "zmq": "zmq",
    "ucx": "ucx",
    "kafka": "kafka",
}
"""The extra of this distribution that brings a scheme's library."""
_ELSEWHERE = {
    "daos": "It comes with DAOS: install its client's packages, daos-client and python3-daos.",
    "margo+tcp": "It comes with Mochi: install py-mochi-margo with Spack (https://mochi.readthedocs.io).",
}
"""What to do where no package of pip brings a scheme's library."""

_registered: dict[str, type[Connector]] = {}
_lock = forks.lock()


def register_connector(kind: type[Any]) -> type[Any]:
    """Make a connector's URL schemes known to this process; usable as a decorator."""
    with _lock:
        for scheme in kind.schemes:
            _registered[scheme] = kind
    return kind


def connector_class(scheme: str) -> type[Any]:
    """The connector that answers to a URL scheme.

    Raises:
        ConfigurationError: nobody knows the scheme.
        MissingExtraError: its library is not installed.
    """
    known = _registered.get(scheme)
    if known is not None:
        return known
    path = _SHIPPED.get(scheme) or _entry_points().get(scheme)
    if path is None:
        schemes = sorted({*_SHIPPED, *_registered, *_entry_points()})
        near = difflib.get_close_matches(scheme, schemes, 1)
        raise ConfigurationError(
            f"unknown store scheme {scheme!r}" + (f", did you mean {near[0]!r}?" if near else ""),
            remedy=f"Known schemes: {', '.join(schemes)}.",
        )
    module, _, name = path.partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        extra, remedy = _EXTRAS.get(scheme), _ELSEWHERE.get(scheme)
        if extra is None and remedy is None:
            raise
        raise MissingExtraError(
            f"{scheme}:// needs {error.name or 'a library'}, which is not installed",
            remedy=remedy or f'Run: pip install "proxystore-integrations[{extra}]".',
        ) from error
    return found


def check_url(url: str) -> None:
    """Check that a URL names a store that this process could open, without opening it.

    Raises:
        ConfigurationError: no URL, an unknown scheme, or a part or parameter that no store of it has.
        MissingExtraError: the scheme's library is not installed.
    """
    kind = connector_class(StoreURL.parse(url).scheme)
    if kind.__module__.startswith(f"{__package__}."):  # what others do there is not known
        _made(type(kind.__name__, (kind,), _UNOPENED), url)


_UNOPENED = {
    "__init__": lambda self, *arguments, **options: None,
    "from_config": classmethod(lambda cls, config: None),
}
"""What a connector's class is without its opening: `from_url` still takes the URL apart."""


def open_connector(url: str) -> Connector:
    """Open the connector that a URL describes.

    Raises:
        ConfigurationError, MissingExtraError: as `check_url`, or a wrong part of the URL.
        StoreError: the connector cannot be opened.
    """
    return _made(connector_class(StoreURL.parse(url).scheme), url)


def _made(kind: type[Any], url: str) -> Connector:
    """What a class makes of a URL; whatever it cannot read is a `ConfigurationError`."""
    try:
        connector: Connector = kind.from_url(url)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{redact(url)!r} does not describe a store: {error}") from error
    return connector


def opener(kind: type[Connector]) -> Callable[[str], Connector]:
    """What opens a connector of this class from its URL, in whatever process.

    The class of a known scheme is found by that: who lacks its library is told what to install.
    """
    with contextlib.suppress(ConfigurationError):
        if connector_class(kind.schemes[0]) is kind:
            return open_connector
    return kind.from_url


def _entry_points() -> dict[str, str]:
    import importlib.metadata  # 15 ms, and seldom needed

    return {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a process needs to open an equal store.

    Attributes:
        url: the connector's URL, without credentials.
        name: the store's name; empty for a store that is known by its URL alone.
        compression: codec that the store compresses with, or None.
        serializer: ``module:name`` of the store's own serializer, or None.
        deserializer: ``module:name`` of the store's own deserializer, or None.
        encrypted: whether its objects are encrypted.
    """

    url: str
    name: str = ""
    compression: str | None = None
    serializer: str | None = None
    deserializer: str | None = None
    encrypted: bool = False

    def __str__(self) -> str:
        options = {
            field: getattr(self, field)
            for field in ("compression", "serializer", "deserializer")
            if getattr(self, field)
        }
        if self.encrypted:
            options["encrypted"] = "1"
        fragment = urllib.parse.quote(self.name)
        if options:
            fragment += "&" + urllib.parse.urlencode(options, safe=":.")
        return f"{self.url}#{fragment}" if fragment else self.url

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """The inverse of ``str``.

        Raises:
            ConfigurationError: an unknown option.
        """
        url, _, fragment = text.partition("#")
        name, _, query = fragment.partition("&")
        options: dict[str, Any] = dict(urllib.parse.parse_qsl(query))
        encrypted = options.pop("encrypted", None) is not None
        unknown = options.keys() - {"compression", "serializer", "deserializer"}
        if unknown:
            raise ConfigurationError(f"unknown option {min(unknown)!r} in the store {text!r}")
        return cls(url, urllib.parse.unquote(name), **options, encrypted=encrypted)


def import_name(function: Callable[..., Any]) -> str:
    """``module:name`` under which other processes find a function.

    Raises:
        ConfigurationError: they could not find it (a lambda, a nested function).
    """
    name = f"{function.__module__}:{function.__qualname__}"
    if named(name) is not function:
        raise ConfigurationError(
            f"{function!r} cannot be found by other processes as {name!r}",
            remedy="Define a serializer or deserializer at the top of a module that workers can import.",
        )
    return name


def named(name: str) -> Callable[..., Any] | None:
    """The function called ``module:name`` among the modules already loaded, or None.

    Nothing is imported because a reference says so.
    """
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else None


def imported(name: Any) -> Callable[..., Any]:
    """The function called ``module:name``, its module imported if need be: for a user's own configuration.

    Raises:
        ConfigurationError: there is no such function.
    """
    module = name.partition(":")[0] if isinstance(name, str) else ""
    try:
        importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"{name!r} cannot be imported: expected 'module:function'") from error
    function = named(name)
    if function is None:
        raise ConfigurationError(
            f"the module {module!r} has no function for {name!r}: expected 'module:function'"
        )
    return function
