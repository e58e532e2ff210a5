"""The plots of patterns: chains, streams, memory over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import patterns_work
from benchmarks.rows import Row
from benchmarks.timing import Spread

__all__ = ["draw"]

COLOURS = ("#222222", "#D55E00", "#0072B2")  # apart for every kind of colour vision


def draw(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Draw what has rows; names of the files written."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    drawn = []
    chains = [row for row in rows if row.work.startswith("Chain of ") and "overhead" in row.work]
    flows = [row for row in rows if "items of 1 MB" in row.work]
    for name, group, label in (
        ("pipelining.png", chains, "time of the chain, s"),
        ("streams.png", flows, "time of the stream, s"),
    ):
        if group:
            _bars(folder / name, group, label)
            drawn.append(name)
    if patterns_work.SERIES:
        _over_time(folder / "memory.png")
        drawn.append("memory.png")
    return drawn


def _bars(path: Path, group: Sequence[Row], label: str) -> None:
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    names = [name for name, outcome in group[0].outcomes.items() if isinstance(outcome, Spread)]
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        heights = [row.median(name) or 0.0 for row in group]
        places = [number + place * width for number in range(len(group))]
        axis.bar(places, heights, width, label=name, color=COLOURS[-len(names) :][place])
    axis.set_xticks(
        [number + 0.4 - width / 2 for number in range(len(group))],
        [row.work.rpartition(", ")[2] for row in group],
    )
    _finish(figure, axis, path, label)


def _over_time(path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, series), colour in zip(patterns_work.SERIES.items(), COLOURS, strict=False):
        axis.plot([t for t, _ in series], [used / 1e6 for _, used in series], label=name, color=colour)
    axis.set_xlabel("s")
    _finish(figure, axis, path, "memory of processes and store, MB")


def _finish(figure: Any, axis: Any, path: Path, label: str) -> None:
    from matplotlib import pyplot as plt

    axis.set_ylabel(label)
    axis.grid(visible=True, alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
