"""Engines as a client sees them, bare or with a store; each in processes of its own."""

from __future__ import annotations

import contextlib
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from chaos.own_memory import SIZE, separate

WAIT = 90.0
"""Seconds after which a client that waits for a result says that it hangs."""

_LOCAL = "127.0.0.1"


class Engine:
    """One engine. It is bare where there are no settings.

    Args:
        settings: of the store.
        place: directory for its files.
        far: workers see another /dev/shm than the client.
    """

    passes_futures = True

    def __init__(self, settings: dict[str, Any], place: Path, far: bool) -> None:
        self.settings = settings
        self.place = place
        self.far = far
        self.stack = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        raise NotImplementedError

    def submit(self, function: Any, *args: Any) -> Any:
        """A future of a call; futures among the arguments are waited for where the engine does not."""
        plain = args if self.passes_futures else [self.result(arg) for arg in args]
        return self.begin(function, *plain)

    def begin(self, function: Any, *args: Any) -> Any:
        raise NotImplementedError

    def result(self, future: Any) -> Any:
        """A future's result; anything else as it is."""
        return future.result(WAIT) if hasattr(future, "result") else future

    def wait(self, future: Any) -> None:
        """Return when a call is over, without having its result."""
        future.exception(WAIT)

    def close(self) -> None:
        self.stack.close()


class Pool(Engine):
    def start(self) -> None:
        from proxystore_integrations.futures import StoreExecutor

        self.passes_futures = bool(self.settings)
        pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=separate)
        self.executor = self.stack.enter_context(
            StoreExecutor(pool, **self.settings) if self.settings else pool
        )

    def begin(self, function: Any, *args: Any) -> Any:
        return self.executor.submit(function, *args)


class Dask(Engine):
    """A client of a cluster that is there. Results are stored, too: by default they stay with the workers."""

    def start(self) -> None:
        import distributed

        from proxystore_integrations.dask import Client

        options: dict[str, Any] = {
            "scheduler_file": str(self.place / "scheduler.json"),
            "set_as_default": False,
            "timeout": WAIT,  # for a restarted scheduler, too, on a busy machine
        }
        self.client: distributed.Client = (
            Client(**options, results="always", **self.settings)
            if self.settings
            else distributed.Client(**options)
        )
        self.stack.callback(self.client.close)
        self.client.wait_for_workers(2, timeout=WAIT)
        if self.settings:
            assert not self.client._link.elsewhere

    def begin(self, function: Any, *args: Any) -> Any:
        return self.client.submit(function, *args, pure=False)


class Parsl(Engine):
    def start(self) -> None:
        import parsl
        from parsl.config import Config
        from parsl_runs import htex

        from proxystore_integrations.parsl import wrap

        launcher = {"launcher": _separate_launcher()} if self.far else {}
        # A busy machine is no fault of these cases: a node that is late is not given up for lost.
        patience = {"heartbeat_period": 5, "heartbeat_threshold": 60}
        path = f"export PYTHONPATH={os.environ['PYTHONPATH']}"
        executor = htex("htex", worker_init=path, **patience, **launcher)
        config = Config(
            executors=[wrap(executor, **self.settings) if self.settings else executor],
            run_dir=str(self.place / "parsl"),
            strategy="none",
            retries=1,
            initialize_logging=False,
        )
        self.flow = parsl.load(config)
        self.stack.callback(self.flow.cleanup)
        self._apps: dict[Any, Any] = {}

    def begin(self, function: Any, *args: Any) -> Any:
        from parsl import python_app

        if function not in self._apps:
            self._apps[function] = python_app(function, executors=["htex"])
        return self._apps[function](*args)


def _separate_launcher() -> Any:
    import shlex

    from parsl.launchers import SingleNodeLauncher

    class Launcher(SingleNodeLauncher):  # type: ignore[misc]
        """Starts workers on a node of their own."""

        def __call__(self, command: str, *args: Any) -> Any:
            inside = f"mount -t tmpfs -o size={os.environ[SIZE]} tmpfs /dev/shm && exec {command}"
            return super().__call__(f"unshare --mount sh -c {shlex.quote(inside)}", *args)

    return Launcher()


class Ray(Engine):
    """Results are stored, too: by default they stay in Ray's own store."""

    def start(self) -> None:
        import ray
        from ray_tasks import OPTIONS

        from proxystore_integrations.ray import init

        options = {
            **OPTIONS,
            "object_store_memory": 100_000_000,
            "_temp_dir": str(self.place / "ray"),
            "_plasma_directory": str(self.place),
            "runtime_env": {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
        }
        if self.settings:
            init(**options, results="always", **self.settings)
        else:
            ray.init(**options)
        self.ray = ray
        self.stack.callback(ray.shutdown)

    def begin(self, function: Any, *args: Any) -> Any:
        return self.ray.remote(function).remote(*args)

    def result(self, future: Any) -> Any:
        return self.ray.get(future, timeout=WAIT) if isinstance(future, self.ray.ObjectRef) else future

    def wait(self, future: Any) -> None:
        self.ray.wait([future], timeout=WAIT)


ENGINES: dict[str, type[Engine]] = {"pool": Pool, "dask": Dask, "parsl": Parsl, "ray": Ray}


def dask_command(*arguments: str) -> list[str]:
    """The command that starts a part of a Dask cluster."""
    return [sys.executable, "-m", "dask", *arguments, "--host", _LOCAL, "--no-dashboard"]
