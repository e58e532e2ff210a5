"""Engines with a worker of their own, by what calls a function there: ``submit(function, *arguments)``."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

__all__ = ["ENGINES", "on_joblib"]


def on_pool(stack: ExitStack, **options: Any) -> Any:
    from proxystore_integrations.futures import StoreExecutor

    pool = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
    return stack.enter_context(StoreExecutor(pool, **options)).submit


def on_dask(stack: ExitStack, **options: Any) -> Any:
    from distributed import LocalCluster

    from proxystore_integrations.dask import Client

    cluster = stack.enter_context(LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None))
    return partial(stack.enter_context(Client(cluster, **options)).submit, pure=False)


def on_joblib(stack: ExitStack, **options: Any) -> Any:
    from joblib import Parallel, delayed

    from proxystore_integrations.futures.joblib import StoreBackend

    class Called:
        def __init__(self, value: Any) -> None:
            self.value = value

        def result(self, timeout: float) -> Any:
            return self.value

    parallel = stack.enter_context(Parallel(n_jobs=2, backend=StoreBackend(**options)))
    return lambda function, *args: Called(parallel([delayed(function)(*args)])[0])


def on_parsl(stack: ExitStack, **options: Any) -> Any:
    import parsl
    from parsl_runs import htex

    from proxystore_integrations.parsl import wrap

    config = parsl.Config(
        [wrap(htex("htex", max_workers_per_node=1), **options)],
        run_dir=stack.enter_context(tempfile.TemporaryDirectory(prefix="runs")),
        strategy="none",
        initialize_logging=False,
    )
    flow = stack.enter_context(parsl.load(config))
    return lambda function, *args: parsl.python_app(function, flow)(*args)


ENGINES = [on_pool, on_dask, on_parsl]
