"""Functions, classes and values that the engine contract's calls are made of; workers import them by name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import os
import pickle
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from proxystore_core import Proxy, is_resolved, update

BIG = 30_000
"""Floats in an array that is over the threshold: 240 kB."""


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Model:
    name: str
    weights: Any

    def score(self, factor: float = 1.0) -> float:
        return float(self.weights.sum()) * factor


class Noted:
    """Holds data of its own, and a list that others may hold, too."""

    def __init__(self, data: Any, notes: list[Any]) -> None:
        self.data = data
        self.notes = notes

    def note(self, *others: Any, **named: Any) -> list[int]:
        """Notes here after one more, and those that others have then."""
        self.notes.append("one more")
        return [len(self.notes), *map(_notes_of, (*others, *named.values()))]


def note(first: Any, *others: Any, **named: Any) -> list[int]:
    """As `Noted.note` of the first one."""
    everything: list[Any] = [first, *others]
    while not isinstance(everything[0], Noted):
        container = everything[0]
        everything[:1] = container.values() if isinstance(container, dict) else container
    return everything[0].note(*everything[1:], **named)


def _notes_of(other: Any) -> int:
    if isinstance(other, list) and other and isinstance(other[0], Noted):
        return _notes_of(other[0])
    return len(other.notes if isinstance(other, Noted) else other)


class Hidden:
    """Keeps its data in slots."""

    __slots__ = ("_data",)

    def __init__(self, data: Any) -> None:
        self._data = data


class Labelled(np.ndarray[Any, Any]):
    """An array of a class of its own."""


class BigError(Exception):
    """Carries data."""


def big(value: float = 0.0) -> Any:
    """A new array over the threshold, all of one value."""
    return np.full(BIG, float(value))


def _read_only() -> Any:
    array = big(1)
    array.flags.writeable = False
    return array


VALUES: dict[str, Callable[[], Any]] = {
    "array": lambda: np.arange(BIG, dtype=float),
    "read-only array": _read_only,
    "fortran array": lambda: np.asfortranarray(np.arange(BIG).reshape(100, -1)),
    "strided array": lambda: np.arange(4 * BIG)[::2],
    "masked array": lambda: np.ma.masked_less(np.arange(BIG), 100),
    "record array": lambda: np.ones(BIG, dtype=[("a", "i4"), ("b", "f8")]).view(np.recarray),
    "array of objects": lambda: np.array([{"a": i} for i in range(BIG)], dtype=object),
    "array of dates": lambda: np.arange(BIG).astype("datetime64[s]"),
    "labelled array": lambda: np.arange(BIG).view(Labelled),
    "small array": lambda: np.arange(3),
    "bytes": lambda: bytes(range(256)) * 1000,
    "bytearray": lambda: bytearray(300_000),
    "str": lambda: "ä" * 200_000,
    "int": lambda: 7,
    "none": lambda: None,
    "empty": lambda: [[], (), {}, b"", ""],
    "list": lambda: [big(1), 1, "two"],
    "tuple": lambda: (big(1), (big(2), 2)),
    "dict": lambda: {"a": big(1), "b": {"c": [big(2)]}},
    "many small": lambda: [np.arange(100) for _ in range(1000)],
    "many ints": lambda: list(range(40_000)),  # 120 kB; bare Dask takes a third of a millisecond for each
    "namedtuple": lambda: Pair(big(1), 1),
    "set": lambda: {b"x" * 300_000, b"y"},
    "frame": lambda: importlib.import_module("pandas").DataFrame({"x": big(1), "y": np.arange(BIG)}),
    "dataclass": lambda: Model("m", big(1)),
    "slots": lambda: Hidden(big(1)),
}
"""Makers of values, large and small, by what they are."""


def digest(value: Any) -> tuple[str, str]:
    """Type and content of a value, as something small."""
    kind = type(value)
    if kind in (list, tuple) and set(map(type, value)) == {int}:
        content = repr(value).encode()
    elif kind in (list, tuple):
        content = repr([digest(item) for item in value]).encode()
    elif kind is dict:
        content = repr([(key, digest(item)) for key, item in value.items()]).encode()
    elif isinstance(value, np.ndarray) and value.dtype != object and not isinstance(value, np.ma.MaskedArray):
        content = repr((value.shape, value.dtype.descr, value.flags.f_contiguous)).encode() + value.tobytes()
    elif isinstance(value, np.ma.MaskedArray):
        content = repr([digest(part) for part in (value.data, value.mask, value.fill_value.item())]).encode()
    elif kind in (set, frozenset):
        content = repr(sorted(map(digest, value))).encode()
    elif isinstance(value, Model | Hidden):
        content = repr(digest(value.weights if isinstance(value, Model) else value._data)).encode()
    else:
        content = pickle.dumps(value)
    return f"{kind.__module__}.{kind.__qualname__}", hashlib.sha256(content).hexdigest()


def digests(*args: Any, **kwargs: Any) -> Any:
    return [digest(arg) for arg in args], {name: digest(value) for name, value in kwargs.items()}


def give_back(value: Any) -> Any:
    return value


def give_back_all(*args: Any) -> Any:
    return args


def kinds(*args: Any) -> list[str]:
    return [type(arg).__name__ for arg in args]


def make(name: str) -> Any:
    return VALUES[name]()


def total(*arrays: Any) -> float:
    return float(sum(array.sum() for array in arrays))


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and bool(value.sum() == BIG)


def change(borrowed: Any, value: float) -> None:
    borrowed[:] = value
    update(borrowed)


def set_result(future: Any, value: float) -> None:
    future.set_result(big(value))


def total_of(arrays: Any) -> float:
    return total(*(arrays.values() if isinstance(arrays, dict) else arrays))


def add(array: Any, by: float = 1.0) -> Any:
    """Changes its argument, and gives it back."""
    array += by
    return array


def half(array: Any) -> Any:
    return array[: len(array) // 2]


def same(first: Any, second: Any, inside: Any = None) -> bool:
    return first is second and (inside is None or inside[0] is first)


def places(*values: Any, **named: Any) -> list[int]:
    """For each list, dict and array in some values, at which place it was first."""
    first: dict[int, int] = {}
    found: list[int] = []

    def look(value: Any) -> None:
        if isinstance(value, list | dict | np.ndarray):
            found.append(first.setdefault(id(value), len(found)))
        if isinstance(value, list | tuple | dict):
            for item in value.values() if isinstance(value, dict) else value:
                look(item)

    look((*values, *named.values()))
    return found


def grow_first(first: Any, second: Any = None) -> tuple[int, int]:
    """Makes one of two lists longer, and gives back how long they are then."""
    if second is None:
        first, second = first.values() if isinstance(first, dict) else first
    first.append(0.0)
    return len(first), len(second)


def writable(array: Any) -> bool:
    return bool(array.flags.writeable)


def fail(kind: type[Exception], *args: Any) -> None:
    raise kind(*args)


def fail_from(data: Any) -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise BigError("outer", data) from error


def unpicklable(_: Any = None) -> Any:
    return (i for i in range(3))


def is_lazy(value: Any) -> tuple[bool, bool]:
    """Whether it is a proxy, and whether it had not been resolved."""
    proxy = type(value) is Proxy
    return proxy, proxy and not is_resolved(value)


def wait_for(path: str, data: Any) -> float:
    """The data's sum, once there is a file."""
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return total(data)


