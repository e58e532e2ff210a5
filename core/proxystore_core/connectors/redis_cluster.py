"""Objects on the servers of a Redis Cluster, or on the one that Redis Sentinel currently names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.redis_login import addresses_of, database
from proxystore_core.connectors.redis_nodes import Cluster, Nodes, Sentinels
from proxystore_core.connectors.resp import Address
from proxystore_core.errors import ConfigurationError
from proxystore_core.urls import StoreURL

__all__ = [
    "RedisClusterConnector",
    "RedisClusterTLSConnector",
    "RedisSentinelConnector",
    "RedisSentinelTLSConnector",
]


class RedisClusterConnector(RedisConnector):
    """Keeps objects on all servers of a cluster; ``redis+cluster://user@host:7000,host:7001``.

    Args:
        hosts: some of the servers, each ``host:port``; the others are learned from them.
        username: as `RedisConnector`.
        password: as `RedisConnector`.
        options: as `RedisConnector`.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("redis+cluster",)

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        username: str | None = None,
        password: str | None = None,
        **options: Any,
    ) -> None:
        self._given = {"hosts": list(hosts)}
        self._open(",".join(hosts), addresses_of(hosts, 6379), username, password, 0, options)

    @classmethod
    def _place(cls, parts: StoreURL) -> dict[str, Any]:
        if parts.path.strip("/") not in ("", "0"):
            raise ConfigurationError(f"{parts.url!r} names a database: a cluster has none but 0")
        return {"hosts": parts.hosts}

    def _nodes(self, addresses: Sequence[Address]) -> Nodes:
        return Cluster(addresses)


class RedisClusterTLSConnector(RedisClusterConnector):
    """As `RedisClusterConnector`, encrypted."""

    schemes: ClassVar[tuple[str, ...]] = ("rediss+cluster",)
    _tls: ClassVar[bool] = True


class RedisSentinelConnector(RedisConnector):
    """Keeps objects on the server that sentinels name; ``redis+sentinel://user@host:26379,host/service/0``.

    Args:
        hosts: the sentinels, each ``host:port``. They are asked without a login.
        service: what they call the server.
        username: as `RedisConnector`, at the server.
        password: as `RedisConnector`, at the server.
        db: number of the database.
        options: as `RedisConnector`.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("redis+sentinel",)

    def __init__(
        self,
        hosts: Sequence[str],
        service: str,
        *,
        username: str | None = None,
        password: str | None = None,
        db: int = 0,
        **options: Any,
    ) -> None:
        self._given = {"hosts": list(hosts), "service": service, "db": db}
        self._service = service
        place = f"{','.join(hosts)}/{service}" + (f"/{db}" if db else "")
        self._open(place, addresses_of(hosts, 26379), username, password, db, options)

    @classmethod
    def _place(cls, parts: StoreURL) -> dict[str, Any]:
        service, _, db = parts.path.strip("/").partition("/")
        if not service:
            raise ConfigurationError(
                f"{parts.url!r} names no service: expected {cls.schemes[0]}://host:26379/service"
            )
        return {"hosts": parts.hosts, "service": service, "db": database(db or "0")}

    def _nodes(self, addresses: Sequence[Address]) -> Nodes:
        return Sentinels(addresses, self._service)


class RedisSentinelTLSConnector(RedisSentinelConnector):
    """As `RedisSentinelConnector`, encrypted, also to the sentinels."""

    schemes: ClassVar[tuple[str, ...]] = ("rediss+sentinel",)
    _tls: ClassVar[bool] = True
