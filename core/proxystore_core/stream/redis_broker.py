"""What streams over Redis share: the server, its deadlines and errors, names of keys."""

from __future__ import annotations

from typing import Any

from proxystore_core.connectors.base import is_far
from proxystore_core.errors import ConfigurationError
from proxystore_core.recipe import open_connector

__all__ = ["RedisBroker"]


class RedisBroker:
    """A connection to a Redis server that carries streams' messages.

    Args:
        hostname: the server's host; or the URL of a Redis store (``rediss://user@host``, ``unix:///path``),
            which says all.
        port: its TCP port.
        prefix: start of the topics' keys.
        options: as `proxystore_core.connectors.redis.RedisConnector`.

    Raises:
        ConfigurationError: an argument is wrong.
        MissingExtraError: redis-py is not installed.
    """

    def __init__(
        self, hostname: str = "localhost", port: int = 6379, *, prefix: str = "ps.stream", **options: Any
    ) -> None:
        if "://" in hostname:
            connector: Any = open_connector(hostname)
        else:
            connector = open_connector("redis://")
            connector = type(connector)(hostname, port, **options)
        if not is_far(connector) or not hasattr(connector, "_requests"):
            raise ConfigurationError(
                f"{hostname!r} is no Redis server: expected a host, or redis://host:6379"
            )
        self.prefix = prefix
        self._connector = connector
        self._requests = connector._requests

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connector.url!r})"

    def close(self) -> None:
        self._connector.close()

    def _key(self, topic: str) -> str:
        return f"{self.prefix}:{topic}"

    def _topic(self, key: Any) -> str:
        text: str = key.decode() if isinstance(key, bytes) else key
        return text.removeprefix(f"{self.prefix}:")
