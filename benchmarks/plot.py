"""Time against size, one line a contender, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import BARE, COPY, OURS, PARSL, PEER, POOL, RAY, STOCKLESS
from benchmarks.rows import Row, size_name
from benchmarks.timing import Spread

__all__ = ["draw"]

PLOTS: Mapping[str, Mapping[str, str]] = {
    "dask.png": {
        "Dask: argument": "An array as argument",
        "Dask: gathered result, with the task": "An array as result, gathered",
    },
    "parsl.png": {
        "Parsl: argument": "An array as argument",
        "Parsl: result": "An array as result",
        "Parsl: chain of 5": "A chain of five",
    },
    "ray.png": {
        "Ray: argument": "An array as argument",
        "Ray: result": "An array as result",
        "Ray: chain of 5": "A chain of five",
    },
    "futures.png": {
        "ProcessPoolExecutor: argument": "A process pool: argument",
        "ProcessPoolExecutor: result": "result",
        "loky: argument": "loky: argument",
        "loky: result": "result",
    },
    "store.png": {
        "Store on shared memory: put + get": "put + get",
        "Store on shared memory: put + get + read": "put + get + reading every page",
    },
}
# Colours that stay apart for every kind of colour vision; markers for print.
STYLES: Mapping[str, Mapping[str, Any]] = {
    OURS: {"color": "#0072B2", "marker": "o", "linewidth": 2.2, "zorder": 5},
    STOCKLESS: {"color": "#56B4E9", "marker": "v", "linestyle": "--"},
    BARE: {"color": "#222222", "marker": "s"},
    RAY: {"color": "#222222", "marker": "s"},
    PARSL: {"color": "#222222", "marker": "s"},
    POOL: {"color": "#222222", "marker": "s"},
    PEER: {"color": "#D55E00", "marker": "^"},
    COPY: {"color": "#999999", "marker": "x", "linestyle": ":"},
}


def draw(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Draw every plot that has rows.

    Returns:
        Names of the files written; none when matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    drawn = []
    for name, panels in PLOTS.items():
        found = {work: [row for row in rows if row.work == work] for work in panels}
        if any(len(group) > 1 for group in found.values()):
            _draw(folder / name, panels, found)
            drawn.append(name)
    return drawn


def _draw(path: Path, panels: Mapping[str, str], found: Mapping[str, Sequence[Row]]) -> None:
    from matplotlib import pyplot as plt

    size = (6 * len(panels), 4.5)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
    for axis, (work, title) in zip(axes, panels.items(), strict=True):
        group = found[work]
        for name, style in STYLES.items():
            _line(axis, name, style, group)
        sizes = sorted({row.size for row in group if row.size})
        axis.set(title=title, xlabel="size of the array", xscale="log", yscale="log")
        axis.set_xticks(sizes, [size_name(size) for size in sizes])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(_time)
        axis.grid(visible=True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if group:
            axis.legend(frameon=False, loc="upper left")
    axes[0].set_ylabel("time, median (bars: minimum to maximum)")
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _line(axis: Any, name: str, style: Mapping[str, Any], group: Sequence[Row]) -> None:
    points = [
        (row.size, outcome)
        for row in group
        if row.size and isinstance(outcome := row.outcomes.get(name), Spread)
    ]
    if points:
        sizes = [size for size, _ in points]
        medians = [outcome.median for _, outcome in points]
        below = [outcome.median - outcome.low for _, outcome in points]
        above = [outcome.high - outcome.median for _, outcome in points]
        axis.errorbar(sizes, medians, yerr=[below, above], label=name, capsize=2, elinewidth=0.8, **style)


def _time(seconds: float, _position: object = None) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor * 0.999:
            return f"{seconds / factor:g} {unit}"
    return f"{seconds * 1e9:g} ns"
