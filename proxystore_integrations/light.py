"""Small values on their way through an engine's own pipes.

numpy's own pickle names three globals, each of which is looked for at both ends: that is most of what a small
array costs. This one names one, and is unpickled as the array: 10 kB take 5 us less than the 9 us of numpy's.
"""

from __future__ import annotations

import pickle
import sys
from sys import getsizeof
from typing import Any

from proxystore_core.insides import LEAVES
from proxystore_core.pickling import Pickling, is_of_numbers

__all__ = ["PLAIN", "SmallArray", "lightened"]

PLAIN = frozenset({str, int, float, bool, type(None)})
"""Light where `sys.getsizeof` says that they are small."""

_FEW = 32


class SmallArray:
    """Is pickled in place of an array, and unpickled as one; with the flags that numpy's own pickle gives.

    Args:
        array: of numbers, in C's order, writable; changes until it is pickled count.
    """

    __slots__ = ("array",)

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, tuple[Any, ...]]:
        array = self.array
        if protocol < 5:
            return _owner, (array.dtype.str, array.shape, array.tobytes())
        return _view, (array.dtype.str, array.shape, pickle.PickleBuffer(array))

    def __repr__(self) -> str:
        return f"<array of {self.array.shape} {self.array.dtype}>"


def lightened(
    values: tuple[Any, ...], threshold: int, pickling: Pickling, alone: bool = True
) -> tuple[Any, ...] | None:
    """Values as an engine is to carry them; None where it takes a longer look to see what they are.

    Given back, all are below the threshold, and hold no future and no proxy: no other containers than lists,
    tuples and dicts of a few plain values. An array is a `SmallArray` if it is the only one, beside no
    container: where two are one object, pickle says so.

    One pass, for the calls of which there are most: a microsecond is a share of them.

    Args:
        values: arguments, or a result.
        threshold: bytes.
        pickling: as the engine would.
        alone: whether nothing else is pickled with them.
    """
    limit = threshold - 8
    array, arrays = None, 0
    for value in values:
        kind = type(value)
        if kind in PLAIN:
            if getsizeof(value) >= limit:
                return None
            continue
        try:
            leaf = LEAVES.get(kind)
            if leaf is None:
                if not _are_few(value, kind, limit):
                    return None
                alone = False
            elif not 0 <= leaf(value) < limit:
                return None
        except Exception:  # a released memoryview's
            return None
        if leaf is not None and kind is getattr(sys.modules.get("numpy"), "ndarray", None):
            array, arrays = value, arrays + 1
    if limit <= 8:
        return None
    if arrays != 1 or not alone or not _is_usual(array, pickling):
        return values
    return tuple([SmallArray(value) if value is array else value for value in values])


def _are_few(value: Any, kind: type, limit: int) -> bool:
    """Whether it is a container of few plain values, which are below a limit together."""
    if kind is dict:
        value = (*value, *value.values())
    elif kind is not list and kind is not tuple:
        return False
    size = 8 * len(value)
    if size > 8 * _FEW:
        return False
    for each in value:
        if type(each) not in PLAIN:
            return False
        size += getsizeof(each)
    return size < limit


def _is_usual(array: Any, pickling: Pickling) -> Any:
    """Whether pickle does nothing else for an array than a `SmallArray` does."""
    return (
        array.flags.carray  # aligned and writable, in C's order
        and array.size
        and is_of_numbers(array.dtype)
        and pickling.usual(type(array))
    )


def _owner(dtype: str, shape: tuple[int, ...], data: bytes) -> Any:
    return _view(dtype, shape, data).copy()


def _view(dtype: str, shape: tuple[int, ...], data: Any) -> Any:
    import numpy as np

    return np.ndarray(shape, dtype, data)
