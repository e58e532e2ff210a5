"""Parsl passes what every engine passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from parsl_runs import StoreRun

from proxystore_integrations.testing import Engine, EngineContract


class ParslEngine(Engine):
    """One wrapped executor and a bare one beside it."""

    def __init__(self, run: StoreRun, label: str) -> None:
        self.run = run
        self.label = label
        self.is_local = label == "threads"

    def submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.run.app(function, self.label)(*args, **kwargs)

    def bare_submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.run.app(function, "bare" if self.label == "htex" else self.label)(*args, **kwargs)

    def store(self) -> Any:
        return self.run.link._store

    def stored(self) -> list[str]:
        return self.run.stored()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreRun]:
    with StoreRun(tmp_path_factory.mktemp("parsl")) as run:
        yield run


class TestHighThroughputExecutor(EngineContract):
    @pytest.fixture
    def engine(self, run: StoreRun) -> ParslEngine:
        return ParslEngine(run, "htex")


class TestThreadPoolExecutor(EngineContract):
    @pytest.fixture
    def engine(self, run: StoreRun) -> ParslEngine:
        return ParslEngine(run, "threads")
