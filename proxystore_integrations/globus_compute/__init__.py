"""Globus Compute: a drop-in `Executor` whose large arguments and results go through a store.

from proxystore_integrations.globus_compute import Executor     # was: from globus_compute_sdk import Executor

`StoreData` is a serialization strategy for endpoints and clients that are configured rather than called.
"""

from __future__ import annotations

from proxystore_integrations.globus_compute.executor import Executor
from proxystore_integrations.globus_compute.future import GlobusFuture
from proxystore_integrations.globus_compute.strategy import StoreData

__all__ = ["Executor", "GlobusFuture", "StoreData"]
