"""Inputs and the functions that run on workers; every sample gets an array of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "fresh",
    "increment",
    "item",
    "make",
    "modified",
    "nothing",
    "peer_proxied",
    "same",
    "touch",
]

Array: TypeAlias = npt.NDArray[np.uint8]

_serial = itertools.count(1)


@lru_cache(maxsize=1)
def _template(size: int) -> Array:
    return np.random.default_rng(7).integers(0, 256, size, dtype=np.uint8)


def fresh(size: int) -> Array:
    """A new array of ``size`` random bytes that is equal to no earlier one; all its pages are in memory."""
    array = _template(size).copy()
    array[:8] = np.frombuffer(next(_serial).to_bytes(8, "little"), dtype=np.uint8)
    return array


def touch(array: Array) -> int:
    """Read one byte of every page, so that nobody wins by never loading the data."""
    return int(array[::4096].sum())


def make(size: int, fill: int) -> Array:
    """A task with a big result: ``size`` bytes, written once."""
    return np.full(size, fill % 251, dtype=np.uint8)


def increment(array: Array) -> Array:
    """One link of a chain."""
    return array + np.uint8(1)


def modified(array: Array) -> int:
    """A task that changes its argument, in place where it may be written to; its first byte then."""
    if not array.flags.writeable:
        array = array.copy()
    array += np.uint8(1)
    return int(array[0])


def item(index: int, **named: Array) -> int:
    """A task that needs one byte of its one big keyword argument, whatever its name."""
    (big,) = named.values()
    return int(big[index])


def nothing(value: object = None) -> None:
    """The cheapest task."""


def same(value: object) -> object:
    """Its argument."""
    return value


def peer_proxied(config: dict[str, Any], function: Callable[..., Any], *args: Any) -> Any:
    """What a user of ProxyStore does by hand in an app: the result goes back as a proxy.

    Not populated: one that knows its array has no hash, which Parsl's pickling asks for.
    """
    from proxystore.store import Store, get_store

    result = function(*args)
    if not isinstance(result, np.ndarray) or result.nbytes < 100_000:
        return result
    store = get_store(config["name"]) or Store.from_config({**config, "register": True})
    return store.proxy(result, evict=False, populate_target=False)
