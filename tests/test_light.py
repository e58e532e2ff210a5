"""Small values on their way to a pool's workers and back: what a bare pool's tasks are given, for less."""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

import futures_tasks as tasks
import hypothesis.extra.numpy as some
import loky
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core.pickling import DEFAULT, Pickling
from proxystore_core.proxy import Proxy
from proxystore_core.sizeof import sizeof
from proxystore_integrations.dependents import LaterFuture, store_futures
from proxystore_integrations.futures import StoreExecutor
from proxystore_integrations.light import SmallArray, lightened
from proxystore_integrations.policy import Policy

ARRAYS = some.arrays(
    st.one_of(
        some.scalar_dtypes(),
        some.byte_string_dtypes(),
        some.unicode_string_dtypes(),
        some.array_dtypes(),
        st.just(np.dtype([("a", "i4"), ("b", "f8")])),
    ),
    some.array_shapes(min_dims=0, min_side=0),
)
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda array: array,
    "Fortran's order": np.asfortranarray,
    "transposed": lambda array: array.T,
    "every second": lambda array: array[..., ::2] if array.ndim else array,
    "backwards": lambda array: array[::-1] if array.ndim else array,
    "not aligned": lambda array: unaligned(array),
}


sizeof(np.zeros(1))  # from the first one on, its type is known


def of_light(*values: Any) -> tuple[Any, ...]:
    light = lightened(values, 1_000_000, DEFAULT)
    assert light is not None
    return light


def unaligned(array: Any) -> Any:
    moved = np.empty(array.nbytes + 1, "u1")[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
@given(array=ARRAYS, read_only=st.booleans())
def test_it_is_the_array_that_numpy_would_have_pickled(
    protocol: int, layout: str, array: Any, read_only: bool
) -> None:
    array = LAYOUTS[layout](array)
    array.flags.writeable = not read_only
    (light,) = of_light(array)
    bare, ours = (pickle.loads(pickle.dumps(value, protocol)) for value in (array, light))
    assert tasks.about_array(ours) == tasks.about_array(bare)


def test_the_one_array_among_other_arguments() -> None:
    array = np.arange(5.0)
    first, light, last = of_light(1, array, "text")
    assert (first, last, type(light)) == (1, "text", SmallArray)
    assert len(pickle.dumps(light)) < len(pickle.dumps(array))
    assert "(5,) float64" in repr(light)


def test_two_arrays_are_left_to_pickle_which_sees_that_they_are_one() -> None:
    array = np.arange(5.0)
    assert lightened((array, array), 100_000, DEFAULT) == (array, array)


def test_one_array_beside_a_container_that_may_have_it_too() -> None:
    array = np.arange(5.0)
    assert lightened((array, [array]), 100_000, DEFAULT) is None
    values = (array, [1])
    assert lightened(values, 100_000, DEFAULT) is values
    assert lightened((array,), 100_000, DEFAULT, alone=False) == (array,)


def unreachable() -> None:
    raise AssertionError("a proxy was resolved")


@pytest.mark.parametrize(
    ("values", "light"),
    [
        ((1, "text", b"bytes", np.zeros(12_490), None, True, 2.5, 1j), True),
        ((), True),
        (([1, "text"], (2, None), {"a": 4.5, 3: "b"}, [], {}), True),
        ((1, np.zeros(12_500)), False),
        ((1 << 800_000,), False),
        (("a" * 100_000,), False),
        (("é" * 90_000,), True),
        (("\U0001f600" * 25_000,), False),
        (([np.zeros(12_500)],), False),
        (([np.zeros(1)],), False),
        ((["a" * 30_000, "b" * 30_000, "c" * 40_000],), False),
        ((list(range(32)),), True),
        ((list(range(33)),), False),
        ((dict.fromkeys(range(17)),), False),
        (([[1]],), False),
        (({1: [2]},), False),
        (({1, 2},), False),
        (([Proxy(unreachable)],), False),
        (([object()],), False),
        ((np.array([1, [2]], dtype=object),), False),
        ((Proxy(unreachable),), False),
        ((object(),), False),
    ],
)
def test_light_values_are_small_and_hold_nothing(values: tuple[Any, ...], light: bool) -> None:
    assert (lightened(values, 100_000, DEFAULT) is not None) is light
    assert not light or not any(map(Policy(100_000).over, values))


@given(
    values=st.recursive(
        st.one_of(st.integers(), st.text(), st.binary(), st.none(), st.floats(), ARRAYS),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner, inner)),
    ).map(lambda value: (value,)),
    threshold=st.integers(0, 2000),
)
def test_what_is_light_is_below_the_threshold(values: tuple[Any, ...], threshold: int) -> None:
    if lightened(values, threshold, DEFAULT) is not None:
        assert not Policy(threshold).over(values[0])


