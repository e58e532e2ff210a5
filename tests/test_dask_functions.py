"""Dask: large values that travel inside a task's function."""

from __future__ import annotations

import functools
import importlib
import operator
import sys
import types

import cloudpickle
import dask
import dask_tasks as tasks
import numpy as np
import pytest

from proxystore_core import Store, sizeof, store_for
from proxystore_core.testing import in_new_process
from proxystore_integrations.dask import Client
from proxystore_integrations.functions import carries_large
from proxystore_integrations.policy import Policy
from proxystore_integrations.together import held_by

BIG = 30_000


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float) + 10


def functions(array):
    return {
        "partial": functools.partial(tasks.Offset.plus, tasks.Offset(array)),
        "partial by keyword": functools.partial(tasks.closure_over(np.zeros(9)), keyword=array),
        "partial of a partial": functools.partial(functools.partial(operator.add, array)),
        "partial of a closure": functools.partial(tasks.closure_over(array), keyword=1),
        "bound method": tasks.Offset(array).plus,
        "coroutine method": tasks.Offset(array).soon,
        "method of an array": array.searchsorted,
        "callable object": tasks.Offset(array),
        "closure": tasks.closure_over(array),
        "default": tasks.with_default(array),
        "coroutine": tasks.coroutine_over(array),
    }


@pytest.mark.parametrize("name", functions(np.zeros(0)))
@pytest.mark.parametrize("way", ["submit", "map", "delayed"])
def test_a_function_that_carries_an_array(name, way, client, bare_client, array, stored):
    function = functions(array)[name]
    if way == "submit":
        futures = [one.submit(function, 5, pure=False) for one in (client, bare_client)]
        ours, bare = (future.result() for future in futures)
        assert futures[0].key.rpartition("-")[0].split("-")[0] == futures[1].key.split("-")[0]
        size = client.run_on_scheduler(_pickled_size, key=futures[0].key)
        assert size < 1_000
    elif way == "map":
        mapped = [one.map(function, [5, 6], pure=False) for one in (client, bare_client)]
        ours, bare = client.gather(mapped[0]), bare_client.gather(mapped[1])
        assert len(stored()) == 1
        del mapped
    elif "coroutine" in name:
        return
    else:
        lazy = dask.delayed(function)(5)
        ours, bare = lazy.compute(scheduler=client), lazy.compute(scheduler=bare_client)
    if way == "submit":
        assert len(stored()) == 1
        del futures
    assert tasks.shape(ours) == tasks.shape(bare)
    stored.becomes(0)


def _pickled_size(dask_scheduler, key):
    import pickle

    return len(pickle.dumps(dask_scheduler.tasks[key].run_spec))


def test_names_are_dasks_own(client, bare_client, array):
    for function in functions(array).values():
        assert client.submit(function, 5).key == bare_client.submit(function, 5).key
        assert [f.key for f in client.map(function, [5])] == [f.key for f in bare_client.map(function, [5])]


def test_one_function_for_many_tasks_is_stored_once(client, array, stored):
    function = tasks.closure_over(array)
    futures = client.map(function, range(200), pure=False)
    assert client.gather(futures) == [13.0 + i for i in range(200)]
    assert len(stored()) == 1
    again = client.submit(function, 1, pure=False)
    assert again.result() == 14.0
    assert len(stored()) == 1
    del futures, again
    stored.becomes(0)


def test_a_function_of_a_script_that_names_a_large_global(client, array):
    namespace = {"__name__": "__main__", "table": array}
    exec("def look(i):\n    return float(table[i])\nlazy = [lambda i: look(i)][0]", namespace)
    policy = Policy(100_000)
    assert carries_large(namespace["look"], policy)
    assert carries_large(namespace["lazy"], policy)
    future = client.submit(namespace["look"], 7, pure=False)
    assert future.result() == 17.0
    assert client.run_on_scheduler(_pickled_size, key=future.key) < 1_000


