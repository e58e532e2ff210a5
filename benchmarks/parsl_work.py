"""The same apps on bare Parsl, on bare Parsl with ProxyStore's proxies by hand, and with this project."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any, TypeAlias

from benchmarks.contenders import OURS, PARSL, PEER, attempt, counting, store
from benchmarks.machine import anonymous
from benchmarks.rows import Plan, Row
from benchmarks.tasks import fresh, increment, make, nothing, peer_proxied, touch
from benchmarks.timing import Absent, Figures, Outcomes, Sample, Spread, interleave

__all__ = ["WORKS", "runs"]

HUNDRED_MB = 100_000_000
LINKS = 5
TASKS = 1000

Run: TypeAlias = Callable[..., Any]
"""Calls a function as an app of one contender: its AppFuture."""


@contextmanager
def runs() -> Iterator[Any]:
    """Load Parsl once, with an executor of one block and two workers for each contender."""
    with ExitStack() as stack:
        yield attempt(lambda: _load(stack))


def _load(stack: ExitStack) -> Mapping[str, Any]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    from proxystore_integrations.parsl import wrap

    logging.getLogger("parsl").setLevel(logging.CRITICAL)
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def executor(label: str) -> Any:
        return HighThroughputExecutor(
            label=label,
            address="127.0.0.1",
            max_workers_per_node=2,
            provider=LocalProvider(
                init_blocks=1,
                min_blocks=1,
                max_blocks=1,
                worker_init=f"export PYTHONPATH={here}:$PYTHONPATH",
            ),
        )

    config = Config(
        executors=[executor("bare"), wrap(executor("ours"), store="shm://", threshold="100 kB")],
        run_dir=stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")),
        strategy="none",
        strategy_period=0.2,
        initialize_logging=False,
    )
    stack.enter_context(parsl.load(config))

    @cache
    def app(label: str, function: Any) -> Any:
        return parsl.python_app(function, executors=[label])

    def call(label: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        return app(label, function)(*args, **kwargs)

    opened: dict[str, Any] = {PARSL: partial(call, "bare"), OURS: partial(call, "ours")}
    opened[PEER] = attempt(lambda: _by_hand(partial(call, "bare"), store(PEER, "shm", stack)))
    return opened


def _by_hand(call: Run, peer: Any) -> Run:
    """What a user of ProxyStore writes: large arguments as proxies, results proxied in the app."""

    def proxied(function: Any, *args: Any, **kwargs: Any) -> Any:
        import numpy as np

        args = tuple(
            peer.proxy(arg, evict=True) if isinstance(arg, np.ndarray) and arg.nbytes >= 100_000 else arg
            for arg in args
        )
        return call(peer_proxied, peer.config().model_dump(), function, *args, **kwargs)

    return proxied


def _sampled(opened: Mapping[str, Any], build: Callable[[Run], Sample], rounds: int) -> Outcomes:
    samples: dict[str, Sample | Absent] = {}
    for name in (name for name in (PARSL, PEER, OURS) if name in opened):
        run = opened[name]
        if not isinstance(run, Absent):
            for _ in range(4):  # both workers import what they need
                run(nothing).result()
        samples[name] = run if isinstance(run, Absent) else build(run)
    return interleave(samples, rounds, warm=0)


def floor(plan: Plan, opened: Mapping[str, Any]) -> Iterator[Row]:
    """An empty task, and one with an argument and a result of 10 kB."""

    def build(run: Run, *, size: int) -> Sample:
        def sample() -> Figures:
            args = (fresh(size),) if size else ()
            function = increment if size else nothing
            begin = time.perf_counter()
            run(function, *args).result()
            return {"": time.perf_counter() - begin}

        return sample

    rounds = 60 * plan.repeat
    # Without the peer: it shares bare Parsl's workers, which would be the warmer for it.
    opened = {name: opened[name] for name in (PARSL, OURS)}
    yield Row("Parsl: empty task", "s", _sampled(opened, partial(build, size=0), rounds).of())
    row = Row(
        "Parsl: argument and result", "s", _sampled(opened, partial(build, size=10_000), rounds).of(), 10_000
    )
    row.at_most_times(OURS, PARSL, 1.05)
    yield row


def argument(plan: Plan, opened: Mapping[str, Any]) -> Iterator[Row]:
    """A task reads one byte of every page of its argument and returns their sum."""

    def build(run: Run, *, size: int) -> Sample:
        def sample() -> Figures:
            array = fresh(size)
            expected = touch(array)
            begin = time.perf_counter()
            total = run(touch, array).result()
            elapsed = time.perf_counter() - begin
            assert total == expected, "another result"
            return {"": elapsed}

        return sample

    yield from _by_size(plan, opened, "Parsl: argument", build)


def result(plan: Plan, opened: Mapping[str, Any]) -> Iterator[Row]:
    """A task returns an array; the main process reads one byte of every page of it."""

    def build(run: Run, *, size: int) -> Sample:
        def sample() -> Figures:
            begin = time.perf_counter()
            total = touch(run(make, size, 7).result())
            elapsed = time.perf_counter() - begin
            assert total == 7 * -(-size // 4096) % 2**64, "another result"
            return {"": elapsed}

        return sample

    yield from _by_size(plan, opened, "Parsl: result", build)


def chain(plan: Plan, opened: Mapping[str, Any]) -> Iterator[Row]:
    """Five tasks, each adding one to the array of the one before."""

    def build(run: Run, *, size: int) -> Sample:
        def sample() -> Figures:
            array = fresh(size)
            expected = touch(array[:1]) + LINKS
            begin = time.perf_counter()
            future = run(increment, array)
            for _ in range(LINKS - 1):
                future = run(increment, future)
            last = future.result()
            touch(last)
            elapsed = time.perf_counter() - begin
            assert int(last[0]) == expected % 256, "another result"
            return {"": elapsed}

        return sample

    yield from _by_size(plan, opened, f"Parsl: chain of {LINKS}", build)


def shared(plan: Plan, opened: Mapping[str, Any]) -> Iterator[Row]:
    """A thousand tasks share one array; only for this project: bare Parsl would take an hour."""
    run = opened[OURS]
    if isinstance(run, Absent) or HUNDRED_MB not in plan.sizes:
        return
    array = fresh(HUNDRED_MB)
    expected = touch(array)
    run(touch, array).result()
    before = anonymous()
    with counting(OURS, HUNDRED_MB) as stored:
        begin = time.perf_counter()
        futures = [run(touch, array) for _ in range(TASKS)]
        assert {future.result() for future in futures} == {expected}, "another result"
        elapsed = time.perf_counter() - begin
    grown = max(0, anonymous() - before)
    title = f"Parsl: {TASKS} tasks with one argument"
    yield Row(title, "s", {OURS: Spread((elapsed,))}, HUNDRED_MB)
    row = Row(f"{title}, times stored", "count", {OURS: Spread((float(len(stored)),))}, HUNDRED_MB)
    row.at_most(OURS, 1)
    yield row
    row = Row(f"{title}, growth of the main process", "B", {OURS: Spread((float(grown),))}, HUNDRED_MB)
    row.at_most(OURS, HUNDRED_MB / 2)
    yield row


def _by_size(plan: Plan, opened: Mapping[str, Any], title: str, build: Any) -> Iterator[Row]:
    for size in plan.sizes:
        if size > HUNDRED_MB:
            continue
        rounds = plan.repeat * (6 if size <= 1_000_000 else 1)
        row = Row(title, "s", _sampled(opened, partial(build, size=size), rounds).of(), size)
        if size == HUNDRED_MB:
            row.times_faster(OURS, PARSL, 20.0)
        yield row


WORKS = {
    "parsl-floor": floor,
    "parsl-argument": argument,
    "parsl-result": result,
    "parsl-chain": chain,
    "parsl-shared": shared,
}
