"""Who is measured, and how each opens a store or a Dask client; one that cannot be imported is absent."""

from __future__ import annotations

import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.redis_server import RedisServer
from benchmarks.timing import Absent, describe_error

__all__ = [
    "BARE",
    "COMPUTE",
    "COPY",
    "OURS",
    "PARSL",
    "PEER",
    "POOL",
    "RAW",
    "RAY",
    "REDIS",
    "REDIS_COPYLESS",
    "SCATTERED",
    "STOCKLESS",
    "attempt",
    "counting",
    "dask_client",
    "store",
]

COPY = "memcpy"
RAW = "plain object"
REDIS = "redis-py"
REDIS_COPYLESS = "redis-py, no copies"
BARE = "Dask"
PARSL = "Parsl"
COMPUTE = "Globus Compute"
RAY = "Ray"
POOL = "the bare pool"
PEER = "ProxyStore"
OURS = "this project"
SCATTERED = "Dask, scatter() first"
STOCKLESS = "this project, no stock"


def attempt(build: Callable[[], Any]) -> Any:
    """What ``build`` returns, or why it cannot."""
    try:
        return build()
    except Exception as error:
        return Absent(describe_error(error))


def store(contender: str, kind: str | RedisServer, stack: ExitStack, transport: str = "TCP") -> Any:
    """Open a contender's store until ``stack`` ends.

    Args:
        contender: `PEER`, `OURS` or `STOCKLESS`.
        kind: "shm", "file", "memory" or a Redis server. The peer has no shared memory: there it keeps
            its files on /dev/shm, which is its best case on one machine.
        stack: closes the store and removes its files.
        transport: "unix socket" or "TCP" to the Redis server. The peer knows TCP alone.
    """
    name = f"bench-{uuid.uuid4().hex[:8]}"
    if contender == PEER:
        return _peer_store(name, kind, stack)
    from proxystore_core.store import Store

    if kind == "shm":
        from proxystore_core.connectors.shm import ShmConnector

        options: dict[str, Any] = {"stock": 0} if contender == STOCKLESS else {}
        opened = Store(name, connector=ShmConnector(**options))
        stack.callback(opened.close, clear=True)
        return opened
    if isinstance(kind, RedisServer):
        url = kind.url(transport)
    else:
        url = "memory://" if kind == "memory" else f"file://{_directory(None, stack)}"
    return stack.enter_context(Store.from_url(url, name=name))


def _peer_store(name: str, kind: str | RedisServer, stack: ExitStack) -> Any:
    from proxystore.connectors.file import FileConnector
    from proxystore.connectors.local import LocalConnector
    from proxystore.connectors.redis import RedisConnector
    from proxystore.store import Store, unregister_store

    connector: Any
    if isinstance(kind, RedisServer):
        connector = RedisConnector("127.0.0.1", kind.port)
    elif kind == "memory":
        connector = LocalConnector()
    else:
        connector = FileConnector(_directory("/dev/shm" if kind == "shm" else None, stack))
    # The peer finds stores by name alone: a name is never used twice, here or on a worker.
    # On Redis every object is got once in each process: its cache would only hold memory.
    options = {"cache_size": 0} if isinstance(kind, RedisServer) else {}
    opened: Any = Store(name, connector, register=True, **options)
    stack.callback(opened.close)
    stack.callback(unregister_store, name)
    return opened


def _directory(parent: str | None, stack: ExitStack) -> str:
    # The peer's workers may remove the directory first when they stop.
    return stack.enter_context(
        tempfile.TemporaryDirectory(prefix="benchmarks-", dir=parent, ignore_cleanup_errors=True)
    )


def dask_client(contender: str, cluster: Any, stack: ExitStack, kind: str | RedisServer = "shm") -> Any:
    """Connect a contender's Dask client to ``cluster`` until ``stack`` ends; its store is of ``kind``."""
    if contender == BARE:
        from distributed import Client

        return stack.enter_context(Client(cluster, set_as_default=False))
    if contender == PEER:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from proxystore.ex.plugins.distributed import Client as PeerClient

            opened = store(PEER, kind, stack)
            return stack.enter_context(PeerClient(cluster, set_as_default=False, ps_store=opened))
    from proxystore_integrations.dask import Client as OurClient

    url = kind.url("TCP") if isinstance(kind, RedisServer) else f"{kind}://"
    return stack.enter_context(
        OurClient(cluster, set_as_default=False, store=url, threshold="100 kB", results="auto")
    )


def _shm_connectors() -> Mapping[str, Callable[[], Any]]:
    def peer() -> Any:
        from proxystore.connectors.file import FileConnector

        return FileConnector

    def ours() -> Any:
        from proxystore_core.connectors.shm import ShmConnector

        return ShmConnector

    return {PEER: peer, OURS: ours}


@contextmanager
def counting(contender: str, at_least: int) -> Iterator[list[int]]:
    """Note the sizes of all objects of ``at_least`` bytes that this process puts into the contender's store.

    Yields:
        Sizes in bytes, one for each stored object, complete when the block ends.
    """
    kind = _shm_connectors()[contender]()
    original = kind.put
    sizes: list[int] = []

    def put(connector: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        parts = [data] if isinstance(data, bytes | bytearray | memoryview) else data
        size = sum(memoryview(part).nbytes for part in parts)
        if size >= at_least:
            sizes.append(size)
        return original(connector, data, *args, **kwargs)

    kind.put = put
    try:
        yield sizes
    finally:
        kind.put = original
