"""Dask: its other ways to use a client, each with values large enough for the store."""

from __future__ import annotations

import asyncio
import gc
import traceback

import dask
import dask_tasks as tasks
import distributed
import numpy as np
import pytest

from proxystore_integrations.dask import Client

BIG = 30_000


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float)


@pytest.mark.parametrize(
    "function", [tasks.get_client_inside, tasks.get_client_in_coroutine, tasks.compute_inside]
)
def test_clients_inside_tasks(function, client):
    assert client.submit(function, BIG, pure=False).result(timeout=30) == BIG


def test_the_client_inside_a_task_has_the_store(client):
    futures = client.map(tasks.submit_inside, [BIG, BIG + 1], pure=False)
    for count, (module, joined, totals) in zip((BIG, BIG + 1), client.gather(futures), strict=True):
        assert module == "proxystore_integrations.dask.client"
        assert joined
        assert totals == [float(count * i) for i in range(4)]


def test_actors(client, array, stored):
    counters = client.map(tasks.Counter, [array, array + 1], actors=True)
    first, second = client.gather(counters)
    assert [first.bump().result(), first.bump().result(), second.bump().result()] == [1.0, 2.0, 2.0]
    inside = client.submit(lambda actor: actor.bump().result(), counters[0], pure=False)
    assert inside.result() == 3.0
    del counters, first, second, inside
    gc.collect()  # Dask's actors are in cycles
    stored.becomes(0)


def test_published_datasets_variables_and_queues(cluster, client, array):
    future = client.submit(tasks.increment, array, pure=False)
    client.publish_dataset(raised=future)
    variable, queue = distributed.Variable("v", client=client), distributed.Queue("q", client=client)
    variable.set(future)
    queue.put(future)
    with Client(cluster, set_as_default=False, threshold=1_000) as other:
        for received in (
            other.get_dataset("raised"),
            distributed.Variable("v", client=other).get(),
            distributed.Queue("q", client=other).get(),
        ):
            np.testing.assert_array_equal(other.gather(received), array + 1)
            assert other.submit(tasks.total, received, pure=False).result() == tasks.total(array + 1)
    client.unpublish_dataset("raised")
    variable.delete()


def test_a_future_handed_to_another_client(cluster, client, array):
    future = client.submit(tasks.increment, array, pure=False)
    with Client(cluster, set_as_default=False) as other:
        shared = distributed.Future(future.key, other)
        assert other.submit(tasks.total, shared, pure=False).result() == tasks.total(array + 1)


def test_clients_with_different_stores(cluster, array, tmp_path, stored_by):
    with Client(cluster) as one, Client(cluster, store=f"file://{tmp_path}/store", inputs="proxy") as two:
        futures = [each.submit(tasks.total, array, pure=False) for each in (one, two)]
        assert [future.result() for future in futures] == [tasks.total(array)] * 2
        assert len(stored_by(one)()) == 1
        assert len(list((tmp_path / "store" / two._link._session.name).glob("[0-9a-f]*"))) == 1


def test_as_completed_and_wait(client, bare_client, array):
    seen = []
    for one in (client, bare_client):
        futures = [
            *one.map(tasks.total, [array, array + 1], pure=False),
            one.submit(tasks.fail, array, pure=False),
        ]
        done, pending = distributed.wait(futures)
        assert (len(done), len(pending)) == (3, 0)
        with pytest.raises(ValueError, match="not this one"):
            list(distributed.as_completed(futures, with_results=True))
        batch = distributed.as_completed(futures, with_results=True, raise_errors=False)
        seen.append(sorted(str(result)[:60] for _, result in batch))
    assert seen[0][0] == seen[1][0]
    assert len(seen[0]) == len(seen[1]) == 3


def test_options_of_submit_and_map(client, array):
    addresses = list(client.scheduler_info()["workers"])
    for address in addresses:
        future = client.submit(tasks.increment, array, workers=address, priority=5, retries=1, pure=False)
        assert future.result()[0] == 1.0
        assert client.who_has(future)[future.key] == (address,)
    mapped = client.map(
        tasks.total, [array] * 4, workers=addresses[:1], batch_size=2, priority=-1, pure=False
    )
    assert client.gather(mapped) == [tasks.total(array)] * 4
    waiting = client.submit(tasks.total, array, resources={"GPU": 1}, pure=False)
    with pytest.raises(distributed.TimeoutError):
        waiting.result(timeout=0.2)
    waiting.cancel()
    with dask.annotate(priority=3, retries=2):
        assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)
    named = client.submit(tasks.total, array, key="a-name")
    assert client.futures["a-name"].status in ("pending", "finished")
    assert named.result() == tasks.total(array)


def test_replicate_and_rebalance(client, array):
    future = client.submit(tasks.increment, array, pure=False)
    client.replicate(future)
    assert len(client.who_has(future)[future.key]) == 2
    futures = client.map(tasks.increment, [array + i for i in range(4)], pure=False)
    distributed.wait(futures)
    client.rebalance(futures)
    assert [float(result[0]) for result in client.gather(futures)] == [1, 2, 3, 4]


def test_errors_are_recreated_locally(client, array):
    future = client.submit(tasks.fail, array, pure=False)
    distributed.wait(future)
    with pytest.raises(ValueError, match="not this one"):
        client.recreate_error_locally(future)