def _look(i):
    return i + BIG


def test_a_function_that_its_module_does_not_have_names_a_large_global(array):
    """cloudpickle takes it by value, whatever its module."""
    replaced = types.FunctionType(_look.__code__, {"BIG": array}, "total")
    replaced.__module__, replaced.__qualname__ = tasks.__name__, "total"
    assert carries_large(replaced, Policy(100_000))


def test_functions_of_a_module_that_goes_by_value(array, tmp_path, monkeypatch):
    """`cloudpickle.register_pickle_by_value`: what they name goes with them, as with those of a script."""
    (tmp_path / "by_value_here.py").write_text(
        "table = None\n"
        "def look(i):\n    return float(table[i])\n"
        "def through(i):\n    return look(i)\n"
        "def with_default(i, table=None):\n    return float(table[i])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("by_value_here")
    monkeypatch.setitem(sys.modules, "by_value_here", module)  # it goes with the test
    module.table = array
    module.with_default.__defaults__ = (array,)
    functions = (module.look, module.through, module.with_default)
    policy = Policy(100_000)
    assert not any(carries_large(function, policy) for function in functions)
    cloudpickle.register_pickle_by_value(module)
    try:
        assert all(carries_large(function, policy) for function in functions)
        assert all(id(array) in held_by(function, main_by_value=True) for function in functions)
        assert sizeof(module.with_default) > array.nbytes
        with Store.from_url("shm://by-value-here") as store:
            for function in functions:
                reference = store.reference(function)
                assert in_new_process(_called, reference.recipe, reference.key) == 17.0
                store.evict(reference.key)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _called(recipe, key):
    return store_for(recipe).get(key)(7)


def test_plain_functions_carry_nothing():
    policy = Policy(100_000)
    for function in (len, max, np.sum, tasks.total, tasks.Model, [].append, np.zeros(3).sum, operator.add):
        assert not carries_large(function, policy)


class Holder:
    def __init__(self, **held):
        self.__dict__ = held

    def total(self):
        return 1


def test_methods_and_partials_carry_what_they_hold(array):
    policy = Policy(100_000)
    for function in (
        Holder().total,
        Holder(name="text", sizes=[1, 2]).total,
        Holder(inner=Holder(name="text")).total,
        functools.partial(tasks.total, 1, key="text"),
        functools.partial(Holder(name="text").total),
        functools.partial(Holder, name="text"),
    ):
        assert not carries_large(function, policy)
    for function in (
        Holder(table=array).total,
        Holder(inner=Holder(table=array)).total,
        Holder(tables=[array]).total,
        types.MethodType(lambda self, table=array: 1, Holder()),
        functools.partial(tasks.total, array),
        functools.partial(tasks.total, key=[array]),
        functools.partial(Holder(table=array).total),
        functools.partial(functools.partial(tasks.total, 1), array),
    ):
        assert carries_large(function, policy)


def test_a_function_that_changes_what_it_carries_changes_its_own_copy(client, bare_client, array):
    def bump(_, array=array):
        array += 1
        return float(array[0])

    for one in (client, bare_client):
        assert one.gather(one.map(bump, range(3), pure=False)) == [11.0] * 3


def test_lazy_inputs_leave_functions_functions(cluster, array):
    with Client(cluster, inputs="proxy") as client:
        assert client.submit(functools.partial(tasks.type_of, array), pure=False).result() == "ndarray"
        assert client.submit(tasks.Offset(array), 1, pure=False).result() == 11.0


def test_values_deep_inside_user_objects(client, bare_client, array):
    deep = tasks.Model("outer", {"inner": tasks.Model("inner", [tasks.Hidden(array), (b"x" * 300_000,)])})
    ours, bare = (one.submit(tasks.describe_all, deep, pure=False) for one in (client, bare_client))
    assert ours.result() == bare.result()
    assert client.run_on_scheduler(_pickled_size, key=ours.key) < 1_000
