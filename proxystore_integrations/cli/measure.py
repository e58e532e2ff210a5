"""An engine with and without a store, on this machine, at several sizes."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import os
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from proxystore_core.errors import ConfigurationError, MissingExtraError
from proxystore_integrations.tuned import Point
from proxystore_integrations.units import format_size

__all__ = ["ENGINES", "Engine", "Submit", "crossover", "measure", "opened"]

Submit = Callable[..., Any]
"""Submits a function with arguments and returns a future."""

_WAIT = 300.0
_BUDGET = 2.0  # seconds for one figure, after which fewer repetitions do


def measure(
    engine: str,
    store: str,
    sizes: list[int],
    *,
    repeat: int = 5,
    workers: int = 2,
    endpoint: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, list[Point]]:
    """Time calls with an argument, and calls with a result, of each size.

    Each has data of its own, and reads or writes all of it. Bare and stored take turns.

    Args:
        engine: a name in `ENGINES`.
        store: URL of the store.
        sizes: bytes, ascending; those that the engine does not take by value are left out.
        repeat: calls for each figure, of which the median counts.
        workers: processes.
        endpoint: Globus Compute's.
        progress: is told what is measured now.

    Returns:
        For ``"arguments"``, and for ``"results"`` unless the engine keeps them from the store.

    Raises:
        ConfigurationError: there is no such engine.
        MissingExtraError: it is not installed.
        StoreError: the store failed.
    """
    kind = _engine(engine)
    found: dict[str, list[Point]] = {way: [] for way in kind.ways}
    with warnings.catch_warnings(), opened(engine, store, workers, endpoint) as sides:
        warnings.simplefilter("ignore")  # an engine's own, of large arguments by value
        for submit in sides:
            for _ in range(2 * workers):
                submit(_total, _data(1000)).result(_WAIT)
        for size in [size for size in sizes if size <= kind.largest]:
            for way, points in found.items():
                progress(f"{way} of {format_size(size)}")
                seconds: tuple[list[float], list[float]] = ([], [])
                end = time.monotonic() + _BUDGET
                for turn in range(repeat + 1):
                    for submit, times in zip(sides, seconds, strict=True):
                        time.sleep(kind.pause)
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
def opened(
    engine: str, store: str, workers: int, endpoint: str | None = None
) -> Iterator[tuple[Submit, Submit]]:
    """An engine as it is, and one with a store that takes everything.

    Raises:
        ConfigurationError: there is no such engine, or it needs an endpoint.
        MissingExtraError: it is not installed.
    """
    kind = _engine(engine)
    try:
        importlib.import_module(kind.library)
    except ImportError as error:
        raise MissingExtraError(
            f"{engine} is not installed ({error})",
            remedy=f'Run: pip install "proxystore-integrations[{engine}]".',
        ) from error
    with ExitStack() as stack:
        settings = {"store": store, "threshold": 1, "on_store_error": "raise"}
        yield kind.start(stack, settings, Setup(workers, endpoint))


def _engine(name: str) -> Engine:
    if name not in ENGINES:
        raise ConfigurationError(
            f"cannot measure the engine {name!r}", remedy=f"Known: {', '.join(ENGINES)}."
        )
    return ENGINES[name]


# Engines.


def _calm() -> None:
    """For workers: a terminal's interrupt is for the main process. Who dies while it sends hangs its pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Setup(NamedTuple):
    """How an engine is to be started.

    Attributes:
        workers: processes.
        endpoint: identifier of the one that is there already.
    """

    workers: int
    endpoint: str | None


class Engine(NamedTuple):
    """An engine that can be measured.

    Attributes:
        library: that it needs.
        start: opens both sides.
        ways: that it sends through a store.
        largest: bytes that it takes by value, about.
        pause: seconds between two calls, for one that would hold back those that come faster.
    """

    library: str
    start: Callable[[ExitStack, dict[str, Any], Setup], tuple[Submit, Submit]]
    ways: tuple[str, ...] = ("arguments", "results")
    largest: float = math.inf
    pause: float = 0.0


class _Later(NamedTuple):
    """What is not a future yet has its method."""

    result: Callable[[float], Any]


