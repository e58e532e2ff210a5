"""How this process comes to a cluster, and leaves it."""

from __future__ import annotations

import functools
import inspect
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from proxystore_integrations.ray.engine import (
    client_mode_should_convert,
    core,
    global_state,
    ray,
    services_module,
    worker_module,
)

__all__ = [
    "actor",
    "connected",
    "given_to_init",
    "has_public_name",
    "is_worker",
    "job",
    "node",
    "on_connect",
    "on_disconnect",
    "on_shutdown",
    "outlives_its_job",
    "starts_cluster",
]


def connected() -> bool:
    """Whether this process is a driver or worker of a cluster: not Ray Client, not local mode."""
    worker = worker_module.global_worker
    modes = (worker_module.SCRIPT_MODE, worker_module.WORKER_MODE)
    return worker.connected and worker.mode in modes and not client_mode_should_convert()


def is_worker() -> bool:
    """Whether this process is a worker of a cluster, and no driver."""
    return bool(worker_module.global_worker.mode == worker_module.WORKER_MODE)


def job() -> str:
    """ID of the job that this process works for, in hexadecimal digits."""
    return str(worker_module.global_worker.current_job_id.hex())


def actor() -> str:
    """ID of the actor that this process is, in hexadecimal digits; empty when it is none."""
    found = worker_module.global_worker.actor_id
    return "" if found.is_nil() else str(found.hex())


def outlives_its_job() -> bool:
    """Whether this process is a detached actor, or works for one."""
    return not core().get_current_root_detached_actor_id().is_nil()


@functools.lru_cache(1)
def has_public_name(actor: str) -> bool:
    """Whether other jobs can have found this actor by its name; takes a millisecond, once.

    Args:
        actor: ID of this process's.
    """
    context = ray.get_runtime_context()
    name, namespace = context.get_actor_name(), context.namespace
    if not name:
        return False
    try:
        uuid.UUID(namespace)  # Ray makes one up for a job that has not named its own
    except ValueError:
        return True
    return {"name": name, "namespace": namespace} not in ray.util.list_named_actors(all_namespaces=True)


def node() -> str:
    """ID of the node that this process is on, in hexadecimal digits."""
    return str(worker_module.global_worker.current_node_id.hex())


def given_to_init() -> Mapping[str, Any] | None:
    """The arguments of the `ray.init` that has called the caller; None where none has."""
    code = getattr(inspect.unwrap(ray.init), "__code__", None)
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else {**frame.f_locals.get("kwargs", {}), **frame.f_locals}


def starts_cluster(given: Mapping[str, Any]) -> bool:
    """Whether `ray.init` starts a cluster of its own and joins none.

    Args:
        given: its arguments by name.
    """
    address: Any = given.get("address")
    try:
        address = services_module.canonicalize_bootstrap_address(address, given.get("_temp_dir"))
    except Exception:  # ray.init meets the same, and raises its own error
        return False
    return address is None and not given.get("local_mode")


def on_connect(call: Callable[[], None]) -> None:
    """Call a function whenever this process has joined a cluster. To be asked for once."""
    _after(worker_module, "connect", call)


def on_disconnect(call: Callable[[], None]) -> None:
    """Call a function whenever this process has left its cluster. To be asked for once."""
    _after(worker_module, "disconnect", call)


def on_shutdown(call: Callable[[], None]) -> None:
    """Call a function whenever Ray has killed the workers of this driver, which is disconnected by then.

    To be asked for once.
    """
    _after(global_state, "disconnect", call)


def _after(place: Any, name: str, call: Callable[[], None]) -> None:
    theirs = getattr(place, name)

    @functools.wraps(theirs)
    def then(*args: Any, **kwargs: Any) -> Any:
        try:
            return theirs(*args, **kwargs)
        finally:
            call()

    setattr(place, name, then)
