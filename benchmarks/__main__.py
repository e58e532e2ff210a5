"""``python -m benchmarks``: run the works, print the figures, write the report."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import (
    connectors_work,
    core_work,
    coroutines_work,
    dask_work,
    far_work,
    futures_work,
    globus_work,
    kafka_work,
    machine,
    node_work,
    objects_work,
    parsl_work,
    patterns_plot,
    patterns_work,
    process_work,
    ray_work,
    redis_server,
    redis_work,
    report,
    run_work,
    security_work,
)
from benchmarks.contenders import attempt
from benchmarks.rows import Plan, Row, amount
from benchmarks.timing import Absent

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
ALONE = (
    process_work.WORKS,
    run_work.WORKS,
    core_work.WORKS,
    futures_work.WORKS,
    globus_work.WORKS,
    connectors_work.WORKS,
    kafka_work.WORKS,
    ray_work.WORKS,
    far_work.WORKS,
    patterns_work.WORKS,
    node_work.WORKS,
    security_work.WORKS,
)
"""Works that need nothing which others share."""
NAMES = (
    *(name for works in ALONE for name in works),
    *redis_work.WORKS,
    *objects_work.WORKS,
    *coroutines_work.WORKS,
    *dask_work.WORKS,
    *parsl_work.WORKS,
)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; a missed target is a line of the report, not a failure."""
    asked = _parser().parse_args(arguments)
    if asked.list:
        print("\n".join(NAMES))
        return 0
    # Terminated like interrupted: clusters stop and files go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Advice on large arguments, from Dask and from the peer: they are what is measured.
    for message in ("Sending large graph", "A keyword argument to map", "Dask plugins are an experimental"):
        warnings.filterwarnings("ignore", message=message)
    plan = Plan((*SIZES, 1_000_000_000) if asked.large else SIZES, asked.repeat)
    described = machine.describe()
    begin = time.perf_counter()
    rows = []
    for row in _run(plan, asked.only or NAMES):
        rows.append(row)
        print(_line(row), flush=True)
    elapsed = time.perf_counter() - begin
    written = report.write(Path(asked.out), rows, described, elapsed)
    written += patterns_plot.draw(Path(asked.out), rows)
    verdicts = [verdict for row in rows for verdict in row.verdicts]
    met = sum(verdict.met is True for verdict in verdicts)
    print(f"\n{met} of {len(verdicts)} targets met, {elapsed:.0f} s; written: {', '.join(written)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    results = Path(__file__).parent / "results"
    add("--large", action="store_true", help="add arrays of 1 GB")
    add("--only", action="append", choices=NAMES, metavar="NAME", help="run this work (repeatable)")
    add("--repeat", type=int, default=5, metavar="N", help="rounds of expensive samples (default 5)")
    add("--out", default=str(results), metavar="DIR", help="where the report goes (benchmarks/results)")
    add("--list", action="store_true", help="print the names of the works")
    return parser


def _run(plan: Plan, wanted: list[str] | tuple[str, ...]) -> Iterator[Row]:
    for works in ALONE:
        for name, work in works.items():
            if name in wanted:
                yield from work(plan)
    on_redis = [work for name, work in redis_work.WORKS.items() if name in wanted]
    if on_redis:
        with ExitStack() as stack:
            server = attempt(lambda: stack.enter_context(redis_server.serving()))
            if isinstance(server, Absent):
                print(f"      no Redis server: {server.reason}", file=sys.stderr)
            for work_at in () if isinstance(server, Absent) else on_redis:
                yield from work_at(plan, server)
    on_objects = [
        work
        for works in (objects_work.WORKS, coroutines_work.WORKS)
        for name, work in works.items()
        if name in wanted
    ]
    if on_objects:
        with ExitStack() as stack:
            objects = objects_work.served(stack)
            if isinstance(objects, Absent):
                print(f"      no S3 server: {objects.reason}", file=sys.stderr)
            for work_at in () if isinstance(objects, Absent) else on_objects:
                yield from work_at(plan, objects)
    chosen = [work for name, work in dask_work.WORKS.items() if name in wanted]
    if chosen:
        with ExitStack() as stack:
            clients = stack.enter_context(dask_work.clients())
            for work_on in chosen:
                yield from work_on(plan, clients)
    with_parsl = [work for name, work in parsl_work.WORKS.items() if name in wanted]
    if with_parsl:
        with parsl_work.runs() as runs:
            if isinstance(runs, Absent):
                print(f"      no Parsl: {runs.reason}", file=sys.stderr)
            for work_with in () if isinstance(runs, Absent) else with_parsl:
                yield from work_with(plan, runs)


def _line(row: Row) -> str:
    parts = [
        f"{name} {'absent' if isinstance(outcome, Absent) else amount(outcome.median, row.unit)}"
        for name, outcome in row.outcomes.items()
    ]
    return f"{row.title:<58} " + "   ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
