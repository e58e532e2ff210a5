"""Connectors of the tests of UCX, in a module that other processes can import."""

from __future__ import annotations

from afar import AsFromAfar

from proxystore_core.connectors.ucx import UCXConnector


class FarUCX(AsFromAfar, UCXConnector):  # type: ignore[misc]
    """A node that is far from itself."""
