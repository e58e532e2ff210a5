"""Dask: results that are stored at their tasks' end, whoever reads them and whoever lets go of them when."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import dask_tasks as tasks
import distributed
import numpy as np
import pytest
from waiting import until

from proxystore_integrations.dask import Client

BIG = 30_000


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float)


@pytest.fixture
def always(cluster):
    with Client(cluster, results="always") as client:
        yield client


def shared(client, future):
    """The same task's future of another client."""
    client._send_to_scheduler({"op": "client-desires-keys", "keys": [future.key], "client": client.id})
    return distributed.Future(future.key, client)


@pytest.mark.parametrize("direct", [False, True])
def test_a_client_without_a_store_gathers_the_value(always, bare_client, array, direct):
    future = always.submit(tasks.increment, array, pure=False)
    distributed.wait(future)
    theirs = shared(bare_client, future)
    np.testing.assert_array_equal(bare_client.gather(theirs, direct=direct), array + 1)
    [(_, completed)] = distributed.as_completed([theirs], with_results=True)
    np.testing.assert_array_equal(completed, array + 1)


def test_a_client_with_another_store_gathers_the_value(always, cluster, array, tmp_path):
    future = always.submit(tasks.increment, array, pure=False)
    distributed.wait(future)
    with Client(cluster, store=f"file://{tmp_path}/store") as other:
        for direct in (False, True):
            gathered = other.gather(shared(other, future), direct=direct)
            np.testing.assert_array_equal(gathered, array + 1)


def test_own_results_are_gathered_as_references(always, array, monkeypatch):
    future = always.submit(tasks.increment, array, pure=False)
    distributed.wait(future)
    scheduler, responses = type(always.scheduler), []
    before = scheduler.__getattr__

    def seen(self, name):
        call = before(self, name)
        if name != "proxystore_gather":
            return call

        async def gathering(**message):
            responses.append(await call(**message))
            return responses[-1]

        return gathering

    monkeypatch.setattr(scheduler, "__getattr__", seen)
    np.testing.assert_array_equal(future.result(), array + 1)
    [response] = responses
    assert set(response["stored"]) == {future.key}


def test_results_of_another_task_inside_a_task(always):
    kinds = always.submit(tasks.gather_inside, BIG, pure=False).result(timeout=30)
    assert set(kinds) == {"ndarray"}


def test_results_let_go_of_while_their_tasks_run_leave_nothing(always, stored_by):
    stored = stored_by(always)
    for i in range(100):
        future = always.submit(tasks.slow_ones, BIG, i % 7 / 2000, pure=False)
        time.sleep(i % 5 / 1000)
        if i % 2:
            future.cancel()
        del future
    stored.becomes(0)


def test_a_client_that_leaves_while_its_tasks_run_leaves_nothing(cluster, stored_by):
    with Client(cluster, results="always") as client:
        directory = stored_by(client).directory
        futures = [client.submit(tasks.slow_ones, BIG, 0.5, pure=False) for _ in range(2)]
        until(lambda: any(client.processing().values()))
        time.sleep(0.2)
    del futures
    time.sleep(0.8)  # they end
    until(lambda: not directory.exists())


def test_a_result_that_comes_after_its_client_left(cluster, bare_client, stored_by):
    with Client(cluster, results="always") as client:
        directory = stored_by(client).directory
        future = client.submit(tasks.slow_ones, BIG, 0.5, pure=False)
        until(lambda: any(client.processing().values()))
        theirs = shared(bare_client, future)
    del future
    assert theirs.result(timeout=30).sum() == BIG
    assert directory.exists()
    del theirs
    until(lambda: not directory.exists())


def test_a_result_that_is_computed_again_after_its_client_left(cluster, bare_client, stored_by):
    with Client(cluster, results="always") as client:
        directory = stored_by(client).directory
        future = client.submit(tasks.ones, BIG, pure=False)
        distributed.wait(future)
        theirs = shared(bare_client, future)
        distributed.wait(theirs)
        [[worker]] = client.who_has(future).values()
        process = client.run(os.getpid)[worker]
    del future
    os.kill(process, signal.SIGKILL)
    until(lambda: worker not in bare_client.scheduler_info()["workers"])
    assert theirs.result(timeout=30).sum() == BIG
    assert bare_client.submit(tasks.total, theirs, pure=False).result() == BIG
    del theirs
    until(lambda: not directory.exists())
    bare_client.wait_for_workers(2)


def test_a_result_let_go_of_in_the_same_gather_is_no_trouble_of_the_others(cluster, array):
    async def main():
        async with Client(cluster.scheduler_address, asynchronous=True, results="always") as client:

            async def one(i):
                future = client.submit(tasks.ones, BIG, pure=False)
                await distributed.wait(future)
                if i % 3:
                    return float((await future)[0])
                waiting = asyncio.ensure_future(client.gather([future], errors="skip"))
                await asyncio.sleep(0)
                await client.cancel([future])
                await asyncio.gather(waiting, return_exceptions=True)
                return None

            return await asyncio.gather(*(one(i) for i in range(30)))

    answers = asyncio.run(main())
    assert answers == [None if i % 3 == 0 else 1.0 for i in range(30)]


def test_a_scatter_that_nobody_waits_for_leaves_nothing(cluster, array, stored_by):
    async def main():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            stored = stored_by(client)
            scattering = asyncio.ensure_future(client.scatter([array + i for i in range(20)]))
            await asyncio.sleep(0.001)
            scattering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await scattering
            await asyncio.to_thread(stored.becomes, 0)
            [later] = await client.scatter([array])
            assert await client.submit(tasks.total, later, pure=False) == tasks.total(array)
            await asyncio.to_thread(stored.becomes, 0)

    asyncio.run(main())
