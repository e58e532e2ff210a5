"""Executors of `concurrent.futures` and its relatives: large arguments and results go through a store.

executor = StoreExecutor(ProcessPoolExecutor())     # was: executor = ProcessPoolExecutor()

Importing `proxystore_integrations.futures.joblib` gives joblib the backend ``"proxystore"``.
"""

from __future__ import annotations

from proxystore_integrations.dependents import StoreFuture
from proxystore_integrations.futures.executor import StoreExecutor

__all__ = ["StoreExecutor", "StoreFuture"]
