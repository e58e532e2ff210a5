"""An engine with and without a store, on this machine, at several sizes."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from proxystore_core.errors import ConfigurationError, MissingExtraError

__all__ = ["ENGINES", "Point", "Submit", "crossover", "measure", "opened"]

Submit = Callable[..., Any]
"""Submits a function with arguments and returns a future."""

_WAIT = 300.0
_BUDGET = 2.0  # seconds for one figure, after which fewer repetitions do


class Point(NamedTuple):
    """One size.

    Attributes:
        size: bytes.
        bare: seconds of a call by value.
        stored: seconds of a call through the store.
    """

    size: int
    bare: float
    stored: float


def measure(
    engine: str,
    store: str,
    sizes: list[int],
    *,
    repeat: int = 5,
    workers: int = 2,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, list[Point]]:
    """Time calls with an argument, and calls with a result, of each size.

    Each has data of its own, and reads or writes all of it. Bare and stored take turns.

    Args:
        engine: a name in `ENGINES`.
        store: URL of the store.
        sizes: bytes, ascending.
        repeat: calls for each figure, of which the median counts.
        workers: processes.
        progress: is told what is measured now.

    Returns:
        For ``"arguments"`` and ``"results"``.

    Raises:
        ConfigurationError: there is no such engine.
        MissingExtraError: it is not installed.
        StoreError: the store failed.
    """
    found: dict[str, list[Point]] = {"arguments": [], "results": []}
    with opened(engine, store, workers) as sides:
        for submit in sides:
            for _ in range(2 * workers):
                submit(_total, _data(1000)).result(_WAIT)
        for size in sizes:
            for way, points in found.items():
                progress(f"{way} of {size} B")
                seconds: tuple[list[float], list[float]] = ([], [])
                end = time.monotonic() + _BUDGET
                for turn in range(repeat + 1):
                    for submit, times in zip(sides, seconds, strict=True):
                        times.append(_timed(submit, way, size))
                    if turn >= 2 and time.monotonic() > end:
                        break
                # The first call of a size warms up.
                points.append(Point(size, *(statistics.median(times[1:]) for times in seconds)))
    return found


def crossover(points: list[Point]) -> int | None:
    """The smallest measured size from which the store is the faster way at every size; None if at none."""
    found = None
    for point in reversed(points):
        if point.stored > point.bare:
            break
        found = point.size
    return found


@contextmanager
def opened(engine: str, store: str, workers: int) -> Iterator[tuple[Submit, Submit]]:
    """An engine as it is, and one with a store that takes everything.

    Raises:
        ConfigurationError: there is no such engine.
        MissingExtraError: it is not installed.
    """
    if engine not in ENGINES:
        raise ConfigurationError(
            f"cannot measure the engine {engine!r}", remedy=f"Known: {', '.join(ENGINES)}."
        )
    library, start = ENGINES[engine]
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise MissingExtraError(
            f"{engine} is not installed ({error})",
            remedy=f'Run: pip install "proxystore-integrations[{engine}]".',
        ) from error
    with ExitStack() as stack:
        yield start(stack, {"store": store, "threshold": 1, "on_store_error": "raise"}, workers)


# Engines.


def _pool(stack: ExitStack, settings: dict[str, Any], workers: int) -> tuple[Submit, Submit]:
    from concurrent.futures import ProcessPoolExecutor

    from proxystore_integrations.futures import StoreExecutor

    bare = stack.enter_context(ProcessPoolExecutor(workers))
    ours = stack.enter_context(StoreExecutor(ProcessPoolExecutor(workers), **settings))
    return bare.submit, ours.submit


def _loky(stack: ExitStack, settings: dict[str, Any], workers: int) -> tuple[Submit, Submit]:
    import loky

    from proxystore_integrations.futures import StoreExecutor

    bare = stack.enter_context(loky.ProcessPoolExecutor(workers))
    ours = stack.enter_context(StoreExecutor(loky.ProcessPoolExecutor(workers), **settings))
    return bare.submit, ours.submit


def _dask(stack: ExitStack, settings: dict[str, Any], workers: int) -> tuple[Submit, Submit]:
    from distributed import Client as Bare
    from distributed import LocalCluster

    from proxystore_integrations.dask import Client

    clients: list[Any] = []
    for kind, options in ((Bare, {}), (Client, settings)):
        cluster = stack.enter_context(
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        )
        clients.append(stack.enter_context(kind(cluster, set_as_default=False, **options)))

    def submit(client: Any) -> Submit:
        return lambda function, *args: client.submit(function, *args, pure=False)

    return submit(clients[0]), submit(clients[1])


def _parsl(stack: ExitStack, settings: dict[str, Any], workers: int) -> tuple[Submit, Submit]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    from proxystore_integrations.parsl import wrap

    programs = os.path.dirname(sys.executable)
    if programs not in os.get_exec_path():  # where Parsl's workers are
        os.environ["PATH"] = os.pathsep.join([programs, os.environ["PATH"]])

    def htex(label: str) -> Any:
        return HighThroughputExecutor(
            label=label,
            address="127.0.0.1",
            encrypted=False,
            max_workers_per_node=workers,
            provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
        )

    directory = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    executors = [htex("bare"), wrap(htex("store"), **settings)]
    config = Config(executors=executors, run_dir=directory, strategy="none", initialize_logging=False)
    flow = stack.enter_context(parsl.DataFlowKernel(config))

    def submit(label: str) -> Submit:
        def app(function: Any, *args: Any) -> Any:
            return flow.submit(
                function, app_args=args, app_kwargs={}, executors=[label], cache=False, ignore_for_cache=None
            )

        return app

    return submit("bare"), submit("store")


ENGINES: dict[str, tuple[str, Callable[..., tuple[Submit, Submit]]]] = {
    "concurrent.futures": ("concurrent.futures", _pool),
    "dask": ("distributed", _dask),
    "loky": ("loky", _loky),
    "parsl": ("parsl", _parsl),
}
"""Engines that can be measured, by name: the library, and how both sides are started."""


# What is timed.

_numbers = itertools.count(1)


def _data(size: int) -> Any:
    """Data that no call before had; an array where numpy is installed."""
    with contextlib.suppress(ImportError):
        import numpy as np

        return np.full(max(size // 8, 1), float(next(_numbers)))
    return next(_numbers).to_bytes(8, "little") * (size // 8)


def _total(data: Any) -> float:
    return float(data.sum() if hasattr(data, "sum") else data.count(b"\x01"))


def _timed(submit: Submit, way: str, size: int) -> float:
    if way == "arguments":
        data = _data(size)
        start = time.perf_counter()
        submit(_total, data).result(_WAIT)
        return time.perf_counter() - start
    start = time.perf_counter()
    _total(submit(_data, size).result(_WAIT))
    return time.perf_counter() - start
