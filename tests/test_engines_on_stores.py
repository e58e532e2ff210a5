"""Every engine on every store that others than one host can reach: what goes in comes out, and nothing stays.

Small on purpose. All of an engine's contract on one store: pytest --store URL tests/test_dask_contract.py
"""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import object_servers
import pytest
from far_script import be_at_the_first
from far_stores import HERE, far_stores
from stores import Stores
from waiting import until

from proxystore_core.connectors.base import leased, listed
from proxystore_core.recipe import open_connector
from proxystore_integrations.testing import objects_of, tasks

WAIT = 60


class AllStores(Stores):  # type: ignore[misc]
    """Those at two sites as well: this process is at one of them, the workers to be started at the other."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        super().__init__(place, stack)
        self.far = far_stores(place / "far", stack)
        be_at_the_first(HERE, stack.enter_context(pytest.MonkeyPatch.context()).setattr)

    def _globus(self) -> str:
        return self.far["globus"]

    def _daos(self) -> str:
        return self.far["daos"]

    def _webrtc(self) -> str:
        return self.far["webrtc"]


STORES = AllStores.names()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AllStores]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        # Before any worker starts: credentials come from the environment of each process.
        for name, value in object_servers.ACCESS.items():
            patch.setenv(name, value)
        patch.setenv("PROXYSTORE_THRESHOLD", "100 kB")
        yield AllStores(tmp_path_factory.mktemp("stores"), stack)


class Opened:
    """An engine on one store: how calls are submitted, and its link."""

    def __init__(self, submit: Callable[..., Any], link: Any) -> None:
        self.submit = submit
        self.link = link


@pytest.fixture(scope="module")
def pool(stores: AllStores) -> Iterator[Any]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def forked(stores: AllStores) -> Iterator[Any]:
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        yield pool


@pytest.fixture(scope="module")
def parsl_run(stores: AllStores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from parsl_runs import StoreRun

    with StoreRun(tmp_path_factory.mktemp("parsl"), bare=False) as run:
        yield run


@pytest.fixture(scope="module")
def service(stores: AllStores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from globus_fakes import FakeService, process_pool

    # Not from a fork server, which another test may have started in another environment.
    engine = process_pool(mp_context=get_context("spawn"))
    with FakeService(engine, tmp_path_factory.mktemp("globus")) as service:
        yield service


def on_pool(url: str, pool: Any, stack: ExitStack) -> Opened:
    from proxystore_integrations.futures import StoreExecutor

    executor = StoreExecutor(pool, store=url)
    stack.callback(executor.release)
    return Opened(executor.submit, executor._link)


def on_dask(url: str, cluster: Any, stack: ExitStack) -> Opened:
    from proxystore_integrations.dask import Client

    client = stack.enter_context(Client(cluster, store=url, set_as_default=False, results="always"))
    return Opened(lambda *args: client.submit(*args, pure=False), client._link)


def on_parsl(url: str, run: Any, stack: ExitStack) -> Opened:
    # Executors take seconds to start, so all stores share one.
    run.link.close_now()
    link = run.executor._link = type(run.link)(msgspec.structs.replace(run.link.settings, store=url))
    link.open()
    stack.callback(link.close_now)
    return Opened(lambda function, *args: run.app(function, "htex")(*args), link)


def on_threads(url: str, run: Any, stack: ExitStack) -> Opened:
    opened = on_parsl(url, run, stack)
    return Opened(lambda function, *args: run.app(function, "threads")(*args), opened.link)


def on_globus_compute(url: str, service: Any, stack: ExitStack) -> Opened:
    from proxystore_integrations.globus_compute import Executor

    executor = Executor(service.endpoint_id, service.client(), task_group_id=uuid.uuid4(), store=url)
    executor.api_burst_limit = 1  # which is none
    stack.enter_context(executor)
    return Opened(executor.submit, executor._link)


@pytest.fixture(scope="module")
def ray_job(stores: AllStores) -> Iterator[Any]:
    import ray
    from ray_tasks import OPTIONS

    # The paths of this run, as some stores' libraries are in places of their own.
    ray.init(**(OPTIONS | {"runtime_env": {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}}))
    try:
        yield ray
    finally:
        ray.shutdown()


class RayFuture:
    """An ObjectRef in the shape of a future."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray = ray
        self.reference = reference

    def result(self, timeout: float) -> Any:
        return self.ray.get(self.reference, timeout=timeout)


def on_ray(url: str, ray: Any, stack: ExitStack) -> Opened:
    from proxystore_integrations.ray import instrument, link

    instrument(store=url, threshold="100 kB", results="always")
    stack.callback(link.leave)

    def submit(function: Any, *args: Any) -> RayFuture:
        plain = [arg.reference if isinstance(arg, RayFuture) else arg for arg in args]
        return RayFuture(ray, ray.remote(function).remote(*plain))

    return Opened(submit, link.current())


ENGINES = {
    "pool": ("pool", on_pool),
    "forked pool": ("forked", on_pool),
    "dask": ("cluster", on_dask),
    "parsl": ("parsl_run", on_parsl),
    "parsl threads": ("parsl_run", on_threads),
    "globus compute": ("service", on_globus_compute),
    "ray": ("ray_job", on_ray),
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_goes_in_comes_out_and_nothing_stays(
    engine: str, store: str, stores: AllStores, request: pytest.FixtureRequest
) -> None:
    url = stores[store]
    fixture, on_engine = ENGINES[engine]
    with ExitStack() as stack:
        opened = on_engine(url, request.getfixturevalue(fixture), stack)
        array = np.arange(2 * tasks.BIG, dtype=float)  # 480 kB
        assert opened.submit(tasks.total, array).result(WAIT) == array.sum()
        assert opened.link.is_open
        assert opened.link.recipe.startswith(url.partition(":")[0])
        session = opened.link.session
        first = opened.submit(tasks.big, 1.0)
        assert first.result(WAIT)[-1] == 1
        second = opened.submit(tasks.add, first if engine != "parsl threads" else first.result())
        assert opened.submit(tasks.total, second).result(WAIT) == 2 * tasks.BIG
        several = opened.submit(tasks.give_back_all, array, 1, array).result(WAIT)
        np.testing.assert_array_equal(several[0], array)
        del first, second, several
        gc.collect()
        opened.submit(tasks.give_back, 1).result(WAIT)  # an engine's own threads may keep the last future
        if listed(opened.link._store.connector):
            until(lambda: not objects_of(opened.link))
    connector = open_connector(url)
    keeper, lister = leased(connector), listed(connector)
    assert keeper is None or session not in keeper.sessions()
    assert lister is None or lister.keys(session) == []
    connector.close()
