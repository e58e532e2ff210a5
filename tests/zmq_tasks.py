"""Connectors of the tests of ZeroMQ, in a module that other processes can import."""

from __future__ import annotations

from afar import AsFromAfar

from proxystore_core.connectors.zmq import ZeroMQConnector


class FarZeroMQ(AsFromAfar, ZeroMQConnector):  # type: ignore[misc]
    """A node that is far from itself."""
