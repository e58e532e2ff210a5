"""A Ray cluster and its driver in a process of its own: ``python -m benchmarks.ray_driver OPTIONS``.

A process is the driver of one cluster at most, so each side has its own. It measures what the lines on its
input ask for, and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np

from benchmarks.contenders import OURS, PEER, RAY, counting, store
from benchmarks.tasks import fresh, increment, make, modified, nothing, touch
from benchmarks.timing import describe_error

__all__: list[str] = []

LINKS = 5
LARGE = 100_000  # bytes
LARGEST = 100_000_000


def main(options: dict[str, Any]) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever Ray prints
    with ExitStack() as stack:
        call = _started(options, stack)
        print(json.dumps({}), file=answers, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            answer: dict[str, Any]
            try:
                work = WORKS[asked["work"]]
                answer = work(call, asked["size"], asked["count"])
            except Exception as error:
                answer = {"error": describe_error(error)}
            print(json.dumps(answer), file=answers, flush=True)


def _started(options: dict[str, Any], stack: ExitStack) -> Any:
    """Start Ray, bare or with this project's store."""
    import ray

    init: Callable[..., Any] = ray.init
    settings = options["settings"]
    if settings is not None:
        from proxystore_integrations.ray import init
    init(
        num_cpus=2,
        object_store_memory=options["plasma"],
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        **(settings or {}),
    )
    stack.callback(ray.shutdown)
    remote = cache(ray.remote)

    def call(function: Any, *args: Any) -> Any:
        return remote(function).remote(*args)

    ray.get([call(nothing, fresh(200_000)) for _ in range(8)])  # both workers import what they need
    # Later samples would be faster than the first ones: plasma's memory is used again.
    held = [ray.put(np.ones(LARGEST, dtype=np.uint8)) for _ in range(options["plasma"] // LARGEST - 1)]
    del held
    global _other_engine
    lender = None if options["contender"] == RAY else store(options["contender"], "shm", stack)
    _other_engine = _OtherEngine(lender, stack)
    return _by_hand(call, stack) if options["contender"] == PEER else call


class _OtherEngine:
    """A process pool beside Ray.

    Args:
        store: with which arrays are lent to both engines; None where both are given the array itself.
        stack: ends it.
    """

    def __init__(self, store: Any, stack: ExitStack) -> None:
        self._store = store
        self.pool = stack.enter_context(
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        )
        self.pool.submit(touch, fresh(100)).result()

    @contextmanager
    def lent(self, array: Any) -> Iterator[Any]:
        """What to pass to both engines."""
        if self._store is None:
            yield array
            return
        key = self._store.put(array)
        try:
            yield self._store.proxy_from_key(key)
        finally:
            self._store.evict(key)


_other_engine: _OtherEngine


def _by_hand(call: Any, stack: ExitStack) -> Any:
    """What a user of ProxyStore writes: a large array as a proxy, made once; results stay in plasma."""
    from proxystore.store.utils import get_key

    opened: list[Any] = []
    proxies: dict[int, tuple[Any, Any]] = {}

    def proxied(function: Any, *args: Any) -> Any:
        if not opened:
            opened.append(store(PEER, "shm", stack))
        return call(function, *map(one, args))

    def one(arg: Any) -> Any:
        if not isinstance(arg, np.ndarray) or arg.nbytes < LARGE:
            return arg
        known = proxies.get(id(arg))
        if known is None:
            while proxies:  # nobody else would evict it
                opened[0].evict(get_key(proxies.popitem()[1][1]))
            proxies[id(arg)] = known = arg, opened[0].proxy(arg)
        return known[1]

    return proxied


def _get(references: Any) -> Any:
    import ray

    return ray.get(references, timeout=100)


def _empty(call: Any, size: int, count: int) -> dict[str, float]:
    begin = time.perf_counter()
    _get(call(nothing))
    return {"": time.perf_counter() - begin}


def _argument(call: Any, size: int, count: int) -> dict[str, float]:
    array = fresh(size)
    expected = touch(array)
    begin = time.perf_counter()
    total = _get(call(touch, array))
    elapsed = time.perf_counter() - begin
    assert total == expected, "another result"
    return {"": elapsed}


def _result(call: Any, size: int, count: int) -> dict[str, float]:
    begin = time.perf_counter()
    total = touch(_get(call(make, size, 7)))
    elapsed = time.perf_counter() - begin
    assert total == 7 * -(-size // 4096), "another result"
    return {"": elapsed}


def _chain(call: Any, size: int, count: int) -> dict[str, float]:
    array = fresh(size)
    begin = time.perf_counter()
    reference = call(increment, array)
    for _ in range(LINKS - 1):
        reference = call(increment, reference)
    last = _get(reference)
    touch(last)
    elapsed = time.perf_counter() - begin
    assert int(last[0]) == (int(array[0]) + LINKS) % 256, "another result"
    return {"": elapsed}


def _shared(call: Any, size: int, count: int) -> dict[str, float]:
    array = fresh(size)
    expected = touch(array)
    with counting(OURS, size) as stored:
        begin = time.perf_counter()
        totals = _get([call(touch, array) for _ in range(count)])
        elapsed = time.perf_counter() - begin
    assert set(totals) == {expected}, "another result"
    return {"": elapsed, "stored": float(len(stored))}


def _modify(call: Any, size: int, count: int) -> dict[str, float]:
    array = fresh(size)
    begin = time.perf_counter()
    first = _get(call(modified, array))
    elapsed = time.perf_counter() - begin
    assert first == (int(array[0]) + 1) % 256, "another result"
    return {"": elapsed}


def _held(call: Any, size: int, count: int) -> dict[str, float]:
    """Several arguments, all of them waiting at the same time."""
    arrays = [fresh(size) for _ in range(count)]
    begin = time.perf_counter()
    totals = _get([call(touch, array) for array in arrays])
    elapsed = time.perf_counter() - begin
    assert totals == [touch(array) for array in arrays], "another result"
    return {"": elapsed}


def _elsewhere(call: Any, size: int, count: int) -> dict[str, float]:
    """One array for a task of Ray's and one of a process pool's."""
    array = fresh(size)
    expected = touch(array)
    begin = time.perf_counter()
    with _other_engine.lent(array) as given:
        reference = call(touch, given)
        totals = _other_engine.pool.submit(touch, given).result(), _get(reference)
        elapsed = time.perf_counter() - begin
    assert set(totals) == {expected}, "another result"
    return {"": elapsed}


WORKS: dict[str, Callable[[Any, int, int], dict[str, float]]] = {
    "empty": _empty,
    "argument": _argument,
    "result": _result,
    "chain": _chain,
    "shared": _shared,
    "modify": _modify,
    "held": _held,
    "elsewhere": _elsewhere,
}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
