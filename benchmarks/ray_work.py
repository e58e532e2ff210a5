"""The same remote functions on bare Ray, there with ProxyStore's proxies by hand, and with this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from benchmarks.contenders import OURS, PEER, RAY, attempt
from benchmarks.rows import Plan, Row
from benchmarks.timing import Absent, Figures, Outcomes, Sample, interleave

__all__ = ["WORKS"]

HUNDRED_MB = 100_000_000
TASKS = 100
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
def _drivers(plasma: int = PLASMA, **settings: Any) -> Iterator[Mapping[str, Any]]:
    """A cluster for each."""
    with ExitStack() as stack:
        drivers = {name: Driver(name, plasma, **settings) for name in (RAY, PEER, OURS)}
        for driver in drivers.values():
            stack.callback(driver.close)
        yield {name: attempt(driver.started) for name, driver in drivers.items()}


def _sampled(
    drivers: Mapping[str, Any], work: str, size: int, rounds: int, *, count: int = 1, peer: bool = True
) -> Outcomes:
    samples: dict[str, Sample | Absent] = {
        name: driver if isinstance(driver, Absent) else partial(driver.sample, work, size, count)
        for name, driver in drivers.items()
        if peer or name != PEER
    }
    return interleave(samples, rounds)


def defaults(plan: Plan) -> Iterator[Row]:
    """What is passed once, of every size, and what a hundred tasks share; with the settings' defaults."""
    with _drivers() as drivers:
        rounds = 60 * plan.repeat
        yield Row("Ray: empty task", "s", _sampled(drivers, "empty", 0, rounds, peer=False).of())
        for title, work in (("argument", "argument"), ("result", "result"), ("chain of 5", "chain")):
            yield from _by_size(plan, drivers, f"Ray: {title}", work)
        yield from _shared(plan, drivers)
        outcomes = _sampled(drivers, "elsewhere", HUNDRED_MB, plan.repeat * 3)
        row = Row("Ray: one argument for Ray and for a process pool", "s", outcomes.of(), HUNDRED_MB)
        row.at_most_times(OURS, RAY, 1.0)
        yield row


def _by_size(plan: Plan, drivers: Mapping[str, Any], title: str, work: str) -> Iterator[Row]:
    for size in plan.sizes:
        if size > HUNDRED_MB or size == 100_000:
            continue
        rounds = plan.repeat * (60 if size <= 1_000_000 else 40 if size <= 10_000_000 else 6)
        # By hand, results stay in plasma: a proxy for what Ray moves well helps nobody.
        outcomes = _sampled(drivers, work, size, rounds, peer=work != "result")
        row = Row(title, "s", outcomes.of(), size)
        row.at_most_times(OURS, RAY, 1.05)
        yield row


def _shared(plan: Plan, drivers: Mapping[str, Any]) -> Iterator[Row]:
    """A hundred tasks get one array by value; ProxyStore's user makes one proxy for all."""
    size = 10_000_000
    outcomes = _sampled(drivers, "shared", size, plan.repeat * 12, count=TASKS)
    title = f"Ray: {TASKS} tasks with one argument by value"
    row = Row(title, "s", outcomes.of(), size)
    row.times_faster(OURS, RAY, 3.0)
    yield row
    stored = outcomes.of("stored")
    row = Row(f"{title}, times stored", "count", {OURS: stored.get(OURS, Absent("not measured"))}, size)
    row.at_most(OURS, 1)
    yield row


def modify(plan: Plan) -> Iterator[Row]:
    """A task changes its argument: in place where it may, else a copy of it. Arguments through the store."""
    with _drivers(results="never") as drivers:
        outcomes = _sampled(drivers, "modify", HUNDRED_MB, plan.repeat * 3)
        row = Row("Ray: argument that the task changes", "s", outcomes.of(), HUNDRED_MB)
        row.times_faster(OURS, RAY, 1.5)
        yield row


def small_plasma(plan: Plan) -> Iterator[Row]:
    """Arguments that do not fit into Ray's own store, with the settings' defaults."""
    with _drivers(SMALL_PLASMA) as drivers:
        for count in (1, 8):
            outcomes = _sampled(drivers, "held", HUNDRED_MB, plan.repeat, count=count)
            what = "argument" if count == 1 else f"{count} arguments at once"
            row = Row(f"Ray with 80 MB of plasma: {what}", "s", outcomes.of(), HUNDRED_MB)
            row.at_most_times(OURS, RAY, 1.05)
            yield row


WORKS = {
    "ray-sizes": defaults,
    "ray-modify": modify,
    "ray-small-plasma": small_plasma,
}
