"""Everything that can break, broken: ``python -m chaos`` (``make chaos``); the outcome is a table.

Run in pieces, results are gathered in one file: ``--engine dask --results FILE``, and so on.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chaos.case import Case, Outcome
from chaos.engines import ENGINES
from chaos.report import Results
from chaos.scenarios import cases_of
from chaos.stores import STORES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--fault", default="", help="only those whose name has this in it")
    parser.add_argument("--engine", default=",".join(ENGINES), help="only these")
    parser.add_argument("--store", default=",".join(STORES), help="only these; bare engines come with them")
    parser.add_argument("--seed", type=int, default=0, help="of all that is chosen")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--short", action="store_true", help="nothing is out of reach for longer than 3 s")
    parser.add_argument("--verbose", action="store_true", help="show every call")
    parser.add_argument("--results", type=Path, help="JSON file to add the outcomes to")
    parser.add_argument(
        "--missing", action="store_true", help="only those that the results have not, or failed"
    )
    parser.add_argument("--report", type=Path, help="Markdown file to write from all results")
    options = parser.parse_args()
    stores = {"bare", *options.store.split(",")}
    cases = [
        Case(*names, options.seed, options.short)
        for names in cases_of(options.engine.split(","))
        if options.fault in names[0] and names[2] in stores
    ]
    results = Results(options.results)
    if options.missing:
        missing = {(case.fault, case.engine) for case in cases if not results.has(case)}
        bares = [case for case in cases if case.store == "bare" and (case.fault, case.engine) in missing]
        cases = [case for case in cases if case in bares or not results.has(case)]
    bare: dict[tuple[str, str], Outcome] = {}
    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for case, outcome in zip(cases, pool.map(Case.run, cases), strict=True):
            if case.store == "bare":
                bare[case.fault, case.engine] = outcome
            wrong = outcome.faults(bare.get((case.fault, case.engine)))
            print(f"{'FAIL' if wrong else 'ok':4} {outcome.seconds:6} s  {case}", flush=True)
            for probe in outcome.probes if wrong or options.verbose else []:
                print(f"      {probe.what}: {probe.outcome} {probe.seconds} s {probe.text}")
            for text in wrong:
                print(f"   !! {text}")
            if outcome.failure:
                print(outcome.log[-1000:])
            if wrong:
                failed.append(str(case))
            results.add(outcome, bool(wrong))
    if options.report:
        options.report.write_text(results.report())
    print(f"{len(cases)} cases, {len(failed)} failed{''.join(f'{chr(10)}  {case}' for case in failed)}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
