"""How objects are pickled for the readers of an engine, and which objects a pickle has in it."""

from __future__ import annotations

import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest

from proxystore_core.errors import SerializationError
from proxystore_core.memos import remembering
from proxystore_core.pickling import DEFAULT, Pickling
from proxystore_core.serialize import deserialize, serialize

ARRAYS = {
    "plain": np.arange(5000.0),
    "small": np.arange(5.0),
    "Fortran's order": np.asfortranarray(np.ones((70, 80))),
    "transposed": np.ones((10, 20, 30)).transpose(1, 2, 0),
    "records": np.zeros(3000, dtype=[("a", "i4"), ("b", "f8")]),
    "strided": np.arange(9000.0)[::2],
    "objects": np.array([{}] * 3000),
    "empty": np.zeros((0, 3)),
}


def again(value: Any, pickling: Pickling) -> Any:
    return deserialize(bytearray(b"".join(serialize(value, pickling=pickling))))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("held", [False, True])
def test_read_only_arrays(name: str, held: bool) -> None:
    array = ARRAYS[name].view()
    array.flags.writeable = False
    for pickling in (Pickling(writable=True), Pickling(), Pickling(writable=True)):
        result = again([array] if held else array, pickling)
        result = result[0] if held else result
        assert result.flags.writeable or not pickling.writable or name == "empty"
        assert result.dtype == array.dtype
        assert result.flags.f_contiguous == array.flags.f_contiguous or name == "strided"
        np.testing.assert_array_equal(result, array)
    assert not array.flags.writeable


def test_what_pickles_default_protocol_does() -> None:
    assert DEFAULT.writable == (pickle.DEFAULT_PROTOCOL < 5)


def test_what_multiprocessing_passes_in_its_own_way() -> None:
    here, there = multiprocessing.Pipe()
    with here, there:
        with pytest.raises(SerializationError, match="own way to pass 'Connection'"):
            serialize([1, here], pickling=Pickling(main_by_value=False, multiprocessing=True))
    assert again([len, [].append], Pickling(multiprocessing=True))[0] is len


def test_arrays_that_the_engine_has_a_reducer_for_are_not_usual() -> None:
    assert Pickling(multiprocessing=True).usual(np.ndarray)
    assert not Pickling(left=(np.ndarray,)).usual(np.ndarray)
    assert not Pickling(left=("numpy:ndarray",)).usual(np.ndarray)
    assert Pickling(left=(Thing,)).usual(np.ndarray)


class Thing:
    pass


@pytest.mark.parametrize("function", [None, lambda: 1])
def test_memos(function: Any) -> None:
    """Also of what only cloudpickle takes."""
    thing = Thing()
    parts = thing.parts = [[1], {}, np.ones(5000), Thing(), "text" * 10, (1, [2])]  # type: ignore[attr-defined]
    with remembering() as memos:
        frames = serialize([thing, function])
        kept = list(map(bytes, frames))
        serialize(parts[0])
    memo = next(iter(memos.values()))
    assert len(memos) == 2
    assert [part in memo for part in (thing, parts, *parts)] == [True] * 8
    others = ([1], {}, np.ones(5000), Thing(), (1, [2]), [], 7, object(), [thing], lambda: 1, memo)
    assert [other in memo for other in others] == [False] * len(others)
    assert thing in memo
    assert list(map(bytes, frames)) == kept
    serialize(thing)
    assert len(memos) == 2
