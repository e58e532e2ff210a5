"""Arguments that are in their places as soon as they are unpickled: for functions that stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxystore_core import Reference
from proxystore_integrations.carriers import Packed, StoredArgument

__all__ = ["filling"]


def filling(packed: Packed) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tuple and a dictionary that are a call's arguments once they are pickled and unpickled elsewhere."""
    return _Positional((packed.args,)), _Keywords(packed.kwargs)


class _Positional(tuple[Any, ...]):
    """Holds the positional arguments as its one item."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _positional, (Packed(None, self[0], {}, _loads(self[0])),)


class _Keywords(dict[str, Any]):
    """Holds the keyword arguments."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _keywords, (Packed(None, (), dict(self), _loads(dict(self))),)


def _loads(value: Any) -> tuple[Reference, ...]:
    return tuple(dict.fromkeys(_references(value, set())))


def _references(value: Any, seen: set[int]) -> Iterator[Reference]:
    kind = type(value)
    if kind is StoredArgument:
        if not value.lazy:
            yield value.reference
    elif (kind is list or kind is tuple or kind is dict) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if kind is dict else value:
            yield from _references(item, seen)


def _positional(packed: Packed) -> tuple[Any, ...]:
    return packed.delivered("a task")[1]


def _keywords(packed: Packed) -> dict[str, Any]:
    return packed.delivered("a task")[2]
