"""`StoreExecutor`: what differs from the bare executor only where somebody looks closely."""

from __future__ import annotations

import functools
import io
import itertools
import multiprocessing
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import futures_tasks as tasks
import loky
import numpy as np
import pandas as pd
import pytest

from proxystore_core import serialize
from proxystore_core.pickling import Pickling
from proxystore_integrations.carriers import NotDeliveredError, Terms
from proxystore_integrations.futures import StoreExecutor
from proxystore_integrations.outgoing import outgoing_of
from proxystore_integrations.testing import tasks as contract_tasks

WAIT = 60


@pytest.fixture(scope="module")
def executors() -> Iterator[tuple[Executor, StoreExecutor]]:
    context = multiprocessing.get_context("forkserver")
    with (
        ProcessPoolExecutor(1, mp_context=context) as bare,
        StoreExecutor(ProcessPoolExecutor(1, mp_context=context), threshold="100 kB") as executor,
    ):
        yield bare, executor
    resource_sharer.stop()


def both(executors: tuple[Executor, StoreExecutor], function: Any, *args: Any) -> Any:
    """The answer that both give."""
    bare, ours = (executor.submit(function, *args).result(WAIT) for executor in executors)
    assert ours == bare
    return ours


READ_ONLY = {
    "array": lambda array: array,
    "Fortran's order": lambda array: np.asfortranarray(array.reshape(100, -1)),
    "records": lambda array: array.view([("a", "i4"), ("b", "f4")]),
    "broadcast": lambda array: np.broadcast_to(array, (2, len(array))),
}


@pytest.mark.parametrize("kind", READ_ONLY)
def test_read_only_arrays_are_writable_in_a_task(kind: str, executors: Any) -> None:
    array = READ_ONLY[kind](np.arange(float(tasks.BIG)))
    array.flags.writeable = False
    assert both(executors, tasks.writable, array)
    assert both(executors, tasks.writable, array)  # another of its kind
    assert both(executors, tasks.writable, tasks.Parcel(array))
    assert not array.flags.writeable


