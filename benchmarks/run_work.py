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
WITHOUT = "without a report"
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
import random, statistics, time
from concurrent.futures import ProcessPoolExecutor
import numpy as np
from proxystore_integrations import ledger

BOOK = ledger.book

def keep_books(on):
    ledger.book = BOOK if on else None

def work(array):
    end = time.process_time() + SECONDS
    while time.process_time() < end:
        pass
    return -array

if __name__ == "__main__":
    arrays = [np.full(125_000, float(i)) for i in range(20)]
    taken = {False: [], True: []}
    with ProcessPoolExecutor(1) as pool:
        for turn in range(TURNS):
            # The first of two has what the one before has left: so it is now this one, now that.
            for on in random.sample((False, True), 2):
                keep_books(on)
                pool.submit(keep_books, on).result()
                begin = time.perf_counter()
                assert all(array[0] <= 0 for array in pool.map(work, arrays))
                taken[on].append(time.perf_counter() - begin)
    assert BOOK is not None
    print(*(statistics.median(taken[on][5:]) for on in (False, True)))
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
    """20 arguments and results of 1 MB in a pool, with the report's bookkeeping and without, in turns.

    Two runs beside each other differ by more than the bookkeeping takes: so both are in one run.
    """
    for what, seconds, turns in (("of 5 ms", 0.005, 40), ("that do nothing", 0.0, 100)):
        with tempfile.TemporaryDirectory() as directory:
            script = _script(directory, f"SECONDS, TURNS = {seconds}, {turns}\n{_LARGE}")
            told = (*_RUN, "--threshold", "100 kB", "--json", f"{directory}/run.json")
            outcomes = interleave({OURS: _sample(*told, script)}, plan.repeat)
        found = {WITHOUT: outcomes.of("inner")[OURS], OURS: outcomes.of("second")[OURS]}
        row = Row(f"proxystore run: 20 tasks {what}, arguments and results of 1 MB", "s", found)
        if seconds:
            row.at_most_times(OURS, WITHOUT, 1.01)
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
