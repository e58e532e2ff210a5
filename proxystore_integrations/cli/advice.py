"""What a report advises: a better threshold, and what stands in the way."""

from __future__ import annotations

from proxystore_integrations.cli.report import Report
from proxystore_integrations.units import format_size

__all__ = ["advise", "best_threshold"]

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


def advise(report: Report) -> list[str]:
    """Lines of advice, the most useful first."""
    lines = []
    for name, engine in report.engines.items():
        found = best_threshold(report, name)
        if found is not None:
            threshold, seconds = found
            lines.append(
                f"{name}: threshold {format_size(threshold)} would have saved about {seconds:.2g} s "
                f"(it was {format_size(engine.threshold)}); `proxystore tune` measures it on this machine."
            )
        if engine.threshold and not engine.kept_off:
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
        lines.append(f"{report.leaks} sessions are left in the store: `proxystore gc` removes them.")
    return lines


def best_threshold(report: Report, engine: str) -> tuple[int, float] | None:
    """The threshold with which this run would have been fastest, and the seconds saved; None if this one is.

    By the sizes of all values that the run moved, what the engine takes for a byte, and what the
    store took in this run.
    """
    counts = [
        (bits, stored, count, size) for name, bits, stored, count, size in report.sizes if name == engine
    ]
    if not report.engines[engine].threshold or not counts:
        return None
    by_value = OWN_WAY.get(engine, 2.5e-9)
    moved = report.puts.size + report.gets.size
    per_byte = (report.put_seconds + report.get_seconds) / moved if moved > 10_000_000 else 5e-10

    def cost(threshold_bits: int) -> float:
        return sum(
            count * FIXED + 2 * size * per_byte if bits > threshold_bits else size * by_value
            for bits, _, count, size in counts
        )

    now = sum(
        count * FIXED + 2 * size * per_byte if stored else size * by_value
        for _, stored, count, size in counts
    )
    best = min(range(10, 31), key=cost)
    saved = now - cost(best)
    if saved < max(_WORTH, _SHARE * report.seconds):
        return None
    return _round(1 << best), saved


def _round(size: int) -> int:
    """The first digit alone: nobody needs more of a threshold."""
    power: int = 10 ** (len(str(size)) - 1)
    return size // power * power
