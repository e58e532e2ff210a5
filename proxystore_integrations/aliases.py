"""Objects that several of a call's values have in common: where each is pickled by itself, they would be two.

An engine pickles all of a call at once, so ``f(population, population[0])`` gets one of the population, and a
change to it is seen in both places.
"""

from __future__ import annotations

import enum
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from proxystore_core import Proxy
from proxystore_core.insides import LEAVES, inside_of
from proxystore_core.memos import Memo

__all__ = ["have_any_in_common", "may_share", "with_any_of"]

_MOST = 500
"""Objects of one value that are looked for in the others: all of a small one, some of a large one."""

_SHARE = 64  # entries of one container

_UNCHANGING = frozenset(
    {
        *(int, float, bool, complex, type(None), str, bytes, range, slice, types.ModuleType, type(...)),
        *(types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType),
    }
)
_UNCHANGING_OF = frozenset(
    {"datetime", "decimal", "fractions", "logging", "numpy.dtypes", "pathlib", "re", "uuid", "zoneinfo"}
)
_INDEXES = "pandas.core.indexes"
_CONTAINERS = frozenset({list, tuple, dict})


def may_share(values: Iterable[Any]) -> bool:
    """Whether any of these values could have an object in common with another, or within itself.

    Args:
        values: of one call. Nearly every call has one that is large, and numbers.
    """
    several = 0
    for value in values:
        kind = type(value)
        several += 2 if kind in _CONTAINERS else kind not in _UNCHANGING
    return several > 1


def with_any_of(values: Sequence[Any], memos: Iterable[Memo]) -> list[int]:
    """Indices of the values that are in one of these pickles, or have anything of it in them."""
    memos = list(memos)
    return [
        i for i, value in enumerate(values) if any(obj in memo for obj in _inside(value) for memo in memos)
    ]


def have_any_in_common(
    memos: Mapping[int, Memo], stored: Sequence[Any], taken_apart: Iterable[Any], sent: Any
) -> bool:
    """Whether what is pickled by itself has an object that is elsewhere in the call, too.

    Args:
        memos: of what is stored, by its id.
        stored: what is, each by itself.
        taken_apart: containers in whose place there is another now.
        sent: all else of the call.
    """
    pickles = [(value, memos[id(value)]) for value in stored if id(value) in memos and not _is_leaf(value)]
    if not pickles:
        return False
    ids = set(map(id, stored))
    apart = [value for value in taken_apart if id(value) not in ids]
    for value in stored:
        others = [memo for other, memo in pickles if other is not value]
        if others and any(obj in memo for obj in _inside(value) for memo in others):
            return True
    return any(obj in memo for obj in (*apart, *_inside(sent)) for _, memo in pickles)


def _is_leaf(value: Any) -> bool:
    leaf = LEAVES.get(type(value))
    return leaf is not None and leaf(value) >= 0


def _inside(value: Any) -> Iterator[Any]:
    """The value, and what is in it, near objects first."""
    waiting = deque([value])
    seen = {id(value): value}
    while waiting:
        obj = waiting.popleft()
        yield obj
        if _is_leaf(obj):
            continue
        try:
            entries = inside_of(type(obj))(obj, _SHARE)[2]
        except Exception:  # as `sizeof` has it: its own code
            continue
        for entry in entries:
            if len(seen) < _MOST and id(entry) not in seen and not _is_unchanging(entry):
                seen[id(entry)] = entry
                waiting.append(entry)


def _is_unchanging(obj: Any) -> bool:
    kind = type(obj)
    if kind in _UNCHANGING or issubclass(kind, (type, enum.Enum, Proxy)):
        return True
    generic = getattr(sys.modules.get("numpy"), "generic", ())
    module = kind.__module__
    return issubclass(kind, generic) or module in _UNCHANGING_OF or str(module).startswith(_INDEXES)
