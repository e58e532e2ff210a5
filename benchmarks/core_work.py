"""Stores and proxies by themselves: put and get, threads, pickled proxies, operators."""

from __future__ import annotations

import pickle
import threading
import time
import timeit
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.contenders import COPY, OURS, PEER, RAW, STOCKLESS, attempt, store
from benchmarks.rows import Plan, Row
from benchmarks.tasks import fresh, touch
from benchmarks.timing import Absent, Figures, Sample, interleave

__all__ = ["WORKS"]

HUNDRED_MB = 100_000_000


def put_get(plan: Plan, kind: str, contenders: tuple[str, ...]) -> Iterator[Row]:
    """Time put, get and the first reading of every page, on one kind of store."""
    where = {"shm": "shared memory", "file": "file", "memory": "memory of the process"}[kind]
    for size, rounds in plan.sized():
        with ExitStack() as stack:
            samples: dict[str, Sample | Absent] = {COPY: _copy(size)}
            for name in contenders:
                opened = attempt(partial(store, name, kind, stack))
                samples[name] = opened if isinstance(opened, Absent) else _put_get(opened, size)
            outcomes = interleave(samples, rounds, warm=2)
        for figure in ("put", "get", "put + get", "put + get + read"):
            row = Row(f"Store on {where}: {figure}", "s", outcomes.of(figure), size)
            if kind == "shm" and figure == "put + get" and size == HUNDRED_MB:
                claim = "100 MB array, shared memory, put + get"
                row.at_most_times(OURS, COPY, 2.5, claim=f"{claim}, with stock")
                row.at_most_times(STOCKLESS, COPY, 7.0, claim=f"{claim}, without stock")
            yield row


def _put_get(opened: Any, size: int) -> Sample:
    def sample() -> Figures:
        array = fresh(size)
        expected = touch(array)
        # Whoever prepares memory in the background gets the pause; so does everybody else.
        time.sleep(0.3 if size >= 10_000_000 else 0.005)
        begin = time.perf_counter()
        key = opened.put(array)
        stored = time.perf_counter()
        got = opened.get(key)
        gotten = time.perf_counter()
        total = touch(got)
        read = time.perf_counter()
        assert total == expected, "the store returned other bytes"
        opened.evict(key)
        return {
            "put": stored - begin,
            "get": gotten - stored,
            "put + get": gotten - begin,
            "put + get + read": read - begin,
        }

    return sample


def _copy(size: int) -> Sample:
    source, target = fresh(size), fresh(size)

    def sample() -> Figures:
        begin = time.perf_counter()
        np.copyto(target, source)
        elapsed = time.perf_counter() - begin
        return dict.fromkeys(("put", "get", "put + get", "put + get + read"), elapsed)

    return sample


