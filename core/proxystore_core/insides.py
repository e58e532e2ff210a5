"""What is inside objects of a type: their own bytes, and the entries that are worth a look.

A type is asked, never an object: a lazy proxy answers for its target, so asking it anything would
fetch what it stands for. Libraries are found in ``sys.modules``, never imported.
"""

from __future__ import annotations

import functools
import io
import math
import operator
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, TypeAlias, TypeVar, cast, overload

__all__ = [
    "LEAVES",
    "REFERENCE_BYTES",
    "Inside",
    "Leaf",
    "goes_by_name",
    "inside_of",
    "register_sizeof",
    "shallow",
    "spread",
]

REFERENCE_BYTES = 200
"""What a proxy, an engine's future and any other stand-in for an object count, in bytes."""

Leaf: TypeAlias = Callable[[Any], int]
"""Bytes of an object that needs no look inside; negative when it needs one after all."""

Inside: TypeAlias = Callable[[Any, int], tuple[int, int, Sequence[object]]]
"""Of an object and k: its own bytes, its number of entries, and about k of them, evenly chosen."""

_F = TypeVar("_F", bound=Callable[[Any], int])

_TYPES = 1024  # Types whose plan is remembered. A plan keeps its type alive, so not without end.


@overload
def register_sizeof(kind: type) -> Callable[[_F], _F]: ...
@overload
def register_sizeof(kind: type, function: _F) -> _F: ...
def register_sizeof(kind: type, function: _F | None = None) -> _F | Callable[[_F], _F]:
    """Say how to measure a type and its subclasses; to be called, or used as a decorator.

    A function that raises or returns a negative number leaves the object to the usual estimate.

    Args:
        kind: the type.
        function: takes an object of the type and returns its bytes. It should take about a microsecond.

    Returns:
        The function, or a decorator for it.
    """
    if function is None:
        return lambda function: register_sizeof(kind, function)

    def leaf(obj: Any) -> int:
        try:
            return operator.index(function(obj))
        except Exception:
            return -1

    _REGISTERED[kind] = LEAVES[kind] = leaf
    _forget_plans()
    return function


def shallow(obj: object) -> int:
    try:
        return sys.getsizeof(obj)
    except Exception:
        return 0


def spread(count: int, k: int) -> Iterable[int]:
    """At most k distinct indices below ``count`` such that every prefix of them is spread evenly."""
    if count <= 2:
        return range(min(count, k))
    step = int(count * 0.618) | 1
    while math.gcd(step, count) != 1:
        step += 1
    return [i * step % count for i in range(min(count, k))]


# Inside the built-in containers. The base type's methods are called, so that a subclass's code never runs.


def _list(obj: list[object], k: int) -> tuple[int, int, Sequence[object]]:
    count = list.__len__(obj)
    if count <= k:
        return 8 * count, count, obj if type(obj) is list else list.copy(obj)
    item = list.__getitem__
    return 8 * count, count, [item(obj, i) for i in spread(count, k)]


def _tuple(obj: tuple[object, ...], k: int) -> tuple[int, int, Sequence[object]]:
    count = tuple.__len__(obj)
    if count <= k and type(obj) is tuple:
        return 8 * count, count, obj
    item = tuple.__getitem__
    return 8 * count, count, [item(obj, i) for i in spread(count, k)]


