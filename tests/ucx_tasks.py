"""Connectors of the tests of UCX, in a module that other processes can import."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from node_tasks import AsFromAfar

from proxystore_core.connectors.node_place import SECRET
from proxystore_core.connectors.ucx import Channel, UCXConnector


class FarUCX(AsFromAfar, UCXConnector):  # type: ignore[misc]
    """A node that is far from itself."""


class OverUCX:
    """Has UCX move the data of a class's tests, which without devices for RDMA it does when it is told to."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _told(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UCX_TLS", "tcp,sm")
            patch.setenv(SECRET, secrets.token_hex(32))  # a node, and a server, of its own
            yield

    @pytest.fixture
    def moved_by_ucx(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Bytes of each piece of data that comes by UCX."""
        found: list[int] = []
        receive = Channel._receive

        def watched(channel: Channel, view: memoryview, *others: Any) -> None:
            receive(channel, view, *others)
            found.append(view.nbytes)

        monkeypatch.setattr(Channel, "_receive", watched)
        return found
