"""Dask passes what every engine passes."""

from __future__ import annotations

from typing import Any

import pytest

from proxystore_integrations.testing import Engine, EngineContract


class DaskEngine(Engine):
    keeps_tasks = True
    runs_again = True

    def __init__(self, client: Any, bare: Any, stored: Any) -> None:
        self.client = client
        self.bare = bare
        self.stored = stored

    def submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.client.submit(function, *args, pure=False, **kwargs)

    def bare_submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.bare.submit(function, *args, pure=False, **kwargs)

    def store(self) -> Any:
        return self.client._link._store


class TestDask(EngineContract):
    @pytest.fixture
    def engine(self, client: Any, bare_client: Any, stored: Any) -> DaskEngine:
        return DaskEngine(client, bare_client, stored)
