"""What streams over Redis share: the server, its deadlines and errors, names of keys."""

from __future__ import annotations

from typing import Any

from proxystore_core.connectors.arguments import check_text
from proxystore_core.connectors.base import is_far
from proxystore_core.errors import ConfigurationError
from proxystore_core.recipe import open_connector
from proxystore_core.stream.broker import check_timeout

__all__ = ["RedisBroker"]

_KEEP = 7 * 24 * 3600.0
_LONGEST = 1e9  # seconds, thirty years; servers take no more than some
_BLOCK = 5.0  # seconds that the server is asked to wait at a time, at most


class RedisBroker:
    """A connection to a Redis server that carries streams' messages.

    Args:
        hostname: the server's host; or the URL of a Redis store (``rediss://user@host``, ``unix:///path``),
            which says all.
        port: its TCP port.
        prefix: start of the topics' keys.
        keep: seconds after its last message that the server drops a topic, and what nobody fetched of it;
            None for never.
        options: as `proxystore_core.connectors.redis.RedisConnector`.

    Raises:
        ConfigurationError: an argument is wrong.
        MissingExtraError: redis-py is not installed.
    """

    def __init__(
        self,
        hostname: str = "localhost",
        port: int = 6379,
        *,
        prefix: str = "ps.stream",
        keep: float | None = _KEEP,
        **options: Any,
    ) -> None:
        check_text("hostname", hostname)
        if "://" in hostname:
            connector: Any = open_connector(hostname)
        else:
            connector = open_connector("redis://")
            connector = type(connector)(hostname, port, **options)
        if not is_far(connector) or not hasattr(connector, "_requests"):
            raise ConfigurationError(
                f"{hostname!r} is no Redis server: expected a host, or redis://host:6379"
            )
        if keep is not None:
            check_timeout("keep", keep)
            if not keep > 0:
                raise ConfigurationError(f"keep is {keep!r}: expected seconds, more than 0, or None")
            if keep > _LONGEST:
                keep = None
        self.prefix = prefix
        self.keep = keep
        self._connector = connector
        self._requests = connector._requests
        # Not longer than its connection waits for any answer.
        self._block = min(_BLOCK, connector._options.deadline / 2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connector.url!r})"

    def close(self) -> None:
        self._requests.end(f"this {type(self).__name__} is closed")

    def _append(self, verb: str, topic: str, *arguments: Any) -> None:
        """Write to a topic that is kept on the server, and say how long it stays."""
        key = self._key(topic)
        commands: list[tuple[Any, ...]] = [(verb, key, *arguments)]
        stays = ("PERSIST", key) if self.keep is None else ("PEXPIRE", key, round(self.keep * 1000))
        commands.append(stays)
        self._requests.run(commands)

    def _key(self, topic: str) -> str:
        return f"{self.prefix}:{topic}"

    def _topic(self, key: Any) -> str:
        text: str = key.decode() if isinstance(key, bytes) else key
        return text.removeprefix(f"{self.prefix}:")
