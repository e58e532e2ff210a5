"""What came of many cases, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chaos.case import Case, Outcome
from chaos.engines import ENGINES
from chaos.scenarios import FAULTS, cases_of

_TITLE = """\
# What came of each fault

Written by `make chaos`: every fault, engine and store in processes, mounts and a network of its own, with two
workers. What each fault is, and what to set, is in [faults.md](faults.md). In a cell: what calls during and
after the fault came to, each outcome once, and the seconds that the whole case took, with the start of the
engine. *answer* is the right result; other names are of the error that the user gets. "bare" is the engine
without a store. When the lease was over the store was empty, where there still was one.
"""


class Results:
    """Outcomes by fault, engine and store.

    Args:
        path: JSON file with those of earlier runs, to which new ones are added; None for none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.cases: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.cases = json.loads(path.read_text())

    def has(self, case: Case) -> bool:
        """Whether a case came out well."""
        return not self.cases.get(_name(case), {"failed": True})["failed"]

    def add(self, outcome: Outcome, failed: bool) -> None:
        case = outcome.case
        self.cases[_name(case)] = {
            "seed": case.seed,
            "failed": failed,
            "outcomes": list(dict.fromkeys(probe.outcome for probe in outcome.probes)),
            "slowest": max((probe.seconds for probe in outcome.probes), default=0.0),
            "seconds": outcome.seconds,
        }
        if self.path is not None:
            self.path.write_text(json.dumps(self.cases, indent=1, sort_keys=True) + "\n")

    def report(self) -> str:
        failed = sum(case["failed"] for case in self.cases.values())
        total = f"{len(self.cases)} cases, {failed} of them failed."
        return "\n".join([_TITLE, total, "", *self._table()]) + "\n"

    def _table(self) -> Iterator[str]:
        yield f"| fault | store | {' | '.join(ENGINES)} |"
        yield f"|---|---|{'---|' * len(ENGINES)}"
        there = cases_of(ENGINES)
        for fault, (_, stores) in FAULTS.items():
            for store in stores:
                found = [
                    _cell(self.cases.get(f"{fault}/{store}/{engine}"))
                    if (fault, engine, store) in there
                    else ""
                    for engine in ENGINES
                ]
                yield f"| {fault} | {store} | {' | '.join(found)} |"


def _name(case: Case) -> str:
    return f"{case.fault}/{case.store}/{case.engine}"


def _cell(case: dict[str, Any] | None) -> str:
    if case is None:
        return "not run"
    outcomes = ", ".join(case["outcomes"]) or "nothing left"
    return f"{'**FAILED** ' if case['failed'] else ''}{outcomes}; {case['seconds']:.0f} s"
