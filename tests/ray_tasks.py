"""Remote functions, actors and futures for the tests of Ray; workers import them by name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

OPTIONS: dict[str, Any] = {
    "num_cpus": 2,
    "object_store_memory": 300_000_000,
    "include_dashboard": False,
    "configure_logging": False,
    "log_to_driver": False,
    "_node_ip_address": "127.0.0.1",
    "runtime_env": {"env_vars": {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}},
}
"""For a driver that starts a cluster."""
JOINING = {name: OPTIONS[name] for name in ("configure_logging", "log_to_driver", "runtime_env")}
"""For one that joins a cluster."""
BIG = 30_000
"""Floats in an array that is over the threshold."""


class Holder:
    """Its instances carry data."""

    def __init__(self, array: Any) -> None:
        self.array = array


class Unreadable(Holder):
    """Its own code fails where it is unpickled."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError("not here")


def big(value: float = 1.0) -> Any:
    return np.full(BIG, float(value))


def stored(link: Any) -> list[str]:
    """Keys of what a job's session has in its store."""
    from proxystore_integrations.testing import objects_of  # its imports are the driver's alone

    return [] if link is None else objects_of(link)


def call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """For what is no plain function."""
    return function(*args, **kwargs)


def is_one(both: Any) -> bool:
    """Whether two lists or arrays, themselves or in a list each, are one object."""
    first, second = both.values() if type(both) is dict else both
    inner = len(first) == 1 and type(first[0]) is not float
    return first[0] is second[0] if inner else first is second


@ray.remote
def total(*arrays: Any, **more: Any) -> float:
    return float(sum(array.sum() for array in [*arrays, *more.values()]))


@ray.remote
def add(array: Any, by: float = 1.0) -> Any:
    array += by
    return array


@ray.remote
def writable(array: Any) -> bool:
    return bool(array.flags.writeable)


@ray.remote
def make(count: int) -> Any:
    """Several results."""
    return [big(i) for i in range(count)]


@ray.remote
def pieces(count: int) -> Any:
    for i in range(count):
        yield big(i)


@ray.remote
def pieces_put(count: int) -> Any:
    """One result: references of what a generator has put."""
    return list(map(ray.put, map(big, range(count))))


@ray.remote
def inside(items: Any) -> float:
    """Gets the references in a container itself."""
    return float(sum((ray.get(item) if isinstance(item, ray.ObjectRef) else item).sum() for item in items))


@ray.remote
def nested(array: Any) -> float:
    """Submits a task with a large argument of its own."""
    return float(ray.get(total.remote(array * 2)))


@ray.remote
def die_once(path: str, array: Any) -> float:
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(array.sum())


@ray.remote(max_retries=2, retry_exceptions=True)
def fail_once(path: str, array: Any) -> float:
    if not os.path.exists(path):
        Path(path).touch()
        raise ValueError("first")
    return float(array.sum())


@ray.remote
def wait_for(path: str, array: Any) -> float:
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return float(array.sum())


@ray.remote
class Counter:
    """Keeps what it was made with."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def total(self, *arrays: Any) -> float:
        return float(self.array.sum() + sum(array.sum() for array in arrays))

    def change(self) -> float:
        self.array += 1
        return float(self.array[0])

    def give(self) -> Any:
        return self.array

    def add(self, array: Any) -> Any:
        return self.array + array

    def puts(self) -> Any:
        """A reference of what this actor has put."""
        return [ray.put(self.array)]

    def nested(self) -> list[bool]:
        """Whether tasks get what this actor passes on from the store."""
        mine = big(1)
        return ray.get([writable.remote(mine) for _ in range(2)])

    def pass_on(self, gate: Any) -> float:
        """What a task makes of a large argument, once a gate is open."""
        return float(ray.get(total_after.remote(gate.wait.remote(), big(1))))

    def stream(self, count: int) -> Any:
        for i in range(count):
            yield self.array + i

    def pid(self) -> int:
        return os.getpid()


@ray.remote
def total_after(_: Any, array: Any) -> float:
    return float(array.sum())


def failure(reference: Any) -> BaseException | None:
    """What getting a result raises."""
    try:
        ray.get(reference, timeout=60)
    except Exception as error:
        return error
    return None


def kill_named() -> int:
    """Kill all actors that have names; how many there were."""
    found = ray.util.list_named_actors(all_namespaces=True)
    for named in found:
        with contextlib.suppress(ValueError):  # it is about to end
            ray.kill(ray.get_actor(**named))
    return len(found)


@ray.remote
class Gate:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self) -> None:
        await self.event.wait()

    async def open(self) -> None:
        self.event.set()


@ray.remote
class Late:
    """Puts at the worst time: its session has ended, and it is about to be killed."""

    def give(self, started: str) -> Any:
        from proxystore_integrations.ray import link  # its imports are not for every worker

        mine: Any = link.current()
        session = Path(mine._store.connector.store_dir) / mine.session

        def is_over(*, by_trip: bool = True) -> bool:
            Path(started).touch()
            while by_trip or session.exists():
                time.sleep(0.001)
            return False

        mine.is_over = is_over
        return big()


@ray.remote
class Keeper:
    """Keeps what others gave it."""

    def __init__(self) -> None:
        self.references: list[Any] = []

    def keep(self, references: list[Any]) -> None:
        self.references += references

    def totals(self) -> list[float]:
        return [float(array.sum()) for array in ray.get(self.references)]

    def drop(self) -> None:
        self.references.clear()

    def hold(self, value: Any) -> None:
        self.value = value

    def held(self) -> float:
        return float(self.value.sum())


@ray.remote
class AsyncCounter:
    async def total(self, array: Any) -> float:
        await asyncio.sleep(0)
        return float(array.sum())

    async def add(self, array: Any) -> Any:
        await asyncio.sleep(0)
        return array + 1

    async def stream(self, count: int) -> Any:
        for i in range(count):
            await asyncio.sleep(0)
            yield big(i)

    def pieces(self, count: int) -> Any:
        for i in range(count):
            yield big(i)


@ray.remote(max_concurrency=4)  # type: ignore[call-overload]
class Meeting:
    """Threaded: its calls wait for each other."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30)

    def total(self, array: Any) -> float:
        self.barrier.wait()
        return float(array.sum())
