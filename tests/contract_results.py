"""What every engine's contract came to on every store, kept in one file and told as a table."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ENGINES = ("futures", "dask", "parsl", "ray", "globus_compute")
_TESTED = ("core", "proxystore_integrations", "tests")

_TITLE = """\
# Every engine on every store

Written by `make contracts`, which runs all of each engine's contract
([contract.py](../proxystore_integrations/testing/contract.py)) on each store, with the server that its
tests have: Valkey for `redis`, Redis 6.2 for `keydb`, SeaweedFS for `s3` and, behind a relay that stands in
for Google's, `gs`, Azurite for `az`, asyncssh for `sftp`, Tansu for `kafka`; `multi` is a file store for
small objects before a Redis for others. `futures` are process pools (fork, spawn, forkserver), threads and
loky, `parsl` is HighThroughputExecutor and threads, `ray` leaves results in plasma and, again, stores them
all, `globus_compute` has a real endpoint engine behind a fake service. "-hosts": Dask's workers are on
another host, a network namespace, than its client. In a cell: how many tests passed, how many were skipped
(of futures of the store, on those that set no object later), how many **failed**, and how long all took,
beside other work.
"""


def outcome(said: str, code: int, seconds: float) -> dict[str, Any]:
    """What pytest said, as something to keep.

    Args:
        said: its output, with ``-rfEs``.
        code: that it ended with.
        seconds: that it took.
    """
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for line in re.findall(r"^(?:=+ )?(\d+ \w+(?:, \d+ \w+)*) in \d", said, re.MULTILINE)[-1:]:
        for number, name in re.findall(r"(\d+) (\w+)", line):
            kind = "failed" if name in ("error", "errors") else name
            counts[kind] = counts.get(kind, 0) + int(number)
    names = re.findall(r"^(?:FAILED|ERROR) \S*?::(.+?)(?: - .*)?$", said, re.MULTILINE)
    if code and not counts["failed"]:
        names.append(f"it ended with {code}")
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+: (.+)", said, re.MULTILINE)
    return {
        **{name: counts[name] for name in ("passed", "failed", "skipped")},
        "failures": sorted(set(names)),
        "reasons": sorted(set(reasons)),
        "seconds": round(seconds),
    }


def line(found: dict[str, Any]) -> str:
    """An outcome in one line."""
    parts = [f"{found['passed']} passed"]
    if found["failures"]:
        parts.append(f"**{found['failed']} failed**" if found["failed"] else "**did not end**")
    if found["skipped"]:
        parts.append(f"{found['skipped']} skipped")
    return f"{', '.join(parts)}; {found['seconds']} s"


class Results:
    """Outcomes by store and engine.

    Args:
        directory: where contracts.json, with those of earlier runs, and contracts.md are.
        stores: all that there are, in the table's order.
    """

    def __init__(self, directory: Path, stores: Sequence[str]) -> None:
        self._directory = directory
        self._stores = stores

    def add(self, engine: str, store: str, found: dict[str, Any]) -> None:
        """Keep one, and tell all of them; other runs may do so at the same time."""
        path = self._directory / "contracts.json"
        commit = self._git("log", "-1", "--format=%h", "--", *_TESTED)
        if self._git("status", "--porcelain", "--", *_TESTED):
            commit += "+"
        today = dt.datetime.now(dt.UTC).date().isoformat()
        with path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            pairs = json.loads(file.read() or "{}")
            pairs[f"{engine}/{store}"] = {**found, "commit": commit, "date": today}
            file.truncate(0)
            file.write(json.dumps(pairs, indent=1, sort_keys=True) + "\n")
            file.flush()
            (self._directory / "contracts.md").write_text("\n".join(self._report(pairs)) + "\n")

    def _git(self, *command: str) -> str:
        """What git says; nothing outside a checkout."""
        done = subprocess.run(
            ["git", *command], cwd=self._directory.parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def _report(self, pairs: dict[str, Any]) -> Iterator[str]:
        commits = list(
            dict.fromkeys(pairs[name]["commit"] for name in sorted(pairs, key=lambda n: pairs[n]["date"]))
        )
        failed = sum(bool(pair["failures"]) for pair in pairs.values())
        yield _TITLE
        yield f"{len(pairs)} pairs, {failed} of them with failures. Run at {', '.join(commits)}."
        yield ""
        yield f"| store | {' | '.join(ENGINES)} |"
        yield f"|---|{'---|' * len(ENGINES)}"
        for store in self._stores:
            cells = (_cell(pairs.get(f"{engine}/{store}"), engine, store) for engine in ENGINES)
            yield f"| {store} | {' | '.join(cells)} |"
        if failed:
            yield "\nWhat failed:\n"
            for name, pair in sorted(pairs.items()):
                if pair["failures"]:
                    yield f"- {name}: {', '.join(pair['failures'])}"
        reasons: dict[str, list[str]] = {}
        for name, pair in sorted(pairs.items()):
            for reason in pair["reasons"]:
                stores = reasons.setdefault(reason, [])
                if (store := name.partition("/")[2]) not in stores:
                    stores.append(store)
        if reasons:
            yield "\nWhy tests were skipped:\n"
            for reason, stores in reasons.items():
                yield f"- {reason}: {', '.join(stores)}"


def _cell(pair: dict[str, Any] | None, engine: str, store: str) -> str:
    if store.endswith("-hosts") and engine != "dask":
        return ""
    return "not run" if pair is None else line(pair)
