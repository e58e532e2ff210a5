"""Executors of concurrent.futures and relatives pass what every engine passes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Self

import loky
import pytest

from proxystore_integrations.futures import StoreExecutor
from proxystore_integrations.testing import Engine, EngineContract, objects_of


@pytest.fixture(scope="module", autouse=True)
def threshold() -> Iterator[None]:
    """As everywhere else in the tests, so that arrays need not be large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXYSTORE_THRESHOLD", "100 kB")
        yield


class FuturesEngine(Engine):
    def __init__(self, make: Callable[[], Executor], *, by_name_only: bool, is_local: bool = False) -> None:
        self._make = make
        self.executor = StoreExecutor(make())
        self.bare = make()
        self.by_name_only = by_name_only
        self.is_local = is_local
        self.passes_futures = not is_local  # a thread pool's own futures stay what they are

    def submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.executor.submit(function, *args, **kwargs)

    def bare_submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.bare.submit(function, *args, **kwargs)

    def store(self) -> Any:
        if not self.executor._link.is_open:
            self.executor._link.open()
        return self.executor._link._store

    def stored(self) -> list[str]:
        return objects_of(self.executor._link)

    def fresh(self) -> FuturesEngine:
        return FuturesEngine(self._make, by_name_only=self.by_name_only)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.shutdown()
        self.bare.shutdown()


def processes(method: str) -> Callable[[], Executor]:
    return lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method))


@pytest.fixture(scope="module", params=["fork", "spawn", "forkserver"])
def process_pool(threshold: None, request: pytest.FixtureRequest) -> Iterator[FuturesEngine]:
    with FuturesEngine(processes(request.param), by_name_only=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def thread_pool(threshold: None) -> Iterator[FuturesEngine]:
    with FuturesEngine(lambda: ThreadPoolExecutor(4), by_name_only=False, is_local=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def loky_pool(threshold: None) -> Iterator[FuturesEngine]:
    with FuturesEngine(lambda: loky.ProcessPoolExecutor(2), by_name_only=False) as engine:
        yield engine


class TestProcessPoolExecutor(EngineContract):
    @pytest.fixture
    def engine(self, process_pool: FuturesEngine) -> FuturesEngine:
        return process_pool


class TestThreadPoolExecutor(EngineContract):
    @pytest.fixture
    def engine(self, thread_pool: FuturesEngine) -> FuturesEngine:
        return thread_pool


class TestLoky(EngineContract):
    @pytest.fixture
    def engine(self, loky_pool: FuturesEngine) -> FuturesEngine:
        return loky_pool