def test_tracebacks_and_callbacks(client, array):
    future = client.submit(tasks.fail, array, pure=False)
    assert future.traceback() is not None
    called = []
    client.submit(tasks.total, array, pure=False).add_done_callback(lambda done: called.append(done.status))
    assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)
    assert client.run(lambda: 1)


@pytest.mark.parametrize("large", ["argument", "function"])
def test_tracebacks_begin_with_the_users_code(large, client, bare_client, array):
    def fail(value, data=array if large == "function" else None):
        raise ValueError("what")

    async def fail_soon(value):
        raise ValueError("what")

    def frames(client, function):
        future = client.submit(function, array, pure=False)
        with pytest.raises(ValueError, match="what") as raised:
            future.result()
        return [
            [frame.name for frame in traceback.extract_tb(one)][-3:]
            for one in (future.traceback(), raised.value.__traceback__)
        ]

    for function in (fail, fail_soon):
        assert frames(client, function) == frames(bare_client, function)
        assert frames(client, function)[0] == [function.__name__]


def test_plugins_beside_ours(client, array):
    client.register_plugin(tasks.Quiet())
    client.register_plugin(tasks.Noted())
    future = client.submit(tasks.increment, array, pure=False)
    assert future.result()[0] == 1.0
    assert set(client.run(lambda dask_worker: dask_worker.noted).values()) == {True}
    client.unregister_worker_plugin("noted")
    client.unregister_scheduler_plugin("quiet")


def test_the_notebooks_view(client, bare_client):
    ours, bare = client._repr_html_(), bare_client._repr_html_()
    assert client.id.startswith("Client-")
    assert ours.replace(client.id, "ID") == bare.replace(bare_client.id, "ID")


def test_the_default_client(client, array):
    lazy = dask.delayed(tasks.total)(array)
    assert distributed.default_client() is client
    assert dask.compute(lazy) == (tasks.total(array),)
    (kept,) = dask.persist(lazy)
    assert client.get(kept.dask, kept.key) == tasks.total(array)


def test_everything_asynchronously(cluster, array):
    async def run():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            future = client.submit(tasks.increment, array, pure=False)
            seen = [float(r[0]) async for _, r in distributed.as_completed([future], with_results=True)]
            assert seen == [1.0]
            assert (await client.compute(dask.delayed(tasks.total)(array))) == tasks.total(array)
            assert await client.submit(tasks.get_client_inside, BIG, pure=False) == BIG
            actor = await client.submit(tasks.Counter, array, actor=True)
            assert await actor.bump() == 1.0

    asyncio.run(run())


def test_lazy_inputs_with_everything(cluster, array, tmp_path, stored_by):
    with Client(cluster, inputs="proxy") as client:
        shape = client.submit(tasks.describe_all, array, [array, 1], k=array, pure=False).result()
        assert shape == (["Proxy", ("list", ["Proxy", ("int", "1")])], {"k": "Proxy"})
        assert client.submit(lambda a, b: a is not None and (a == b).all(), array, array, pure=False).result()
        assert client.gather(client.map(tasks.total, [array, array + 1], pure=False))[0] == tasks.total(array)
        assert dask.delayed(tasks.total)(array).compute() == tasks.total(array)
        tries = str(tmp_path / "tries")
        assert client.submit(tasks.fail_until, tries, array, retries=5, pure=False).result() == 1.0
        echoed = client.submit(tasks.identity, array, pure=False)
        np.testing.assert_array_equal(echoed.result(), array)
        actor = client.submit(tasks.Counter, array, actor=True).result()
        assert actor.bump().result() == 1.0
        assert client.submit(tasks.total_soon, array, pure=False).result() == tasks.total(array)
        assert client.submit(tasks.total, client.scatter(array), pure=False).result() == tasks.total(array)
        del echoed, actor
        stored_by(client).becomes(0)


def test_a_performance_report(client, array, tmp_path):
    pytest.importorskip("bokeh")  # Dask's own need
    with distributed.performance_report(filename=str(tmp_path / "report.html")):
        future = client.submit(tasks.increment, array, pure=False)
        assert future.result()[0] == 1.0
    assert "increment" in (tmp_path / "report.html").read_text()


def test_workers_publish_side_by_side(tmp_path):
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        futures = [
            client.submit(tasks.ones, 10 * BIG, pure=False, workers=worker)
            for worker in client.scheduler_info()["workers"]
        ]
        distributed.wait(futures)
        client.run(tasks.meet_before_publishing, str(tmp_path), 2)
        assert [value.sum() for value in client.gather(futures)] == [10 * BIG] * 2


def test_what_a_client_had_that_left_is_no_store_of_clients_inside_tasks(client, cluster, tmp_path):
    store = tmp_path / "store"
    with Client(cluster, store=f"file://{store}", set_as_default=False) as other:
        assert other.submit(tasks.submit_inside, BIG, pure=False).result()[1]
    client.restart()  # the clients inside tasks go
    store.rmdir()
    assert client.submit(tasks.get_client_inside, BIG, pure=False).result() == BIG
    assert not store.exists()


def test_a_session_that_is_over_before_a_worker_tried_it_is_no_store_of_clients_inside_tasks(cluster):
    with Client(cluster) as client:
        terms = client.run_on_scheduler(
            lambda dask_scheduler: [one.terms for one in dask_scheduler.plugins["proxystore"].sessions]
        )
        terms = [one for one in terms if one["session"] == client._link.session]
        assert not any(client.run(tasks.probe_when_over, *terms).values())
