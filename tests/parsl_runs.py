"""Parsl loaded with wrapped and bare executors, for tests."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import parsl
from mounts import own_mounts
from parsl import python_app
from parsl.config import Config
from parsl.dataflow.dependency_resolvers import DEEP_DEPENDENCY_RESOLVER
from parsl.dataflow.memoization import id_for_memo
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.launchers import SingleNodeLauncher
from parsl.providers import LocalProvider

from proxystore_integrations.parsl import wrap
from proxystore_integrations.testing import objects_of

# What Parsl logs of a failure would keep the failed task's frames, and what they refer to.
logging.getLogger("parsl").setLevel(logging.CRITICAL)


@id_for_memo.register(np.ndarray)
def _array_for_memo(array: Any, output_ref: bool = False) -> bytes:
    return b"array" + array.tobytes()


def htex(label: str, **options: Any) -> Any:
    """A HighThroughputExecutor with two workers on this machine that import the tests' modules."""
    programs = os.path.dirname(sys.executable)
    if programs not in os.get_exec_path():
        os.environ["PATH"] = os.pathsep.join([programs, os.environ["PATH"]])
    worker_init = options.pop("worker_init", f"export PYTHONPATH={Path(__file__).parent}:$PYTHONPATH")
    provider = LocalProvider(
        init_blocks=1,
        max_blocks=1,
        min_blocks=1,
        worker_init=worker_init,
        launcher=options.pop("launcher", SingleNodeLauncher()),
    )
    return HighThroughputExecutor(
        label=label,
        **{
            "max_workers_per_node": 2,
            "address": "127.0.0.1",
            "encrypted": False,
            "provider": provider,
            "heartbeat_period": 2,
            "heartbeat_threshold": 6,
            **options,
        },
    )


class OwnMemoryLauncher(SingleNodeLauncher):  # type: ignore[misc]
    """Starts workers that see another /dev/shm, as workers on another machine do."""

    def __call__(self, command: str, *args: Any) -> Any:
        inside = f"mount -t tmpfs tmpfs /dev/shm && exec {command}"
        wrapped = f"{shlex.join(own_mounts())} sh -c {shlex.quote(inside)}"
        return super().__call__(wrapped, *args)


def stored(link: Any) -> list[str]:
    """Keys of what a link's session has in its store."""
    return objects_of(link)


class StoreRun:
    """A loaded Parsl with the executors ``htex`` (wrapped), ``threads`` and, if wanted, ``bare``."""

    def __init__(self, directory: Path, *, bare: bool = True, **options: Any) -> None:
        self.executor = wrap(htex("htex"))
        compared = [htex("bare")] if bare else []
        self.link = self.executor._link
        self.config = Config(
            executors=[self.executor, *compared, wrap(ThreadPoolExecutor(label="threads", max_threads=4))],
            dependency_resolver=DEEP_DEPENDENCY_RESOLVER,
            run_dir=str(directory),
            strategy="none",
            strategy_period=0.2,
            initialize_logging=False,
            **options,
        )
        self._apps: dict[Any, Any] = {}

    def __enter__(self) -> Self:
        self.flow = parsl.load(self.config)
        return self

    def __exit__(self, *error: object) -> None:
        self.flow.cleanup()
        assert not stored(self.link)

    def app(self, function: Any, label: str = "htex", **options: Any) -> Any:
        """A python_app of a function, on one executor."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        call.__name__ = getattr(function, "__name__", "call")
        return python_app(function if hasattr(function, "__name__") else call, executors=[label], **options)

    def stored(self) -> list[str]:
        return stored(self.link)
