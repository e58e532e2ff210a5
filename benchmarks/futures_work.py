"""The same calls through bare executors, ProxyStore's StoreExecutor and this project's."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.contenders import OURS, PEER, POOL, attempt, store
from benchmarks.rows import Plan, Row
from benchmarks.tasks import fresh, increment, make, nothing, same, touch
from benchmarks.timing import Absent, Figures, Outcome, Outcomes, Sample, interleave

__all__ = ["WORKS"]

HUNDRED_MB = 100_000_000
SMALL = 10_000
TASKS = 200


def _process_pool() -> Executor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def _loky() -> Executor:
    import loky

    return loky.ProcessPoolExecutor(2)  # type: ignore[no-any-return]


def _executors(make_one: Callable[[], Executor], stack: ExitStack) -> Mapping[str, Any]:
    """One pool for all contenders: two of a kind differ by more than what is measured at 10 kB."""
    pool = make_one()
    stack.callback(pool.shutdown)

    def peer() -> Any:
        import numpy as np
        from proxystore.store.executor import ProxyType, StoreExecutor

        return StoreExecutor(pool, store(PEER, "shm", stack), should_proxy=ProxyType(np.ndarray))

    def ours() -> Any:
        from proxystore_integrations.futures import StoreExecutor

        return stack.enter_context(StoreExecutor(pool, "shm://", threshold="100 kB"))

    return {POOL: pool, PEER: attempt(peer), OURS: attempt(ours)}


def _sampled(opened: Mapping[str, Any], build: Callable[[Any], Sample], rounds: int) -> Outcomes:
    samples: dict[str, Sample | Absent] = {}
    for name, executor in opened.items():
        if not isinstance(executor, Absent):
            for _ in range(8):  # all workers import what they need
                executor.submit(nothing, fresh(200_000)).result()
        samples[name] = executor if isinstance(executor, Absent) else build(executor)
    return interleave(samples, rounds, warm=4, budget=40.0)  # both workers meet every size


def _small(opened: Mapping[str, Any], build: Callable[[Any], Sample], rounds: int) -> Mapping[str, Outcome]:
    """As `_sampled`, but ProxyStore alone, and later: what its tasks leave behind slows the others."""
    found = _sampled({POOL: opened[POOL], OURS: opened[OURS]}, build, rounds).of()
    found |= _sampled({PEER: opened[PEER]}, build, min(rounds, 15)).of()
    return {name: found[name] for name in opened if name in found}


def _argument(executor: Any, *, size: int) -> Sample:
    def sample() -> Figures:
        array = fresh(size)
        expected = touch(array)
        begin = time.perf_counter()
        total = executor.submit(touch, array).result()
        elapsed = time.perf_counter() - begin
        assert total == expected, "another result"
        return {"": elapsed}

    return sample


def _result(executor: Any, *, size: int) -> Sample:
    def sample() -> Figures:
        begin = time.perf_counter()
        total = touch(executor.submit(make, size, 7).result())
        elapsed = time.perf_counter() - begin
        assert total == 7 * -(-size // 4096), "another result"
        return {"": elapsed}

    return sample


def _both(executor: Any, *, size: int) -> Sample:
    def sample() -> Figures:
        array = fresh(size)
        begin = time.perf_counter()
        last = executor.submit(increment, array).result()
        touch(last)
        elapsed = time.perf_counter() - begin
        return {"": elapsed}

    return sample


def _many(executor: Any, *, size: int) -> Sample:
    def sample() -> Figures:
        arrays = [fresh(size) for _ in range(TASKS)]
        begin = time.perf_counter()
        for future in [executor.submit(increment, array) for array in arrays]:
            touch(future.result())
        return {"": time.perf_counter() - begin}

    return sample


def _values(executor: Any, *, make_one: Callable[[], Any]) -> Sample:
    def sample() -> Figures:
        values = [make_one() for _ in range(TASKS)]
        begin = time.perf_counter()
        for future in [executor.submit(same, value) for value in values]:
            future.result()
        return {"": time.perf_counter() - begin}

    return sample


def _pool(title: str, make_one: Callable[[], Executor], factor: float, plan: Plan) -> Iterator[Row]:
    with ExitStack() as stack:
        opened = _executors(make_one, stack)
        row = Row(
            f"{title}: argument and result",
            "s",
            _small(opened, partial(_both, size=SMALL), 400),
            SMALL,
        )
        yield row
        row = Row(
            f"{title}: {TASKS} tasks, each with an argument and a result",
            "s",
            _small(opened, partial(_many, size=SMALL), 500),
            SMALL,
        )
        row.at_most_times(OURS, POOL, 1.05)
        yield row
        for what, make_value, size in (
            ("text", lambda: "a" * SMALL, SMALL),
            ("a number", lambda: 7, None),
            ("a list of three numbers", lambda: [1, 2, 3], None),
        ):
            yield Row(
                f"{title}: {TASKS} tasks, each with {what} as argument and result",
                "s",
                _small(opened, partial(_values, make_one=make_value), 500),
                size,
            )
        for what, build in (("argument", _argument), ("result", _result), ("argument and result", _both)):
            for size, rounds in plan.sized():
                if size > HUNDRED_MB or (build is _both and size == SMALL):
                    continue
                row = Row(
                    f"{title}: {what}", "s", _sampled(opened, partial(build, size=size), rounds).of(), size
                )
                if size == HUNDRED_MB and build is not _both:
                    row.times_faster(OURS, POOL, factor)
                yield row


WORKS = {
    "futures-processes": partial(_pool, "ProcessPoolExecutor", _process_pool, 5.0),
    "futures-loky": partial(_pool, "loky", _loky, 2.0),
}
