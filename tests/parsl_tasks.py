"""Functions of the Parsl tests; workers import them by name."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np

BIG = 30_000


class Unwilling:
    """Cannot be unpickled."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __setstate__(self, state: Any) -> None:
        raise ZeroDivisionError("not here")


class Items(list):  # type: ignore[type-arg]
    """A list of a class of its own."""


def kinds_in(*values: Any) -> list[str]:
    """Of all that is in lists, tuples and dicts."""
    found: set[str] = set()
    for value in values:
        inner = value.values() if isinstance(value, dict) else value
        found.update(kinds_in(*inner) if isinstance(value, list | tuple | dict) else [type(value).__name__])
    return sorted(found)


def big(value: float = 1.0) -> Any:
    return np.full(BIG, float(value))


def add(array: Any, by: float = 1.0, parsl_resource_specification: Any = None) -> Any:
    return array + by


def total(*arrays: Any, inputs: Any = ()) -> float:
    return float(sum(array.sum() for array in [*arrays, *inputs]))


def total_of(arrays: Any) -> float:
    return float(sum(array.sum() for array in (arrays.values() if isinstance(arrays, dict) else arrays)))


def lengths(texts: Any) -> list[int]:
    return sorted(len(text) for text in texts)


def text(length: int) -> str:
    return "x" * length


def pair(array: Any) -> Any:
    return array, array.sum()


def named(array: Any) -> Any:
    return {"array": array, "size": array.size}


def fail_once(path: str, array: Any) -> float:
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        raise RuntimeError("the first time")
    return float(array.sum())


def die_once(path: str, array: Any) -> float:
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return float(array.sum())


def count(text: str, stdout: Any = None, parsl_resource_specification: Any = None) -> str:
    """A command."""
    return f"{os.environ.get('PARSL_MPI_PREFIX', '')} echo {len(text)}"


def slow(array: Any, walltime: Any = None) -> float:
    for _ in range(300):
        time.sleep(0.1)
    return float(array.sum())


def divide_by_zero(array: Any, other: Any) -> float:
    return 1 / 0


def late(array: Any, seconds: float) -> float:
    time.sleep(seconds)
    return float(array.sum())


def counted(path: str, array: Any) -> Any:
    """Notes each run."""
    with open(path, "a") as file:
        file.write("run\n")
    return array * 2


def write(array: Any, outputs: Any = ()) -> int:
    with open(outputs[0], "wb") as file:
        return file.write(array.tobytes())


def read(file: Any, scale: Any) -> float:
    with open(file, "rb") as opened:
        return float(np.frombuffer(opened.read()).sum() * scale[0])


def give_back(value: Any) -> Any:
    return value
