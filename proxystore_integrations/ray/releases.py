"""The releases of Ray that this integration is for."""

from __future__ import annotations

from proxystore_integrations.releases import Releases

__all__ = ["RELEASES"]

RELEASES = Releases("Ray", "ray", (2, 60), (2, 60))
