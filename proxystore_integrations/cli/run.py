"""``proxystore run``: hands the process over to Python with the script, and the hooks in its environment.

No command-line framework and no engine is loaded here. What happens in the new interpreter before the
script is `hook/sitecustomize.py`, and what it installs is `proxystore_integrations.instrumentation`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from proxystore_core.errors import ConfigurationError
from proxystore_integrations.cli.options import check_writable, settings_given

__all__ = ["HELP", "Order", "command", "environment", "parse", "run"]

HOOK = os.path.join(os.path.dirname(__file__), "hook")
"""Directory that goes first on PYTHONPATH."""

HELP = """\
Usage: proxystore run [OPTIONS] SCRIPT.py [ARGUMENTS]...
       proxystore run [OPTIONS] -m MODULE [ARGUMENTS]...
       proxystore run [OPTIONS] -c CODE [ARGUMENTS]...
       proxystore run [OPTIONS] PROGRAM [ARGUMENTS]...

  Run a script as it is; whichever engine it uses (Dask, Parsl, Ray, concurrent.futures, loky, joblib,
  mpi4py, executorlib, Globus Compute) sends large arguments and results through a store. Child
  processes follow.

  What the script prints, its exit code and its traceback are its own.

Options:
  --store URL             where large values go: shm://, file:///shared, redis://host:6379, ...
  --threshold SIZE        size from which a value goes there: "1 MB", ...
  --inputs value|proxy    what a task gets for an argument that went there
  --results auto|always|never
                          which large results go there
  --on-store-error fallback|raise
                          when the store fails, pass by value and warn once, or raise
  --lease DURATION        what a dead session stored is dropped after this
  --report FILE.html      write a report: what went through the store, what not and why, how long it took
  --json FILE             the same for machines; - is standard output
  --summary, --quiet      print a short report after the run, or none; printed when standard error is a
                          terminal
  --debug                 show tracebacks of this command's own errors
  -h, --help              show this and exit

  What is not given comes from PROXYSTORE_* variables and proxystore.toml.

Examples:
  proxystore run script.py --own-option of the script
  proxystore run --store redis://localhost:6379 --threshold "1 MB" script.py
  proxystore run --report run.html --threshold "1 MB" script.py
  proxystore run -m package.module
  proxystore run pytest tests
"""

_SETTINGS = ("--store", "--threshold", "--inputs", "--results", "--on-store-error", "--lease")
_FILES = ("--report", "--json")
_OPTIONS = (*_SETTINGS, *_FILES, "--summary", "--quiet", "--debug", "--help", "-h", "-m", "-c")


class Order(NamedTuple):
    """What is to be run, and how.

    Attributes:
        settings: given here, by name.
        files: of the reports, by name.
        program: ``-m``, ``-c`` or a script, with all that follows it.
        flags: options without a value.
    """

    settings: dict[str, str]
    files: dict[str, str]
    program: list[str]
    flags: frozenset[str]


def run(words: list[str]) -> int:
    """Become the script.

    Args:
        words: of the command line, after ``run``.

    Returns:
        The script's exit code, where a report was asked for; otherwise this process becomes the script.

    Raises:
        ConfigurationError: an option or a setting is wrong, or there is nothing to run.
        MissingExtraError: the store's library is not installed.
    """
    order = parse(words)
    if {"-h", "--help"} & order.flags:
        print(HELP, end="")
        return 0
    if "--debug" in order.flags:
        os.environ["PROXYSTORE_DEBUG"] = "1"
    program = command(order.program)
    settings_given(**order.settings)
    stem, ending = os.path.splitext(order.files.get("report", ""))
    if ending.lower() not in ("", ".html", ".htm"):
        remedy = f"Expected --report {stem}.html, or --json {stem}.json for a program to read."
        raise ConfigurationError(f"--report {stem}{ending}: the report is a page of HTML", remedy=remedy)
    for name, path in order.files.items():
        check_writable(f"--{name}", path)
    os.environ.update(environment(order, os.environ))
    sys.stdout.flush()
    table = "--summary" in order.flags or (sys.stderr.isatty() and "--quiet" not in order.flags)
    if not table and not order.files:
        return os.execv(program[0], program)
    from proxystore_integrations.cli.watch import run_and_report

    files = order.files
    return run_and_report(
        program,
        called=order.program,
        page=files.get("report", ""),
        json=files.get("json", ""),
        table=table,
    )


def parse(words: list[str]) -> Order:
    """Options up to the program; all from there on is the program's.

    Raises:
        ConfigurationError: an unknown option, one without its value, or no program.
    """
    settings: dict[str, str] = {}
    files: dict[str, str] = {}
    flags = set()
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "-m", "-c"):
        if rest[0][:2] in ("-m", "-c"):  # as Python has it
            rest[:1] = rest[0][:2], rest[0][2:]
            break
        option, equals, value = rest.pop(0).partition("=")
        if option == "--":
            break
        if option in _SETTINGS or option in _FILES:
            if not equals and not rest:
                raise ConfigurationError(f"run: {option} has no value", remedy="See proxystore run --help.")
            table = files if option in _FILES else settings
            table[option[2:].replace("-", "_")] = value if equals else rest.pop(0)
        elif option not in _OPTIONS:
            raise _unknown(option)
        elif equals:
            raise ConfigurationError(f"run: {option} takes no value", remedy="See proxystore run --help.")
        else:
            flags.add(option)
    if {"-h", "--help"} & flags:
        return Order(settings, files, [], frozenset(flags))
    if not rest or (rest[0] in ("-m", "-c") and len(rest) < 2):
        raise ConfigurationError(
            "run: nothing to run",
            remedy="Expected a script, -m MODULE, -c CODE or a program's name; see proxystore run --help.",
        )
    return Order(settings, files, rest, frozenset(flags))


def command(program: list[str]) -> list[str]:
    """What to execute: this Python with a script, or a program of that name.

    Raises:
        ConfigurationError: there is no such script or program.
    """
    python = [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]
    if getattr(sys.stdout, "write_through", False):  # it was started with -u
        python.append("-u")
    if program[0] in ("-", "-m", "-c") or os.path.exists(program[0]):
        return [*python, *program]
    found = None if program[0].endswith(".py") or os.sep in program[0] else _which(program[0])
    if found is None:
        raise ConfigurationError(
            f"run: there is no script {program[0]!r}",
            remedy="Expected a script, -m MODULE, -c CODE or a program's name; see proxystore run --help.",
        )
    return [found, *program[1:]]


def environment(order: Order, before: Mapping[str, str]) -> dict[str, str]:
    """The variables to change, for the script and all processes that it starts."""
    changed = {f"PROXYSTORE_{name.upper()}": value for name, value in order.settings.items()}
    paths = [path for path in before.get("PYTHONPATH", "").split(os.pathsep) if path and path != HOOK]
    changed["PYTHONPATH"] = os.pathsep.join([HOOK, *paths])
    return changed


def _which(name: str) -> str | None:
    """A program of this Python's environment, else of PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), name)
    return beside if os.access(beside, os.X_OK) else shutil.which(name)


def _unknown(option: str) -> ConfigurationError:
    import difflib

    near = difflib.get_close_matches(option, _OPTIONS, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    if option[1:2] != "-":
        hint = f"Python's own go before: python {option} -m proxystore_integrations run ... "
    return ConfigurationError(
        f"run: unknown option {option}",
        remedy=f"{hint}The script's own options come after it; see proxystore run --help.",
    )