def test_a_value_that_cannot_be_measured_is_not_light() -> None:
    view = memoryview(b"view")
    assert lightened((view,), 100_000, DEFAULT) is not None
    view.release()
    assert lightened((view,), 100_000, DEFAULT) is None


@pytest.mark.parametrize("kind", [LaterFuture, store_futures[Future]])
def test_a_future_is_not_light_whatever_the_threshold(kind: type[Any]) -> None:
    future = object.__new__(kind)
    assert lightened((future,), sys.maxsize, DEFAULT) is None
    assert lightened(([future],), sys.maxsize, DEFAULT) is None


class Traced(np.ndarray):
    pass


@pytest.mark.parametrize(
    "value",
    [
        np.arange(5.0).view(Traced),
        np.ma.masked_array(np.arange(5.0)),
        np.array([1, "text"], dtype=object),
        np.array([1, 2], dtype=[("a", "i4")]),
        np.array(["2026-11-26"], dtype="M8[D]"),
        np.zeros(5, dtype=np.dtype("f8", metadata={"unit": "m"})),
        np.zeros(5, dtype=">f8"),
        np.float64(5),
        5,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_else_there_is_goes_as_it_is(value: Any) -> None:
    light = lightened((value,), 100_000, DEFAULT)
    assert light is None or light[0] is value


def test_a_reducer_that_somebody_has_registered_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (np.arange(5.0),)
    pools = Pickling(multiprocessing=True)
    assert lightened(values, 100_000, pools) is not values
    with monkeypatch.context() as patch:
        patch.setitem(copyreg.dispatch_table, np.ndarray, pickle.dumps)
        assert lightened(values, 100_000, pools) is values
    with monkeypatch.context() as patch:
        patch.setitem(ForkingPickler._extra_reducers, np.ndarray, pickle.dumps)
        assert lightened(values, 100_000, pools) is values
        assert lightened(values, 100_000, DEFAULT) is not values
    assert lightened(values, 100_000, Pickling(left=(np.ndarray,))) is values
    assert lightened(values, 100_000, Pickling(mapped=True)) is values
    assert lightened(values, 100_000, Pickling(left=("numpy:ndarray",))) is values


@pytest.fixture(scope="module", params=["processes", "loky"])
def pools(request: pytest.FixtureRequest) -> Iterator[tuple[Executor, Executor]]:
    made = ProcessPoolExecutor(1) if request.param == "processes" else loky.ProcessPoolExecutor(1)
    with made as bare, StoreExecutor(bare, threshold="100 kB") as ours:
        yield bare, ours


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4)])
def test_arguments_and_results_of_a_pool(pools: tuple[Executor, Executor], shape: tuple[int, ...]) -> None:
    array = np.ones(shape, "f4")
    in_bare, in_ours = (pool.submit(tasks.about_array, array).result(60) for pool in pools)
    assert in_ours == in_bare
    of_bare, of_ours = (tasks.about_array(pool.submit(tasks.same, array).result(60)) for pool in pools)
    assert of_ours == of_bare


def test_one_array_in_two_arguments_is_one_in_the_task(pools: tuple[Executor, Executor]) -> None:
    array = np.ones(5)
    assert [pool.submit(tasks.are_one, array, array).result(60) for pool in pools] == [True, True]
