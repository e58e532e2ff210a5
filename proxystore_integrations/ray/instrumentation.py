"""Ray whose jobs have a store, with no line changed."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

__all__ = ["instrument", "made_by_theirs", "uninstrument"]

_THEIRS = "_PROXYSTORE_RAY_RUNTIME_ENV_HOOK"
_VARIABLE = "RAY_RUNTIME_ENV_HOOK"
_HOOK = "proxystore_integrations.ray.runtime_env_hook"


def instrument(module: ModuleType) -> None:
    """Let ``ray.init`` ask our hook, which asks the user's first, if there is one.

    Args:
        module: ray.
    """
    theirs = os.environ.get(_VARIABLE)
    if theirs and theirs != _HOOK:
        os.environ[_THEIRS] = theirs
    os.environ[_VARIABLE] = _HOOK


def uninstrument(module: ModuleType) -> None:
    """Undo `instrument`.

    Args:
        module: ray.
    """
    theirs = os.environ.pop(_THEIRS, None)
    if os.environ.get(_VARIABLE) == _HOOK:
        if theirs:
            os.environ[_VARIABLE] = theirs
        else:
            del os.environ[_VARIABLE]


def made_by_theirs(runtime_env: Any) -> Any:
    """What the user's own hook, whose place ours has taken, makes of a runtime environment.

    Args:
        runtime_env: the user's, or None.
    """
    module, _, name = os.environ.get(_THEIRS, "").rpartition(".")
    return getattr(importlib.import_module(module), name)(runtime_env) if module else runtime_env
