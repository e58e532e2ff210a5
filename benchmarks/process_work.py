"""What needs a process of its own: imports, and what put and get allocate."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import OURS, PEER, store
from benchmarks.redis_server import RedisServer
from benchmarks.rows import Plan, Row
from benchmarks.tasks import fresh, touch
from benchmarks.timing import Figures, Sample, interleave

__all__ = ["STEPS", "WORKS", "allocation_of"]

HUNDRED_MB = 100_000_000
STEPS = ("put", "get", "get + read")


def imports(plan: Plan) -> Iterator[Row]:
    """Import each package in a new interpreter; the interpreter's own start is not counted."""
    for title, ours, peer, limit in (
        ("the package", "import proxystore_core", "import proxystore", 0.1),
        ("Store", "from proxystore_core.store import Store", "from proxystore.store import Store", None),
    ):
        samples = {PEER: _import(peer), OURS: _import(ours)}
        outcomes = interleave(samples, max(3, plan.repeat // 2))
        elapsed = Row(f"Import of {title}", "s", outcomes.of("seconds"))
        numpy = Row(f"Import of {title}: numpy comes along", "count", outcomes.of("numpy"))
        if limit is not None:
            elapsed.at_most(OURS, limit, claim=f"{ours}")
        numpy.at_most(OURS, 0, claim=f"{ours}: numpy modules loaded")
        yield elapsed
        yield numpy


def _import(statement: str) -> Sample:
    script = (
        f"import sys, time\nbegin = time.perf_counter()\n{statement}\n"
        "elapsed = time.perf_counter() - begin\n"
        "print(elapsed, int('numpy' in sys.modules))"
    )

    def sample() -> Figures:
        seconds, numpy = _python("-W", "ignore", "-c", script).split()
        return {"seconds": float(seconds), "numpy": float(numpy)}

    return sample


def allocation(plan: Plan) -> Iterator[Row]:
    """Peaks of memory while 100 MB are put, got and read, in a process that does nothing else."""
    size = min(HUNDRED_MB, plan.sizes[-1])
    samples = {name: allocation_of(name, size) for name in (PEER, OURS)}
    outcomes = interleave(samples, 3, warm=0)
    for step in STEPS:
        heap = Row(f"Memory: allocated by {step}", "B", outcomes.of(f"{step} heap"), size)
        resident = Row(
            f"Memory: resident, gained at the peak of {step}", "B", outcomes.of(f"{step} rss"), size
        )
        # Allowance: bookkeeping is not a copy. A mapped stored copy counts as resident once.
        heap.at_most(OURS, size * 0.01)
        resident.at_most(OURS, size * 1.02)
        yield heap
        yield resident


def allocation_of(contender: str, size: int, server: RedisServer | None = None) -> Sample:
    """Peaks of one contender in a process of its own, on shared memory or through a server's unix socket."""
    place = () if server is None else (server.path, str(server.port))

    def sample() -> Figures:
        figures: Figures = json.loads(_python("-W", "ignore", "-m", __name__, contender, str(size), *place))
        return figures

    return sample


def _python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(last)
    return done.stdout.strip().splitlines()[-1]


def _measure(contender: str, size: int, path: str = "", port: str = "0") -> dict[str, float]:
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        kind = RedisServer(path, int(port)) if path else "shm"
        opened = store(contender, kind, stack, "unix socket")
        for warm in (10_000, 200_000):
            key = opened.put(fresh(warm))
            touch(opened.get(key))
            opened.evict(key)
        array = fresh(size)
        expected = touch(array)
        tracemalloc.start()

        def step(name: str, work: Callable[[], Any]) -> Any:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
            before = _resident("VmRSS")
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            result = work()
            figures[f"{name} heap"] = max(0, tracemalloc.get_traced_memory()[1] - held)
            figures[f"{name} rss"] = max(0, _resident("VmHWM") - before)
            return result

        key = step("put", lambda: opened.put(array))
        got = step("get", lambda: opened.get(key))
        total = step("get + read", partial(touch, got))
        assert total == expected, "the store returned other bytes"
        tracemalloc.stop()
        del got
        opened.evict(key)
    return figures


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


WORKS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {"imports": imports, "allocation": allocation}

if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])))
