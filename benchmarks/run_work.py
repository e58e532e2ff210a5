"""What `proxystore run` adds to a script, and what its report adds to that."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.contenders import OURS
from benchmarks.rows import Plan, Row
from benchmarks.timing import Figures, Sample, interleave

__all__ = ["WORKS"]

BARE = "python"
RUN = "the run"
BOOKS = "its bookkeeping"
_RUN = ("-m", "proxystore_integrations", "run")

_SMALL = """
import time
from concurrent.futures import ProcessPoolExecutor

def work(text):
    end = time.process_time() + 0.005
    while time.process_time() < end:
        pass
    return text

if __name__ == "__main__":
    with ProcessPoolExecutor(1) as pool:
        pool.submit(work, "first").result()
        used = time.process_time() + pool.submit(time.process_time).result()
        begin = time.perf_counter()
        assert len(list(pool.map(work, map(str, range(400))))) == 400
        taken = time.perf_counter() - begin
        print(taken, time.process_time() + pool.submit(time.process_time).result() - used)
"""
_LARGE = """
import functools, time
from concurrent.futures import ProcessPoolExecutor
import numpy as np
from proxystore_integrations import ledger

spent = [0.0]  # in each process; what one call of another's inside is counted once
deep = [0]

# By a file's name that is nobody's: the bookkeeping looks for the caller's line past it, as always.
exec(compile('''
def timed(method):
    @functools.wraps(method)
    def call(*args, **kwargs):
        deep[0] += 1
        begin = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            deep[0] -= 1
            if not deep[0]:
                spent[0] += time.perf_counter() - begin
    return call
''', "<timed>", "exec"))

def books():
    return spent[0]

if __name__ == "__main__":
    for name in ("put", "get", "by_value", "small", "session", "trouble", "flush"):
        setattr(ledger.Ledger, name, timed(getattr(ledger.Ledger, name)))
    for name in ("caller", "home"):
        setattr(ledger.Ledger, name, staticmethod(timed(getattr(ledger.Ledger, name))))
    arrays = [np.full(125_000, float(i)) for i in range(200)]
    with ProcessPoolExecutor(1) as pool:
        pool.submit(np.negative, arrays[0]).result()
        before = books() + pool.submit(books).result()
        begin = time.perf_counter()
        assert all(array[0] <= 0 for array in pool.map(np.negative, arrays))
        taken = time.perf_counter() - begin
        print(taken, books() + pool.submit(books).result() - before)
"""


def starting(plan: Plan) -> Iterator[Row]:
    """An empty script, from the command to its end."""
    with tempfile.TemporaryDirectory() as directory:
        script = _script(directory, "print(0)")
        samples = {BARE: _sample(script), OURS: _sample(*_RUN, script)}
        row = Row("proxystore run: an empty script", "s", interleave(samples, 4 * plan.repeat).of("whole"))
    row.at_most_beyond(OURS, BARE, 0.15)
    yield row


def running(plan: Plan) -> Iterator[Row]:
    """400 tasks of 5 ms in a pool, of which nothing is large: from the second task on, and as a whole."""
    with tempfile.TemporaryDirectory() as directory:
        script = _script(directory, _SMALL)
        samples = {BARE: _sample(script), OURS: _sample(*_RUN, script)}
        outcomes = interleave(samples, 2 * plan.repeat)
    inner = Row("proxystore run: 400 small tasks of 5 ms", "s", outcomes.of("inner"))
    inner.at_most_times(OURS, BARE, 1.02)
    yield inner
    used = Row("proxystore run: the same, CPU time of both processes", "s", outcomes.of("second"))
    used.at_most_times(OURS, BARE, 1.02)
    yield used
    yield Row("proxystore run: the whole script around them", "s", outcomes.of("whole"))


def reporting(plan: Plan) -> Iterator[Row]:
    """200 arguments and results of 1 MB in a pool: time inside the report's bookkeeping, in both processes.

    Two runs beside each other differ by more than the bookkeeping takes: so each call of it is timed.
    """
    with tempfile.TemporaryDirectory() as directory:
        script = _script(directory, _LARGE)
        told = (*_RUN, "--threshold", "100 kB", "--json", f"{directory}/run.json")
        outcomes = interleave({OURS: _sample(*told, script)}, 2 * plan.repeat)
    found = {RUN: outcomes.of("inner")[OURS], BOOKS: outcomes.of("second")[OURS]}
    row = Row("proxystore run: 200 arguments and results of 1 MB", "s", found)
    row.at_most_share(BOOKS, RUN, 0.01)
    yield row


def _script(directory: str, text: str) -> str:
    path = Path(directory) / "script.py"
    path.write_text(text)
    return str(path)


def _sample(*words: str) -> Sample:
    def sample() -> Figures:
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words], check=True, capture_output=True, text=True, timeout=120
        )
        whole = time.perf_counter() - begin
        inner, second = [*map(float, done.stdout.split()), 0.0][:2]
        return {"whole": whole, "inner": inner, "second": second}

    return sample


WORKS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {
    "run-start": starting,
    "run-small": running,
    "run-report": reporting,
}
