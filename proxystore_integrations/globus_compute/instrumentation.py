"""Globus Compute whose executors have a store, with no line changed."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from proxystore_core.errors import ConfigurationError
from proxystore_integrations.globus_compute.executor import Executor

__all__ = ["instrument", "uninstrument"]

_bare: list[Any] = []


class ByValueExecutor(Executor):
    """An `Executor` that nobody asked for by name: by value where the endpoint does not reach the store."""

    def _reach(self) -> None:
        try:
            super()._reach()
        except ConfigurationError as error:
            self._reached.add(self.endpoint_id)
            self._link.elsewhere["of the endpoint"] = str(error)
            self._link.by_value.warn(str(error))


def instrument(module: ModuleType) -> None:
    """Let ``Executor`` be one that has a store.

    Args:
        module: globus_compute_sdk.
    """
    places: Any = module, module.sdk.executor
    _bare.append(module.Executor)
    ByValueExecutor.__name__ = ByValueExecutor.__qualname__ = Executor.__name__
    for place in places:
        place.Executor = ByValueExecutor


def uninstrument(module: ModuleType) -> None:
    """Undo `instrument`.

    Args:
        module: globus_compute_sdk.
    """
    places: Any = module, module.sdk.executor
    bare = _bare.pop()
    for place in places:
        place.Executor = bare
