"""A drop-in for `distributed.Client` whose large values go through a store."""

from __future__ import annotations

from typing import Any

import dask.config
import distributed

from proxystore_core import ConfigurationError
from proxystore_integrations.dask.link import DaskLink
from proxystore_integrations.dask.mixin import StoreMixin
from proxystore_integrations.settings import check_spelling

__all__ = ["Client", "equip", "wrap"]


class Client(StoreMixin):
    """`distributed.Client` with a store beside the scheduler.

    Arguments over the threshold are stored once and reach the task as what they were; large
    results that this client gathers come through the store. Everything else is Dask's own.

    Args:
        address: as for `distributed.Client`, like every argument not listed here.
        threshold: size from which a value goes through the store, bytes or ``"100 kB"``.
        store: URL of the store, or a `proxystore_core.Store`.
        inputs: ``"value"``: tasks get objects; ``"proxy"``: they get lazy proxies.
        results: ``"auto"``: results stay in the workers' memory, and what this client gathers comes
            through the store; ``"always"``: large results are stored at the task's end;
            ``"never"``: results are Dask's business alone.
        on_store_error: ``"fallback"``: go by value and warn once; ``"raise"``: raise.
        lease: seconds (or ``"10 min"``) after which the objects of a client that died are dropped.

    What is not given comes from the environment, Dask's configuration (``proxystore.threshold`` and
    so on), ``proxystore.toml`` or the defaults (see `proxystore_integrations.settings`).

    Raises:
        ConfigurationError: a setting is unknown or wrong.
    """

    def __init__(
        self,
        address: Any = None,
        *args: Any,
        threshold: int | str | None = None,
        store: Any = None,
        inputs: str | None = None,
        results: str | None = None,
        on_store_error: str | None = None,
        lease: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        check_spelling(kwargs)  # a worker would be given it, and nobody told which name was wrong
        self._link = link_of(
            store,
            threshold=threshold,
            inputs=inputs,
            results=results,
            on_store_error=on_store_error,
            lease=lease,
        )
        super().__init__(address, *args, **kwargs)


def wrap(client: Any, **settings: Any) -> Any:
    """Give a Dask client that is already there a store; it stays the same object.

    Args:
        client: a `distributed.Client`, connected or about to be.
        **settings: ``threshold``, ``store``, ``inputs``, ``results``, ``on_store_error``, ``lease``, as
            for `Client`.

    Returns:
        The client; for an asynchronous client an awaitable of it. A client that has a store is
        returned as it is.

    Raises:
        ConfigurationError: a setting is unknown or wrong, the client has a store and settings are
            given again, or it is no Dask client.
    """
    if not isinstance(client, distributed.Client):
        raise ConfigurationError(
            f"{type(client).__name__} is no Dask client", remedy="Expected a distributed.Client."
        )
    if isinstance(client, StoreMixin):
        if settings:
            raise ConfigurationError(
                f"this client has a store already: {', '.join(settings)} cannot be set again",
                remedy="Give the settings where it is made or wrapped first.",
            )
        join = None
    else:
        equip(client, link_of(settings.pop("store", None), **settings))
        join = client._join  # type: ignore[attr-defined]

    async def joined() -> Any:
        if client.asynchronous:
            await client  # started
        if join is not None:
            await join()
        return client

    return client.sync(joined)


def equip(client: Any, link: DaskLink) -> None:
    """Mix our overrides into a client that has none; it joins the scheduler with ``_join``."""
    kind = type(client)
    client._link = link
    client.__class__ = Client if kind is distributed.Client else type(kind.__name__, (StoreMixin, kind), {})


def link_of(store: Any = None, **settings: Any) -> DaskLink:
    """A link with settings from everywhere.

    Args:
        store: URL of the store, an open store, or None.
        **settings: as for `Client`.
    """
    configured = dask.config.get("proxystore", default=None) or {}
    if not isinstance(configured, dict):
        raise ConfigurationError(
            f"proxystore is {configured!r} in Dask's configuration",
            remedy="Expected keys: proxystore.store ...",
        )
    table = {str(name).replace("-", "_"): value for name, value in configured.items()}
    return DaskLink(*DaskLink.settled(("Dask's configuration", table), store=store, **settings))
