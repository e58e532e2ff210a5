"""Parsl: large arguments and results of any Config's executors go through a store.

parsl.load(wrap(config))     # was: parsl.load(config)

Executors stay what they were, and so do apps. `StoreSerializer` is for executors that cannot be wrapped.
"""

from __future__ import annotations

from proxystore_integrations.parsl.serializer import StoreSerializer
from proxystore_integrations.parsl.wrap import wrap

__all__ = ["StoreSerializer", "wrap"]
