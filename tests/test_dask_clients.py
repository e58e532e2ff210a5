"""Dask: kinds of clients and clusters, settings, and stores that fail."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings

import dask_tasks as tasks
import distributed
import numpy as np
import pytest
from waiting import until

from proxystore_core import ConfigurationError, Store, StoreError, UnreachableError
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_integrations.dask import Client

BIG = 30_000


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float)


def test_it_is_a_distributed_client(client):
    assert isinstance(client, distributed.Client)
    assert repr(client).startswith("<Client: 'tcp://")
    assert distributed.default_client() is client


def test_asynchronous_client(cluster, array):
    async def run():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            future = client.submit(tasks.increment, array, pure=False)
            np.testing.assert_array_equal(await future, array + 1)
            results = await client.gather(client.map(tasks.total, [array, array], pure=False))
            assert results == [tasks.total(array)] * 2
            scattered = await client.scatter(array, hash=False)
            np.testing.assert_array_equal(await scattered, array)
            assert client._link.joined

    asyncio.run(run())


def test_two_clients_on_one_cluster(cluster, array, stored_by):
    with Client(cluster) as one, Client(cluster) as two:
        first, second = one.submit(tasks.increment, array), two.submit(tasks.increment, array)
        np.testing.assert_array_equal(first.result(), second.result())
        one_stored, two_stored = stored_by(one), stored_by(two)
        del first
        np.testing.assert_array_equal(second.result(), array + 1)
        del second
        one_stored.becomes(0)
        two_stored.becomes(0)


def test_an_in_process_cluster_stores_and_copies_nothing(array):
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        assert not client._link.joined
        future = client.submit(tasks.identity, array, pure=False)
        np.testing.assert_array_equal(future.result(), array)
        assert client.submit(tasks.total, client.scatter(array), pure=False).result() == tasks.total(array)


def test_executor_interface(client, array):
    executor = client.get_executor()
    assert executor.submit(tasks.total, array).result() == tasks.total(array)
    assert list(executor.map(tasks.total, [array, array])) == [tasks.total(array)] * 2


def test_as_completed_with_results(client, array):
    futures = client.map(tasks.increment, [array, array + 1], pure=False)
    seen = sorted(float(result[0]) for _, result in distributed.as_completed(futures, with_results=True))
    assert seen == [1.0, 2.0]


def test_results_skip_errors_as_without_us(client, array):
    futures = [
        client.submit(tasks.increment, array, pure=False),
        client.submit(tasks.fail, array, pure=False),
    ]
    distributed.wait(futures)
    (only,) = client.gather(futures, errors="skip")
    np.testing.assert_array_equal(only, array + 1)


def test_settings_come_from_the_environment(cluster, array, monkeypatch, stored_by):
    monkeypatch.setenv("PROXYSTORE_THRESHOLD", "10 MB")
    with Client(cluster) as client:
        client.submit(tasks.total, array, pure=False).result()
        assert client._link.settings.threshold == 10_000_000
        assert not stored_by(client)()


def test_settings_come_from_a_file(cluster, array, tmp_path, monkeypatch):
    (tmp_path / "proxystore.toml").write_text(f'store = "file://{tmp_path}/store"\nthreshold = "50 kB"\n')
    monkeypatch.chdir(tmp_path)
    with Client(cluster) as client:
        future = client.submit(tasks.increment, array, pure=False)
        np.testing.assert_array_equal(future.result(), array + 1)
        assert len(list((tmp_path / "store" / client._link._session.name).glob("[0-9a-f]*"))) == 1
    assert not list((tmp_path / "store").glob("*/[0-9a-f]*"))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"threshold": "1 furlong"}, "threshold"),
        ({"store": "shmm://"}, "shmm"),
        ({"results": "sometimes"}, "results"),
        ({"inputs": "both"}, "inputs"),
        ({"treshold": "1 MB"}, "unknown setting: 'treshold'. Did you mean 'threshold'"),
    ],
)
def test_a_wrong_setting_is_an_error_before_anything_starts(cluster, kwargs, named):
    with pytest.raises(ConfigurationError, match=named):
        Client(cluster, **kwargs)


def test_a_store_object_can_be_given(cluster, array, tmp_path):
    with Store.from_url(f"file://{tmp_path}/given", name="given") as store:
        with Client(cluster, store=store) as client:
            np.testing.assert_array_equal(client.submit(tasks.increment, array).result(), array + 1)
        key = store.put(1)  # not closed with the client
        assert store.get(key) == 1


def test_a_store_that_workers_cannot_reach_goes_by_value_and_says_so_once(cluster, array):
    with Client(cluster, store="memory://") as client:
        with pytest.warns(RuntimeWarning, match="does not reach the store") as caught:
            assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)
            assert client.submit(tasks.increment, array, pure=False).result()[0] == 1.0
        assert len(caught) == 1
        assert "proxystore.toml" in str(caught[0].message)


def test_a_worker_that_joins_late_and_reaches_the_store(array):
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            client.submit(tasks.total, array, pure=False).result()
            cluster.scale(2)
            client.wait_for_workers(2)
            futures = client.map(tasks.increment, [array + i for i in range(6)], pure=False)
            assert [float(result[0]) for result in client.gather(futures)] == [1, 2, 3, 4, 5, 6]
            assert not client._link.elsewhere


def test_a_store_that_cannot_be_opened(cluster, array, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    url = f"file://{tmp_path}/file/store"
    with pytest.warns(RuntimeWarning, match="through the store"):
        client = Client(cluster, store=url)
    with client:
        assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)
    with pytest.raises(StoreError):
        Client(cluster, store=url, on_store_error="raise")


class Failing(MemoryConnector):
    """Takes nothing."""

    schemes = ("failing",)

    def put(self, data, *, session="user"):
        raise UnreachableError("the plug is out", store=self.url)

    def sessions(self):
        return {}


@pytest.mark.parametrize("on_store_error", ["fallback", "raise"])
def test_a_store_that_fails_in_use(cluster, array, on_store_error):
    with Client(cluster, store=Store("f", Failing()), on_store_error=on_store_error) as client:
        client._link.elsewhere = {}  # as if the workers had reached it
        if on_store_error == "raise":
            with pytest.raises(UnreachableError, match="the plug is out"):
                client.submit(tasks.total, array, pure=False)
            return
        with pytest.warns(RuntimeWarning, match="the plug is out"):
            assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)
        assert client.submit(tasks.total, client.scatter(array), pure=False).result() == tasks.total(array)


def test_a_worker_that_sees_other_shared_memory(array, tmp_path):
    """As in another container or on another host: by value from then on, one warning that says what to do."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs root and mount namespaces")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)
            worker = subprocess.Popen(
                [
                    *("unshare", "-m", "sh", "-c"),
                    (
                        f"mount -t tmpfs -o size=16m tmpfs /dev/shm && exec {sys.executable} "
                        f"-m distributed.cli.dask_worker {cluster.scheduler_address} "
                        "--no-nanny --nthreads 1 --no-dashboard --name elsewhere"
                    ),
                ],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                client.wait_for_workers(2)
                until(lambda: client._link.elsewhere)
                with pytest.warns(
                    RuntimeWarning, match=r"does not reach the store.*proxystore\.toml"
                ) as caught:
                    futures = client.map(tasks.increment, [array + i for i in range(8)], pure=False)
                    assert [float(result[0]) for result in client.gather(futures)] == list(range(1, 9))
                    assert len({*client.who_has(futures).values()}) == 2
                assert len(caught) == 1
            finally:
                worker.terminate()
                worker.wait()
            until(lambda: not client._link.elsewhere)
            assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)
