"""Client and worker with versions of this package that do not understand each other."""

from __future__ import annotations

import pickle
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import ray
import ray_tasks
from engines import ENGINES, on_dask, on_pool
from globus_fakes import FakeService, process_pool

import proxystore_integrations
from proxystore_core import Reference
from proxystore_integrations import carriers
from proxystore_integrations.carriers import (
    NotDeliveredError,
    StoreFunction,
    Terms,
    VersionError,
    check_version,
)
from proxystore_integrations.dask import link as dask_link
from proxystore_integrations.globus_compute import Executor
from proxystore_integrations.parsl.serializer import StoreSerializer
from proxystore_integrations.ray import init
from proxystore_integrations.ray import link as ray_link

OURS = proxystore_integrations.__version__
THEIRS = "97.3.1"
BOTH = rf"{THEIRS}, .* has {OURS}.*Install the same version on both"
WAIT = 60


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process is a client of another version from here on."""
    for module in (carriers, dask_link, ray_link):
        monkeypatch.setattr(module, "__version__", THEIRS)
    return monkeypatch


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a client of another patch of the same release from here on."""
    for module in (carriers, dask_link, ray_link):
        monkeypatch.setattr(module, "__version__", f"{OURS.rpartition('.')[0]}.99")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_store_cannot_carry_goes_by_value(engine: Any, stack: ExitStack, other: Any) -> None:
    array = np.ones(200_000)
    with pytest.warns(RuntimeWarning, match=BOTH):
        submit = engine(stack, threshold="100 kB")
        assert submit(len, array).result(WAIT) == 200_000
    with warnings.catch_warnings():  # no worker is tried again, and what has been said is not said again
        warnings.simplefilter("error", RuntimeWarning)
        assert submit(np.dot, array, array).result(WAIT) == 200_000
        assert submit(abs, -5).result(WAIT) == 5


@pytest.mark.parametrize("engine", [each for each in ENGINES if each is not on_dask])
def test_an_error_where_settings_want_one(engine: Any, stack: ExitStack, other: Any) -> None:
    submit = engine(stack, threshold="100 kB", on_store_error="raise")
    with pytest.raises(VersionError, match=BOTH):
        submit(len, np.ones(200_000)).result(WAIT)


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("engine", ENGINES)
def test_another_patch_of_the_same_release(engine: Any, stack: ExitStack) -> None:
    array = np.ones(200_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        submit = engine(stack, threshold="100 kB", on_store_error="raise")
        assert submit(np.add, array, array).result(WAIT).sum() == 400_000
        assert submit(abs, -5).result(WAIT) == 5


@pytest.mark.usefixtures("patched")
def test_ray_of_the_same_release() -> None:
    init(**ray_tasks.OPTIONS, threshold="100 kB", results="always")
    try:
        passed = [np.ones(200_000)]
        results = [ray.remote(ray_tasks.call).remote(len, passed) for _ in range(2)]
        assert ray.get(results, timeout=WAIT) == [1, 1]
        assert ray.get(ray.remote(ray_tasks.call).remote(np.add, passed[0], 1), timeout=WAIT).sum() == 400_000
    finally:
        ray.shutdown()


def test_small_calls_of_a_pool(stack: ExitStack, other: Any) -> None:
    submit = on_pool(stack, threshold="100 kB")
    with pytest.raises(VersionError, match=BOTH):
        submit(abs, -5).result(WAIT)
    assert on_pool(stack, threshold="100 kB", results="never")(abs, -5).result(WAIT) == 5


def test_a_scheduler_of_dask(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_link, "__version__", THEIRS)
    with pytest.warns(RuntimeWarning, match=BOTH):
        submit = on_dask(stack, threshold="100 kB")
    assert submit(len, np.ones(200_000)).result(WAIT) == 200_000


@pytest.mark.usefixtures("patched")
def test_globus_compute_of_the_same_release(tmp_path: Path) -> None:
    with (
        FakeService(process_pool(), tmp_path) as service,
        Executor(service.endpoint_id, service.client(), task_group_id=uuid.uuid4()) as engine,
    ):
        assert engine.submit(np.add, np.ones(200_000), 1.0).result(WAIT).sum() == 400_000
        assert engine.submit(abs, -5).result(WAIT) == 5


def test_globus_compute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (
        FakeService(process_pool(), tmp_path) as service,
        Executor(service.endpoint_id, service.client(), task_group_id=uuid.uuid4()) as engine,
    ):
        assert engine.submit(int).result(WAIT) == 0  # its workers have their modules now
        monkeypatch.setattr(carriers, "__version__", THEIRS)
        with pytest.warns(RuntimeWarning, match=rf"{THEIRS}, .* has {OURS}"):
            assert engine.submit(len, np.ones(200_000)).result(WAIT) == 200_000
            assert engine.submit(abs, -5).result(WAIT) == 5


def test_ray(other: Any) -> None:
    init(**ray_tasks.OPTIONS, threshold="100 kB", results="always")
    try:
        # Twice: what is passed once may go faster through Ray's own store.
        passed = [np.ones(200_000)]
        results = [ray.remote(ray_tasks.call).remote(len, passed) for _ in range(2)]
        with pytest.raises(ray.exceptions.RayError) as raised:
            ray.get(results, timeout=WAIT)
        assert THEIRS in str(raised.value)
        assert f"has {OURS}" in str(raised.value)
    finally:
        ray.shutdown()


def test_a_ray_that_is_not_tested() -> None:
    narrow = pytest.importorskip("proxystore_integrations.ray.narrow")
    form = narrow._sent(np.arange(3.0))
    assert narrow._received(form).tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(VersionError, match=BOTH):
        narrow._received((THEIRS, Reference("key", "shm://nowhere", 10, "numpy:ndarray")))


def test_a_serializer_of_parsl(other: pytest.MonkeyPatch) -> None:
    with StoreSerializer(threshold="100 kB") as serializer:
        payload = serializer.serialize([np.ones(200_000)])
        other.undo()
        with pytest.raises(VersionError, match=BOTH):
            serializer.deserialize(payload)


def test_terms_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the versions say."""
    sent = StoreFunction(abs, Terms("shm://", "s", 10, "raise", carriers.Pickling(True), ""), "abs")
    monkeypatch.setattr(msgspec.msgpack, "encode", lambda terms: b"\x81\x01")
    with pytest.raises(VersionError, match=rf"{OURS}, .* has {OURS}: .*Install the same"):
        pickle.loads(pickle.dumps(sent))(-5)


@pytest.mark.parametrize("version", ["", "0", "1.0.0", "0.10.0", "x"])
def test_which_versions_differ(version: str) -> None:
    with pytest.raises(NotDeliveredError, match=version or "another version"):
        check_version(version)
    check_version(OURS)
    check_version(f"{OURS.rpartition('.')[0]}.99")