def _ends(first: Iterator[Any], last: Iterator[Any], count: int, k: int) -> Iterable[Any]:
    # These have no cheap index: a big one is sampled at its two ends.
    return first if count <= k else chain(islice(first, (k + 1) // 2), islice(last, k // 2))


def _dict(obj: dict[object, object], k: int) -> tuple[int, int, Sequence[object]]:
    count = dict.__len__(obj)
    items = dict.items(obj)
    some = _ends(iter(items), reversed(items), count, k)
    return 16 * count, 2 * count, list(chain.from_iterable(some)) if k else ()


def _deque(obj: deque[object], k: int) -> tuple[int, int, Sequence[object]]:
    count = deque.__len__(obj)
    return 8 * count, count, list(_ends(deque.__iter__(obj), deque.__reversed__(obj), count, k))


def _set(obj: Any, k: int) -> tuple[int, int, Sequence[object]]:
    base = set if issubclass(type(obj), set) else frozenset
    count = base.__len__(obj)
    return 8 * count, count, list(islice(base.__iter__(obj), k))  # In order of hashes: any part is even.


def _partial(obj: functools.partial[Any], k: int) -> tuple[int, int, Sequence[object]]:
    return _whole((obj.func, obj.args, obj.keywords), k)


def _method(obj: types.MethodType, k: int) -> tuple[int, int, Sequence[object]]:
    return _whole((obj.__self__, obj.__func__), k)


def goes_by_name(function: object, main_by_value: bool = True) -> bool:
    """Whether what is pickled of a function is its name alone; about a microsecond.

    Args:
        function: anything; what is no Python function does not.
        main_by_value: whether cloudpickle pickles it, which takes what ``__main__`` defines, and modules
            registered with it, by value, with the globals that are named there; else pickle.
    """
    if not isinstance(function, types.FunctionType) or "<" in function.__qualname__:
        return False
    name = function.__module__
    if main_by_value:
        if name == "__main__":
            return False
        cloudpickle: Any = sys.modules.get("cloudpickle")
        registered = () if cloudpickle is None else cloudpickle.list_registry_pickle_by_value()
        if registered and any(f"{name}.".startswith(f"{package}.") for package in registered):
            return False
    try:
        return operator.attrgetter(function.__qualname__)(sys.modules[name]) is function
    except Exception:  # what is missing, or a module's own code says so with any error
        return False


def _function(obj: types.FunctionType, k: int) -> tuple[int, int, Sequence[object]]:
    if goes_by_name(obj):
        return 64, 0, ()
    parts: list[object] = [*(obj.__defaults__ or ()), *(obj.__kwdefaults__ or {}).values()]
    for cell in obj.__closure__ or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # Not assigned yet.
            pass
    return _whole(parts, k)


def _whole(parts: Sequence[object], k: int) -> tuple[int, int, Sequence[object]]:
    parts = parts if len(parts) <= k else [parts[i] for i in spread(len(parts), k)]
    return 64, len(parts), parts


def _stand_in(obj: object, k: int) -> tuple[int, int, Sequence[object]]:
    return REFERENCE_BYTES, 0, ()


# Inside the libraries' types. A function runs only once its library is loaded.


def _ndarray(obj: Any) -> int:
    if obj.dtype.char in "OT":  # Python objects, strings of any length: nbytes counts pointers.
        return -1
    if 0 in obj.strides:
        return _held(obj)
    size: int = obj.nbytes
    return size


def _held(obj: Any) -> int:
    """Bytes behind a broadcast array, where a stride of 0 repeats them."""
    pairs = zip(obj.shape, obj.strides, strict=True)
    return 0 if obj.size == 0 else obj.itemsize * math.prod(n for n, stride in pairs if stride)


def _ndarray_inside(obj: Any, k: int) -> tuple[int, int, Sequence[object]]:
    flat = obj.flat
    return obj.nbytes, obj.size, [flat[i] for i in spread(obj.size, k)]


def _masked(obj: Any) -> int:
    return cast(int, obj.data.nbytes + obj.mask.nbytes)


def _extension(values: Any, k: int) -> tuple[int, list[object]]:
    """Own bytes of a pandas array, and the arrays inside it that need a look."""
    kind = type(values)
    if kind is sys.modules["numpy"].ndarray:
        return 0, [values]
    if kind.__name__ == "Categorical":
        return values.codes.nbytes, [values.categories]
    if getattr(values.dtype, "storage", None) == "python" or kind.__name__ == "NumpyExtensionArray":
        return 0, [sys.modules["numpy"].asarray(values)]
    return values.nbytes, []


def _frame(obj: Any, k: int) -> tuple[int, int, Sequence[object]]:
    # The blocks are pandas' own matter, but a public way costs 10 us a column.
    own, parts = 0, [obj.index, obj.columns]
    for block in obj._mgr.blocks:
        size, arrays = _extension(block.values, k)
        own += size
        parts += arrays
    return own, len(parts), parts


def _series(obj: Any, k: int) -> tuple[int, int, Sequence[object]]:
    own, parts = _extension(obj.array, k)
    parts.append(obj.index)
    return own, len(parts), parts


def _index(obj: Any, k: int) -> tuple[int, int, Sequence[object]]:
    if type(obj).__name__ in {"RangeIndex", "MultiIndex", "IntervalIndex"}:
        return obj.nbytes, 0, ()
    own, parts = _extension(obj.array, k)
    return own, len(parts), parts


def _tensor(obj: Any) -> int:
    return cast(int, obj.element_size() * obj.nelement())


def _torch_module(obj: Any) -> int:
    # Not walked: networks nest deeper than anyone's depth.
    return sum(map(_tensor, islice(chain(obj.parameters(), obj.buffers()), 4096)))


def _estimated(obj: Any) -> int:
    return cast(int, obj.estimated_size())


def _nbytes(obj: Any) -> int:
    return operator.index(obj.nbytes)


def _buffer(obj: Any) -> int:
    return operator.index(obj.size)


def _text(obj: str) -> int:
    return len(obj) if obj.isascii() else sys.getsizeof(obj)


def _integer(obj: int) -> int:
    return 8 if -0x8000_0000_0000_0000 <= obj <= 0x7FFF_FFFF_FFFF_FFFF else obj.bit_length() // 8 + 1


# A str or int subclass may carry attributes and is looked into like any object; these are exact types.
LEAVES: dict[type, Leaf] = {
    bool: lambda _: 8,
    float: lambda _: 8,
    type(None): lambda _: 8,
    complex: lambda _: 16,
    int: _integer,
    str: _text,
    bytes: len,
    bytearray: len,
    memoryview: _nbytes,
    type: lambda _: 64,
    types.ModuleType: lambda _: 64,
    types.BuiltinFunctionType: lambda _: 64,
}

_CONTAINERS: dict[type, Inside] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
    OrderedDict: _dict,
    defaultdict: _dict,
    deque: _deque,
    set: _set,
    frozenset: _set,
    functools.partial: _partial,
    types.MethodType: _method,
    types.FunctionType: _function,
}

_plans = dict(_CONTAINERS)
_REGISTERED: dict[type, Leaf] = {}

# Module (as in sys.modules), class, and how to measure it. Exact types and subclasses.
_LIBRARIES: tuple[tuple[str, str, Leaf | None, Inside | None], ...] = (
    ("numpy.ma", "MaskedArray", _masked, None),
    ("numpy", "ndarray", _ndarray, _ndarray_inside),
    ("numpy", "generic", _nbytes, None),
    ("pandas", "DataFrame", None, _frame),
    ("pandas", "Series", None, _series),
    ("pandas", "Index", None, _index),
    ("polars", "DataFrame", _estimated, None),
    ("polars", "Series", _estimated, None),
    ("pyarrow", "Buffer", _buffer, None),
    ("torch", "Tensor", _tensor, None),
    ("torch.nn", "Module", _torch_module, None),
)

# An engine's futures and collections stand for data elsewhere; locks, threads and loggers hold none.
_STAND_INS = frozenset(
    {"_thread", "asyncio", "concurrent", "dask", "distributed", "logging", "parsl", "ray", "threading"}
)

# Here nbytes is a logical size, of data that may be on disk or in a graph: their attributes are looked into.
_LOGICAL = frozenset({"h5py", "xarray", "zarr"})


def _forget_plans() -> None:
    _plans.clear()
    _plans.update(_CONTAINERS)


def _root(base: type) -> str:
    module = base.__module__  # A property object where the class defines one for its instances.
    return module.partition(".")[0] if type(module) is str else ""


def inside_of(kind: type) -> Inside:
    """How to look into objects of a type, found once a type."""
    inside = _plans.get(kind)
    if inside is not None:
        return inside
    if len(_plans) >= _TYPES:
        _forget_plans()
    inside = _plans[kind] = _choose(kind)
    return inside


def _choose(kind: type) -> Inside:
    bases = kind.__mro__[:-1]
    proxies = sys.modules.get("proxystore_core.proxy")
    if proxies is not None and vars(proxies).get("Proxy") in bases:
        return _stand_in
    for base in bases:
        if base in _REGISTERED:
            return _from_leaf(_REGISTERED[base], _attributes(kind, bases))
    if issubclass(kind, (type, types.ModuleType)):
        return _from_leaf(lambda _: 64)
    roots = {_root(base) for base in bases}
    if roots & _STAND_INS or any("__class__" in vars(base) for base in bases):
        return _stand_in  # What lies about its class is a lazy proxy of some library.
    for name, class_name, leaf, inside in _LIBRARIES:
        library = sys.modules.get(name) if name.partition(".")[0] in roots else None
        known = vars(library).get(class_name) if library is not None else None
        if known in bases:
            if leaf is not None and kind is known:
                LEAVES[kind] = leaf
            return _from_leaf(leaf, inside) if leaf is not None else inside or _stand_in
    if not roots & _LOGICAL and any("nbytes" in vars(base) for base in bases):
        return _from_leaf(_nbytes, _attributes(kind, bases))
    return _attributes(kind, bases)


def _from_leaf(leaf: Leaf, inside: Inside | None = None) -> Inside:
    def look(obj: Any, k: int) -> tuple[int, int, Sequence[object]]:
        try:
            size = leaf(obj)
        except Exception:
            size = -1
        if size >= 0:
            return size, 0, ()
        return inside(obj, k) if inside is not None else (shallow(obj), 0, ())

    return look


def _attributes(kind: type, bases: tuple[type, ...]) -> Inside:
    """Look into slots and ``__dict__`` with the interpreter's own descriptors: no code of the type runs."""
    container = next((_CONTAINERS[base] for base in bases if base in _CONTAINERS), None)
    slots: list[types.MemberDescriptorType] = []
    state: types.GetSetDescriptorType | None = None
    for base in bases if container not in {_function, _method, _partial} else ():
        for name, member in vars(base).items():
            if type(member) is types.MemberDescriptorType:
                slots.append(member)
            elif name == "__dict__" and type(member) is types.GetSetDescriptorType:
                state = state or member
    if container is not None and not slots and state is None:
        return container

    def look(obj: Any, k: int) -> tuple[int, int, Sequence[object]]:
        own, count, parts = container(obj, k) if container is not None else (_bare(obj, bases), 0, ())
        if not k:
            return own, 0, ()
        held: list[object] = []
        for slot in slots:
            try:
                held.append(slot.__get__(obj))
            except AttributeError:  # Not assigned.
                pass
        if state is not None:
            held += dict.values(state.__get__(obj))
        if len(held) > k:
            held = [held[i] for i in spread(len(held), k)]
        if len(parts) < count:  # The attributes of a sampled container weigh as one of its entries each.
            return own, count + len(held), [*parts, *held]
        return own + 8 * len(held), count + len(held), [*parts, *held]

    return look


def _bare(obj: Any, bases: tuple[type, ...]) -> int:
    for base in bases:
        if base in LEAVES:
            return max(LEAVES[base](obj), 0)
    return shallow(obj)


# `sys.getsizeof` leaves out bytes that somebody else has, too, as its pickle does for a while.
register_sizeof(io.BytesIO, lambda file: len(file.getvalue()))
