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


@pytest.mark.parametrize("direct", [False, True])
def test_a_client_without_a_store_gathers_the_value(always, bare_client, array, direct):
    future = always.submit(tasks.increment, array, pure=False)
    distributed.wait(future)
    theirs = tasks.future_of(bare_client, future.key)
    np.testing.assert_array_equal(bare_client.gather(theirs, direct=direct), array + 1)
    [(_, completed)] = distributed.as_completed([theirs], with_results=True)
    np.testing.assert_array_equal(completed, array + 1)


def test_a_client_with_another_store_gathers_the_value(always, cluster, array, tmp_path):
    future = always.submit(tasks.increment, array, pure=False)
    distributed.wait(future)
    with Client(cluster, store=f"file://{tmp_path}/store") as other:
        for direct in (False, True):
            gathered = other.gather(tasks.future_of(other, future.key), direct=direct)
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
        theirs = tasks.future_of(bare_client, future.key)
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
        theirs = tasks.future_of(bare_client, future.key)
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
            # Of another key: the cancelled scatter may still be about to let go of its own.
            [later] = await client.scatter([array - 1])
            assert await client.submit(tasks.total, later, pure=False) == tasks.total(array - 1)
            await asyncio.to_thread(stored.becomes, 0)

    asyncio.run(main())


def test_a_scatter_after_an_equal_one_that_nobody_waits_for(cluster, array):
    async def main():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            for milliseconds in range(30):
                # Of its own: to scatter again what has just been let go of is a race in Dask itself.
                values = [array + i + milliseconds / 64 for i in range(20)]
                scattering = asyncio.ensure_future(client.scatter(values))
                await asyncio.sleep(milliseconds / 1000)
                scattering.cancel()
                await asyncio.gather(scattering, return_exceptions=True)
                later = await client.scatter(values)
                totals = client.map(tasks.total, later, pure=False)
                assert await client.gather(totals) == [tasks.total(value) for value in values]
                del later, totals

    asyncio.run(main())


def test_the_class_of_a_result_is_its_own(always, bare_client, array):
    future, bare = (one.submit(tasks.increment, array, pure=False) for one in (always, bare_client))
    distributed.wait([future])
    distributed.wait([bare])
    assert future.type is bare.type is np.ndarray
    assert repr(future).partition(", key")[0] == repr(bare).partition(", key")[0]


def test_a_task_that_is_run_again_in_the_client_stores_nothing(always, array, stored_by):
    future = always.submit(tasks.increment, array, pure=False)
    distributed.wait(future)
    count = len(stored_by(always)())
    np.testing.assert_array_equal(always.recreate_task_locally(future), array + 1)
    assert len(stored_by(always)()) == count


def test_a_client_made_by_hand_inside_a_task_gathers_values(always, cluster, array):
    for address in always.scheduler_info()["workers"]:
        future = always.submit(tasks.increment, array, pure=False, workers=address)
        distributed.wait(future)
        for where in always.scheduler_info()["workers"]:
            inside = always.submit(
                tasks.gather_by_hand, cluster.scheduler_address, future.key, pure=False, workers=where
            )
            assert inside.result(timeout=30) == "ndarray"


@pytest.mark.parametrize("who", ["always", "bare_client"])
def test_a_result_that_the_store_has_lost_is_computed_again(who, always, bare_client, stored_by):
    stored = stored_by(always)
    lost, kept = (always.submit(tasks.ones, BIG, pure=False) for _ in range(2))
    distributed.wait([lost])
    names = stored()
    distributed.wait([kept])
    for name in names:
        (stored.directory / name.rpartition(".")[2]).unlink(missing_ok=True)
    futures = [lost, kept]
    if who == "bare_client":
        futures = [tasks.future_of(bare_client, future.key) for future in futures]
    client = futures[0].client
    assert [value.sum() for value in client.gather(futures)] == [BIG, BIG]
    del futures, lost, kept
    stored.becomes(0)


def test_coroutine_tasks_do_not_load_in_the_event_loop(always, array):
    always.run(tasks.note_threads_that_load)
    future = always.submit(tasks.increment, array, pure=False)
    assert always.submit(tasks.total_soon, future, pure=False).result() == tasks.total(array + 1)
    seen = [one for worker in always.run(tasks.loaded_in_the_loop).values() for one in worker]
    assert seen
    assert not any(seen)
