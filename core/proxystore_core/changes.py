"""Which methods and functions change an object in place, as far as its class is known.

Those of Python's own containers, NumPy, CuPy, pandas and PyTorch are; nobody knows the methods of other
classes, nor what is reached through an object (``p[0].append(1)``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["changed_by", "changes"]

_SEQUENCE = "append extend insert pop remove clear reverse"
_METHODS = {
    ("builtins", "list"): f"{_SEQUENCE} sort",
    ("builtins", "bytearray"): _SEQUENCE,
    ("builtins", "dict"): "clear pop popitem setdefault update",
    ("builtins", "set"): "add clear difference_update discard intersection_update pop remove "
    "symmetric_difference_update update",
    ("collections", "OrderedDict"): "move_to_end",
    ("collections", "Counter"): "subtract",
    ("collections", "deque"): f"{_SEQUENCE} appendleft extendleft popleft rotate",
    ("array", "array"): f"{_SEQUENCE} byteswap frombytes fromfile fromlist fromunicode",
    ("numpy", "ndarray"): "fill itemset partition put resize setfield setflags sort",
    ("cupy", "ndarray"): "fill partition put scatter_add scatter_max scatter_min set sort",
    ("pandas", "DataFrame"): "insert isetitem pop update",
    ("pandas", "Series"): "pop update",
}
_CHANGING = {place: frozenset(names.split()) for place, names in _METHODS.items()}
_ALL = frozenset().union(*_CHANGING.values())
_FUNCTIONS = frozenset({"copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask"})


def changes(kind: type, name: str) -> bool:
    """Whether a method of objects of a class changes them.

    Args:
        kind: the class.
        name: the method's.
    """
    if name in _ALL:
        for base in kind.__mro__:
            if name in _CHANGING.get((base.__module__.partition(".")[0], base.__qualname__), ()):
                return True
    return name.endswith("_") and not name.startswith("_") and _is_tensor(kind)


def changed_by(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What a function of NumPy changes, or writes to, of what it is called with."""
    out = kwargs.get("out")
    changed = list(out) if isinstance(out, tuple) else [] if out is None else [out]
    if getattr(function, "__name__", "") in _FUNCTIONS:
        changed += [*args[:1], *(kwargs[name] for name in ("dst", "a", "arr") if name in kwargs)]
    return changed


def _is_tensor(kind: type) -> bool:
    return any(base.__module__ == "torch" and base.__qualname__ == "Tensor" for base in kind.__mro__)
