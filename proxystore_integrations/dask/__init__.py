"""Dask: a drop-in `Client` whose large arguments and gathered results go through a store.

from proxystore_integrations.dask import Client     # was: from distributed import Client

`wrap` gives a client that is already there a store; the module `proxystore_integrations.dask.preload`
in Dask's configuration gives one to every client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxystore_core import MissingExtraError

if TYPE_CHECKING:
    from proxystore_integrations.dask.client import Client, wrap
else:
    try:
        from proxystore_integrations.dask.client import Client, wrap
    except MissingExtraError as error:
        try:
            from proxystore_integrations.dask.narrow import Client, unfit, wrap
        except ImportError:
            raise error from None  # there is no Dask at all
        unfit(error)

__all__ = ["Client", "wrap"]
