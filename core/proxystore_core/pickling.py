"""How an object is pickled that an engine would else pickle itself: as its readers would have had it."""

from __future__ import annotations

import copyreg
import functools
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from proxystore_core.reference import loaded_class

__all__ = ["DEFAULT", "Pickling", "Reducer", "is_of_numbers"]

Reducer: TypeAlias = Callable[[Any], Any]

_USUAL = frozenset(
    {functools.partial, types.MethodType, types.MethodDescriptorType, types.WrapperDescriptorType}
)
"""What multiprocessing has reducers of its own for, that do as pickle does, or nearly."""


class Pickling(NamedTuple):
    """How an object is pickled.

    Attributes:
        main_by_value: let cloudpickle take what another process could not import. False for readers that
            have the same ``__main__``: pickle alone, which takes everything by name.
        writable: arrays are where they are read as with pickle's protocols below 5: writable, though
            they be read-only here, in this machine's byte order, and in C's order where they have none.
        multiprocessing: refuse what `multiprocessing` passes in its own way (connections, sockets, PyTorch's
            tensors, which both processes then share).
        left: refuse these types too, which the engine's user has given reducers for: types, or
            ``module:name`` of those that a process is told of.
        mapped: refuse arrays that are maps of files, and views of such: the engine passes the file's name,
            and both processes write to the same file. Not together with ``writable``.
    """

    main_by_value: bool = True
    writable: bool = False
    multiprocessing: bool = False
    left: tuple[Any, ...] = ()
    mapped: bool = False

    def reducers(self) -> Mapping[type, Reducer]:
        """By exact type, how to reduce what is not pickled in its own way."""
        reducers: dict[type, Reducer] = {}
        numpy = sys.modules.get("numpy")
        if numpy is not None and numpy.ndarray not in copyreg.dispatch_table:
            if self.writable:
                reducers[numpy.ndarray] = _reduce_array
            elif self.mapped:
                reducers[numpy.ndarray] = reducers[numpy.memmap] = _reduce_unmapped
        if self.multiprocessing:
            passed = _passed_its_own_way()
            reducers.update(dict.fromkeys(set(passed) - _USUAL, _refuse))
            if functools.partial in passed:
                reducers[functools.partial] = passed[functools.partial]  # without its attributes
        if self.left:
            reducers.update(dict.fromkeys(self._left(), _leave))
        return reducers

    def takes(self, array: Any) -> bool:
        """Whether an array of numpy's is not refused."""
        return self.takes_kind(type(array)) and not (self.mapped and _is_mapped(array))

    def takes_kind(self, kind: type) -> bool:
        """Whether objects of exactly this type are not refused for that."""
        if self.left and kind in self._left():
            return False
        return not self.multiprocessing or kind in _USUAL or kind not in _passed_its_own_way()

    def usual(self, kind: type) -> bool:
        """Whether arrays of exactly this type are pickled by what the type says, and nobody's reducer."""
        return not self.mapped and kind not in copyreg.dispatch_table and self.takes_kind(kind)

    def _left(self) -> list[type]:
        found = [loaded_class(kind) if isinstance(kind, str) else kind for kind in self.left]
        return [kind for kind in found if kind is not None]


DEFAULT = Pickling(writable=pickle.DEFAULT_PROTOCOL < 5)
"""As with pickle's default protocol."""


def is_of_numbers(dtype: Any) -> bool:
    """Whether a data type of numpy's is one of plain numbers, in this machine's order: its code tells all."""
    return dtype.isbuiltin == 1 and dtype.kind in "biufc" and dtype.metadata is None


def _passed_its_own_way() -> Mapping[type, Reducer]:
    pickler = getattr(sys.modules.get("multiprocessing.reduction"), "ForkingPickler", None)
    return getattr(pickler, "_extra_reducers", {})


def _refuse(obj: Any) -> Any:
    raise TypeError(f"multiprocessing has its own way to pass {type(obj).__qualname__!r} objects")


def _leave(obj: Any) -> Any:
    raise TypeError(f"the engine has a reducer of its own for {type(obj).__qualname__!r} objects")


def _is_mapped(array: Any) -> bool:
    memmap = sys.modules["numpy"].memmap
    while array is not None:
        if isinstance(array, memmap) and array._mmap is not None:
            return True
        array = getattr(array, "base", None)
    return False


def _reduce_unmapped(array: Any) -> Any:
    if _is_mapped(array):
        _leave(array)
    return array.__reduce_ex__(5)


class _Writable:
    """The memory of a read-only buffer, as numpy asks for it."""

    def __init__(self, memory: Any) -> None:
        self.__array_interface__ = {
            **memory.__array_interface__,
            "data": (memory.__array_interface__["data"][0], False),
        }
        self.memory = memory


def _reduce_array(array: Any) -> Any:
    numpy, dtype, flags = sys.modules["numpy"], array.dtype, array.flags
    if not dtype.isnative and dtype.fields is None:
        array = array.astype(dtype.newbyteorder("="))
    if not (flags.c_contiguous or flags.f_contiguous or dtype.hasobject):
        array = numpy.ascontiguousarray(array)  # protocol 5 keeps the order of permuted dimensions
    reduced = array.__reduce_ex__(5) if array.nbytes else array.__reduce__()
    if array.flags.writeable or type(reduced[1][0]) is not pickle.PickleBuffer:
        return reduced
    # Pickle notes with the buffer whether it is read-only. Nobody writes into this one.
    memory = numpy.frombuffer(reduced[1][0].raw(), dtype="u1")
    buffer = pickle.PickleBuffer(numpy.asarray(_Writable(memory)))
    return (reduced[0], (buffer, *reduced[1][1:]), *reduced[2:])
