"""A report as one HTML file, with its plots in it: no script, nothing from elsewhere."""

from __future__ import annotations

import html
import math
import shlex
from collections.abc import Iterable

from proxystore_integrations import __version__
from proxystore_integrations.cli.plots import bars
from proxystore_integrations.cli.report import Report
from proxystore_integrations.cli.report_table import place
from proxystore_integrations.units import format_size

__all__ = ["page_of"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #111; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .3em .8em; text-align: left; }
th { border-bottom: 2px solid #bbb; } td { border-bottom: 1px solid #ddd; } td.n { text-align: right; }
code { background: #f3f4f6; padding: .1em .3em; } .advice { color: #047857; } .trouble { color: #b45309; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9em, 1fr)); gap: 1em; }
dt { color: #555; } dd { margin: 0; font-size: 1.4em; } svg { max-width: 100%; height: auto; }
"""


def page_of(report: Report) -> str:
    """The whole page."""
    kept = sum(engine.kept_off for engine in report.engines.values())
    facts = [
        ("kept off the engine", format_size(kept)),
        ("stored", f"{report.puts.count}"),
        ("put", f"{report.put_seconds:.3g} s"),
        ("get", f"{report.get_seconds:.3g} s"),
        ("from a cache", f"{report.cached} of {report.gets.count}"),
        ("leaks", f"{report.leaks}"),
        ("run", f"{report.seconds:.3g} s"),
    ]
    body = [
        "<h1>What went through the store</h1>",
        f"<p><code>{html.escape(shlex.join(report.command))}</code>, exit code {report.exit_code}</p>",
        "<dl>",
        *(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts),
        "</dl>",
        *(f"<p class='trouble'>Warning: {html.escape(line)}</p>" for line in report.troubles),
        *(f"<p class='advice'>Advice: {html.escape(line)}</p>" for line in report.advice),
        "<h2>By engine</h2>",
        _engines(report),
    ]
    if report.sizes:
        body += ["<h2>By size</h2>", _sizes(report)]
    if report.biggest:
        body += ["<h2>The biggest</h2>", _biggest(report)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            "<html lang='en'><head><meta charset='utf-8'><title>proxystore report</title>",
            f"<meta name='generator' content='proxystore-integrations {__version__}'>",
            f"<style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _engines(report: Report) -> str:
    rows = []
    for name, engine in report.engines.items():
        reasons = (
            f"{moved.count} ({format_size(moved.size)}) "
            + (f"under {format_size(engine.threshold)}" if reason == "small" else reason)
            for reason, moved in engine.by_value.items()
        )
        results = engine.results.count + engine.gathered.count
        nbytes = engine.results.size + engine.gathered.size
        rows.append(
            [
                name,
                ", ".join(engine.stores),
                f"{engine.arguments.count} ({format_size(engine.arguments.size)})",
                f"{engine.shared.count}",
                f"{results} ({format_size(nbytes)})",
                format_size(engine.kept_off),
                "; ".join(reasons),
            ]
        )
    names = ["engine", "store", "arguments", "shared", "results", "off the engine", "by value, and why"]
    return _table(names, rows, {2, 3, 4, 5})


def _sizes(report: Report) -> str:
    """Values, and their bytes, by decade."""
    decades = {bits: int(math.log10(0.75 * (1 << bits))) if bits else 0 for _, bits, *_ in report.sizes}
    places = range(min(decades.values()), max(decades.values()) + 1)
    counts = {stored: dict.fromkeys(places, 0.0) for stored in (False, True)}
    bytes_ = {stored: dict.fromkeys(places, 0.0) for stored in (False, True)}
    for _, bits, stored, count, size in report.sizes:
        counts[stored][decades[bits]] += count
        bytes_[stored][decades[bits]] += size / 1e6
    names = [format_size(10**place) for place in places]
    return "\n".join(
        bars(
            title,
            names,
            [("by value", [*table[False].values()]), ("through the store", [*table[True].values()])],
            "size from",
            label,
        )
        for title, label, table in (("Values", "values", counts), ("Bytes", "MB", bytes_))
    )


def _biggest(report: Report) -> str:
    rows = [
        [format_size(one.size), f"{one.times}", one.what, one.engine, one.task, place(one.source), one.kind]
        for one in report.biggest
    ]
    return _table(["size", "times", "what", "engine", "task", "where", "kind"], rows, {0, 1})


def _table(names: Iterable[str], rows: Iterable[Iterable[str]], numbers: set[int]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if i in numbers else ''}>{html.escape(cell)}</td>" for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
