"""Which values of one call have something in common that its task could tell.

Engines pickle a call's arguments at once: what two of them hold, as a model and its optimizer hold the same
parameters, is one object in the task, too. Stored one by one they would hold one each.
"""

from __future__ import annotations

import enum
import gc
import itertools
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proxystore_core.insides import goes_by_name
from proxystore_core.memos import Memo
from proxystore_integrations.functions import named_globals

__all__ = ["Part", "held_by", "united", "united_by_row"]

_MOST = 10_000  # objects in a small value that are looked at: it may reach its whole program
_ASKED = 2000  # objects that a pickler is asked about, one by one; for more, what it has met is taken from it
_FIXED = (
    *(str, bytes, int, float, complex, type(None), tuple, frozenset, range, slice, enum.Enum),
    *(type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.CodeType),
)
"""Nobody changes them, or they go by name. What a tuple holds counts by itself."""
_FIXED_ELSEWHERE = {
    "datetime": ("date", "time", "timedelta", "tzinfo"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "logging": ("Logger",),
    "numpy": ("dtype", "generic"),
    "pandas": ("Index",),
    "pandas.api.extensions": ("ExtensionDtype",),
    "pathlib": ("PurePath",),
    "re": ("Pattern",),
    "uuid": ("UUID",),
    "xarray": ("Index", "IndexVariable"),
}
"""The same, where they are loaded."""
_CLOSED = {"pandas": ("Index",), "xarray": ("Index", "IndexVariable")}
"""Nobody changes what these hold, either: cuts of one table have it in common."""


class Part:
    """A value of a call.

    Args:
        value: itself.
        memo: of what was pickled with it, where it is in the store by itself.
        size: its bytes there; 0 elsewhere.
        whole: whether it goes to the task as it is, by the engine.
        keys: of a dictionary that is looked into: they go as they are.
        main_by_value: whether what ``__main__`` defines goes there by value, with what it names.

    Attributes:
        items: of a container that is looked into, places of its parts among all.
    """

    def __init__(
        self,
        value: Any,
        memo: Memo | None = None,
        size: int = 0,
        *,
        whole: bool = False,
        keys: Sequence[Any] = (),
        main_by_value: bool = True,
    ) -> None:
        self.value = value
        self.size = size
        self.items: list[int] = []
        self._memo = memo
        self._whole = whole
        self._keys = keys
        self._main_by_value = main_by_value
        self._holds: dict[int, Any] | None = None

    @property
    def holds(self) -> dict[int, Any]:
        """Objects in it by id, itself among them."""
        if self._holds is None:
            if self._memo is not None:
                self._holds = self._memo.objects()
            elif self._whole:
                self._holds = held_by(self.value, main_by_value=self._main_by_value)
            else:
                self._holds = {id(self.value): self.value}
                if self._keys:
                    self._holds |= held_by(self._keys, main_by_value=self._main_by_value)
        return self._holds

    @property
    def may_hold_others(self) -> bool:
        """Whether other parts may be in it, though it is taken for small: a size is an estimate."""
        if not self._whole:
            return bool(self._keys)
        value = self.value
        return gc.is_tracked(value) and not (
            type(value) is types.FunctionType and goes_by_name(value, self._main_by_value)
        )

    def having(self, objects: dict[int, Any]) -> dict[int, Any]:
        """Those of some objects, by id, that are in it."""
        if self._holds is None and self._memo is not None and len(objects) < _ASKED:
            memo = self._memo
            return {one: held for one, held in objects.items() if not _is_fixed(held) and held in memo}
        return {one: objects[one] for one in objects.keys() & self.holds.keys()}


def held_by(value: Any, *, main_by_value: bool = False) -> dict[int, Any]:
    """What a value holds, by id; runs none of its code. Costs some 0.2 us an object.

    Args:
        value: any.
        main_by_value: globals that functions name go with them, where these are pickled by value.
    """
    found = {id(value): value}
    level = [value]
    while level and len(found) < _MOST:
        functions = [one for one in level if type(one) is types.FunctionType]
        inner = [part for one in functions for part in _in_function(one)]
        if main_by_value:
            inner += [part for one in functions for part in named_globals(one)]
        inner += gc.get_referents(*[one for one in level if type(one) is not types.FunctionType])
        level = []
        for one in inner:
            if id(one) not in found and not issubclass(type(one), type | types.ModuleType | str | bytes):
                found[id(one)] = one
                level.append(one)
    return found


def united(parts: Sequence[Part]) -> list[list[Any]]:
    """Values that have to be one object, so that what they have in common stays one; one list for each.

    Args:
        parts: of one call.
    """
    seen: dict[int, Any] = {}
    common: dict[int, Any] = {}
    ordered = sorted(parts, key=lambda part: part.size)
    for part in ordered:
        common |= part.having(seen)
        if part is not ordered[-1]:  # the largest is asked, which costs less
            seen |= part.holds
    common = _changeable(common, parts)
    if not common:
        return []
    groups = list(range(len(parts)))

    def root(place: int) -> int:
        while groups[place] != place:
            place = groups[place]
        return place

    for one in common:
        places = [place for place, part in enumerate(parts) if part.having({one: common[one]})]
        for place in places[1:]:
            groups[root(place)] = root(places[0])
    joined = True
    while joined:  # with a container comes what is in it
        joined = False
        roots = [root(place) for place in range(len(parts))]
        for place, part in enumerate(parts):
            if not part.items or not (roots.count(roots[place]) > 1):
                continue
            for item in part.items:
                if root(item) != root(place):
                    groups[root(item)] = root(place)
                    joined = True
    members: dict[int, list[Part]] = {}
    for place, part in enumerate(parts):
        members.setdefault(root(place), []).append(part)
    return [
        [part.value for part in group]
        for group in members.values()
        if any(part.size for part in group) and len(group) > 1
    ]


def united_by_row(shared: Sequence[Part], rows: Iterable[Sequence[Part]]) -> list[list[Any]]:
    """As `united`, for calls that have some values each and others in common."""
    found = []
    for row in rows:
        common: dict[int, Any] = {}
        for pair in itertools.product(shared, row):
            less, more = sorted(pair, key=lambda part: part.size)
            common |= more.having(less.holds)
        found += united([*shared, *row] if _changeable(common, [*shared, *row]) else row)
    return found


def _is_fixed(held: Any) -> bool:
    return issubclass(type(held), _FIXED)


def _changeable(objects: dict[int, Any], parts: Iterable[Part]) -> dict[int, Any]:
    """Those of some objects, by id, that somebody might change.

    Args:
        objects: that several parts hold.
        parts: all of them.
    """
    fixed = _FIXED + _loaded(_FIXED_ELSEWHERE)
    found = {
        one: held for one, held in objects.items() if not (issubclass(type(held), fixed) or _named(held))
    }
    if not found:
        return found
    everything = {one: held for part in parts for one, held in part.holds.items()}
    closed = _loaded(_CLOSED)
    for held in everything.values():
        if issubclass(type(held), closed):
            for one in found.keys() & held_by(held).keys():
                del found[one]
        elif issubclass(type(held), type):
            for attribute in (attribute for kind in held.__mro__ for attribute in vars(kind).values()):
                found.pop(id(attribute), None)
                if held.__module__ == "__main__":  # pickled by value, perhaps, with what it has
                    for one in found.keys() & held_by(attribute).keys():
                        del found[one]
    return found


def _loaded(kinds: Mapping[str, Sequence[str]]) -> tuple[type, ...]:
    return tuple(
        getattr(sys.modules[module], name)
        for module, names in kinds.items()
        if module in sys.modules
        for name in names
        if hasattr(sys.modules[module], name)
    )


def _named(held: Any) -> bool:
    """Whether it is a function of some extension's, which goes by its name."""
    return type(held).__name__ in ("cython_function_or_method", "fused_cython_function", "ufunc")


def _in_function(function: types.FunctionType) -> list[Any]:
    """Without its globals."""
    return [
        *(function.__closure__ or ()),
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
        function.__dict__,
        function.__annotations__,
    ]
