"""Dask whose clients have a store, with no line changed."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from proxystore_core.errors import ConfigurationError
from proxystore_core.warned import warn

__all__ = ["instrument", "uninstrument"]

_PLUGIN = "proxystore"
_bare: list[Any] = []


def instrument(module: ModuleType) -> None:
    """Let a client get a store when it has connected.

    Args:
        module: distributed.
    """
    kind: Any = module.Client
    start = kind._start
    _bare.append(start)

    @functools.wraps(start)
    async def _start(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = await start(self, *args, **kwargs)
        # A worker's plugin equips the clients that tasks ask for.
        if not any(_PLUGIN in worker.plugins for worker in module.Worker._instances):
            await _equip(self)
        return started

    kind._start = _start


def uninstrument(module: ModuleType) -> None:
    """Undo `instrument`.

    Args:
        module: distributed.
    """
    kind: Any = module.Client
    kind._start = _bare.pop()


async def _equip(client: Any) -> None:
    try:
        from proxystore_integrations.dask.client import equip, link_of
        from proxystore_integrations.dask.mixin import StoreMixin

        link = link_of()
    except ConfigurationError as error:
        warn(f"this client works without a store: {error}")
        return
    if not isinstance(client, StoreMixin):
        equip(client, link)
        await client._join()
