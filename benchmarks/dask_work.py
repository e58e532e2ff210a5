"""The same calls through bare Dask, ProxyStore's Dask plugin and this project, on clusters of one kind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

from benchmarks import tasks
from benchmarks.contenders import BARE, OURS, PEER, SCATTERED, attempt, counting, dask_client
from benchmarks.redis_server import RedisServer
from benchmarks.rows import Plan, Row
from benchmarks.tasks import fresh, touch
from benchmarks.timing import Absent, Figures, Outcomes, Sample, interleave

__all__ = ["WORKS", "argument_of", "clients", "floor", "result_of", "sampled"]

Clients: TypeAlias = Mapping[str, Any]
"""A connected client, or why there is none, by contender."""

TEN_MB = 10_000_000
HUNDRED_MB = 100_000_000
LINKS = 5
ITEMS = 1000
BLOCK = 20
SUBMITS = 100
PAUSE = 0.15  # seconds: a contender's evictions and preparations end before the next one's turn

QUIET = {"distributed.nanny.pre-spawn-environ.PYTHONWARNINGS": "ignore"}


@contextmanager
def clients(
    names: tuple[str, ...] = (BARE, PEER, OURS), kind: str | RedisServer = "shm"
) -> Iterator[Clients]:
    """Connect each contender, with its store of ``kind``, to a cluster of two single-threaded workers.

    Bare Dask and the peer share one; this project has its own, because it equips workers and
    scheduler, and bare Dask must not pay for that.
    """
    import dask.config
    from distributed import LocalCluster

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(QUIET))
        opened: dict[str, Any] = {}
        clusters: list[Any] = []
        for name in names:
            if name != PEER:
                cluster = LocalCluster(
                    n_workers=2,
                    threads_per_worker=1,
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=logging.CRITICAL,
                )
                clusters.append(stack.enter_context(cluster))
            opened[name] = attempt(partial(dask_client, name, clusters[-1], stack, kind))
        yield opened


def sampled(opened: Clients, build: Callable[[str, Any], Sample], rounds: int) -> Outcomes:
    """Interleave what ``build`` makes of each client that is there."""
    samples: dict[str, Sample | Absent] = {}
    for name, client in opened.items():
        if isinstance(client, Absent):
            samples[name] = client
            continue
        for _ in range(4):  # both workers import and open what they need
            client.submit(tasks.nothing, pure=False).result()
        samples[name] = build(name, client)
    return interleave(samples, rounds)


def _rest(client: Any, size: int) -> None:
    """Let a cluster release what the sample left, so that the next contender does not pay for it."""
    client.submit(tasks.nothing, pure=False).result()
    time.sleep(PAUSE if size >= TEN_MB else 0.01)


def floor(plan: Plan, opened: Clients, *, where: str = "Dask") -> Iterator[Row]:
    """An empty task, from submit to its result: what every other Dask figure contains."""

    def build(_name: str, client: Any) -> Sample:
        def sample() -> Figures:
            begin = time.perf_counter()
            client.submit(tasks.nothing, pure=False).result()
            elapsed = time.perf_counter() - begin
            time.sleep(0.005)
            return {"": elapsed}

        return sample

    yield Row(f"{where}: empty task, submit to result", "s", sampled(opened, build, 15 * plan.repeat).of())


def argument(plan: Plan, opened: Clients) -> Iterator[Row]:
    """A task reads one byte of every page of its argument and returns their sum."""
    for title, options, factor in (
        ("Dask: argument", {"pure": False}, 4.0),
        ("Dask: argument, default naming (pure=True)", {}, 2.0),
    ):
        for size, rounds in plan.sized():
            outcomes = sampled(opened, partial(argument_of, size=size, options=options), rounds)
            row = Row(title, "s", outcomes.of(), size)
            if size == HUNDRED_MB:
                row.times_faster(OURS, BARE, factor)
            yield row


def argument_of(_name: str, client: Any, *, size: int, options: Mapping[str, Any]) -> Sample:
    """One argument of ``size`` bytes; ``options`` are those of ``submit``."""

    def sample() -> Figures:
        array = fresh(size)
        expected = touch(array)
        begin = time.perf_counter()
        future = client.submit(touch, array, **options)
        total = future.result()
        elapsed = time.perf_counter() - begin
        assert total == expected, "another result"
        del future
        _rest(client, size)
        return {"": elapsed}

    return sample


def result(plan: Plan, opened: Clients) -> Iterator[Row]:
    """A task returns an array; the client reads one byte of every page of it."""
    for size, rounds in plan.sized():
        outcomes = sampled(opened, partial(result_of, size=size), rounds)
        for figure in ("of a finished task", "with the task"):
            row = Row(f"Dask: gathered result, {figure}", "s", outcomes.of(figure), size)
            if size == HUNDRED_MB:
                row.times_faster(OURS, BARE, 2.0)
            yield row


def result_of(_name: str, client: Any, *, size: int) -> Sample:
    """One result of ``size`` bytes: gathered when the task is over, and together with it."""
    from distributed import wait

    fills = iter(range(1, 10_000))

    def sample() -> Figures:
        fill = next(fills)
        future = client.submit(tasks.make, size, fill, pure=False)
        with client.as_current():
            wait(future, timeout=60)
        begin = time.perf_counter()
        total = touch(future.result())
        gathered = time.perf_counter() - begin
        assert total == fill % 251 * len(range(0, size, 4096)), "another result"
        del future
        _rest(client, size)
        begin = time.perf_counter()
        future = client.submit(tasks.make, size, fill, pure=False)
        touch(future.result())
        elapsed = time.perf_counter() - begin
        del future
        _rest(client, size)
        return {"of a finished task": gathered, "with the task": elapsed}

    return sample


def chain(plan: Plan, opened: Clients) -> Iterator[Row]:
    """Five tasks in a row, each adding one to the whole array."""

    def build(_name: str, client: Any, *, size: int, start: str, gather: bool) -> Sample:
        fills = iter(range(1, 10_000))

        def sample() -> Figures:
            fill = next(fills)
            array = fresh(size) if start == "argument" else None
            expected = touch(array + LINKS) if array is not None else (fill % 251 + LINKS) % 256
            begin = time.perf_counter()
            if array is not None:
                futures = [client.submit(tasks.increment, array, pure=False)]
            else:
                made = client.submit(tasks.make, size, fill, pure=False)
                futures = [client.submit(tasks.increment, made, pure=False)]
                del made
            for _ in range(LINKS - 1):
                futures = [client.submit(tasks.increment, futures[0], pure=False)]
            if gather:
                total = touch(futures[0].result())
            else:
                futures = [client.submit(touch, futures[0], pure=False)]
                total = futures[0].result()
            elapsed = time.perf_counter() - begin
            pages = 1 if array is not None else len(range(0, size, 4096))
            assert total == expected * pages, "another result"
            futures.clear()
            _rest(client, size)
            return {"": elapsed}

        return sample

    for size in (size for size in plan.sizes if size in (1_000_000, HUNDRED_MB)):
        for title, start, gather in (
            ("begun in a task, small result", "task", False),
            ("begun in a task, array gathered", "task", True),
            ("begun with an argument, small result", "argument", False),
        ):
            made = partial(build, size=size, start=start, gather=gather)
            outcomes = sampled(opened, made, plan.rounds(size))
            row = Row(f"Dask: chain of five, {title}", "s", outcomes.of(), size)
            if size == HUNDRED_MB:
                row.times_faster(OURS, BARE, 0.95)
            yield row


def submit(plan: Plan, opened: Clients) -> Iterator[Row]:
    """Submit values below the threshold; only the call is timed, and no other task runs meanwhile."""

    def build(_name: str, client: Any, *, value: Callable[[], Any]) -> Sample:
        def sample() -> Figures:
            times = []
            futures = []
            for _ in range(BLOCK):
                argument = value()
                begin = time.perf_counter()
                futures.append(client.submit(tasks.nothing, argument, pure=False))
                times.append(time.perf_counter() - begin)
                # One task at a time: else the scheduler, a thread of this process, is measured too.
                futures[-1].result()
            futures.clear()
            return {"": sorted(times)[BLOCK // 2]}

        return sample

    serial = iter(range(10**9))
    for title, value in (
        ("int", lambda: next(serial)),
        ("bytes, 1 kB", lambda: bytes(1000)),
        ("array, 10 kB", lambda: fresh(10_000)),
    ):
        outcomes = sampled(opened, partial(build, value=value), 600 // BLOCK)
        row = Row(f"Dask: the submit() call, {title}", "s", outcomes.of())
        row.at_most_beyond(OURS, BARE, 30e-6)
        yield row


def map_one(plan: Plan, opened: Clients) -> Iterator[Row]:
    """client.map over 1000 items, all with the same big keyword argument."""
    size = min(HUNDRED_MB, plan.sizes[-1])
    names = iter(range(10**9))

    def build(name: str, client: Any) -> Sample:
        from distributed import wait

        def sample() -> Figures:
            array = fresh(size)
            expected = [int(array[i]) for i in range(ITEMS)]
            with ExitStack() as stack:
                stored = stack.enter_context(counting(name, size // 2)) if name in (PEER, OURS) else None
                begin = time.perf_counter()
                # Dask names a big keyword argument in its graph by the bare keyword, so that two maps
                # in a row collide over it: every map gets a keyword of its own.
                big = client.scatter(array, hash=False) if name == SCATTERED else array
                futures = client.map(tasks.item, range(ITEMS), pure=False, **{f"big_{next(names)}": big})
                with client.as_current():
                    wait(futures, timeout=60)
                values = client.gather(futures)
                elapsed = time.perf_counter() - begin
            assert values == expected, "other results"
            del futures, values, big
            _rest(client, size)
            figures = {"seconds": elapsed}
            return figures if stored is None else {**figures, "stored": len(stored)}

        return sample

    others = {SCATTERED: opened[BARE], PEER: opened[PEER], OURS: opened[OURS]}
    outcomes = sampled(others, build, 3)
    # Last, and on a cluster of its own: distributed 2026.8 fails an assertion in its scheduler here,
    # after which that scheduler is of no use to anybody.
    with clients((BARE,)) as alone:
        bare = sampled(alone, build, 3).of("seconds")
    title = f"Dask: one argument, map over {ITEMS} items"
    yield Row(title, "s", {**bare, **outcomes.of("seconds")}, size)
    stored = Row(f"{title}: times stored", "count", outcomes.of("stored"), size)
    stored.at_most(OURS, 1)
    yield stored


def submits(plan: Plan, opened: Clients) -> Iterator[Row]:
    """The same array, by value, to a hundred submits."""
    size = min(TEN_MB, plan.sizes[-1])

    def build(name: str, client: Any) -> Sample:
        def sample() -> Figures:
            array = fresh(size)
            expected = [int(array[i]) for i in range(SUBMITS)]
            with ExitStack() as stack:
                stored = stack.enter_context(counting(name, size // 2)) if name in (PEER, OURS) else None
                begin = time.perf_counter()
                futures = [client.submit(tasks.item, i, big=array, pure=False) for i in range(SUBMITS)]
                values = client.gather(futures)
                elapsed = time.perf_counter() - begin
            assert values == expected, "other results"
            del futures
            _rest(client, HUNDRED_MB)
            figures = {"seconds": elapsed}
            return figures if stored is None else {**figures, "stored": len(stored)}

        return sample

    outcomes = sampled(opened, build, min(3, plan.repeat))
    title = f"Dask: one argument, {SUBMITS} submits"
    row = Row(title, "s", outcomes.of("seconds"), size)
    row.times_faster(OURS, BARE, 3.0)
    yield row
    stored = Row(f"{title}: times stored", "count", outcomes.of("stored"), size)
    stored.at_most(OURS, 1)
    yield stored


WORKS: Mapping[str, Callable[[Plan, Clients], Iterator[Row]]] = {
    "dask-floor": floor,
    "dask-argument": argument,
    "dask-result": result,
    "dask-chain": chain,
    "dask-submit": submit,
    "dask-submits": submits,
    "dask-map": map_one,
}
