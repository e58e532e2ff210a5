"""``proxystore ls``, ``top`` and ``gc``: what is in a store, and what dead sessions left there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proxystore_core.connectors.base import USER_SESSION, Connector, Held, leased, surveyed
from proxystore_core.errors import ConfigurationError
from proxystore_core.recipe import open_connector
from proxystore_core.urls import StoreURL, redact
from proxystore_integrations.cli.console import console, counted
from proxystore_integrations.cli.options import settings_given
from proxystore_integrations.units import format_size

__all__ = ["Row", "gc", "ls", "rows_of", "top"]


class Row(NamedTuple):
    """One session in a store.

    Attributes:
        session: its name.
        lease: seconds that it has left; negative if it lapsed so long ago, None for the user's.
        objects: how many it has; None where the store does not tell.
        size: their bytes.
    """

    session: str
    lease: float | None
    objects: int | None
    size: int | None

    @property
    def state(self) -> str:
        """For people: whether it lives."""
        if self.lease is None:
            return "yours, until evicted"
        if self.lease < 0:
            return f"dead for {_duration(-self.lease)}"
        return f"lease {_duration(self.lease)}"


_store = click.option(
    "--store", metavar="URL", help="The store; by default the one of PROXYSTORE_STORE and proxystore.toml."
)
_json = click.option("--json", "as_json", is_flag=True, help="For machines.")


@click.command(short_help="List sessions in a store.")
@_store
@_json
def ls(store: str | None, as_json: bool) -> None:
    """List the sessions in a store with their objects, bytes and leases.

    \b
    Examples:
      proxystore ls
      proxystore ls --store redis://localhost:6379 --json
    """
    with _opened(store) as connector:
        rows = rows_of(connector)
        if as_json:
            click.echo(msgspec.json.encode([row._asdict() for row in rows]))
        else:
            console().print(_table(connector, rows))


@click.command(short_help="Watch a store: sessions, objects, bytes, rates.")
@_store
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--count", type=int, metavar="N", help="Looks; without a terminal 1, else until Ctrl-C.")
def top(store: str | None, interval: float, count: int | None) -> None:
    """Watch the sessions in a store, with the rates at which they grow and shrink.

    \b
    Examples:
      proxystore top
      proxystore top --store file:///shared/store --interval 5
    """
    if interval <= 0:
        raise ConfigurationError(f"--interval is {interval}", remedy="Expected more than 0 seconds.")
    screen = console()
    looks = count or (None if screen.is_terminal else 1)
    # An interrupt is how one stops watching, whatever is being done at that moment.
    with suppress(KeyboardInterrupt), _opened(store) as connector:
        before, since = rows_of(connector), time.monotonic()
        if not screen.is_terminal and looks == 1:  # Live would leave the line open
            screen.print(_table(connector, before))
            return
        with Live(_table(connector, before), console=screen, auto_refresh=False) as live:
            done = 1
            while looks is None or done < looks:
                time.sleep(interval)
                rows, now = rows_of(connector), time.monotonic()
                live.update(_table(connector, rows, before, now - since), refresh=True)
                before, since, done = rows, now, done + 1


@click.command(short_help="Remove what dead sessions left.")
@_store
@click.option("--dry-run", is_flag=True, help="List it only.")
@click.option("--session", "names", multiple=True, metavar="NAME", help="End this one, whether dead or not.")
@_json
def gc(store: str | None, dry_run: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Remove the objects of sessions whose lease has lapsed: their client was killed.

    What you stored yourself, without a lifetime, is never touched. Of a Globus store --dry-run shows what has
    lapsed at this site; what another site's client renews stays.

    \b
    Examples:
      proxystore gc --dry-run
      proxystore gc --store file:///shared/store
    """
    with _opened(store) as connector:
        keeper = leased(connector)
        if keeper is None:
            raise ConfigurationError(
                f"{redact(connector.url)} keeps no leases", remedy="What it holds goes by eviction alone."
            )
        rows = {row.session: row for row in rows_of(connector) if row.session != USER_SESSION}
        unknown = sorted(set(names) - rows.keys())
        if unknown:
            raise ConfigurationError(
                f"no session {unknown[0]!r} in {redact(connector.url)}", remedy="See proxystore ls."
            )
        chosen = [rows[name] for name in names] or [
            row for row in rows.values() if row.lease is not None and row.lease < 0
        ]
        shown = _table(connector, chosen)
        if dry_run:
            removed = {row.session: row.objects or 0 for row in chosen}
        elif names:
            removed = {row.session: keeper.end(row.session) for row in chosen}
        else:
            # Not each by itself: who renews it now, or at another site, keeps it.
            swept = keeper.sweep()
            removed = {name: (rows[name].objects or 0) if name in rows else 0 for name in swept}
        stay = sorted({row.session for row in chosen} - removed.keys())
        if stay:
            why = f"renewed elsewhere or just now, or another site cannot be asked: {', '.join(stay)}"
            click.echo(f"proxystore: {counted(len(stay), 'session')} not removed, {why}", err=True)
        if as_json:
            click.echo(msgspec.json.encode({"dry_run": dry_run, "sessions": removed}))
            return
        if chosen:
            console().print(shown)
        verb = "would be removed" if dry_run else "removed"
        sessions, objects = counted(len(removed), "session"), counted(sum(removed.values()), "object")
        console().print(f"{sessions}, {objects} {verb}.")
        alive = len(rows.keys() - removed.keys()) - len(stay)
        if alive and not names:
            whose = f"{counted(alive, 'session')} of clients that live, or died less than their lease ago"
            console().print(f"{whose}: see proxystore ls; --session NAME ends one at once.")