def die_once(path: str, data: Any) -> float:
    """Kill this worker, unless that has been done; else the data's sum."""
    if not os.path.exists(path):
        with open(path, "w", encoding="ascii"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return total(data)


def closure(data: Any) -> Callable[[], float]:
    """A function that carries data."""

    def inner() -> float:
        return total(data)

    return inner


def partial(data: Any) -> Callable[..., float]:
    """A partial that carries data."""
    return functools.partial(total, data)


def _sharing() -> dict[str, Callable[[], tuple[Any, tuple[Any, ...], dict[str, Any]]]]:
    def made(build: Callable[[Noted, Noted, list[Any]], Any]) -> Callable[[], Any]:
        def make() -> Any:
            notes: list[Any] = ["made"]
            function, *args = build(Noted(big(1), notes), Noted(big(2), notes), notes)
            kwargs = args.pop() if isinstance(args[-1], dict) and args[-1].pop("named", None) else {}
            return function, tuple(args), kwargs

        return make

    def container(a: Noted, b: Noted, notes: list[Any]) -> Any:
        notes[:] = [a.data, b.data]
        return note, a, notes

    return {
        "two": made(lambda a, b, notes: (note, a, b)),
        "in a list": made(lambda a, b, notes: (note, [a, b])),
        "in two containers": made(lambda a, b, notes: (note, {"a": a}, [b])),
        "named": made(lambda a, b, notes: (note, a, {"b": b, "named": True})),
        "both named": made(lambda a, b, notes: (note, {"first": a, "b": b, "named": True})),
        "one that is named, too": made(lambda a, b, notes: (note, a, {"b": a, "named": True})),
        "a small one": made(lambda a, b, notes: (note, a, Noted(None, notes), notes)),
        "the function": made(lambda a, b, notes: (a.note, b, notes)),
        "a container": made(container),
        "no other": made(lambda a, b, notes: (note, a, Noted(big(2), [1]), big(3), [1])),
    }


SHARING = _sharing()
"""By name, makes a call whose arguments have something in common: function, arguments, keyword arguments."""
