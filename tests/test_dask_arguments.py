"""Dask: arguments reach tasks as what they were, whatever way they go in."""

from __future__ import annotations

import dataclasses

import dask
import dask.array as da
import dask.bag as db
import dask_tasks as tasks
import distributed
import numpy as np
import pandas as pd
import pytest

from proxystore_core import Store, get_factory, is_resolved
from proxystore_integrations.dask import Client
from proxystore_integrations.dask._task_spec import StoreTask
from proxystore_integrations.testing.tasks import VALUES, places

BIG = 30_000  # floats: 240 kB, over the threshold


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float)


@pytest.mark.parametrize(
    "name", ["array", "bytes", "str", "list", "dict", "frame", "dataclass", "many small"]
)
def test_a_large_argument_does_not_travel_with_the_graph(name, client):
    value = VALUES[name]()
    future = client.submit(tasks.slow_total, np.zeros(1), 5, pure=False)  # keeps nothing of ours
    future.cancel()
    future = client.submit(tasks.describe_all, value, pure=False)
    assert future.result()
    key = future.key
    size = client.run_on_scheduler(lambda dask_scheduler: _pickled_size(dask_scheduler.tasks[key].run_spec))
    assert size < 3_000


def _pickled_size(run_spec):
    import pickle

    assert type(run_spec) is StoreTask
    return len(pickle.dumps(run_spec))


def test_small_arguments_leave_the_task_alone(client, stored):
    future = client.submit(tasks.describe_all, np.arange(10), [1, 2], {"a": b"x"}, pure=False)
    assert future.result()
    key = future.key
    assert (
        client.run_on_scheduler(lambda dask_scheduler: type(dask_scheduler.tasks[key].run_spec).__name__)
        == "Task"
    )
    assert not stored()


def test_key_names_are_dasks_own(client, bare_client, array):
    frame = {"x": array}
    for args in ([array], [frame, 1], [b"x" * 200_000]):
        assert client.submit(tasks.type_of, *args).key == bare_client.submit(tasks.type_of, *args).key
    assert [f.key for f in client.map(tasks.total, [array, array + 1])] == [
        f.key for f in bare_client.map(tasks.total, [array, array + 1])
    ]
    assert client.scatter(array).key == bare_client.scatter(array).key
    assert client.submit(tasks.total, array, key="mine").key == "mine"


def test_futures_in_containers_stay_futures_to_dask(client, array):
    small = client.submit(tasks.identity, 5, pure=False)
    large = client.submit(tasks.increment, array, pure=False)
    args, kwargs = client.submit(
        tasks.describe_all,
        [small, array],
        {"f": large, "a": array},
        (array, [large]),
        k=[large, 1],
        pure=False,
    ).result()
    plain, raised = tasks.shape(array), tasks.shape(array + 1)
    assert args == [
        ("list", [("int", "5"), plain]),
        ("dict", {"f": raised, "a": plain}),
        ("tuple", [plain, ("list", [raised])]),
    ]
    assert kwargs == {"k": ("list", [raised, ("int", "1")])}


def test_one_object_in_one_call_is_stored_once_and_stays_one_object(client, array, stored):
    future = client.submit(tasks.same_object, array, array, {"again": array}, pure=False)
    assert future.result() is True
    assert len(stored()) == 1


def test_map_stores_each_item_once_and_a_shared_argument_once(client, array, stored):
    items = [array + i for i in range(1, 5)]
    futures = client.map(tasks.describe_all, items, shared=array, pure=False)
    results = client.gather(futures)
    assert results == [([tasks.shape(item)], {"shared": tasks.shape(array)}) for item in items]
    assert len(stored()) == 5
    same = client.map(tasks.total, [array] * 50, pure=False)
    assert client.gather(same) == [tasks.total(array)] * 50
    assert len(stored()) == 5  # and equal to what another call uses


def test_map_over_many_items_with_one_large_argument(client, array, stored):
    futures = client.map(lambda i, big: i + big[0], range(1000), big=array, pure=False)
    distributed.wait(futures)
    assert len(stored()) == 1
    assert client.gather(futures) == [float(i) for i in range(1000)]


def test_a_container_in_several_places_of_a_map(client, array, stored):
    some = [array, 1]
    futures = client.map(places, [some, [some], 3], [1, some, 2], pure=False)
    assert client.gather(futures) == [places(some, 1), places([some], some), places(3, 2)]
    del futures
    stored.becomes(0)


