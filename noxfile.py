"""The tests on every supported Python, and the linters: ``nox``, ``nox -s tests-3.13 -- -k dask``."""

from __future__ import annotations

import nox

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
