"""joblib whose usual backend has a store, with no line changed."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from proxystore_core.errors import StoreError
from proxystore_core.warned import warn

__all__ = ["instrument", "uninstrument"]

_NAME = "loky"
_bare: list[Any] = []


def instrument(module: ModuleType) -> None:
    """Let ``Parallel(...)`` use a loky backend that has a store.

    Args:
        module: joblib.
    """
    backends = module.parallel.BACKENDS
    bare = backends[_NAME]
    _bare.append(bare)

    def backend(**options: Any) -> Any:
        from proxystore_integrations.futures.joblib import StoreBackend
        from proxystore_integrations.settings import Settings

        try:
            Settings.load()
        except StoreError as error:
            warn(f"joblib works without a store: {error}")
            return bare(**options)
        # joblib prints the name.
        return type(bare.__name__, (StoreBackend,), {"__module__": bare.__module__})(**options)

    backends[_NAME] = backend


def uninstrument(module: ModuleType) -> None:
    """Undo `instrument`.

    Args:
        module: joblib.
    """
    module.parallel.BACKENDS[_NAME] = _bare.pop()
