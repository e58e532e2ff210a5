"""Ray whose jobs have a store, with no line changed."""

from __future__ import annotations

import os
from types import ModuleType

__all__ = ["instrument", "uninstrument"]

_VARIABLE = "RAY_RUNTIME_ENV_HOOK"
_HOOK = "proxystore_integrations.ray.runtime_env_hook"


def instrument(module: ModuleType) -> None:
    """Let ``ray.init`` ask our hook, unless the user has one.

    Args:
        module: ray.
    """
    os.environ.setdefault(_VARIABLE, _HOOK)


def uninstrument(module: ModuleType) -> None:
    """Undo `instrument`.

    Args:
        module: ray.
    """
    if os.environ.get(_VARIABLE) == _HOOK:
        del os.environ[_VARIABLE]
