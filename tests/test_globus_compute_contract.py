"""Globus Compute passes what every engine passes, with a real endpoint engine behind a fake service."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from globus_compute_sdk import Executor as BareExecutor
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_fakes import FakeService, process_pool

from proxystore_integrations.globus_compute import Executor
from proxystore_integrations.testing import Engine, EngineContract, objects_of


class GlobusEngine(Engine):
    tells_text = True
    loses_unpicklable = True

    def __init__(self) -> None:
        self._open = ExitStack()

    def __enter__(self) -> Self:
        directory = self._open.enter_context(tempfile.TemporaryDirectory())
        self.service = self._open.enter_context(FakeService(process_pool(), Path(directory)))
        self.executor = self._started(Executor)
        self.bare = self._started(BareExecutor)
        return self

    def _started(self, kind: Any) -> Any:
        # Executors of one task group share their results' queue, and this service is not the only one here.
        executor = kind(self.service.endpoint_id, self.service.client(), task_group_id=uuid.uuid4())
        executor.api_burst_limit = 1  # which is none
        return self._open.enter_context(executor)

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.executor.submit(function, *args, **kwargs)

    def bare_submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.bare.submit(function, *args, **kwargs)

    def raised(self, error: BaseException | None) -> str:
        if not isinstance(error, TaskExecutionFailed):
            return super().raised(error)
        return error.remote_data.strip().splitlines()[-1].partition(":")[0]

    def store(self) -> Any:
        if not self.executor._link.is_open:
            assert self.submit(int).result() == 0
        return self.executor._link._store

    def stored(self) -> list[str]:
        return objects_of(self.executor._link)

    def fresh(self) -> GlobusEngine:
        return GlobusEngine()


@pytest.fixture(scope="module")
def running() -> Iterator[GlobusEngine]:
    with GlobusEngine() as engine:
        yield engine


class TestGlobusCompute(EngineContract):
    @pytest.fixture
    def engine(self, running: GlobusEngine) -> GlobusEngine:
        return running
