"""Objects on a KeyDB server: it speaks what Redis 6.2 does, and nothing newer is asked of any server."""

from __future__ import annotations

from typing import ClassVar

from proxystore_core.connectors.redis import RedisConnector

__all__ = ["KeyDBConnector", "KeyDBTLSConnector"]


class KeyDBConnector(RedisConnector):
    """Keeps objects on a KeyDB server; ``keydb://user@host:6379/0``. Arguments as `RedisConnector`."""

    schemes: ClassVar[tuple[str, ...]] = ("keydb",)


class KeyDBTLSConnector(KeyDBConnector):
    """As `KeyDBConnector`, encrypted; ``keydbs://``."""

    schemes: ClassVar[tuple[str, ...]] = ("keydbs",)
    _tls: ClassVar[bool] = True
