"""All of every engine's contract on every store of `stores`, with its server: too long for each change.

    python tests/contracts.py [ENGINE|STORE ...]    # all engines, and all stores, unless some are named

Prints what failed, and one line for each pair; exits with how many of them did.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import object_servers
from stores import Stores

HERE = Path(__file__).parent
ENGINES = ("futures", "dask", "parsl", "ray", "globus_compute")
LIMIT = 900  # seconds for one engine on one store


def main(named: list[str]) -> int:
    """Run what is named; how many pairs of an engine and a store failed."""
    unknown = [name for name in named if name not in (*ENGINES, *Stores.names())]
    if unknown:
        sys.exit(
            f"{unknown[0]!r} is no engine ({', '.join(ENGINES)}) and no store ({', '.join(Stores.names())})"
        )
    engines = [name for name in ENGINES if name in named] or ENGINES
    stores = [name for name in Stores.names() if name in named] or Stores.names()
    os.environ.update(object_servers.ACCESS)
    failed = 0
    for store in stores:
        with tempfile.TemporaryDirectory(prefix="c-") as place, ExitStack() as stack:
            url = Stores(Path(place), stack)[store]
            for engine in engines:
                failed += not passes(engine, store, url)
    return failed


def passes(engine: str, store: str, url: str) -> bool:
    """Run one engine's contract on one store."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-rfE", "--store", url]
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [*command, str(HERE / f"test_{engine}_contract.py")],
            cwd=HERE.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        good, said = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired as late:
        good, said = False, str(late.stdout)
    if not good:
        print(said)  # noqa: T201
    summary = [line for line in said.splitlines() if re.search("(passed|failed|error).* in ", line)]
    took = f"{time.monotonic() - begin:.0f} s"
    print(f"{engine} on {store}: {summary[-1] if summary else 'no end'} ({took})", flush=True)  # noqa: T201
    return good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
