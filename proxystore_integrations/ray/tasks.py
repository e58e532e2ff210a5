"""Calls of Ray's tasks and actors: whose they are, and whether they have ended."""

from __future__ import annotations

from typing import Any

from proxystore_integrations.ray.engine import ActorClass, ActorHandle, RemoteFunction, core, ray
from proxystore_integrations.ray.joining import connected, is_worker

__all__ = ["ended", "is_error", "makes_detached", "module_of", "task_module"]


def ended(reference: Any, seconds: float | None) -> bool:
    """Wait for a call's end, and leave its result where it is.

    Args:
        reference: ObjectRef of the result.
        seconds: None for no end.

    Returns:
        Whether it has ended, or nobody can tell any more.
    """
    if not connected():
        return True  # and nothing is asked: Ray would start a cluster for that
    try:
        return bool(ray.wait([reference], timeout=seconds, fetch_local=False)[0])
    except Exception:  # disconnected
        return not connected()


def is_error(value: Any) -> bool:
    """Whether Ray treats a value as the failure of a task."""
    return isinstance(value, ray.exceptions.RayError)


def makes_detached(called: Any, lifetime: str | None) -> bool:
    """Whether a call makes a detached actor.

    Args:
        called: remote function, actor's class or actor.
        lifetime: option of the call; None for the job's default.
    """
    if not isinstance(called, ActorClass):
        return False
    if lifetime is not None:
        return lifetime == "detached"
    config = core().get_job_config()
    return bool(config.default_actor_lifetime == config.DETACHED)


def module_of(called: Any) -> str:
    """Name of the module of a remote function, an actor's class or an actor; empty when not Python's."""
    if isinstance(called, RemoteFunction):
        return getattr(called._function, "__module__", None) or ""
    if isinstance(called, ActorHandle):
        descriptor = called._ray_actor_creation_function_descriptor
        return "" if called._ray_is_cross_language else str(getattr(descriptor, "module_name", ""))
    return getattr(called.__ray_metadata__.modified_class, "__module__", None) or ""


def task_module() -> str:
    """Dotted name of the function or method that this worker runs; empty in a driver."""
    if not is_worker():
        return ""
    return ray.get_runtime_context().get_task_function_name() or ""
