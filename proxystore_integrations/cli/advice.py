"""What a report advises: a better threshold, and what stands in the way."""

from __future__ import annotations

from typing import NamedTuple

from proxystore_core.recipe import Recipe
from proxystore_integrations import tuned
from proxystore_integrations.cli.report import Report
from proxystore_integrations.units import format_size

__all__ = ["Better", "advise", "best_threshold"]

OWN_WAY = {
    "concurrent.futures": 2.5e-9,
    "dask": 4e-9,
    "globus-compute": 1e-7,
    "joblib": 2.5e-9,
    "loky": 2.5e-9,
    "mpi4py": 2.5e-9,
    "parsl": 3.4e-8,
    "ray": 1e-9,
}
"""Seconds per byte of an engine that carries a value itself (see benchmarks/results); about."""

FIXED = 5e-4
"""Seconds that a small value costs on its way through a store and out of it, about."""

_WORTH = 0.05  # seconds, below which a gain is not worth a line
_SHARE = 0.02  # share of the run, likewise
_REACH = 8  # times the largest size that was measured: what is beyond is not known from it


class Better(NamedTuple):
    """A threshold that would have been better.

    Attributes:
        threshold: bytes.
        seconds: that it would have saved.
        measured: whether by what ``proxystore tune`` found on this machine.
    """

    threshold: int
    seconds: float
    measured: bool


def advise(report: Report) -> list[str]:
    """Lines of advice, the most useful first."""
    lines = []
    for name, engine in report.engines.items():
        found = best_threshold(report, name)
        if found is not None:
            why = (
                "by what `proxystore tune` measured on this machine"
                if found.measured
                else f"estimated, `proxystore tune --engine {name}` measures it on this machine"
            )
            lines.append(
                f"{name}: threshold {format_size(found.threshold)} would have saved about "
                f"{found.seconds:.2g} s (it was {format_size(engine.threshold)}); {why}."
            )
        # With a trouble it may be that: what goes by value since no worker reaches the store is not counted.
        if (
            engine.threshold
            and not engine.kept_off
            and not report.troubles
            and engine.by_value.keys() <= {"small"}
        ):
            lines.append(
                f"{name}: nothing was as large as the threshold ({format_size(engine.threshold)}), "
                "so everything went its usual way."
            )
    moved = report.gets.size
    if moved > 100_000_000 and report.get_seconds > 0.5 and moved / report.get_seconds < 5e8:
        rate = format_size(int(moved / report.get_seconds))
        lines.append(
            f"loading ran at {rate}/s: a store nearer to the workers (shm:// on one machine) is faster."
        )
    if report.leaks:
        lines.append(f"sessions left in the store: {report.leaks}; `proxystore gc` removes them.")
    return lines


def best_threshold(report: Report, engine: str) -> Better | None:
    """The threshold with which this run would have been fastest; None if it was, or nearly.

    By the sizes of all values that the run moved, and by what was measured of this engine and store. Where
    nothing was: by what engines take for a byte, and what the store took in this run.
    """
    counts = [
        (bits, stored, count, size) for name, bits, stored, count, size in report.sizes if name == engine
    ]
    if not report.engines[engine].threshold or not counts:
        return None
    known = _measured(report, engine)
    by_value = OWN_WAY.get(engine, 2.5e-9)
    moved = report.puts.size + report.gets.size
    per_byte = (report.put_seconds + report.get_seconds) / moved if moved > 10_000_000 else 5e-10

    def seconds(stored: bool, count: int, size: int) -> float:
        """What so many values of so many bytes in all take on one of the ways."""
        if known is not None:
            return count * known.seconds(size / count, stored=stored)
        return count * FIXED + 2 * size * per_byte if stored else size * by_value

    def cost(threshold_bits: int) -> float:
        return sum(seconds(bits > threshold_bits, count, size) for bits, _, count, size in counts)

    now = sum(seconds(stored, count, size) for _, stored, count, size in counts)
    best = min(range(30, 9, -1), key=cost)  # of those as good the largest: fewer objects
    saved = now - cost(best)
    if saved < max(_WORTH, _SHARE * report.seconds):
        return None
    return Better(_round(1 << best), saved, known is not None)


def _measured(report: Report, engine: str) -> tuned.Measured | None:
    """What `proxystore tune` found for an engine, if it reaches to the sizes of this run."""
    largest = max(size // count for name, _, _, count, size in report.sizes if name == engine)
    for recipe in report.engines[engine].stores:
        found = tuned.measured(Recipe.parse(recipe).url, engine)
        if found is not None and found.largest * _REACH >= largest:
            return found
    return None


def _round(size: int) -> int:
    """The first digit alone: nobody needs more of a threshold."""
    power: int = 10 ** (len(str(size)) - 1)
    return size // power * power
