"""``proxystore bench``: a user's own script without a store and with one or more."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import click
import msgspec
from rich.table import Table
from rich.text import Text

from proxystore_core.errors import ConfigurationError
from proxystore_core.urls import redact
from proxystore_integrations.cli.console import console, errors
from proxystore_integrations.cli.options import check_writable, settings_given
from proxystore_integrations.cli.plots import bars
from proxystore_integrations.cli.run import command, environment, parse

__all__ = ["Contender", "bench"]


class Contender(msgspec.Struct):
    """One way to run the script.

    Attributes:
        name: ``bare``, or the store's URL.
        seconds: of each run.
        output: what the last run printed, left out where it is told.
    """

    name: str
    seconds: list[float] = []
    output: bytes = b""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


@click.command(
    short_help="Compare your script without and with stores.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--store", "stores", multiple=True, metavar="URL", help="A store; more than one may be given.")
@click.option("--repeat", default=3, show_default=True, help="Runs of each, taking turns.")
@click.option("--plot", metavar="FILE.svg", help="Draw the medians.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.argument("program", nargs=-1, required=True, type=click.Path())
def bench(
    stores: tuple[str, ...], repeat: int, plot: str | None, as_json: bool, program: tuple[str, ...]
) -> int:
    """Run a script bare and under `proxystore run` with each store, in turns, and compare time and output.

    PROGRAM is a script with its arguments, or what else `proxystore run` takes.

    \b
    Examples:
      proxystore bench script.py
      proxystore bench --store shm:// --store redis://localhost:6379 --plot bench.svg script.py 100
    """
    if repeat < 1:
        raise ConfigurationError(f"--repeat is {repeat}", remedy="Expected 1 or more.")
    check_writable("--plot", plot)
    urls = [settings_given(store=url).store for url in stores or (None,)]
    order = parse(list(program))
    words = command(order.program)
    contenders = [Contender("bare"), *map(Contender, urls)]
    with errors().status("running") as status:
        for turn in range(repeat):
            for contender in contenders:
                status.update(f"run {turn + 1} of {repeat}: {redact(contender.name)}")
                _run(contender, words, order)
    same = [contender.output == contenders[0].output for contender in contenders]
    for contender in contenders:
        contender.output = b""
    if plot:
        with open(plot, "w", encoding="utf-8") as file:
            file.write(_picture(words, contenders))
    if as_json:
        told = [
            {**msgspec.to_builtins(one), "same_output": ok} for one, ok in zip(contenders, same, strict=True)
        ]
        click.echo(msgspec.json.encode(told))
    else:
        _show(contenders, same)
    return 0 if all(same) else 1


def _run(contender: Contender, words: list[str], order: Any) -> None:
    variables = dict(os.environ)
    if contender.name != "bare":
        given = order._replace(settings={**order.settings, "store": contender.name})
        variables |= environment(given, os.environ)
    start = time.perf_counter()
    with _patient():
        done = subprocess.run(words, env=variables, capture_output=True, check=False)
    contender.seconds.append(time.perf_counter() - start)
    contender.output = done.stdout
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigurationError(
            f"the script failed with exit code {done.returncode} ({redact(contender.name)}): {last}"
        )


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Interrupts, which a terminal sends to the script as well, count when it has ended.

    `subprocess` would kill it a quarter of a second later, before it has ended its session.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # which the script is to inherit
        yield
        return
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt


def _show(contenders: list[Contender], same: list[bool]) -> None:
    table = Table(title="seconds, medians of the runs", title_justify="left", box=None)
    for name in ("", "median", "fastest", "slowest", "ratio", "same output"):
        table.add_column(
            name, justify="right" if name not in ("", "same output") else "left", overflow="fold"
        )
    for contender, ok in zip(contenders, same, strict=True):
        ratio = contender.median / contenders[0].median
        style = "green" if ratio <= 1 else "red"
        table.add_row(
            redact(contender.name),
            f"{contender.median:.3f}",
            f"{min(contender.seconds):.3f}",
            f"{max(contender.seconds):.3f}",
            Text(f"{ratio:.2f}x", style),
            "yes" if ok else Text("no", "red"),
        )
    console().print(table)


def _picture(words: list[str], contenders: list[Contender]) -> str:
    names = [redact(contender.name) for contender in contenders]
    medians = [contender.median for contender in contenders]
    return bars(" ".join(map(os.path.basename, words[1:]))[:60], names, [("median", medians)], "", "seconds")