def rows_of(connector: Connector) -> list[Row]:
    """The sessions in a store, the largest first."""
    keeper, survey = leased(connector), surveyed(connector)
    leases = keeper.sessions() if keeper is not None else {}
    held = survey.held() if survey is not None else {}
    rows = []
    for name in {*leases, *(name for name, one in held.items() if one.objects or name != USER_SESSION)}:
        lease = None if name == USER_SESSION else leases.get(name)
        if name != USER_SESSION and lease is None:
            continue  # it has ended just now
        one = held.get(name, Held(0, 0)) if survey is not None else None
        rows.append(Row(name, lease, one and one.objects, one and one.nbytes))
    return sorted(rows, key=lambda row: (-(row.size or 0), row.session))


@contextmanager
def _opened(store: str | None) -> Iterator[Connector]:
    url = settings_given(store=store).store
    made = _missing(url)
    connector = open_connector(url)
    if made:
        click.echo(f"proxystore: there is no directory {made[0]} yet", err=True)
    try:
        yield connector
    finally:
        connector.close()
        with suppress(OSError):  # somebody stores there now
            for directory in made:
                os.rmdir(directory)


def _missing(url: str) -> list[str]:
    """Directories that opening a store makes: who looks at one leaves none."""
    parts = StoreURL.parse(url)
    directory, missing = parts.path, []
    while parts.scheme == "file" and directory and not os.path.lexists(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    return missing


def _table(
    connector: Connector, rows: list[Row], before: list[Row] | None = None, seconds: float = 1.0
) -> Group:
    survey = surveyed(connector)
    room = survey.room() if survey is not None else None
    left = "" if room is None else f", {format_size(room)} free"
    title = (
        f"{redact(connector.url)}: {counted(len(rows), 'session')}, "
        f"{format_size(sum(row.size or 0 for row in rows))}"
    )
    table = Table(box=None)
    names = ["session", "state", "objects", "bytes"]
    if before is not None:
        names += ["objects/s", "bytes/s"]
    for name in names:
        table.add_column(name, justify="left" if name in ("session", "state") else "right", overflow="fold")
    was = {row.session: row for row in before or ()}
    for row in rows:
        cells = [
            row.session,
            row.state,
            "?" if row.objects is None else str(row.objects),
            "?" if row.size is None else format_size(row.size),
        ]
        if before is not None:
            old = was.get(row.session, Row(row.session, None, 0, 0))
            grown = (row.size or 0) - (old.size or 0)
            more = (row.objects or 0) - (old.objects or 0)
            sign = "-" if grown < 0 else ""
            cells += [f"{more / seconds:.3g}", f"{sign}{format_size(int(abs(grown) / seconds))}"]
        dead = row.lease is not None and row.lease < 0
        table.add_row(*cells, style="red" if dead else None)
    heading = Text(title + left, style="bold")
    return Group(heading, table) if rows else Group(heading)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"
