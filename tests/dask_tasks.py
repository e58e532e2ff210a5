"""Functions and classes that tasks of the Dask tests are made of; workers import them by name."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import dask
import distributed
import numpy as np
from waiting import until

try:
    from proxystore_core import Proxy
except ImportError:  # a worker without the package
    Proxy = None  # type: ignore[assignment, misc]


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Model:
    name: str
    weights: Any

    def score(self):
        return float(self.weights.sum())


class Hidden:
    """Keeps its data in slots, behind a property."""

    __slots__ = ("_data",)

    def __init__(self, data):
        self._data = data


def describe(value):
    """Exact type and content of a value, whatever it is, as a small comparable object."""
    return type(value).__module__, type(value).__qualname__, hashlib.sha256(pickle.dumps(value)).hexdigest()


def describe_all(*args, **kwargs):
    return [shape(arg) for arg in args], {name: shape(value) for name, value in kwargs.items()}


def shape(value):
    """A value's structure with exact types, arrays by their sum."""
    kind = type(value)
    if kind is Proxy:
        return "Proxy"
    if isinstance(value, np.ndarray):
        return kind.__name__, value.dtype.str, value.shape, float(value.sum()), value.flags.writeable
    if isinstance(value, (list, tuple)):
        return kind.__name__, [shape(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return kind.__name__, sorted(map(repr, map(shape, value)))
    if isinstance(value, dict):
        return kind.__name__, {key: shape(item) for key, item in value.items()}
    if isinstance(value, (str, bytes, bytearray)) and len(value) > 100:
        raw = value.encode() if isinstance(value, str) else value
        return kind.__name__, len(value), hashlib.sha256(raw).hexdigest()
    if dataclasses.is_dataclass(value):
        return kind.__name__, shape(vars(value))
    if kind is Hidden:
        return kind.__name__, shape(value._data)
    return kind.__name__, repr(value)


def total(array):
    return float(array.sum())


def increment(array):
    return array + 1


def ones(count):
    return np.ones(count)


def slow_ones(count, seconds):
    time.sleep(seconds)
    return np.ones(count)


def make_bytes(count):
    return b"x" * count


def identity(value):
    return value


def wrap_argument(value):
    return {"argument": value, "again": value}


def add_in_place(array):
    array += 1
    return array


def set_first(array):
    array[0] = -1.0
    return float(array[0]), float(array[1])


def same_object(first, second, nested):
    return first is second and nested["again"] is first


def type_of(value):
    return type(value).__name__


def worker_of(value):
    return os.getpid()


def fail(array):
    raise ValueError(f"not this one: {array.sum()}")


def fail_with(array):
    error = ValueError("with data")
    error.data = array  # type: ignore[attr-defined]
    raise error


def fail_until(path, array):
    """Fails twice, then succeeds; changes its argument each time before it fails."""
    array += 1
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) < 3:
        raise RuntimeError("try again")
    return float(array[0])


def slow_total(array, seconds):
    time.sleep(seconds)
    return float(array.sum())


def die_once(path, array):
    """Kills its own worker the first time it runs."""
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return float(array.sum())


def write_total(path, array, seconds):
    time.sleep(seconds)
    with open(path, "w") as file:
        file.write(str(float(array.sum())))


async def total_soon(array):
    await asyncio.sleep(0.01)
    return float(array.sum())


class Counter:
    """An actor that holds an array."""

    def __init__(self, array):
        self.array = array

    def bump(self):
        self.array += 1
        return float(self.array[0])


class Offset:
    """A callable object that carries an array."""

    def __init__(self, array):
        self.array = array

    def __call__(self, value):
        return float(self.array[0] + value)

    def plus(self, value):
        return float(self.array[1] + value)

    async def soon(self, value):
        await asyncio.sleep(0)
        return float(self.array[2] + value)


def closure_over(array):
    def inner(value, keyword=0):
        return float(array[3]) + value + keyword

    return inner


def with_default(array):
    def inner(value, array=array):
        return float(array[4]) + value

    return inner


def coroutine_over(array):
    async def inner(value):
        await asyncio.sleep(0)
        return float(array[5]) + value

    return inner


def submit_inside(count):
    """Tasks with a large argument, from inside a task; what the task's client is like."""
    with distributed.worker_client() as client:
        futures = client.map(total, [np.full(count, i, dtype=float) for i in range(4)], pure=False)
        return type(client).__module__, client._link.joined, client.gather(futures)


def get_client_inside(count):
    client = distributed.get_client()
    future = client.submit(increment, np.zeros(count), pure=False)
    distributed.secede()
    result = future.result()
    distributed.rejoin()
    return float(result.sum())


async def get_client_in_coroutine(count):
    client = distributed.get_client()
    future = client.submit(increment, np.zeros(count), pure=False)
    return float((await future).sum())


def gather_inside(count):
    with distributed.worker_client() as client:
        futures = client.map(ones, [count] * 4, pure=False)
        distributed.wait(futures)
        return [type(value).__name__ for value in [*client.gather(futures), futures[0].result()]]


def compute_inside(count):
    with distributed.worker_client():
        return dask.delayed(total)(np.ones(count)).compute()


class Quiet(distributed.SchedulerPlugin):
    name = "quiet"


class Noted(distributed.WorkerPlugin):
    name = "noted"

    def setup(self, worker):
        worker.noted = True


class Measured:
    """Counts how often it is pickled."""

    pickled = 0

    def __reduce__(self):
        type(self).pickled += 1
        return Measured, ()


def write_after(earlier, path, array):
    write_total(path, array, 0)


def future_of(client, key):
    """A client's future of a task that another client submitted."""
    future = distributed.Future(key, client)  # before the answer comes
    client._send_to_scheduler({"op": "client-desires-keys", "keys": [key], "client": client.id})
    return future


def gather_by_hand(address, key):
    """What a client without a store that a task makes by itself gets of a result of another task."""
    with distributed.Client(address, set_as_default=False) as client:
        return type_of(client.gather(future_of(client, key)))


def meet_before_publishing(place, count):
    """Have a worker's publishing wait until so many workers publish."""
    from proxystore_integrations.dask import worker

    def put(*args):
        Path(place, str(os.getpid())).touch()
        until(lambda: len(os.listdir(place)) >= count)
        return stores_put(*args)

    stores_put, worker.put = worker.put, put


def publish_between(began, go):
    """Have a worker say that it is to publish a result, and do so when it is told to, and say that it did."""
    from proxystore_integrations.dask import worker

    def put(*args):
        Path(began).touch()
        until(Path(go).exists)
        try:
            return stores_put(*args)
        finally:
            Path(go + "-done").touch()

    stores_put, worker.put = worker.put, put


def evict_after(path):
    """Have a worker's evictions wait for a file, and say in another one that it came."""
    from proxystore_core.connectors.shm import ShmConnector

    def evict(self, key):
        until(Path(path).exists)
        Path(path + "-seen").touch()

    ShmConnector.evict = evict


def note_threads_that_load():
    """Have a worker note the threads in which it loads values."""
    from proxystore_integrations.dask import _task_spec

    threads = []

    def loading(references):
        threads.append(threading.get_ident())
        return load(references)

    load = _task_spec.load
    vars(_task_spec).update(load=loading, threads=threads)


def loaded_in_the_loop():
    """For each of them whether it is that of the event loop, as this one."""
    from proxystore_integrations.dask import _task_spec

    return [thread == threading.get_ident() for thread in vars(_task_spec)["threads"]]


async def probe_when_over(terms, dask_worker):
    """Whether clients inside tasks would have the store of a session that ended before it was tried."""
    plugin = dask_worker.plugins["proxystore"]
    plugin.over(terms["session"])
    await plugin.probe(**terms)
    return terms["session"] in plugin.inherited
