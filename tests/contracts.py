"""All of every engine's contract on every store of `stores`, with its server: too long for each change.

    python tests/contracts.py [ENGINE|STORE ...]    # all engines, and all stores, unless some are named

``zmq-hosts`` and ``ucx-hosts`` are stores of two hosts: Dask's scheduler and client are on one, its workers
on the other. Prints what failed, and one line for each pair; exits with how many of them did.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import object_servers
from hosts import two_hosts
from stores import Stores

HERE = Path(__file__).parent
ENGINES = ("futures", "dask", "parsl", "ray", "globus_compute")
HOSTS = ("zmq-hosts", "ucx-hosts")
LIMIT = 900  # seconds for one engine on one store


def main(named: list[str]) -> int:
    """Run what is named; how many pairs of an engine and a store failed."""
    known = [*Stores.names(), *HOSTS]
    unknown = [name for name in named if name not in (*ENGINES, *known)]
    if unknown:
        sys.exit(f"{unknown[0]!r} is no engine ({', '.join(ENGINES)}) and no store ({', '.join(known)})")
    engines = [name for name in ENGINES if name in named] or ENGINES
    os.environ.update(object_servers.ACCESS)
    failed = 0
    for store in [name for name in known if name in named] or known:
        with tempfile.TemporaryDirectory(prefix="c-") as place, ExitStack() as stack:
            if store not in HOSTS:
                url = Stores(Path(place), stack)[store]
                failed += sum(not passes(engine, store, url) for engine in engines)
            elif "dask" in engines:
                failed += not passes_on_two_hosts(store.partition("-")[0], Path(place))
    return failed


def passes_on_two_hosts(scheme: str, place: Path, only: str = "") -> bool:
    """Run Dask's contract where its workers are on another host than all else.

    Args:
        scheme: of the store.
        place: a directory that both hosts see.
        only: as pytest's ``-k``.
    """
    secret = place / "secret"
    secret.touch(0o600)
    secret.write_text("a secret of two hosts")
    url = f"{scheme}://contracts?interface=cable&secret_file={secret}"
    with two_hosts() as (one, other):
        elsewhere = ["--elsewhere", shlex.join(other), "--address", "10.97.0.1", "-k", only]
        return passes("dask", f"{scheme} of two hosts", url, one, elsewhere)


def passes(engine: str, store: str, url: str, host: Sequence[str] = (), more: Sequence[str] = ()) -> bool:
    """Run one engine's contract on one store; whether it passed."""
    command = [*host, sys.executable, "-m", "pytest", "-q", "--no-header", "-rfE", "--store", url, *more]
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", str(HERE / f"test_{engine}_contract.py")],
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
