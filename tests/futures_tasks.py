"""Functions of the concurrent.futures tests; workers import them by name."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np

from proxystore_core import Proxy, extract, registry

BIG = 30_000


def big(value: float = 1.0) -> Any:
    return np.full(BIG, float(value))


def add(array: Any, by: Any = 1.0) -> Any:
    return array + by


def total(*arrays: Any) -> float:
    return float(sum(array.sum() for array in arrays))


def total_of(arrays: Any) -> float:
    return float(sum(array.sum() for array in (arrays.values() if isinstance(arrays, dict) else arrays)))


class Parcel:
    """What nothing but a pickle can carry."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def holds(self, array: Any) -> bool:
        return self.array is array


class Pair:
    """One more."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first = first
        self.second = second


def wrapped(parcel: Any) -> Any:
    return Parcel(parcel)


def kind_of_target(value: Any) -> str:
    return type(extract(value) if isinstance(value, Proxy) else value).__name__


def parallel(array: Any, by: float) -> float:
    """Calls joblib, in a call of joblib's."""
    import joblib

    return float(sum(joblib.Parallel(n_jobs=2)(joblib.delayed(total)(array + by) for _ in range(3))))


def slow(array: Any, seconds: float = 0.3) -> float:
    time.sleep(seconds)
    return float(array.sum())


def fail(array: Any) -> None:
    raise ValueError("what")


def fail_at(array: Any, number: int) -> float:
    if array[0] != number:
        raise ValueError("what")
    return float(array[0])


def fail_with(array: Any) -> None:
    raise ValueError("what", array)


_prepared: list[Any] = []


def prepare(array: Any) -> None:
    """An initializer."""
    _prepared.append(array)


def prepared(array: Any) -> float:
    return float(_prepared[0].sum() + array.sum())


def die(array: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kind(value: Any) -> str:
    return type(value).__name__


def is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)


def forget(variable: str) -> None:
    """Make this process as one that was started without the variable."""
    os.environ.pop(variable, None)
    for store in list(registry._by_recipe.values()):
        store.close()


def array_of(value: Any) -> Any:
    return value.array if isinstance(value, Parcel) else value


def writable(value: Any) -> bool:
    return bool(array_of(value).flags.writeable)


def read_only() -> Any:
    array = np.arange(float(BIG))
    array.flags.writeable = False
    return array


def read_only_parcel() -> Any:
    return Parcel(read_only())


def layout(array: Any) -> Any:
    """What a task may rely on."""
    flags = array.flags
    return array.dtype.str, array.strides, flags.writeable, flags.c_contiguous, array.tolist()


def attributes(value: Any, more: Any) -> Any:
    return vars(value), more is not value


def first_two(first: Any, second: Any = 2) -> Any:
    return type(first).__name__, second


def preset() -> dict[str, Any]:
    """An initializer of executorlib's: tasks get what it returns by the names of their parameters."""
    return {"second": 7}


async def later(array: Any) -> float:
    return float(array.sum())


def change(array: Any) -> float:
    array += 1
    return float(array[0])


def increment(value: Any) -> None:
    value = array_of(value)
    value += 1


def tensor() -> Any:
    import torch

    return torch.zeros(BIG)


def talk(parcel: Any, connection: Any = None) -> float:
    array, connection = (parcel.array, connection) if connection else parcel.array
    connection.send("hello")
    return float(array.sum())


def shape(value: Any, seen: dict[int, int] | None = None) -> Any:
    """What is where, and what is the same: for what may hold itself."""
    seen = {} if seen is None else seen
    if isinstance(value, (int, str, float)):
        return value
    if id(value) in seen:
        return f"number {seen[id(value)]}"
    seen[id(value)] = len(seen)
    if isinstance(value, dict):
        return {str(shape(key, seen)): shape(item, seen) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [kind(value), *(shape(item, seen) for item in value)]
    inside = vars(value).values() if isinstance(value, (Parcel, Pair)) else ()
    return [kind(value), *(shape(item, seen) for item in inside)]


def shape_of(*args: Any, **kwargs: Any) -> Any:
    return shape([*args, *kwargs.values()])


def name_of_array(shape: Any) -> bool:
    return "ndarray" in str(shape)


def nested(value: Any, depth: int) -> Any:
    return [nested(value, depth - 1)] if depth else value


class Strange:
    """Is no function, and answers what it is asked with errors."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__reduce_ex__", "__getstate__", "__setstate__", "__dict__"):
            raise AttributeError(name)
        raise KeyError(name)

    def __call__(self, value: Any) -> Any:
        return value


def lacking(value: Any, counted: str, key: str | None) -> None:
    """Fails as a call does that it made itself, of which it was told that a worker lacks the arguments."""
    from proxystore_integrations.carriers import NotDeliveredError

    with open(counted, "a") as file:
        file.write(".")
    raise NotDeliveredError("no such object", key=key)


class Tagged:
    """Tells by which way it came."""

    def __init__(self, array: Any, tag: str) -> None:
        self.array = array
        self.tag = tag


def tag_call(tagged: Any) -> Any:
    return Tagged, (tagged.array, "call")


def tag_result(tagged: Any) -> Any:
    return Tagged, (tagged.array, "result")


def tags(value: Any) -> list[str]:
    """Of all that are in something."""
    if isinstance(value, Tagged):
        return [value.tag]
    inside = value.values() if isinstance(value, dict) else array_of(value)
    if isinstance(inside, np.ndarray):
        return []
    return tags(inside) if isinstance(inside, Tagged) else [tag for item in inside for tag in tags(item)]


class Counted:
    """Knows how often it was pickled."""

    def __init__(self) -> None:
        self.pickled = 0

    def __getstate__(self) -> dict[str, Any]:
        self.pickled += 1
        return {}


def kind_of_all(*values: Any) -> list[str]:
    return [kind(value) for value in values]


def are_one(value: Any, other: Any) -> bool:
    return value is other


def write_into(array: Any, place: int) -> None:
    """Into an array, or one in a parcel."""
    array_of(array)[place] = place


def same(value: Any) -> Any:
    return value


def about_array(array: Any) -> Any:
    """All that a task can see of an array."""
    flags = {name: array.flags[name] for name in ("C", "F", "WRITEABLE", "ALIGNED", "OWNDATA")}
    return type(array), array.dtype, array.shape, array.strides, array.tobytes(), flags