@pytest.mark.parametrize(
    "items",
    [
        {"a": 1, "b": 2},
        {"a": 1, "b": 2}.values(),
        {1, 2},
        pd.DataFrame({"x": [1, 2], "y": [3, 4]}),
        pd.Series([1, 2], index=[3, 4]),
    ],
    ids=["dict", "values of a dict", "set", "frame", "series"],
)
def test_what_a_map_goes_over_need_not_be_a_sequence(items, client, array):
    futures = client.map(lambda item, of: (item, float(of[0])), items, of=array, pure=False)
    assert client.gather(futures) == [(item, 0.0) for item in items]


def test_futures_as_keys_of_a_dict_stay_futures(client, bare_client, array):
    def shape(some):
        return [(type(key).__name__, tasks.shape(value)) for key, value in some.items()]

    def answer(client):
        return client.submit(shape, {client.submit(tasks.identity, 1): array, "x": 2}, pure=False).result(60)

    assert answer(client) == answer(bare_client)


def test_tasks_change_copies_of_their_own(client, array):
    futures = client.map(tasks.set_first, [array] * 3, pure=False)
    assert client.gather(futures) == [(-1.0, 1.0)] * 3
    assert array[0] == 0.0
    added = client.submit(tasks.add_in_place, array, pure=False).result()
    np.testing.assert_array_equal(added, array + 1)


def test_bytes_are_taken_at_submit(client):
    array = np.zeros(BIG)
    first = client.submit(tasks.total, array, pure=False)
    array[0] = 1
    second = client.submit(tasks.total, array, pure=False)
    assert (first.result(), second.result()) == (0.0, 1.0)


def test_a_result_that_is_its_argument_is_a_value(client, array, stored):
    echoed = client.submit(tasks.identity, array, pure=False)
    wrapped = client.submit(tasks.wrap_argument, array, pure=False)
    np.testing.assert_array_equal(echoed.result(), array)
    np.testing.assert_array_equal(wrapped.result()["again"], array)
    del echoed, wrapped
    stored.becomes(0)


def test_retries_get_a_fresh_copy(client, array, tmp_path):
    future = client.submit(tasks.fail_until, str(tmp_path / "tries"), array, retries=5, pure=False)
    assert future.result() == 1.0


def test_exceptions_are_the_tasks_own(client, bare_client, array):
    for function in (tasks.fail, tasks.fail_with):
        ours = client.submit(function, array, pure=False).exception()
        bare = bare_client.submit(function, array, pure=False).exception()
        assert type(ours) is type(bare)
        assert str(ours) == str(bare)
    with pytest.raises(ValueError, match="not this one"):
        client.submit(tasks.fail, array, pure=False).result()


def test_coroutine_tasks_and_actors(client, array):
    assert client.submit(tasks.total_soon, array, pure=False).result() == tasks.total(array)
    actor = client.submit(tasks.Counter, array, actor=True).result()
    assert [actor.bump().result(), actor.bump().result()] == [1.0, 2.0]


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("direct", [None, True])
def test_scatter(client, array, stored, broadcast, direct):
    future = client.scatter(array, broadcast=broadcast, direct=direct, hash=False)
    assert future.type is np.ndarray
    assert client.submit(tasks.total, future, pure=False).result() == tasks.total(array)
    np.testing.assert_array_equal(future.result(), array)
    stored.becomes(0)  # the value lives in the worker's memory


def test_scatter_keeps_the_containers_type(client, bare_client, array):
    for data in ([array, 1], (array, b"x" * 200_000), {"a": array, "b": 2}, tasks.Pair(array, 1), range(3)):
        ours, bare = client.scatter(data, hash=False), bare_client.scatter(data, hash=False)
        assert type(ours) is type(bare)
        assert tasks.shape(client.gather(ours)) == tasks.shape(bare_client.gather(bare))
    twice = client.scatter([array, array], hash=False)
    assert twice[0].key != twice[1].key


def test_scattered_values_are_shared_in_a_worker_as_without_us(client, bare_client, array):
    for one in (client, bare_client):
        future = one.scatter(array.copy(), hash=False)
        once = one.submit(tasks.add_in_place, future, pure=False)
        distributed.wait(once)
        assert one.submit(lambda value: float(value[0]), future, pure=False).result() == 1.0


