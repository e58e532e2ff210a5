"""Every connector that can be opened here, one beside the other: the figures of docs/stores.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from benchmarks import test_servers
from benchmarks.contenders import attempt
from benchmarks.redis_server import serving as serving_redis
from benchmarks.rows import Plan, Row
from benchmarks.tasks import Array, fresh, touch
from benchmarks.timing import Absent, Figures, Sample, interleave

__all__ = ["WORKS"]

KILOBYTE = 1_000
HUNDRED_MB = 100_000_000
REPEATS = 50  # of what takes less than some milliseconds


def _redis(transport: str) -> Callable[[ExitStack], str]:
    return lambda stack: stack.enter_context(serving_redis()).url(transport)


def _multi(stack: ExitStack) -> str:
    far = stack.enter_context(serving_redis()).url("TCP")
    return f"multi://near,far?near=shm://&near.max_size=1000000&far={far}"


def _sftp(stack: ExitStack) -> str:
    url: str = test_servers.sftp_server(stack).url(test_servers.directory(stack) / "store")
    return url


CONNECTORS: Mapping[str, Callable[[ExitStack], str]] = {
    "memory": lambda stack: "memory://bench",
    "shm": lambda stack: "shm://bench",
    "file": lambda stack: f"file://{test_servers.directory(stack)}/store",
    "redis, unix socket": _redis("unix socket"),
    "redis": _redis("TCP"),
    "keydb": lambda stack: f"keydb://{test_servers.redis_6(stack).address}",
    "redis+cluster": lambda stack: f"redis+cluster://{test_servers.redis_cluster(stack)}",
    "s3": lambda stack: str(test_servers.object_server(stack).url("bench")),
    "sftp": _sftp,
    "zmq, same node": lambda stack: "zmq://bench",
    "ucx, same node": lambda stack: "ucx://bench",
    "kafka": lambda stack: f"kafka://{test_servers.kafka_broker(stack).address}/bench",
    "multi": _multi,
}
"""The URL of each, once its server runs; a new connector is one more line."""


def compare(plan: Plan) -> Iterator[Row]:
    """Put, and get and read, 1 kB and 100 MB; bytes alone, without serialization."""
    with ExitStack() as stack:
        opened = {name: attempt(partial(_opened, CONNECTORS[name], stack)) for name in CONNECTORS}
        for size in (KILOBYTE, min(HUNDRED_MB, plan.sizes[-1])):
            samples: dict[str, Sample | Absent] = {
                name: found if isinstance(found, Absent) else _sample(found, size)
                for name, found in opened.items()
            }
            outcomes = interleave(samples, plan.repeat, budget=15)
            for figure in ("put", "get + read"):
                yield Row(f"Connectors: {figure}", "s", outcomes.of(figure), size)


def _opened(build: Callable[[ExitStack], str], stack: ExitStack) -> Any:
    from proxystore_core.recipe import open_connector

    connector = open_connector(build(stack))
    stack.callback(connector.close, clear=True)
    connector.evict(connector.put([b"first"]))
    return connector


def _sample(connector: Any, size: int) -> Sample:
    count = REPEATS if size <= KILOBYTE else 1

    def sample() -> Figures:
        values: list[Array] = [fresh(size) for _ in range(count)]
        time.sleep(0.1 if size > KILOBYTE else 0.01)
        putting = getting = 0.0
        for value in values:
            begin = time.perf_counter()
            key = connector.put([value.data])
            stored = time.perf_counter()
            got = connector.get(key)
            total = touch(np.frombuffer(got, np.uint8))
            getting += time.perf_counter() - stored
            putting += stored - begin
            assert total == touch(value), "other bytes"
            del got
            connector.evict(key)
        return {"put": putting / count, "get + read": getting / count}

    return sample


WORKS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {"connectors": compare}
