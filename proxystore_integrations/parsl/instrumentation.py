"""Parsl whose executors have a store, with no line changed."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from proxystore_core.errors import ConfigurationError
from proxystore_core.warned import warn

__all__ = ["instrument", "uninstrument"]

_INTERNAL = "_parsl_internal"
_bare: list[Any] = []


def instrument(module: ModuleType) -> None:
    """Let every executor that a kernel is given have a store.

    Args:
        module: parsl.
    """
    kernel: Any = module.DataFlowKernel
    add_executors = kernel.add_executors
    _bare.append(add_executors)

    @functools.wraps(add_executors)
    def adding(self: Any, executors: Any) -> Any:
        from proxystore_integrations.parsl.wrap import wrap

        try:
            for executor in executors:
                if executor.label != _INTERNAL:
                    wrap(executor)
        except ConfigurationError as error:
            warn(f"this Parsl works without a store: {error}")
        return add_executors(self, executors)

    kernel.add_executors = adding


def uninstrument(module: ModuleType) -> None:
    """Undo `instrument`.

    Args:
        module: parsl.
    """
    kernel: Any = module.DataFlowKernel
    kernel.add_executors = _bare.pop()
