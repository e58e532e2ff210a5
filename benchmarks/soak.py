"""Many tasks on one engine: memory and file descriptors stay flat, and nothing is in the store at the end.

``python -m benchmarks.soak --engine dask`` (``make soak`` for all); results are added to
``benchmarks/results/soak``. A line is fitted through each process's memory after a warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import describe
from benchmarks.soak_report import BARE, draw, read, report, verdicts
from proxystore_core.connectors.base import surveyed
from proxystore_core.recipe import open_connector

SIZE = 1_000_000
"""Bytes of a large argument, and of its task's result."""

_OUT = Path(__file__).parent / "results" / "soak"
_ROOT = str(Path(__file__).parent.parent)


def small(number: int) -> int:
    """A task of few bytes."""
    return number + 1


def large(array: Any, by: int) -> Any:
    """A task whose argument and result go through the store."""
    return array + by


# Engines: each gives a function that makes calls and returns their results; it is bare without settings.

Gather = Callable[[Any, list[tuple[Any, ...]]], list[Any]]


@contextlib.contextmanager
def _pool(settings: dict[str, Any], place: str) -> Iterator[Gather]:
    from concurrent.futures import ProcessPoolExecutor

    from proxystore_integrations.futures import StoreExecutor

    pool = ProcessPoolExecutor(2)
    with StoreExecutor(pool, **settings) if settings else pool as executor:

        def gather(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
            return [future.result() for future in [executor.submit(function, *call) for call in calls]]

        yield gather


@contextlib.contextmanager
def _dask(settings: dict[str, Any], place: str) -> Iterator[Gather]:
    import distributed

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
        kind = functools.partial(Client, results="always", **settings) if settings else distributed.Client
        client: Any = stack.enter_context(kind(scheduler_file=file))
        client.wait_for_workers(2)

        def gather(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
            results: list[Any] = client.gather(client.map(function, *zip(*calls, strict=True), pure=False))
            return results

        yield gather


@contextlib.contextmanager
def _dask_that_forgets(settings: dict[str, Any], place: str) -> Iterator[Gather]:
    """Dask without what 100 000 tasks do not fill: 1000 messages of each connection, 100 000 names."""
    import dask
    import distributed

    name = "distributed.admin.low-level-log-length"
    variable = f"DASK_{name.upper().replace('.', '__').replace('-', '_')}"
    os.environ[variable] = "20"
    calls_made = 0
    try:
        with dask.config.set({name: 20}), _dask(settings, place) as gather:
            client = distributed.get_client()

            def forgetting(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
                nonlocal calls_made
                results = gather(function, calls)
                calls_made += 1
                if calls_made % 4 == 0:
                    client.run(_forget_names)
                    client.run_on_scheduler(_forget_names)
                return results

            yield forgetting
    finally:
        del os.environ[variable]


def _forget_names() -> None:
    from dask.utils import key_split

    key_split.cache_clear()


@contextlib.contextmanager
def _parsl(settings: dict[str, Any], place: str) -> Iterator[Gather]:
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
    wrapped: Any = wrap(executor, **settings) if settings else executor
    with parsl.load(Config(executors=[wrapped], run_dir=place, strategy="none", initialize_logging=False)):
        apps = {function: python_app(function) for function in (small, large)}

        def gather(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
            return [future.result() for future in [apps[function](*call) for call in calls]]

        yield gather


@contextlib.contextmanager
def _ray(settings: dict[str, Any], place: str) -> Iterator[Gather]:
    import ray

    from proxystore_integrations.ray import init

    start = functools.partial(init, results="always", **settings) if settings else ray.init
    start(
        num_cpus=2,
        object_store_memory=300_000_000,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": _ROOT}},
    )
    try:
        remote = {function: ray.remote(function) for function in (small, large)}

        def gather(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
            results: list[Any] = ray.get([remote[function].remote(*call) for call in calls])
            return results

        yield gather
    finally:
        ray.shutdown()


ENGINES = {
    "pool": _pool,
    "dask": _dask,
    "dask-forgetful": _dask_that_forgets,
    "parsl": _parsl,
    "ray": _ray,
}


# Looking.

_STARTED = "SOAK_STARTED_BY"
"""Environment variable of all processes of a soak."""

_ROLES = {
    "scheduler": "scheduler",
    "interchange": "interchange",
    "process_worker_pool": "manager",
    "gcs_server": "gcs_server",
    "raylet/raylet": "raylet",
    "log_monitor": "log monitor",
    "monitor.py": "monitor",
    "agent": "agent",
    "node_server": "node server",
    "resource_tracker": "resource tracker",
    "parsl: HTEX manager": "manager",
}
"""What a process is by what its command line has in it; a worker by default."""


def _descendants() -> set[psutil.Process]:
    """This process and all that it started; a job that Parsl submits is nobody's child."""
    found = {psutil.Process()}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_STARTED) == str(os.getpid()):
                found.add(process)
    for process in list(found):
        with contextlib.suppress(psutil.Error):
            found |= set(process.children(recursive=True))
    return found


class Watch:
    """Looks at this process and all that it started, and at what is in the store.

    Args:
        connector: of the store.
    """

    def __init__(self, connector: Any) -> None:
        lister = surveyed(connector)
        assert lister is not None
        self._lister = lister
        os.environ[_STARTED] = str(os.getpid())
        self._names: dict[int, str] = {os.getpid(): "client"}
        self._roles: Counter[str] = Counter()

    def _name(self, process: psutil.Process) -> str:
        # A worker's command line may change with what it does.
        if process.pid not in self._names:
            words = " ".join(process.cmdline()) or process.name()
            role = next((role for word, role in _ROLES.items() if word in words), "worker")
            if process.name() in ("sh", "bash"):
                role = "shell"
            number = self._roles[role]
            self._roles[role] += 1
            self._names[process.pid] = f"{role} {number}" if number else role
        return self._names[process.pid]

    def look(self) -> dict[str, Any]:
        """Memory (MB) and descriptors of every process, and what is in the store."""
        held = self._lister.held()
        sample: dict[str, Any] = {
            "objects": sum(one.objects for one in held.values()),
            "stored MB": sum(one.nbytes for one in held.values()) / 1e6,
        }
        for process in sorted(_descendants(), key=lambda process: process.pid):
            with contextlib.suppress(psutil.Error):
                sample[self._name(process)] = [process.memory_info().rss / 1e6, process.num_fds()]
        return sample

    def left(self) -> int:
        """Objects in the store."""
        return sum(one.objects for one in self._lister.held().values())


def soak(gather: Gather, watch: Watch, kind: str, count: int, batch: int, limit: float) -> dict[str, Any]:
    """Make so many calls, or as many as can be had within the limit in seconds, and look fifty times."""
    samples: list[dict[str, Any]] = []
    every = max(batch, count // 50)
    start, done = time.monotonic(), 0
    while done < count and time.monotonic() - start < limit:
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
            samples.append({"tasks": done, **watch.look()})
    return {"tasks": done, "seconds": round(time.monotonic() - start, 1), "samples": samples}


def _one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Soak an engine, or a bare one; what there are to be no tasks of stays as it was."""
    settings = {} if name.endswith(BARE) else {"store": options.store, "threshold": "100 kB"}
    kinds = {"small": (options.small, 500), "large": (options.large, 10)}
    kinds = {kind: counts for kind, counts in kinds.items() if counts[0]}
    connector = open_connector(options.store)
    watch = Watch(connector)
    result: dict[str, Any] = {**read(options.out, name), "machine": describe()}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        with ENGINES[name.removesuffix(BARE)](settings, place) as gather:
            for kind, (count, batch) in kinds.items():
                result[kind] = soak(gather, watch, kind, count, batch, options.limit)
                print(f"{name}: {result[kind]['tasks']} {kind} in {result[kind]['seconds']} s", flush=True)
        for kind in kinds:
            result[kind]["left"] = watch.left()
    connector.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    everything = ",".join(
        name + suffix for name in ENGINES for suffix in (BARE, "") if name + suffix != f"dask-forgetful{BARE}"
    )
    parser.add_argument("--engine", default=everything, help=f"names with commas; dask{BARE} is bare")
    parser.add_argument("--small", type=int, default=100_000, help="small tasks; 0 leaves their results")
    parser.add_argument("--large", type=int, default=5_000, help="large tasks; likewise")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for either")
    parser.add_argument("--store", default="shm://soak", help="URL")
    parser.add_argument("--out", type=Path, default=_OUT, help="folder of the results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = _ROOT  # workers import this module
    wrong = []
    for name in options.engine.split(","):
        result = _one(name, options)
        (options.out / f"{name}.json").write_text(json.dumps(result) + "\n")
        (options.out / "report.md").write_text(report(options.out))
        draw(options.out)
        for kind in ("small", "large"):
            if kind not in result or name.endswith(BARE):
                continue
            bad = [one["process"] for one in verdicts(options.out, name, kind) if not one["flat"]]
            wrong += [f"{name}, {kind} tasks: {process} grew" for process in bad]
            if left := result[kind]["left"]:
                wrong.append(f"{name}, {kind} tasks: {left} objects are left")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    importlib.import_module("benchmarks.soak").main()  # workers import its tasks, and not those of __main__
