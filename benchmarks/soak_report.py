"""What a soak's samples say: lines through memory, file descriptors, and both as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

GROWTH = 10.0
"""MB that a process may grow more than the bare engine's, after the warm-up and by the fitted line."""

FDS = 8
"""File descriptors that a process may have more at the end than after the warm-up."""

BARE = "-bare"
"""What the name of an engine without a store ends in."""

WARM_UP = 0.2
KINDS = ("small", "large")

_HEAD = f"""\
# Soak

Written by `make soak`. Small tasks pass an integer; large ones take and return an array of 1 MB through
`shm://`, two workers. A line is fitted through the memory (RSS) of each process after a warm-up, a fifth of
the tasks. A growth by it of {GROWTH:g} MB or more above the bare engine's (where that was measured), or more
than {FDS} new file descriptors, fails. `-bare` is an engine without a store.

What Dask itself keeps is not full after 100 000 small tasks: the last 1000 messages of each connection, of
which one carries what hundreds of tasks need (`distributed.admin.low-level-log-length`), and the names of
100 000 tasks (`dask.utils.key_split`). `dask-forgetful` keeps 20 messages and forgets names now and then.
"""
_COLUMNS = {
    "process": "process",
    "first MB": "after warm-up, MB",
    "last MB": "at the end, MB",
    "growth MB": "growth by the line, MB",
    "bare MB": "the bare engine's, MB",
    "kB per 1000 tasks": "kB per 1000 tasks",
    "descriptors": "descriptors, after warm-up and at the end",
    "flat": "passes",
}


def read(folder: Path, name: str) -> dict[str, Any]:
    """What came of an engine's soak; empty if there was none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def verdicts(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    """For each process of an engine: memory after the warm-up and at the end, its line, descriptors.

    Args:
        folder: of the results.
        name: of the engine.
        kind: of the tasks.
    """
    bare: dict[str, Any] = {}
    if not name.endswith(BARE):
        run = read(folder, f"{name}{BARE}").get(kind)
        bare = {one["process"]: one for one in _lines(run)} if run else {}
    found = _lines(read(folder, name)[kind])
    for one in found:
        without = bare.get(one["process"])
        one["bare MB"] = None
        allowed = GROWTH
        if without is not None:
            one["bare MB"] = round(without["kB per 1000 tasks"] * one["tasks"] / 1e6, 1)
            allowed += max(one["bare MB"], 0.0)
        more = one["descriptors"][1] - one["descriptors"][0]
        one["flat"] = one["growth MB"] < allowed and more <= FDS
    return found


def _lines(run: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    samples = [sample for sample in run["samples"] if sample["tasks"] > WARM_UP * run["tasks"]]
    for name in sorted({name for sample in samples for name in sample} - {"tasks", "objects", "stored MB"}):
        there = [sample for sample in samples if name in sample]
        if len(there) < 5:
            continue
        tasks = np.array([sample["tasks"] for sample in there], dtype=float)
        memory = np.array([sample[name][0] for sample in there])
        slope = float(np.polyfit(tasks, memory, 1)[0])
        found.append(
            {
                "process": name,
                "tasks": float(tasks[-1] - tasks[0]),
                "first MB": round(float(memory[0]), 1),
                "last MB": round(float(memory[-1]), 1),
                "growth MB": round(slope * float(tasks[-1] - tasks[0]), 1),
                "kB per 1000 tasks": round(1e6 * slope, 1),
                "descriptors": [there[0][name][1], there[-1][name][1]],
            }
        )
    return found


def report(folder: Path) -> str:
    """All results in a folder as Markdown."""
    lines = [_HEAD]
    for path in sorted(folder.glob("*.json")):
        result = read(folder, path.stem)
        machine = result["machine"]
        lines += [f"## {path.stem}", "", f"{machine['processor']}, {machine['cores']} cores."]
        for kind in [kind for kind in KINDS if kind in result]:
            run = result[kind]
            most = max(sample["stored MB"] for sample in run["samples"])
            story = (
                f"{run['tasks']} {kind} tasks in {run['seconds']:.0f} s; at most {most:.1f} MB in the store"
            )
            lines += ["", f"{story} when looked at, {run['left']} objects at the end.", ""]
            lines += [f"| {' | '.join(_COLUMNS.values())} |", f"|{'---|' * len(_COLUMNS)}"]
            for one in verdicts(folder, path.stem, kind):
                cells = one | {"flat": "yes" if one["flat"] else "**no**"}
                if path.stem.endswith(BARE):
                    cells["flat"] = ""
                cells["bare MB"] = "" if one["bare MB"] is None else one["bare MB"]
                cells["descriptors"] = ", ".join(map(str, one["descriptors"]))
                lines.append(f"| {' | '.join(str(cells[name]) for name in _COLUMNS)} |")
        lines.append("")
    return "\n".join([*lines, "![memory](memory.png)", ""])


def draw(folder: Path) -> None:
    """Memory of each process over the tasks of each engine, if matplotlib is installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    paths = sorted(folder.glob("*.json"))
    figure, rows = plt.subplots(len(paths), 2, figsize=(11, 3.2 * len(paths)), squeeze=False)
    for path, row in zip(paths, rows, strict=True):
        result = read(folder, path.stem)
        for kind, axes in zip(KINDS, row, strict=True):
            if kind not in result:
                axes.set_axis_off()
                continue
            for name in [one["process"] for one in _lines(result[kind])]:
                there = [sample for sample in result[kind]["samples"] if name in sample]
                axes.plot([one["tasks"] for one in there], [one[name][0] for one in there], label=name)
            axes.set(title=f"{path.stem}: {kind} tasks", xlabel="tasks", ylabel="memory, MB")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(folder / "memory.png", dpi=90)
    plt.close(figure)
