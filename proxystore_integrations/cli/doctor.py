"""``proxystore doctor``: does everything fit together, and what to do where it does not."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import click
import msgspec
from rich.table import Table
from rich.text import Text

from proxystore_core import Session, Store
from proxystore_core.connectors.base import leased, place_of, surveyed
from proxystore_core.errors import StoreError
from proxystore_core.urls import redact
from proxystore_integrations import __version__
from proxystore_integrations.cli.console import console, counted
from proxystore_integrations.cli.options import settings_given
from proxystore_integrations.cli.workers import ASK, POOLS, Question
from proxystore_integrations.link import open_store
from proxystore_integrations.settings import NAMES, Settings, format_size

__all__ = ["Finding", "doctor"]

ENGINES = {
    "dask": ("distributed", "proxystore_integrations.dask.engine"),
    "globus-compute": ("globus_compute_sdk", "proxystore_integrations.globus_compute.engine"),
    "joblib": ("joblib", "proxystore_integrations.futures.joblib"),
    "loky": ("loky", ""),
    "parsl": ("parsl", "proxystore_integrations.parsl.engine"),
    "ray": ("ray", "proxystore_integrations.ray.engine"),
}
"""By extra: the library, and our module that checks its version when it is imported."""

_ADDRESSES = {
    "dask": "Is that the scheduler's port, not its dashboard's? It says tcp://host:port when it starts.",
    "ray": "Expected host:port, as ray start says, or auto.",
    "globus-compute": "Expected the UUID of an endpoint that is up: globus-compute-endpoint list.",
}
"""What may be wrong where an engine answers nothing that its own library understands."""

_DISTRIBUTIONS = {"globus_compute_sdk": "globus-compute-sdk"}
_LITTLE = 256_000_000  # bytes of room, below which a run may fill the store
_TRIAL = 8_000_000  # bytes of the round trip
_CHILD = (
    "import sys; from proxystore_core.registry import store_for;"
    "data = store_for(sys.argv[1]).get(sys.argv[2]);"
    "print('gone' if data is None else len(data))"
)


class Finding(msgspec.Struct):
    """What one check found.

    Attributes:
        level: ok, warning or problem.
        what: was checked.
        detail: what was found.
        remedy: what to do about it.
    """

    level: Literal["ok", "warning", "problem"]
    what: str
    detail: str
    remedy: str = ""


@click.command(short_help="Check settings, engines and the store, with a remedy for each problem.")
@click.option("--store", metavar="URL", help="The store; by default the configured one.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(sorted(ENGINES)),
    help="Check this one; by default all.",
)
@click.option("--dask", metavar="ADDRESS", help="A Dask scheduler, whose workers are asked, too.")
@click.option("--ray", metavar="ADDRESS", help="A Ray cluster (here: auto), whose nodes are asked, too.")
@click.option(
    "--parsl",
    metavar="FILE.py",
    help="A file with a Parsl Config named config (or FILE.py:NAME, module:NAME) to start and ask.",
)
@click.option("--globus-compute", metavar="UUID", help="An endpoint, whose workers are asked, too.")
@click.option("--pool", multiple=True, type=click.Choice(POOLS), help="A pool of processes to start and ask.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for workers' answers.")
@click.option("--strict", is_flag=True, help="Let warnings count as problems.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(
    store: str | None,
    engines: tuple[str, ...],
    timeout: float,
    strict: bool,
    as_json: bool,
    **clusters: Any,
) -> int:
    """Check which settings hold and where they come from, the versions of the engines, and the store.

    Of the store: its reach and credentials from here and from workers, a round trip, room, and what dead
    sessions left.

    The exit code is 1 where there is a problem.

    \b
    Examples:
      proxystore doctor
      proxystore doctor --store redis://localhost:6379 --dask tcp://scheduler:8786
      proxystore doctor --parsl config.py --pool loky
      proxystore doctor --strict --json
    """
    asked = [
        (name.replace("_", "-"), address)
        for name, given in clusters.items()
        for address in ((given,) if isinstance(given, str) else given or ())
    ]
    findings = list(_all(store, engines or tuple(ENGINES), asked, timeout))
    screen = console()
    if as_json:
        click.echo(msgspec.json.encode(findings))
    else:
        screen.print(_table(findings))
    bad = ("problem", "warning") if strict else ("problem",)
    count = sum(finding.level in bad for finding in findings)
    if not as_json:
        verdict = f"{counted(count, 'problem')}." if count else "All is well."
        screen.print(verdict, style="red" if count else "green")
    return 1 if count else 0


def _all(
    store: str | None, engines: tuple[str, ...], asked: list[tuple[str, str]], timeout: float
) -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()}, proxystore-integrations {__version__}")
    settings: Settings | None = None
    try:
        settings = settings_given(store=store)
    except StoreError as error:
        yield _problem("settings", error)
    else:
        yield from _settings(settings)
    for name in engines:
        yield _engine(name)
    if settings is not None:
        yield from _store(settings, asked, timeout)


def _settings(settings: Settings) -> Iterator[Finding]:
    for name in NAMES:
        value, origin = getattr(settings, name), settings.origin(name)
        shown = redact(str(value))
        if name == "threshold":
            shown = format_size(value)
            if settings.automatic:
                shown += f" (auto: {'not measured here yet' if origin == 'default' else 'measured here'})"
        elif name == "lease":
            shown = f"{value:g} s"
        elif name == "secret":
            shown = ", ".join(f"{place} {where}" for place, where in value) or "none"
        elif isinstance(value, bool):
            shown = str(value).lower()  # as it is written in the file
        yield Finding("ok", f"setting {name}", f"{shown}, from {origin}")


def _engine(name: str) -> Finding:
    library, module = ENGINES[name]
    if importlib.util.find_spec(library) is None:
        return Finding("ok", name, "not installed")
    version = importlib.metadata.version(_DISTRIBUTIONS.get(library, library))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if module:
                importlib.import_module(module)
        except StoreError as error:
            return _problem(name, error)
        except Exception as error:
            return Finding("problem", name, f"{version} does not load: {type(error).__name__}: {error}")
    ours = [str(one.message) for one in caught if "proxystore" in str(one.message)]
    if ours:
        return Finding("warning", name, ours[0], "Look for a newer proxystore-integrations.")
    return Finding("ok", name, version)


def _store(settings: Settings, asked: list[tuple[str, str]], timeout: float) -> Iterator[Finding]:
    what = f"store {redact(settings.store)}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            store = open_store(settings)
            session = Session(store.connector, lease=60)
        except StoreError as error:
            yield _problem(what, error)
            return
    for one in caught:
        yield Finding("warning", what, str(one.message))
    if store.secret is not None:
        yield Finding("ok", "encryption", f"every object, {store.secret!r}")
    if not store.allow_pickle:
        yield Finding("ok", "pickle", "neither stored nor taken")
    try:
        yield from _contents(what, store)
        data = bytes(_TRIAL)
        start = time.perf_counter()
        key = store.put(data, session=session.name)
        between = time.perf_counter()
        same = store.get(key) == data
        end = time.perf_counter()
        if not same:
            yield Finding("problem", what, "what was stored is not what came back")
        speed = f"put {(between - start) * 1e3:.1f} ms, get {(end - between) * 1e3:.1f} ms"
        yield Finding("ok", what, f"{format_size(_TRIAL)} there and back: {speed}")
        yield _child(store, key)
        for name, address in asked:
            yield from _workers(name, address, Question(store.recipe, key, timeout))
        place = place_of(store.connector)
        if place:
            yield Finding("ok", what, f"reached by workers on this machine only ({place})")
    except StoreError as error:
        yield _problem(what, error)
    finally:
        session.end()
        store.close()


def _contents(what: str, store: Store[Any]) -> Iterator[Finding]:
    keeper, survey = leased(store.connector), surveyed(store.connector)
    if keeper is None:
        yield Finding("warning", what, "keeps no leases: what a killed client stored stays there")
    else:
        dead = sum(left < 0 for left in keeper.sessions().values())
        if dead:
            yield Finding("warning", what, f"{dead} dead sessions", "Run: proxystore gc")
    room = survey.room() if survey is not None else None
    if room is not None:
        level: Literal["ok", "warning"] = "ok" if room >= _LITTLE else "warning"
        remedy = "" if level == "ok" else "Give it more room, or name a store that has it."
        yield Finding(level, what, f"{format_size(room)} free", remedy)


def _child(store: Store[Any], key: str) -> Finding:
    """What a process of its own, as a worker is, finds: it has the environment, and no open store."""
    what = "a worker process here"
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, store.recipe, key],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.stdout.strip() == str(_TRIAL):
        return Finding("ok", what, "reaches the store")
    said = done.stderr.strip().rpartition("\n")[2] or f"it found the object {done.stdout.strip()}"
    return Finding("problem", what, said, "Credentials belong in the environment of each worker.")


def _workers(name: str, address: str, question: Question) -> Iterator[Finding]:
    what = f"{name} {address}"
    library, _ = ENGINES.get(name, ("", ""))
    if library and importlib.util.find_spec(library) is None:
        remedy = f'Run: pip install "proxystore-integrations[{name}]".'
        yield Finding("problem", what, f"{library} is not installed here", remedy)
        return
    ask, name = ASK[name], address if name == "pool" else name
    try:
        answers = ask(address, question)
    except StoreError as error:
        yield _problem(what, error)
        return
    except Exception as error:  # each library has its own
        text = str(error).strip().partition("\n")[0] or "no answer"
        remedy = _ADDRESSES.get(name, "")
        yield Finding("problem", what, f"cannot be asked: {type(error).__name__}: {text}", remedy)
        return
    if not answers:
        yield Finding("warning", what, "has no workers now")
    for worker, answer in sorted(answers.items()):
        if answer == str(_TRIAL):
            yield Finding("ok", f"{name} worker {worker}", "reaches the store")
        else:
            remedy = "Name a store that all workers reach, with its credentials in their environment."
            if "ModuleNotFoundError" in answer:
                remedy = "Install proxystore-integrations with the same extras there."
            yield Finding("problem", f"{name} worker {worker}", answer, remedy)


def _problem(what: str, error: StoreError) -> Finding:
    return Finding("problem", what, error.problem, error.remedy or "")


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    styles = {"ok": "green", "warning": "yellow", "problem": "red"}
    for finding in findings:
        text = finding.detail + (f" -> {finding.remedy}" if finding.remedy else "")
        table.add_row(Text(finding.level, styles[finding.level]), finding.what, text)
    return table