def test_delayed_compute_and_persist(client, array, stored):
    total = dask.delayed(tasks.total)
    assert total(array).compute() == tasks.total(array)
    assert dask.delayed(array).sum().compute() == tasks.total(array)
    assert dask.compute(total(array), total([array, 1][0]), 5) == (tasks.total(array),) * 2 + (5,)
    nested = dask.delayed(tasks.describe_all)({"a": [array]}, total(array)).compute()
    assert nested[0][0] == ("dict", {"a": ("list", [tasks.shape(array)])})
    kept = total(array).persist()
    assert kept.compute() == tasks.total(array)
    del kept
    stored.becomes(0)


def test_arrays_and_bags(client, array, stored):
    chunked = da.from_array(array, chunks=20_000)
    assert chunked.sum().compute() == tasks.total(array)
    np.testing.assert_array_equal((chunked + 1).persist().compute(), array + 1)
    bag = db.from_sequence([array, array * 2], npartitions=2)
    assert bag.map(tasks.total).compute() == [tasks.total(array), 2 * tasks.total(array)]
    del chunked, bag
    stored.becomes(0)


def test_users_proxies_arrive_as_proxies_and_are_never_evicted(client, array):
    with Store.from_url("shm://", name="mine", register=True) as mine:
        proxy = mine.proxy(array, populate_target=False)
        for _ in range(2):
            future = client.submit(tasks.type_of, proxy, pure=False)
            assert future.result() == "Proxy"
            assert client.submit(tasks.total, proxy, pure=False).result() == tasks.total(array)
            del future
        assert client.submit(tasks.type_of, [proxy, array], pure=False).result() == "list"
        assert client.submit(tasks.total, proxy).key == client.submit(tasks.total, proxy).key
        assert not is_resolved(proxy)
        key = get_factory(proxy).key
        assert mine.exists(key)
        mine.evict(key)


def test_inputs_as_proxies(cluster, array, stored_by):
    with Client(cluster, inputs="proxy") as client:
        assert client.submit(tasks.type_of, array, pure=False).result() == "Proxy"
        assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)
        stored_by(client).becomes(0)


def test_per_call_choices(client, array, stored):
    future = client.submit(tasks.total, array, proxy_args=False, pure=False)
    assert future.result() == tasks.total(array)
    assert not stored()
    future = client.submit(tasks.increment, array, proxy_result=True, pure=False)
    distributed.wait(future)
    assert len(stored()) == 2
    np.testing.assert_array_equal(future.result(), array + 1)
    by_value = client.submit(tasks.increment, array, proxy_result=False, pure=False)
    np.testing.assert_array_equal(by_value.result(), array + 1)
    mapped = client.map(tasks.increment, [array, array], proxy_args=False, proxy_result=True, pure=False)
    np.testing.assert_array_equal(client.gather(mapped)[1], array + 1)
    del future, by_value, mapped
    stored.becomes(0)


def test_what_is_said_of_a_map_holds_for_its_batches(client, array, stored):
    items = [array + i for i in range(4)]
    by_value = client.map(tasks.total, items, batch_size=2, proxy_args=False, pure=False)
    assert client.gather(by_value) == [tasks.total(item) for item in items]
    assert not stored()
    results = client.map(tasks.ones, [BIG] * 4, batch_size=2, proxy_result=True, pure=False)
    distributed.wait(results)
    assert len(stored()) == 4
    del by_value, results
    stored.becomes(0)


def test_unpicklable_arguments_raise_dasks_own_error(client, bare_client):
    import threading

    value = {"lock": threading.Lock(), "data": np.zeros(BIG)}
    errors = []
    for one in (client, bare_client):
        with pytest.raises(Exception) as caught:
            one.submit(tasks.type_of, value, pure=False).result()
        errors.append(type(caught.value))
    assert errors[0] is errors[1]


def test_threshold_decides(cluster, array, stored_by):
    with Client(cluster, threshold="1 MB") as client:
        future = client.submit(tasks.total, array, pure=False)
        future.result()
        assert not stored_by(client)()
        large = client.submit(tasks.total, np.zeros(200_000), pure=False)
        large.result()
        assert len(stored_by(client)()) == 1


def test_dataclass_fields_are_all_there(client, array):
    model = tasks.Model("m", array)
    back = client.submit(tasks.identity, model, pure=False).result()
    assert type(back) is tasks.Model
    assert back.score() == model.score()
    assert [field.name for field in dataclasses.fields(back)] == ["name", "weights"]
