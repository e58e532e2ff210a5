"""Dask: what goes wrong with other proxying clients, one test each."""

from __future__ import annotations

import os
import signal

import dask
import dask_tasks as tasks
import distributed
import numpy as np
import pytest

from proxystore_core import Store, get_factory
from proxystore_integrations.dask import Client

BIG = 30_000


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float)


@pytest.mark.parametrize("results", ["auto", "always"])
def test_a_result_is_gathered_twice(cluster, array, results):
    with Client(cluster, results=results) as client:
        future = client.submit(tasks.increment, array)  # Dask's own key
        for _ in range(2):
            np.testing.assert_array_equal(client.gather(future), array + 1)


@pytest.mark.parametrize("results", ["auto", "always"])
def test_a_worker_consumes_a_result_before_the_client(cluster, array, results):
    with Client(cluster, results=results) as client:
        future = client.submit(tasks.increment, array)
        assert client.submit(tasks.total, future).result() == tasks.total(array + 1)
        np.testing.assert_array_equal(future.result(), array + 1)


def test_a_users_proxy_is_submitted_twice(client, array):
    with Store.from_url("shm://", name="users", register=True) as store:
        proxy = store.proxy(array)
        for _ in range(2):
            assert client.submit(tasks.total, proxy, pure=False).result() == tasks.total(array)
        assert store.exists(get_factory(proxy).key)
        store.evict(get_factory(proxy).key)


def test_a_result_whose_worker_died_is_recomputed_from_its_arguments(cluster, array):
    with Client(cluster) as client:
        future = client.submit(tasks.increment, array, pure=False)
        distributed.wait(future)
        (holder,) = client.who_has(future)[future.key]
        os.kill(client.run(os.getpid)[holder], signal.SIGKILL)
        assert client.submit(tasks.total, future, pure=False).result() == tasks.total(array + 1)
        client.wait_for_workers(2)


def test_a_future_beside_a_large_array_is_a_value_in_the_task(client, array):
    future = client.submit(tasks.identity, 5, pure=False)
    (seen,), _ = client.submit(tasks.describe_all, [future, array], pure=False).result()
    assert seen == ("list", [("int", "5"), tasks.shape(array)])


def test_an_actor_is_an_actor(client, array):
    actor = client.submit(tasks.Counter, array, actor=True).result()
    assert [actor.bump().result(), actor.bump().result()] == [1.0, 2.0]


def test_delayed_compute_persist_and_scatter_go_through_the_store(client, array, stored):
    lazy = dask.delayed(tasks.total)(array)
    kept = lazy.persist()
    distributed.wait(kept)
    assert len(stored()) == 1
    assert lazy.compute() == kept.compute() == tasks.total(array)
    future = client.compute(lazy)
    assert future.result() == tasks.total(array)
    assert client.submit(tasks.total, client.scatter(array)).result() == tasks.total(array)


def test_an_argument_of_three_calls_is_stored_once(client, array, stored):
    futures = [client.submit(tasks.total, array, pure=False) for _ in range(3)]
    assert client.gather(futures) == [tasks.total(array)] * 3
    assert len(stored()) == 1


@pytest.mark.parametrize("results", ["auto", "always"])
def test_results_that_nobody_gathers_leave_nothing(cluster, array, results, stored_by):
    with Client(cluster, results=results) as client:
        futures = client.map(tasks.increment, [array, array + 1, array + 2], pure=False)
        unused = client.submit(tasks.increment, array, pure=False)
        distributed.wait([*futures, unused])
        del futures, unused
        stored_by(client).becomes(0)


def test_a_small_argument_is_pickled_once_as_without_us(client, bare_client):
    counts = []
    for one in (client, bare_client):
        tasks.Measured.pickled = 0
        assert (
            one.submit(tasks.type_of, tasks.Measured(), pure=False, key=f"measured-{id(one)}").result()
            == "Measured"
        )
        counts.append(tasks.Measured.pickled)
    assert counts[0] == counts[1]
