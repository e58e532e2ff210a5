"""The same remote functions on bare Ray, there with ProxyStore's proxies by hand, and with this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.contenders import OURS, PEER, RAY, attempt
from benchmarks.rows import Plan, Row
from benchmarks.timing import Absent, Figures, Outcomes, Sample, interleave, joined

__all__ = ["WORKS"]

HUNDRED_MB = 100_000_000
TASKS = 100
CLUSTERS = 6
"""That each side has, one after another: the same code on two differs by a third for as long as they live."""
PLASMA = 1_000_000_000  # bytes
SMALL_PLASMA = 80_000_000  # Ray takes no less than 75 MB


class Driver:
    """A process with a Ray cluster of two workers.

    Args:
        contender: `RAY`, `PEER` or `OURS`.
        plasma: bytes of Ray's own object store.
        settings: of our integration.
    """

    def __init__(self, contender: str, plasma: int, **settings: Any) -> None:
        options = {
            "contender": contender,
            "plasma": plasma,
            "settings": settings if contender == OURS else None,
        }
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.ray_driver", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            cwd=here,
            env={**os.environ, "PYTHONPATH": here},
        )

    def started(self) -> Driver:
        """This, once its cluster is up.

        Raises:
            RuntimeError: it did not start.
        """
        self._answer()
        return self

    def _answer(self) -> Figures:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("Ray's driver has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer  # type: ignore[no-any-return]

    def sample(self, work: str, size: int, count: int) -> Figures:
        """Have one sample of a work taken (see `ray_driver`)."""
        assert self._process.stdin is not None
        asked = {"work": work, "size": size, "count": count}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Stop the cluster."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@contextmanager
def _drivers(plasma: int = PLASMA, *, first: int = 0, **settings: Any) -> Iterator[Mapping[str, Any]]:
    """A cluster for each.

    Args:
        plasma: see `Driver`.
        first: whose starts first, by number.
        settings: see `Driver`.
    """
    names = (RAY, PEER, OURS)
    first %= len(names)
    with ExitStack() as stack:
        drivers = {name: Driver(name, plasma, **settings) for name in names[first:] + names[:first]}
        for driver in drivers.values():
            stack.callback(driver.close)
        yield {name: attempt(drivers[name].started) for name in names}


@dataclass(frozen=True)
class _Work:
    """What is sampled on every cluster.

    Attributes:
        title: of the row.
        name: as in `ray_driver`.
        size: bytes of the array.
        rounds: on all clusters together.
        count: of tasks.
        peer: whether ProxyStore is sampled.
        limit: times that ours may take of Ray's; None for no target.
    """

    title: str
    name: str
    size: int
    rounds: int
    count: int = 1
    peer: bool = True
    limit: float | None = 1.05

    def sampled(self, drivers: Mapping[str, Any], share: int = 1) -> Outcomes:
        """The outcomes of a share of the rounds."""
        samples: dict[str, Sample | Absent] = {
            name: driver
            if isinstance(driver, Absent)
            else partial(driver.sample, self.name, self.size, self.count)
            for name, driver in drivers.items()
            if self.peer or name != PEER
        }
        return interleave(samples, -(-self.rounds // share))

    def row(self, outcomes: Outcomes) -> Row:
        """What is reported, with its target."""
        row = Row(self.title, "s", outcomes.of(), self.size or None)
        if self.limit is not None:
            row.at_most_times(OURS, RAY, self.limit)
        return row


def _works(plan: Plan) -> Iterator[_Work]:
    yield _Work("Ray: empty task", "empty", 0, 60 * plan.repeat, peer=False, limit=None)
    for title, name in (("argument", "argument"), ("result", "result"), ("chain of 5", "chain")):
        for size in plan.sizes:
            if size <= HUNDRED_MB and size != 100_000:
                rounds = plan.repeat * (60 if size <= 1_000_000 else 40 if size <= 10_000_000 else 6)
                # By hand, results stay in plasma: a proxy for what Ray moves well helps nobody.
                yield _Work(f"Ray: {title}", name, size, rounds, peer=name != "result")


def defaults(plan: Plan) -> Iterator[Row]:
    """What is passed once, of every size, and what a hundred tasks share; with the settings' defaults."""
    works = [*_works(plan)]
    title = f"Ray: {TASKS} tasks with one argument by value"
    shared = _Work(title, "shared", 10_000_000, plan.repeat * 12, count=TASKS, limit=None)
    title = "Ray: one argument for Ray and for a process pool"
    elsewhere = _Work(title, "elsewhere", HUNDRED_MB, plan.repeat * 3, limit=1.0)
    found: dict[_Work, list[Outcomes]] = {work: [] for work in (*works, shared, elsewhere)}
    for turn in range(CLUSTERS):
        with _drivers(first=turn) as drivers:
            for work, parts in found.items():
                parts.append(work.sampled(drivers, CLUSTERS))
    for work in works:
        yield work.row(joined(found[work]))
    yield from _shared(shared, joined(found[shared]))
    yield elsewhere.row(joined(found[elsewhere]))


def _shared(work: _Work, outcomes: Outcomes) -> Iterator[Row]:
    """A hundred tasks get one array by value; ProxyStore's user makes one proxy for all."""
    row = work.row(outcomes)
    row.times_faster(OURS, RAY, 3.0)
    yield row
    stored = outcomes.of("stored")
    ours = {OURS: stored.get(OURS, Absent("not measured"))}
    row = Row(f"{work.title}, times stored", "count", ours, work.size)
    row.at_most(OURS, 1)
    yield row


def modify(plan: Plan) -> Iterator[Row]:
    """A task changes its argument: in place where it may, else a copy of it. Arguments through the store."""
    title = "Ray: argument that the task changes"
    work = _Work(title, "modify", HUNDRED_MB, plan.repeat * 3, limit=None)
    with _drivers(results="never") as drivers:
        row = work.row(work.sampled(drivers))
    row.times_faster(OURS, RAY, 1.5)
    yield row


def small_plasma(plan: Plan) -> Iterator[Row]:
    """Arguments that do not fit into Ray's own store, with the settings' defaults."""
    with _drivers(SMALL_PLASMA) as drivers:
        for count in (1, 8):
            what = "argument" if count == 1 else f"{count} arguments at once"
            work = _Work(f"Ray with 80 MB of plasma: {what}", "held", HUNDRED_MB, plan.repeat, count=count)
            yield work.row(work.sampled(drivers))


WORKS = {
    "ray-sizes": defaults,
    "ray-modify": modify,
    "ray-small-plasma": small_plasma,
}
