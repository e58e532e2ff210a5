"""Asking an engine's workers whether they reach a store. What they run needs the core alone."""

from __future__ import annotations

import importlib
import os
import runpy
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any, NamedTuple

from proxystore_core.errors import ConfigurationError, MissingExtraError

__all__ = ["ASK", "POOLS", "Question"]

POOLS = ("concurrent.futures", "joblib", "loky")
"""Pools of processes that are started to be asked."""

_WORKERS = 2  # of a pool
_ASKED = 8  # tasks for an engine that does not say how many workers it has, and lets nobody choose one


class Question(NamedTuple):
    """An object that workers look for.

    Attributes:
        recipe: of the store.
        key: of the object.
        timeout: seconds to wait for answers.
    """

    recipe: str
    key: str
    timeout: float


def look(recipe: str, key: str) -> str:
    """What a worker finds: the size of the object, or what is wrong. Runs there."""
    try:
        from proxystore_core.registry import store_for

        data = store_for(recipe).get(key)
    except Exception as error:  # whatever it is, it is the answer
        return f"{type(error).__name__}: {error}"
    return "this is another store there: the object is not in it" if data is None else str(len(data))


def look_here(recipe: str, key: str) -> tuple[str, str]:
    """`look`, and the name of the host where it ran."""
    return socket.gethostname(), look(recipe, key)


def ask_dask(address: str, question: Question) -> dict[str, str]:
    """The answers of a scheduler's workers, by their addresses."""
    _check_reach(address, question, "tcp://host:port, as the scheduler says when it starts")
    import distributed

    patience = min(5, question.timeout)
    answers: Future[dict[str, str]] = Future()

    def ask() -> None:
        try:
            with distributed.Client(address, timeout=patience, set_as_default=False) as client:
                answers.set_result(dict(client.run(look, question.recipe, question.key, on_error="return")))
        except Exception as error:
            answers.set_exception(error)

    # Dask's client waits for ever for a server that answers and is no scheduler's.
    threading.Thread(target=ask, daemon=True).start()
    return answers.result(patience + question.timeout)


def ask_ray(address: str, question: Question) -> dict[str, str]:
    """The answers of a cluster's nodes, by the first digits of their ids."""
    if address not in ("auto", "local"):
        _check_reach(address, question, "host:port, as ray start says, or auto")
    import ray

    ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        task = ray.remote(look)
        node_of = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = {
            node["NodeID"][:8]: task.options(
                num_cpus=0, scheduling_strategy=node_of(node["NodeID"], soft=False)
            ).remote(question.recipe, question.key)
            for node in ray.nodes()
            if node["Alive"]
        }
        return {node: ray.get(answer, timeout=question.timeout) for node, answer in asked.items()}
    finally:
        ray.shutdown()


def ask_parsl(place: str, question: Question) -> dict[str, str]:
    """The answers of workers of each executor in a Config, by label and host.

    Args:
        place: of the Config: ``FILE.py``, ``FILE.py:NAME`` or ``module:NAME``.
        question: what is asked.
    """
    import parsl

    config = _config(place)
    with parsl.DataFlowKernel(config) as kernel:
        labels = [label for label in kernel.executors if label != "_parsl_internal"]
        futures = {
            kernel.submit(
                look_here,
                app_args=(question.recipe, question.key),
                app_kwargs={},
                executors=[label],
                cache=False,
                ignore_for_cache=None,
            ): label
            for label in labels
            for _ in range(_ASKED)
        }
        return _answers(futures, question)


def ask_globus_compute(endpoint: str, question: Question) -> dict[str, str]:
    """The answers of workers of an endpoint, by host."""
    from globus_compute_sdk import Executor as ComputeExecutor

    executor = ComputeExecutor(endpoint)
    try:
        futures = [executor.submit(look_here, question.recipe, question.key) for _ in range(_WORKERS)]
        return _answers(dict.fromkeys(futures, ""), question)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def ask_pool(kind: str, question: Question) -> dict[str, str]:
    """The answers of a pool's workers; one of `POOLS`, started for that."""
    with _pool(kind) as executor:
        futures = {
            executor.submit(look, question.recipe, question.key): str(number)
            for number in range(1, _WORKERS + 1)
        }
        done, late = wait(futures, question.timeout)
        found = {futures[future]: future.result() for future in done}
        return found | {futures[future]: _late(question) for future in late}


def _check_reach(address: str, question: Question, expected: str) -> None:
    """See that something answers at an address: an engine itself might look for it for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise ConfigurationError(f"{address!r} is no address", remedy=f"Expected {expected}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), min(5, question.timeout)).close()
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"nothing answers there: {error}", remedy=f"Expected {expected}.") from error


def _pool(kind: str) -> Executor:
    try:
        if kind == "loky":
            import loky

            return loky.ProcessPoolExecutor(_WORKERS)  # type: ignore[no-any-return]
        if kind == "joblib":
            from joblib.externals import loky as inner

            return inner.ProcessPoolExecutor(_WORKERS)  # type: ignore[no-any-return]
    except ImportError as error:
        raise MissingExtraError(
            f"{kind} is not installed", remedy=f'Run: pip install "proxystore-integrations[{kind}]".'
        ) from error
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(_WORKERS)


def _answers(futures: dict[Future[Any], str], question: Question) -> dict[str, str]:
    """What tasks that return `look_here` found, by label and host; one that a worker cannot run says why."""
    done, late = wait(futures, question.timeout)
    found: dict[str, str] = {}
    for future in done:
        label = futures[future]
        error = future.exception()
        if error is not None:
            last = str(error).strip().rpartition("\n")[2]
            found[label or "somewhere"] = f"{type(error).__name__}: {last}"
            continue
        host, answer = future.result()
        name = f"{label} {host}".strip()
        found[name] = answer if found.get(name, "").isdigit() or name not in found else found[name]
    for future in late:
        if not any(name.startswith(futures[future]) for name in found):
            found[futures[future] or "somewhere"] = _late(question)
    return found


def _late(question: Question) -> str:
    return f"no worker has answered after {question.timeout:g} s (--timeout waits longer)"


def _config(place: str) -> Any:
    """A Config of Parsl's that the user wrote."""
    source, _, name = place.partition(":")
    name = name or "config"
    if source.endswith(".py") or os.sep in source:
        if not os.path.exists(source):
            raise ConfigurationError(
                f"there is no file {source!r}", remedy="Expected FILE.py or module:NAME."
            )
        found: Any = runpy.run_path(source, run_name="config").get(name)
    else:
        sys.path.insert(0, os.getcwd())
        found = getattr(importlib.import_module(source), name, None)
    if not hasattr(found, "executors"):
        raise ConfigurationError(
            f"{source} has no Config named {name!r}", remedy=f"Expected {source}:NAME of a parsl.Config."
        )
    return found


ASK: dict[str, Callable[[str, Question], dict[str, str]]] = {
    "dask": ask_dask,
    "globus-compute": ask_globus_compute,
    "parsl": ask_parsl,
    "pool": ask_pool,
    "ray": ask_ray,
}
"""By option of ``proxystore doctor``."""
