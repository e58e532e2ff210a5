"""Writes what was measured: a table to read, JSON to compute with, plots to look at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import plot
from benchmarks.contenders import (
    BARE,
    COMPUTE,
    COPY,
    OURS,
    PARSL,
    PEER,
    POOL,
    RAW,
    RAY,
    REDIS,
    REDIS_COPYLESS,
    SCATTERED,
)
from benchmarks.rows import Row, Verdict, amount, size_name
from benchmarks.timing import Absent, Outcome, Spread

__all__ = ["write"]

HOW = """\
Contenders are sampled in turns (A B C, A B C, ...), warm, each sample with an array of its own whose
making is not timed. A figure is the median of the rounds with (minimum..maximum); a ratio is the
median of the ratios within each round. "read" and every Dask row read one byte of every page, so that
data which is mapped but never loaded counts for nobody. ProxyStore stores files on /dev/shm, its best
case on one machine. Dask rows use `pure=False` unless they say otherwise, two worker processes of one
thread each; bare Dask and ProxyStore share a cluster, this project has an equal one of its own,
because it equips scheduler and workers. The row of the empty task is the floor of every Dask row. On
Parsl, each contender has a HighThroughputExecutor of two workers, and ProxyStore's proxies are made by
hand; all contenders share one pool of two worker processes. On Ray, each contender has a cluster of two
workers, for most rows six one after another, and ProxyStore's proxies are made by hand. On Redis, one server
on the same machine serves everybody; ProxyStore reaches it by TCP alone, so its rows "unix socket" are TCP
too, and all Dask rows on Redis are TCP for both. Without devices for RDMA ucx:// sends
by TCP connections of its own, and ucxx by those of UCX."""


def write(folder: Path, rows: Sequence[Row], machine: Mapping[str, str], elapsed: float) -> list[str]:
    """Write the report into ``folder``.

    Args:
        folder: made when missing.
        rows: all rows, in order.
        machine: as `benchmarks.machine.describe` gives it.
        elapsed: seconds that the measuring took.

    Returns:
        Names of the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = plot.draw(folder, rows)
    parts = [
        "# Benchmarks",
        HOW,
        "## Machine",
        *_machine(machine, elapsed),
        "## Targets",
        *_targets([verdict for row in rows for verdict in row.verdicts]),
        "## Figures",
        *_figures(rows),
        *(f"![{name}]({name})" for name in plots),
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n")
    document = {
        "machine": dict(machine),
        "seconds": round(elapsed, 1),
        "rows": [_record(row) for row in rows],
    }
    (folder / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    return ["report.md", "report.json", *plots]


def _machine(machine: Mapping[str, str], elapsed: float) -> Iterator[str]:
    lines = [f"| {name} | {value} |" for name, value in machine.items()]
    yield "\n".join(["| | |", "|---|---|", *lines, f"| duration of the run | {elapsed:.0f} s |"])


def _targets(verdicts: Sequence[Verdict]) -> Iterator[str]:
    if not verdicts:
        yield "None in this run."
        return
    answers = {True: "yes", False: "**no**", None: "-"}
    lines = [f"| {v.claim} | {v.target} | {v.reached} | {answers[v.met]} |" for v in verdicts]
    yield "\n".join(["| what | target | reached | met |", "|---|---|---|---|", *lines])


def _figures(rows: Sequence[Row]) -> Iterator[str]:
    works = dict.fromkeys(row.work.partition(":")[0] for row in rows)
    for work in works:
        group = [row for row in rows if row.work.partition(":")[0] == work]
        yield f"### {work}"
        yield _table(group)
        yield from _absences(group)


def _table(group: Sequence[Row]) -> str:
    contenders = list(dict.fromkeys(name for row in group for name in row.outcomes))
    references = [
        name
        for name in (COPY, RAW, REDIS, REDIS_COPYLESS, BARE, PARSL, COMPUTE, RAY, POOL, SCATTERED, PEER)
        if name in contenders
    ]
    heads = ["", "size", *contenders, *(f"{OURS} / {name}" for name in references)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in group:
        cells = [
            (row.work.partition(":")[2] or row.work).strip(),
            size_name(row.size) if row.size else "",
            *(_cell(row.outcomes.get(name), row.unit) for name in contenders),
            *(_ratio(row.outcomes.get(OURS), row.outcomes.get(name)) for name in references),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(outcome: Outcome | None, unit: str) -> str:
    if outcome is None:
        return ""
    if isinstance(outcome, Absent):
        return "absent"
    if outcome.low == outcome.high:
        return amount(outcome.median, unit)
    return f"{amount(outcome.median, unit)} ({amount(outcome.low, unit)}..{amount(outcome.high, unit)})"


def _ratio(mine: Outcome | None, theirs: Outcome | None) -> str:
    if not (isinstance(mine, Spread) and isinstance(theirs, Spread)) or not theirs.median:
        return ""
    return f"{mine.over(theirs):.2f}x"


def _absences(group: Sequence[Row]) -> Iterator[str]:
    seen = {
        (name, outcome.reason)
        for row in group
        for name, outcome in row.outcomes.items()
        if isinstance(outcome, Absent)
    }
    for name, reason in sorted(seen):
        yield f"{name} is absent: `{reason}`."


def _record(row: Row) -> dict[str, object]:
    return {
        "work": row.work,
        "size": row.size,
        "unit": row.unit,
        "outcomes": {name: _outcome(outcome) for name, outcome in row.outcomes.items()},
        "targets": [vars(verdict) for verdict in row.verdicts],
    }


def _outcome(outcome: Outcome) -> dict[str, object]:
    if isinstance(outcome, Absent):
        return {"absent": outcome.reason}
    return {
        "median": outcome.median,
        "min": outcome.low,
        "max": outcome.high,
        "samples": list(outcome.samples),
    }
