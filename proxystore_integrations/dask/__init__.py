"""Dask: a drop-in `Client` whose large arguments and gathered results go through a store.

from proxystore_integrations.dask import Client     # was: from distributed import Client

`wrap` gives a client that is already there a store; the module `proxystore_integrations.dask.preload`
in Dask's configuration gives one to every client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxystore_core.errors import MissingExtraError
from proxystore_integrations.lazily import loading

if TYPE_CHECKING:
    from proxystore_integrations.dask.client import Client, wrap

__all__ = ["Client", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home: Any
    try:
        with loading(__name__):
            from proxystore_integrations.dask import client as home
    except MissingExtraError as error:
        try:
            from proxystore_integrations.dask import narrow as home
        except ImportError:
            raise error from None  # there is no Dask at all
        home.unfit(error)
    globals().update(Client=home.Client, wrap=home.wrap)
    return globals()[name]