def threads(plan: Plan) -> Iterator[Row]:
    """Eight threads get eight objects, each of which takes 100 ms to arrive."""
    with ExitStack() as stack:
        samples = {name: _threads(attempt(partial(build, stack))) for name, build in _SLOW.items()}
        outcomes = interleave(samples, max(3, plan.repeat // 2), warm=1)
    row = Row("8 threads, 8 keys, 100 ms a get", "s", outcomes.of())
    row.at_most(OURS, 0.15)
    yield row


def _slow_peer(stack: ExitStack) -> tuple[Any, list[str]]:
    from proxystore.connectors.local import LocalConnector
    from proxystore.store import Store

    gets: list[str] = []

    class SlowConnector(LocalConnector):
        def get(self, key: Any) -> Any:
            gets.append(threading.current_thread().name)
            time.sleep(0.1)
            return super().get(key)

    opened: Any = Store(f"slow-{uuid.uuid4().hex[:8]}", SlowConnector())
    stack.callback(opened.close)
    return opened, gets


def _slow_ours(stack: ExitStack) -> tuple[Any, list[str]]:
    from proxystore_core.connectors.memory import MemoryConnector
    from proxystore_core.store import Store

    gets: list[str] = []

    class SlowConnector(MemoryConnector):
        def get(self, key: Any) -> Any:
            gets.append(threading.current_thread().name)
            time.sleep(0.1)
            return super().get(key)

    return stack.enter_context(Store(f"slow-{uuid.uuid4().hex[:8]}", connector=SlowConnector())), gets


_SLOW: Mapping[str, Callable[[ExitStack], tuple[Any, list[str]]]] = {PEER: _slow_peer, OURS: _slow_ours}


def _threads(built: Any) -> Sample | Absent:
    if isinstance(built, Absent):
        return built
    opened, gets = built

    def sample() -> Figures:
        keys = [opened.put(f"object {i} {uuid.uuid4()}") for i in range(8)]
        gets.clear()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(abs, range(8)))  # the threads exist before the clock starts
            begin = time.perf_counter()
            values = list(pool.map(opened.get, keys))
            elapsed = time.perf_counter() - begin
        assert len(set(values)) == 8
        assert len(gets) == 8, "a cache answered"
        for key in keys:
            opened.evict(key)
        return {"": elapsed}

    return sample


def proxy_pickle(plan: Plan) -> Iterator[Row]:
    """Size and speed of a pickled, unresolved proxy of a 1 MB array on shared memory."""
    with ExitStack() as stack:
        samples: dict[str, Sample | Absent] = {}
        for name in (PEER, OURS):
            opened = attempt(partial(store, name, "shm", stack))
            samples[name] = opened if isinstance(opened, Absent) else _pickle(opened, stack)
        outcomes = interleave(samples, 3 * plan.repeat)
    size = Row("Pickled proxy: size", "B", outcomes.of("size"))
    size.at_most(OURS, 200)
    yield size
    yield Row("Pickled proxy: dumps", "s", outcomes.of("dumps"))
    yield Row("Pickled proxy: loads", "s", outcomes.of("loads"))


def _pickle(opened: Any, stack: ExitStack) -> Sample:
    # Pickled once before: what came out of a pickle is not resolved yet.
    made = opened.proxy(fresh(1_000_000))
    proxy = pickle.loads(pickle.dumps(made))

    def sample() -> Figures:
        data = pickle.dumps(proxy, 5)
        count = 1000
        return {
            "size": len(data),
            "dumps": timeit.timeit(lambda: pickle.dumps(proxy, 5), number=count) / count,
            "loads": timeit.timeit(lambda: pickle.loads(data), number=count) / count,
        }

    return sample


OPERATIONS: Mapping[str, tuple[Any, str]] = {
    "d[key]": ({"key": 1}, "x['key']"),
    "len(list)": ([1, 2, 3], "len(x)"),
    "attribute": (SimpleNamespace(field=1), "x.field"),
    "int + 1": (12345, "x + 1"),
    "isinstance": ([1, 2, 3], "isinstance(x, list)"),
    "a[0]": (np.arange(16.0), "x[0]"),
    "np.add": (np.arange(16.0), "add(x, 1.0)"),
}


def proxy_operators(plan: Plan) -> Iterator[Row]:
    """Each operator on a plain object, and on resolved proxies of it."""
    for title, (value, statement) in OPERATIONS.items():
        with ExitStack() as stack:
            samples: dict[str, Sample | Absent] = {RAW: _operator(value, statement)}
            for name in (PEER, OURS):
                proxy = attempt(partial(_resolved, name, value, stack))
                samples[name] = proxy if isinstance(proxy, Absent) else _operator(proxy, statement)
            outcomes = interleave(samples, 2 * plan.repeat)
        yield Row(f"Resolved proxy: {title}", "s", outcomes.of())


def _resolved(contender: str, value: Any, stack: ExitStack) -> Any:
    opened = store(contender, "memory", stack)
    proxy = opened.proxy(value)
    resolve = import_module(f"{'proxystore' if contender == PEER else 'proxystore_core'}.proxy").resolve
    resolve(proxy)
    return proxy


def _operator(value: Any, statement: str) -> Sample:
    timer = timeit.Timer(statement, globals={"x": value, "add": np.add})

    def sample() -> Figures:
        count = 10_000
        return {"": timer.timeit(count) / count}

    return sample


WORKS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {
    "store-shm": lambda plan: put_get(plan, "shm", (PEER, OURS, STOCKLESS)),
    "store-file": lambda plan: put_get(plan, "file", (PEER, OURS)),
    "store-memory": lambda plan: put_get(plan, "memory", (PEER, OURS)),
    "threads": threads,
    "proxy-pickle": proxy_pickle,
    "proxy-operators": proxy_operators,
}
