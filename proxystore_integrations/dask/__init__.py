"""Dask: a drop-in `Client` whose large arguments and gathered results go through a store.

from proxystore_integrations.dask import Client     # was: from distributed import Client
"""

from __future__ import annotations

from proxystore_integrations.dask.client import Client

__all__ = ["Client"]
