"""For a Ray whose inside nobody has tested: large arrays of the driver, through Ray's public serializer hook.

The driver's NumPy arrays, as arguments, inside arguments and in `ray.put`, go through the store by the same
rules. Everything else, and what workers send, goes by Ray's own way. What was stored stays until Ray is
shut down: nothing public tells when a task will not run again.
"""

from __future__ import annotations

import atexit
import os
import warnings
from typing import Any

import ray

from proxystore_core import ConfigurationError, MissingExtraError, Reference, SerializationError, StoreError
from proxystore_integrations import __version__
from proxystore_integrations.carriers import NotDeliveredError, check_version
from proxystore_integrations.ray.cluster import ClusterLink, check_address, settings_among
from proxystore_integrations.ray.instrumentation import made_by_theirs
from proxystore_integrations.ray.releases import RELEASES

__all__ = ["init", "instrument", "runtime_env_hook", "unfit", "worker_setup"]

RELEASES.check_minimum(ray.__version__)

_reason: list[str] = []
_current: ClusterLink | None = None


def unfit(error: MissingExtraError) -> None:
    """Note why the whole integration cannot work with this Ray; said when it is first used."""
    _reason[:] = [str(error)]


def init(*args: Any, **kwargs: Any) -> Any:
    """As `ray.init`; then large arrays that the driver passes go through a store."""
    settings = settings_among(kwargs)
    check_address(args, kwargs)
    ClusterLink.settled(**settings)
    context = ray.init(*args, **kwargs)
    instrument(**settings)
    return context


def instrument(**settings: Any) -> None:
    """Give a Ray that runs already a store; this process is its driver.

    Raises:
        ConfigurationError: a setting is unknown or wrong, or Ray does not run here.
        StoreError: the store cannot be opened, and the settings want that raised.
    """
    global _current
    if not ray.is_initialized():
        raise ConfigurationError(
            "Ray does not run in this process",
            remedy="Call ray.init() first, or proxystore_integrations.ray.init() in its place.",
        )
    if _current is not None:
        return
    if _reason:
        warnings.warn(
            f"Only the driver's large NumPy arrays go through the store: {_reason.pop()}",
            RuntimeWarning,
            stacklevel=3,
        )
    link = ClusterLink(*ClusterLink.settled(**settings))
    try:
        link.open()
    except StoreError as error:
        link.by_value.accept(error, "work")
        return
    try:
        import numpy as np
    except ImportError:  # there are no arrays
        link.close()
        return
    _current = link
    ray.util.register_serializer(np.ndarray, serializer=_sent, deserializer=_received)
    if not hasattr(ray.shutdown, "_proxystore"):
        _close_with_ray()


def runtime_env_hook(runtime_env: Any) -> Any:
    """For ``RAY_RUNTIME_ENV_HOOK``: says that this Ray needs a line in the script."""
    warnings.warn(
        f"This Ray works without a store: {_reason[0] if _reason else 'it is not tested'} "
        "Call proxystore_integrations.ray.instrument() after ray.init() for the driver's large arrays.",
        RuntimeWarning,
        stacklevel=2,
    )
    return made_by_theirs(runtime_env)


def worker_setup() -> None:
    """Workers need nothing."""


def _close_with_ray() -> None:
    shutdown: Any = ray.shutdown

    def closing(*args: Any, **kwargs: Any) -> Any:
        try:
            return shutdown(*args, **kwargs)
        finally:
            _leave()

    closing._proxystore = True  # type: ignore[attr-defined]
    ray.shutdown = closing
    atexit.register(_leave)


def _leave() -> None:
    global _current
    link, _current = _current, None
    if link is not None:
        link.close()


def _sent(array: Any) -> Any:
    """Our version and a large array's reference; of others what pickle makes of them, buffers out of band."""
    link = _current
    if link is not None and link.policy.over(array) and not link.leaves(array) and link.reached:
        try:
            return __version__, link.sharing.reference(array)
        except SerializationError:
            pass  # Ray meets the same object and raises its own error
        except StoreError as error:
            link.by_value.accept(error, "pass an argument")
    return array.__reduce_ex__(5)


def _received(form: Any) -> Any:
    first, second, *state = form
    if type(second) is not Reference:
        array = first(*second)
        if state:
            array.__setstate__(state[0])
        return array
    check_version(first)
    try:
        return second()
    except StoreError as error:
        raise NotDeliveredError(
            f"a value of this task or object cannot be had in process {os.getpid()}: {error.problem}",
            store=error.store,
            key=error.key,
            remedy=error.remedy,
        ) from error
