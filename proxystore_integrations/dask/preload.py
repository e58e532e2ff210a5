"""For Dask's configuration: gives every client a store, with no line of the script changed.

distributed:
  client:
    preload: [proxystore_integrations.dask.preload]
  scheduler:
    preload: [proxystore_integrations.dask.preload]
  worker:
    preload: [proxystore_integrations.dask.preload]

The first suffices where the scheduler and the workers have this package; the others make a missing
one show at their start.
"""

from __future__ import annotations

from typing import Any

import distributed

from proxystore_core import ConfigurationError, MissingExtraError, StoreError
from proxystore_core.warned import warn

__all__ = ["dask_setup"]


async def dask_setup(dask: Any) -> None:
    """Equip a client, a scheduler or a worker; Dask calls this when it starts.

    What is wrong becomes a warning: Dask takes no errors here.
    """
    try:
        if isinstance(dask, distributed.Client):
            await _equip_client(dask)
        elif isinstance(dask, distributed.Scheduler):
            _equip_scheduler(dask)
    except (ConfigurationError, MissingExtraError, StoreError) as error:
        kind = type(dask).__name__.lower()
        warn(f"this {kind} works without a store: {error}")


async def _equip_client(client: Any) -> None:
    from proxystore_integrations.dask.client import equip, link_of
    from proxystore_integrations.dask.mixin import StoreMixin

    if not isinstance(client, StoreMixin):
        equip(client, link_of())
        await client._join()


def _equip_scheduler(scheduler: distributed.Scheduler) -> None:
    from proxystore_integrations.dask.scheduler import StoreSchedulerPlugin

    class Preloaded(StoreSchedulerPlugin):
        # A scheduler that is starting awaits it.
        async def start(self, scheduler: distributed.Scheduler) -> None:  # type: ignore[override]
            super().start(scheduler)

    if Preloaded.name not in scheduler.plugins:
        scheduler.add_plugin(Preloaded())
