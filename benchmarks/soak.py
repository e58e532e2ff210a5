"""Many tasks on one engine: memory and file descriptors stay flat, and nothing is in the store at the end.

``python -m benchmarks.soak --engine dask`` (``make soak`` for all); results are added to
``benchmarks/results/soak``. A line is fitted through each process's memory after a warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import describe
from proxystore_core.connectors.base import surveyed
from proxystore_core.recipe import open_connector

SIZE = 1_000_000
"""Bytes of a large argument, and of its task's result."""

GROWTH = 10.0
"""MB that a process may grow after the warm-up, by the fitted line, before it is called a leak."""

FDS = 8
"""File descriptors that a process may have more at the end than after the warm-up."""

WARM_UP = 0.2
_OUT = Path(__file__).parent / "results" / "soak"
_ROOT = str(Path(__file__).parent.parent)


def small(number: int) -> int:
    """A task of few bytes."""
    return number + 1


def large(array: Any, by: int) -> Any:
    """A task whose argument and result go through the store."""
    return array + by


# Engines: each gives a function that makes calls and returns their results, and the link to its store.

Gather = Callable[[Any, list[tuple[Any, ...]]], list[Any]]


@contextlib.contextmanager
def _pool(store: str, place: str) -> Iterator[tuple[Gather, Any]]:
    from concurrent.futures import ProcessPoolExecutor

    from proxystore_integrations.futures import StoreExecutor

    with StoreExecutor(ProcessPoolExecutor(2), store, threshold="100 kB") as executor:

        def gather(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
            return [future.result() for future in [executor.submit(function, *call) for call in calls]]

        yield gather, executor._link


@contextlib.contextmanager
def _dask(store: str, place: str) -> Iterator[tuple[Gather, Any]]:
    from proxystore_integrations.dask import Client

    file = os.path.join(place, "scheduler.json")
    place_of = ["--scheduler-file", file, "--no-dashboard", "--host", "127.0.0.1"]
    parts = [["scheduler", "--port", "0"], *[["worker", "--nthreads", "1", "--no-nanny"]] * 2]
    with contextlib.ExitStack() as stack:
        for part in parts:
            command = [sys.executable, "-m", "dask", part[0], *place_of, *part[1:]]
            process = subprocess.Popen(command, cwd=place, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            while not os.path.exists(file):
                time.sleep(0.1)
        client = stack.enter_context(
            Client(scheduler_file=file, store=store, threshold="100 kB", results="always")
        )
        client.wait_for_workers(2)

        def gather(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
            results: list[Any] = client.gather(client.map(function, *zip(*calls, strict=True), pure=False))
            return results

        yield gather, client._link


@contextlib.contextmanager
def _parsl(store: str, place: str) -> Iterator[tuple[Gather, Any]]:
    import parsl
    from parsl import python_app
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    from proxystore_integrations.parsl import wrap

    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    executor = HighThroughputExecutor(
        max_workers_per_node=2,
        address="127.0.0.1",
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1, worker_init=f"export PYTHONPATH={_ROOT}"),
    )
    wrapped: Any = wrap(executor, store=store, threshold="100 kB")
    with parsl.load(Config(executors=[wrapped], run_dir=place, strategy="none", initialize_logging=False)):
        apps = {function: python_app(function) for function in (small, large)}

        def gather(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
            return [future.result() for future in [apps[function](*call) for call in calls]]

        yield gather, wrapped._link


@contextlib.contextmanager
def _ray(store: str, place: str) -> Iterator[tuple[Gather, Any]]:
    import ray

    from proxystore_integrations.ray import init, link

    init(
        num_cpus=2,
        object_store_memory=300_000_000,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": _ROOT}},
        store=store,
        threshold="100 kB",
        results="always",
    )
    try:
        remote = {function: ray.remote(function) for function in (small, large)}

        def gather(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
            results: list[Any] = ray.get([remote[function].remote(*call) for call in calls])
            return results

        yield gather, link.current()
    finally:
        ray.shutdown()


ENGINES = {"pool": _pool, "dask": _dask, "parsl": _parsl, "ray": _ray}


# Looking.


def processes() -> dict[str, psutil.Process]:
    """This process and all that it started, by what they are."""
    me = psutil.Process()
    found = {"client": me}
    for process in me.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline()) or process.name()
            known = ("scheduler", "interchange", "gcs_server", "raylet", "node_server", "resource_tracker")
            role = next((name for name in known if name in words), "worker")
            number = sum(name.startswith(role) for name in found)
            found[f"{role} {number}" if number else role] = process
    return found


def look(connector: Any) -> dict[str, Any]:
    """Memory (MB) and descriptors of every process, and what is in the store."""
    lister = surveyed(connector)
    assert lister is not None
    held = lister.held()
    sample: dict[str, Any] = {
        "objects": sum(one.objects for one in held.values()),
        "stored MB": sum(one.nbytes for one in held.values()) / 1e6,
    }
    for name, process in processes().items():
        with contextlib.suppress(psutil.Error):
            sample[name] = [process.memory_info().rss / 1e6, process.num_fds()]
    return sample


def soak(gather: Gather, connector: Any, kind: str, count: int, batch: int) -> dict[str, Any]:
    """Make so many calls, and look fifty times."""
    samples: list[dict[str, Any]] = []
    every = max(batch, count // 50)
    start, done = time.monotonic(), 0
    while done < count:
        calls: list[tuple[Any, ...]]
        if kind == "small":
            calls = [(number,) for number in range(done, done + batch)]
            assert gather(small, calls) == [number + 1 for (number,) in calls]
        else:
            calls = [(np.full(SIZE // 8, float(number)), 1) for number in range(done, done + batch)]
            for (array, by), result in zip(calls, gather(large, calls), strict=True):
                assert np.array_equal(result, array + by)
                del result
        del calls
        done += batch
        if done % every < batch:
            gc.collect()
            samples.append({"tasks": done, **look(connector)})
    return {"tasks": done, "seconds": round(time.monotonic() - start, 1), "samples": samples}


def verdicts(run: dict[str, Any]) -> list[dict[str, Any]]:
    """For each process: memory after the warm-up and at the end, growth by the fitted line, descriptors."""
    found = []
    samples = [sample for sample in run["samples"] if sample["tasks"] > WARM_UP * run["tasks"]]
    for name in sorted({name for sample in samples for name in sample} - {"tasks", "objects", "stored MB"}):
        there = [sample for sample in samples if name in sample]
        if len(there) < 5:
            continue
        tasks = np.array([sample["tasks"] for sample in there], dtype=float)
        memory = np.array([sample[name][0] for sample in there])
        slope = float(np.polyfit(tasks, memory, 1)[0])
        growth = slope * float(tasks[-1] - tasks[0])
        fds = [sample[name][1] for sample in there]
        found.append(
            {
                "process": name,
                "first MB": round(float(memory[0]), 1),
                "last MB": round(float(memory[-1]), 1),
                "growth MB": round(growth, 1),
                "kB per 1000 tasks": round(1e6 * slope, 1),
                "descriptors": [fds[0], fds[-1]],
                "flat": bool(growth < GROWTH and fds[-1] - fds[0] <= FDS),
            }
        )
    return found


_HEAD = f"""\
# Soak

Written by `make soak`. Small tasks pass an integer; large ones take and return an array of 1 MB through
`shm://`, two workers. A line is fitted through the memory (RSS) of each process after a warm-up, a fifth of
the tasks: a growth by it of {GROWTH:g} MB or more, or more than {FDS} new file descriptors, fails.
"""
_COLUMNS = {
    "process": "process",
    "first MB": "after warm-up, MB",
    "last MB": "at the end, MB",
    "growth MB": "growth by the line, MB",
    "kB per 1000 tasks": "kB per 1000 tasks",
    "descriptors": "descriptors, after warm-up and at the end",
    "flat": "flat",
}


def report(folder: Path) -> str:
    """All results in a folder as Markdown."""
    lines = [_HEAD]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        machine = result["machine"]
        lines += [f"## {path.stem}", "", f"{machine['processor']}, {machine['cores']} cores."]
        for kind in ("small", "large"):
            run = result[kind]
            most = max(sample["stored MB"] for sample in run["samples"])
            story = (
                f"{run['tasks']} {kind} tasks in {run['seconds']:.0f} s; at most {most:.1f} MB in the store"
            )
            lines += ["", f"{story} when looked at, {result['left']} objects at the end.", ""]
            lines += [f"| {' | '.join(_COLUMNS.values())} |", f"|{'---|' * len(_COLUMNS)}"]
            for one in run["verdicts"]:
                cells = one | {"flat": "yes" if one["flat"] else "**no**"}
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
        result = json.loads(path.read_text())
        for kind, axes in zip(("small", "large"), row, strict=True):
            for name in [one["process"] for one in result[kind]["verdicts"]]:
                there = [sample for sample in result[kind]["samples"] if name in sample]
                axes.plot([one["tasks"] for one in there], [one[name][0] for one in there], label=name)
            axes.set(title=f"{path.stem}: {kind} tasks", xlabel="tasks", ylabel="memory, MB")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(folder / "memory.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--engine", default=",".join(ENGINES), help="names, separated by commas")
    parser.add_argument("--small", type=int, default=100_000, help="small tasks")
    parser.add_argument("--large", type=int, default=5_000, help="large tasks")
    parser.add_argument("--store", default="shm://soak", help="URL")
    parser.add_argument("--out", type=Path, default=_OUT, help="folder of the results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = _ROOT  # workers import this module
    leaking = []
    for name in options.engine.split(","):
        connector = open_connector(options.store)
        result: dict[str, Any] = {"machine": describe()}
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            with ENGINES[name](options.store, place) as (gather, _):
                for kind, count, batch in (("small", options.small, 500), ("large", options.large, 10)):
                    run = soak(gather, connector, kind, count, batch)
                    run["verdicts"] = verdicts(run)
                    result[kind] = run
                    bad = [one["process"] for one in run["verdicts"] if not one["flat"]]
                    print(
                        f"{name}: {count} {kind} in {run['seconds']} s, not flat: {bad or 'nothing'}",
                        flush=True,
                    )
                    leaking += [f"{name}: {process}" for process in bad]
            lister = surveyed(connector)
            assert lister is not None
            result["left"] = sum(one.objects for one in lister.held().values())
        connector.close()
        if result["left"]:
            leaking.append(f"{name}: {result['left']} objects are left")
        (options.out / f"{name}.json").write_text(json.dumps(result) + "\n")
        (options.out / "report.md").write_text(report(options.out))
        draw(options.out)
    sys.exit("\n".join(leaking))


if __name__ == "__main__":
    importlib.import_module("benchmarks.soak").main()  # workers import its tasks, and not those of __main__