def _pool(stack: ExitStack, settings: dict[str, Any], setup: Setup) -> tuple[Submit, Submit]:
    from concurrent.futures import ProcessPoolExecutor

    from proxystore_integrations.futures import StoreExecutor

    bare = stack.enter_context(ProcessPoolExecutor(setup.workers, initializer=_calm))
    ours = stack.enter_context(
        StoreExecutor(ProcessPoolExecutor(setup.workers, initializer=_calm), **settings)
    )
    return bare.submit, ours.submit


def _loky(stack: ExitStack, settings: dict[str, Any], setup: Setup) -> tuple[Submit, Submit]:
    import loky

    from proxystore_integrations.futures import StoreExecutor

    bare = stack.enter_context(loky.ProcessPoolExecutor(setup.workers, initializer=_calm))
    ours = stack.enter_context(
        StoreExecutor(loky.ProcessPoolExecutor(setup.workers, initializer=_calm), **settings)
    )
    return bare.submit, ours.submit


def _dask(stack: ExitStack, settings: dict[str, Any], setup: Setup) -> tuple[Submit, Submit]:
    from distributed import Client as Bare
    from distributed import LocalCluster

    from proxystore_integrations.dask import Client

    clients: list[Any] = []
    for kind, options in ((Bare, {}), (Client, settings)):
        cluster = stack.enter_context(
            LocalCluster(n_workers=setup.workers, threads_per_worker=1, dashboard_address=None)
        )
        clients.append(stack.enter_context(kind(cluster, set_as_default=False, **options)))

    def submit(client: Any) -> Submit:
        return lambda function, *args: client.submit(function, *args, pure=False)

    return submit(clients[0]), submit(clients[1])


def _parsl(stack: ExitStack, settings: dict[str, Any], setup: Setup) -> tuple[Submit, Submit]:
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
            heartbeat_period=2,  # and its workers end soon after it
            heartbeat_threshold=6,
            max_workers_per_node=setup.workers,
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


def _ray(stack: ExitStack, settings: dict[str, Any], setup: Setup) -> tuple[Submit, Submit]:
    import ray

    from proxystore_integrations.ray import init
    from proxystore_integrations.ray.link import suspended

    # Where Ray may choose, what is passed once goes through plasma.
    init(
        "local",
        num_cpus=setup.workers,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        results="never",
        **settings,
    )
    stack.callback(ray.shutdown)
    remote = {function: ray.remote(function) for function in (_total, _data)}

    def submit(function: Any, *args: Any) -> Any:
        reference = remote[function].remote(*args)
        return _Later(lambda seconds: ray.get(reference, timeout=seconds))

    def bare(function: Any, *args: Any) -> Any:
        with suspended():
            return submit(function, *args)

    return bare, submit


def _joblib(stack: ExitStack, settings: dict[str, Any], setup: Setup) -> tuple[Submit, Submit]:
    import joblib

    import proxystore_integrations.futures.joblib  # noqa: F401  registers the backend

    def submit(backend: str, **options: Any) -> Submit:
        def call(function: Any, *args: Any) -> Any:
            with joblib.parallel_config(backend, n_jobs=setup.workers, **options):
                (result,) = joblib.Parallel(batch_size=1)([joblib.delayed(function)(*args)])
            return _Later(lambda seconds: result)

        return call

    return submit("loky"), submit("proxystore", **settings)


def _globus(stack: ExitStack, settings: dict[str, Any], setup: Setup) -> tuple[Submit, Submit]:
    from globus_compute_sdk import Executor as Bare

    from proxystore_integrations.globus_compute import Executor

    if setup.endpoint is None:
        raise ConfigurationError(
            "Globus Compute is measured at one of your endpoints", remedy="Name it: --endpoint UUID."
        )
    bare = stack.enter_context(Bare(setup.endpoint))
    ours = stack.enter_context(Executor(setup.endpoint, **settings))
    return bare.submit, ours.submit


ENGINES: dict[str, Engine] = {
    "concurrent.futures": Engine("concurrent.futures", _pool),
    "dask": Engine("distributed", _dask),
    # The service takes 10 MB a submission, of what is encoded as text; the SDK lets 4 of 16 s go at once.
    "globus-compute": Engine("globus_compute_sdk", _globus, largest=5_000_000, pause=4.0),
    "joblib": Engine("joblib", _joblib),
    "loky": Engine("loky", _loky),
    "parsl": Engine("parsl", _parsl),
    "ray": Engine("ray", _ray, ways=("arguments",)),
}
"""Engines that can be measured, by name."""


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
