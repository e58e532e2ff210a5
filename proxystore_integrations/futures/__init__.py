"""Executors of `concurrent.futures` and its relatives: large arguments and results go through a store.

executor = StoreExecutor(ProcessPoolExecutor())     # was: executor = ProcessPoolExecutor()

Importing `proxystore_integrations.futures.joblib` gives joblib the backend ``"proxystore"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxystore_integrations.lazily import lazily

if TYPE_CHECKING:
    from proxystore_integrations.dependents import StoreFuture
    from proxystore_integrations.futures.executor import StoreExecutor

__all__ = ["StoreExecutor", "StoreFuture"]

__getattr__ = lazily(
    __name__,
    {
        "StoreExecutor": "proxystore_integrations.futures.executor",
        "StoreFuture": "proxystore_integrations.dependents",
    },
)
