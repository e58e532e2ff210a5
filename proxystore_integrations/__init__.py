"""Big task arguments and results through a store, with the workflow script unchanged.

One package an engine: `proxystore_integrations.dask`, and more to come, all of one shape and with
the same settings (`proxystore_integrations.settings`).
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
