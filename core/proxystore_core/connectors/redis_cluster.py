"""Objects on the servers of a Redis Cluster, or on the one that Redis Sentinel currently names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from proxystore_core.connectors.redis import LOCAL, RedisConnector
from proxystore_core.connectors.redis_errors import Diagnosis
from proxystore_core.connectors.redis_login import Login, TLSConnection, addresses_of, database
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
    _transactions: ClassVar[bool] = False

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        username: str | None = None,
        password: str | None = None,
        **options: Any,
    ) -> None:
        self._given = {"hosts": _several(hosts)}
        self._addresses = addresses_of(self._given["hosts"], 6379)
        self._open(",".join(self._given["hosts"]), _are_local(self._addresses), username, password, options)

    @classmethod
    def _place(cls, parts: StoreURL) -> dict[str, Any]:
        if parts.path.strip("/") not in ("", "0"):
            raise ConfigurationError(f"{parts.url!r} names a database: a cluster has none but 0")
        return {"hosts": parts.hosts}

    def _connect(self, login: Login) -> Any:
        (host, port), *others = self._addresses
        arguments = login.pool()
        own = {"command_packer": arguments.pop("command_packer")}
        if self._tls:
            own["connection_class"] = TLSConnection
        arguments["retry"] = Retry(NoBackoff(), 1)
        # Only a client that is made from a URL takes a class of pools, and only a pool takes these.
        url = f"{'rediss' if self._tls else 'redis'}://{f'[{host}]' if ':' in host else host}:{port}"
        return RedisCluster(
            url=url,
            startup_nodes=[ClusterNode(*other) for other in others],
            connection_pool_class=lambda **given: redis.ConnectionPool(**{**given, **own}),
            **arguments,
        )


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
        self._given = {"hosts": _several(hosts), "service": service, "db": db}
        self._addresses = addresses_of(self._given["hosts"], 26379)
        place = f"{','.join(self._given['hosts'])}/{service}" + (f"/{db}" if db else "")
        self._open(place, _are_local(self._addresses), username, password, options)

    @classmethod
    def _place(cls, parts: StoreURL) -> dict[str, Any]:
        service, _, db = parts.path.strip("/").partition("/")
        if not service:
            raise ConfigurationError(
                f"{parts.url!r} names no service: expected {cls.schemes[0]}://host:26379/service"
            )
        return {"hosts": parts.hosts, "service": service, "db": database(db or "0")}

    def _connect(self, login: Login) -> Any:
        tls = {"ssl": True} if self._tls else {}
        sentinels = Sentinel(self._addresses, sentinel_kwargs={**login.transport(), **tls})
        return sentinels.master_for(self._given["service"], db=self._given["db"], **login.pool(), **tls)

    def _diagnosis(self, error: BaseException, client: Any) -> Diagnosis:
        found = super()._diagnosis(error, client)
        if not isinstance(error, MasterNotFoundError):
            return found
        service = self._given["service"]
        if self._is_known(client):
            remedy = "Check the sentinels' hosts and ports, that they run, and that the server does."
            return found._replace(
                problem=f"no sentinel names a server of {service!r} that is up", remedy=remedy
            )
        problem = f"the sentinels know no service {service!r}"
        return Diagnosis(ConfigurationError, problem, "Expected redis+sentinel://host:26379/service.")

    def _is_known(self, client: Any) -> bool:
        """Whether the service is one that a sentinel knows, though its server may be down; or nobody says."""
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            try:
                return self._given["service"] in sentinel.sentinel_masters()
            except redis.RedisError:
                pass
        return True


class RedisSentinelTLSConnector(RedisSentinelConnector):
    """As `RedisSentinelConnector`, encrypted, also to the sentinels."""

    schemes: ClassVar[tuple[str, ...]] = ("rediss+sentinel",)
    _tls: ClassVar[bool] = True


def _several(hosts: Any) -> list[str]:
    """The servers that are named, one text or several.

    Raises:
        ConfigurationError: they are none.
    """
    found = hosts.split(",") if isinstance(hosts, str) else hosts
    if not isinstance(found, Sequence) or not all(isinstance(host, str) for host in found):
        raise ConfigurationError(f"hosts is {hosts!r}: expected host:port, or several in a list")
    return list(found)


def _are_local(addresses: Sequence[tuple[str, int]]) -> bool:
    return all(host in LOCAL for host, _ in addresses)
