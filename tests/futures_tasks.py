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
