"""A report on the terminal."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

from proxystore_integrations.cli.console import counted, errors
from proxystore_integrations.cli.report import Report
from proxystore_integrations.units import format_size

__all__ = ["place", "print_report"]


def print_report(report: Report, console: Console | None = None) -> None:
    """Print a report, by default on standard error: standard output is the script's."""
    console = console or errors()
    if not report.engines:
        console.print(
            "proxystore: this run used no engine that could have a store. Threads and clusters within one "
            "process need none; multiprocessing.Pool cannot have one.",
            style="dim",
        )
        return
    console.print()
    table = Table(title="proxystore: what went through the store", title_justify="left", box=None)
    for name in ("engine", "arguments", "shared", "results", "off the engine", "by value", "why"):
        left = name in ("engine", "why")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for name, engine in report.engines.items():
        results = engine.results.count + engine.gathered.count
        why = ", ".join(
            f"{moved.count} under {format_size(engine.threshold)}"
            if reason == "small"
            else f"{moved.count} {reason}"
            for reason, moved in engine.by_value.items()
        )
        table.add_row(
            name,
            str(engine.arguments.count),
            str(engine.shared.count),
            str(results),
            format_size(engine.kept_off),
            str(sum(moved.count for moved in engine.by_value.values())),
            why,
        )
    console.print(table)
    console.print(
        f"put {report.put_seconds:.3g} s ({format_size(report.puts.size)}), "
        f"get {report.get_seconds:.3g} s ({format_size(report.gets.size)}), "
        f"{report.cached} of {report.gets.count} loads from a cache, "
        f"{counted(report.leaks, 'leak')}, {report.processes} processes, {report.seconds:.3g} s"
    )
    if report.biggest:
        table = Table(title="The biggest", title_justify="left", box=None)
        for name in ("size", "times", "what", "task", "where", "kind"):
            table.add_column(name, justify="right" if name in ("size", "times") else "left", overflow="fold")
        for one in report.biggest:
            table.add_row(
                format_size(one.size), str(one.times), one.what, one.task, place(one.source), one.kind
            )
        console.print(table)
    for line in report.troubles:
        console.print(f"warning: {line}", style="yellow")
    for line in report.advice:
        console.print(f"advice: {line}", style="green")


def place(source: str) -> str:
    """File and line, as short as it says enough."""
    short = os.path.relpath(source) if source else ""
    return short if len(short) < len(source) else source
