"""One Ray for a test module, with a store, and what is in that."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import ray_tasks
from waiting import until

from proxystore_integrations.ray import init, link

WAIT = 60  # seconds


def get(reference: Any) -> Any:
    return ray.get(reference, timeout=WAIT)


def cluster_with(results: str) -> Any:
    """The fixture ``cluster`` of a module: arguments go by the store, results as its setting says."""

    @pytest.fixture(scope="module")
    def cluster() -> Iterator[Any]:
        try:
            yield init(**ray_tasks.OPTIONS, threshold="100 kB", results=results)
        finally:
            ray.shutdown()

    return cluster


@pytest.fixture
def stored(cluster: Any) -> Iterator[Any]:
    """What is in the store; after the test, nothing."""

    def names() -> list[str]:
        return ray_tasks.stored(link.current())

    yield names
    gc.collect()
    until(lambda: not names())