LAYOUTS = {
    "other byte order": lambda array: array.astype(">f8"),
    "other byte order, Fortran's": lambda array: np.asfortranarray(array.reshape(100, -1)).astype(">f4"),
    "other byte order, text": lambda array: array.astype(">U8"),
    "other byte order, times": lambda array: array.astype(">M8[s]"),
    "other byte order, records": lambda array: array.astype(">i4").view([("a", ">i4")]),
    "permuted": lambda array: array.reshape(10, 100, -1).transpose(1, 0, 2),
    "permuted, other byte order": lambda array: array.astype(">i2").reshape(10, 100, -1).transpose(2, 0, 1),
    "every second": lambda array: array[::2],
    "a column": lambda array: array.reshape(-1, 2)[:, 0],
    "empty": lambda array: array[:0].reshape(3, 0, 5),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_of_arrays(kind: str, executors: Any) -> None:
    for writeable in (True, False):
        array = LAYOUTS[kind](np.arange(float(tasks.BIG)))
        array.flags.writeable = writeable
        both(executors, tasks.layout, array)
        bare, ours = (executor.submit(tasks.same, array).result(WAIT) for executor in executors)
        assert tasks.layout(ours) == tasks.layout(bare)


def test_attributes_of_partials(executors: Any) -> None:
    partial = functools.partial(tasks.same, tasks.big())
    partial.note = 1  # type: ignore[attr-defined]
    both(executors, tasks.attributes, partial, 3)


def test_read_only_results_are_writable(executors: Any) -> None:
    for executor in executors:
        for result in (tasks.read_only, tasks.read_only_parcel):
            array = tasks.array_of(executor.submit(result).result(WAIT))
            assert array.flags.writeable
            assert array[1] == 1


def test_read_only_arrays_stay_so_where_the_bare_executor_leaves_them() -> None:
    array = tasks.read_only()
    with loky.ProcessPoolExecutor(1) as bare, StoreExecutor(bare, threshold="100 kB") as executor:
        assert not both((bare, executor), tasks.writable, array)


def test_tensors_are_shared_where_multiprocessing_shares_them(executors: Any) -> None:
    torch = pytest.importorskip("torch")
    for value in (lambda tensor: tensor, tasks.Parcel):
        for executor in executors:
            tensor = torch.zeros(tasks.BIG)
            executor.submit(tasks.increment, value(tensor)).result(WAIT)
            assert float(tensor.sum()) == tasks.BIG
    tensor = executors[1].submit(tasks.tensor).result(WAIT)
    assert tensor.is_shared()


def test_what_multiprocessing_passes_is_not_tried_first(executors: Any, monkeypatch: Any) -> None:
    torch = pytest.importorskip("torch")
    tried = []
    pickled = serialize._pickled

    def recorded(obj: Any, *how: Any) -> Any:
        tried.append(type(obj))
        return pickled(obj, *how)

    monkeypatch.setattr(serialize, "_pickled", recorded)
    assert executors[1].submit(tasks.kind, torch.zeros(tasks.BIG)).result(WAIT) == "Tensor"
    executors[1].submit(tasks.kind, tasks.big()).result(WAIT)
    assert torch.Tensor not in tried
    own_way = Pickling(multiprocessing=True)
    terms = Terms("nowhere://", "session", 1000, "raise", own_way, "")
    tensor = torch.zeros(tasks.BIG)
    assert terms.outgoing(tensor, tasks.tensor, "tensor", None) is tensor


def test_connections_arrive(executors: Any) -> None:
    for executor in executors:
        here, there = multiprocessing.Pipe()
        with here, there:
            assert executor.submit(tasks.talk, tasks.Parcel(tasks.big()), there).result(WAIT) == tasks.BIG
            executor.submit(tasks.talk, tasks.Parcel((tasks.big(), there))).result(WAIT)
            assert [here.recv() for _ in range(2)] == ["hello"] * 2


def cyclic() -> dict[str, Any]:
    large = tasks.big()
    in_list: list[Any] = [large, 1]
    in_list.append(in_list)
    in_dict: dict[str, Any] = {"large": large, "children": []}
    in_dict["children"] += [{"parent": in_dict, "number": number, "of": large} for number in range(3)]
    in_tuple: tuple[Any, ...] = ([], large)
    in_tuple[0].append(in_tuple)
    small: dict[str, Any] = {}
    small["self"] = small
    return {
        "list": in_list,
        "dict": in_dict,
        "tuple": in_tuple,
        "within": [large, [in_list, in_dict]],
        "small": [small, large],
        "of small ones": list(itertools.repeat(small, 3)) + [str(number) for number in range(20_000)],
    }


@pytest.mark.parametrize("kind", cyclic())
def test_what_holds_itself_still_does(kind: str, executors: Any) -> None:
    assert both(executors, tasks.shape, cyclic()[kind])


def test_what_is_in_many_places_is_looked_at_once(executors: Any) -> None:
    shared: list[Any] = ["x"]
    for _ in range(6):
        shared = [shared] * 100
    assert both(executors, len, [shared, *([number] for number in range(20_000))]) == 20_001


# Objects that are in several places.


def population() -> list[tasks.Parcel]:
    return [tasks.Parcel([float(number)] * 30) for number in range(1000)]


GLOBAL = population()
OF_GLOBAL = GLOBAL[7]


def in_common() -> dict[str, tuple[Any, ...]]:
    some, parcel = population(), tasks.Parcel(tasks.big())
    parcel.parts = [tasks.Parcel(parcel.array), {}]  # type: ignore[attr-defined]
    pairs = [tasks.Pair(some[number], some[number + 1]) for number in range(999)]
    return {
        "one of a list": (some, some[7], tasks.big()),
        "in an object": (some, tasks.Parcel(some[7])),
        "in a dict": ({"some": some}, {"one": some[7]}),
        "an array": (parcel, parcel.array),
        "an array, first": (parcel.array, 3, parcel),
        "two lists": (some, pairs),
        "an empty dict": (parcel, parcel.parts[1]),  # type: ignore[attr-defined]
        "none": (some, tasks.Parcel({})),
        "a key": ({parcel: parcel, "large": tasks.big()}, 1),
        "in a key": ({(1, parcel): [tasks.Parcel(parcel)]},),
        "an array far down in what seems small": (parcel.array, tasks.nested([parcel.array], 12)),
        "a container far down": ([parcel], tasks.nested([parcel.array], 12), [parcel.array]),
    }


@pytest.mark.parametrize("kind", in_common())
def test_what_is_in_several_places_is_one_object(kind: str, executors: Any) -> None:
    args = in_common()[kind]
    assert both(executors, tasks.shape_of, *args)
    for executor in executors:
        given = {f"arg{number}": value for number, value in enumerate(args)}
        assert executor.submit(tasks.shape_of, **given).result(WAIT) == tasks.shape_of(*args)
        assert next(executor.map(tasks.shape_of, *([arg] for arg in args))) == tasks.shape_of(*args)


def test_what_functions_have_in_common_with_their_arguments(executors: Any) -> None:
    parcel = tasks.Parcel(tasks.big())
    assert both(executors, parcel.holds, parcel.array)
    assert both(executors, functools.partial(tasks.Parcel.holds, parcel), parcel.array)
    assert not both(executors, parcel.holds, parcel.array.copy())
    some = population()
    one = some[7]
    with loky.ProcessPoolExecutor(1) as bare, StoreExecutor(bare, threshold="100 kB") as executor:
        assert both((bare, executor), lambda some: one in some, some)
        assert both((bare, executor), lambda one: one in some, one)
        assert both((bare, executor), lambda *some, of=one: of in some, *some)
        assert both((bare, executor), lambda some: OF_GLOBAL in some, GLOBAL)
        assert both((bare, executor), lambda one: one in GLOBAL, OF_GLOBAL)


def test_what_is_stored_as_one_is_shared_by_calls(executors: Any) -> None:
    some = population()
    link = executors[1]._link
    calls = [outgoing_of(link, tasks.total_of, (some, some[7], number), {}, True) for number in range(3)]
    references = [outgoing.references for outgoing, _ in calls]
    assert len(references[0]) == 1
    assert references[1:] == references[:1] * 2
    for outgoing, (function, args, _) in calls:
        assert not function
        assert args[2] in range(3)
        outgoing.over()


def test_results_are_never_part_of_another_object(executors: Any) -> None:
    executor, some = executors[1], population()
    assert executor.submit(tasks.shape_of, some, some[7], 1).result(WAIT)
    result = executor.submit(tasks.big)
    for args in ((some, some[7], result), (some, result, some[7]), ([result, some], some[7], 1)):
        assert tasks.name_of_array(executor.submit(tasks.shape_of, *args).result(WAIT))


def test_a_result_among_many_small_values(executors: Any) -> None:
    executor = executors[1]
    large = executor.submit(tasks.big)
    many: list[Any] = [np.zeros(1) for _ in range(900)]
    many[501] = large
    expected = float(large.result(WAIT).sum())
    assert executor.submit(contract_tasks.total_of, many).result(WAIT) == expected


def test_a_result_far_down_in_containers(executors: Any) -> None:
    large = executors[1].submit(tasks.big)
    nested: Any = {"a": [[[[[large]]]]]}
    assert len(executors[1].submit(contract_tasks.places, nested).result(WAIT)) == 7


@pytest.mark.parametrize("big", [True, False])
def test_containers_of_futures_in_several_places(big: bool, executors: Any) -> None:
    executor, large = executors[1], tasks.big()
    value = large if big else 1
    future = executor.submit(tasks.same, value)

    def places(of: Any) -> list[Any]:
        items, cyclic, inside = [of], [of], {"of": of, "in": []}
        cyclic.append(cyclic)
        inside["in"].append(inside)
        pair = ([of],)
        pair[0].append(pair)
        return [[items, [items], items], [cyclic, {"a": cyclic}], [inside], [pair, pair], [of, [of]]]

    for given, expected in zip(places(future), places(value), strict=True):
        assert executor.submit(tasks.shape_of, *given).result(WAIT) == tasks.shape_of(*expected)
        assert executor.submit(tasks.shape_of, given[0], a=given).result(WAIT) == tasks.shape_of(
            expected[0], a=expected
        )


def test_data_frames_of_one_index_are_stored_apart(executors: Any) -> None:
    frame = pd.DataFrame({"a": tasks.big(), "b": tasks.big()})
    frame.index = pd.Index([f"row {number}" for number in range(len(frame))])
    outgoing, _ = outgoing_of(executors[1]._link, tasks.total, (frame, frame["a"]), {}, True)
    assert len(outgoing.references) == 2
    outgoing.over()


# What they raise.


@pytest.mark.parametrize("key", ["another", None])
@pytest.mark.parametrize("big", [True, False])
def test_a_call_whose_own_call_lacked_arguments_is_not_made_again(
    key: str | None, big: bool, executors: Any, tmp_path: Path
) -> None:
    counted = tmp_path / "counted"
    argument = executors[1].submit(tasks.big) if big else executors[1].submit(tasks.kind, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        future = executors[1].submit(tasks.lacking, argument, str(counted), key)
        error = future.exception(WAIT)
    assert type(error) is NotDeliveredError
    assert error.key == key
    assert len(counted.read_text()) == (2 if big and not key else 1)  # once more: nothing tells whose it was


# What they are called with.


def test_callables_that_refuse_to_be_asked(executors: Any) -> None:
    assert both(executors, tasks.Strange(), 1) == 1
    assert both(executors, tasks.Strange(), b"x" * 200_000) == b"x" * 200_000


def test_a_keyword_named_self(executors: Any) -> None:
    for executor in executors:
        assert executor.submit(functools.partial(dict, b=2), self=1).result(WAIT) == {"self": 1, "b": 2}


def test_what_shutdown_takes_by_position() -> None:
    for bare in (ProcessPoolExecutor(1), loky.ProcessPoolExecutor(1)):
        with StoreExecutor(bare) as executor, pytest.raises(TypeError):
            executor.shutdown(True, False, False)
        assert not executor._link.is_open


def test_results_of_chunks_are_let_go_of_one_by_one(executors: Any) -> None:
    for executor in executors:
        held: list[weakref.ref[Any]] = []
        for array in executor.map(tasks.big, range(3), chunksize=3):
            held.append(weakref.ref(array))
            assert sum(each() is not None for each in held) == 1
        results = executor.map(tasks.big, range(3), chunksize=3)
        next(results)
        results.close()
        assert not list(results)


def test_what_is_pickled_once(executors: Any) -> None:
    for executor in executors:
        counted = tasks.Counted()
        assert executor.submit(tasks.kind_of_all, counted, tasks.Parcel(tasks.big())).result(WAIT)
        assert counted.pickled == 1


def test_a_file_in_memory_in_several_places(executors: Any) -> None:
    # The pickle of one has the same bytes: `sys.getsizeof` leaves them out from then on.
    file = io.BytesIO(b"x" * 200_000)
    for executor in executors:
        assert executor.submit(tasks.are_one, file, other=file).result(WAIT)


def test_chunks_that_threads_ignore() -> None:
    with ThreadPoolExecutor() as bare, StoreExecutor(bare) as executor:
        for one in (bare, executor):
            assert list(one.map(abs, [-1], chunksize=0)) == [1]


@pytest.mark.parametrize(("args", "options"), [((), {"kill_workers": True}), ((True, True), {})])
def test_lokys_own_shutdown(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    executor = StoreExecutor(loky.ProcessPoolExecutor(1))
    running = executor.submit(tasks.slow, tasks.big(), 600)
    waiting = executor.submit(tasks.slow, running)
    executor.shutdown(*args, **options)
    assert isinstance(running.exception(WAIT), loky.process_executor.ShutdownExecutorError)
    assert waiting.cancelled()
