"""Values on their way out of a call and into a task: large ones through the store, once each.

What an engine carries instead of a large value is its own business (a node of its graph, an inert
box): it subclasses `Outgoing` and says how a reference travels and how a container is rebuilt.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from proxystore_core import Proxy, Reference, SerializationError, Sharing, StoreError, forks, store_for
from proxystore_core.memos import Memo, remembering
from proxystore_core.sizeof import sizeof
from proxystore_core.warned import warn
from proxystore_integrations import ledger, progress
from proxystore_integrations.policy import Policy
from proxystore_integrations.together import Part, united, united_by_row

__all__ = ["CONTAINERS", "DEEPEST", "DEPTH", "ByValue", "Outgoing", "load"]

_T = TypeVar("_T")
_SMALL = frozenset({int, float, bool, complex, type(None), type, range, slice})
_TEXT = frozenset({str, bytes, bytearray})
_UNCHANGING = frozenset({str, bytes})
_KEYS = _SMALL | _UNCHANGING
CONTAINERS = frozenset({list, tuple, dict})
"""Those in which large values, and futures, are looked for: each can be made again with others in it."""

DEPTH = 8
"""Levels of containers in which large values are looked for."""

DEEPEST = DEPTH + 50
"""Those in which an engine's values are looked for."""

_BEGUN = object()


class _CycleError(Exception):
    """A container is among what it holds.

    Args:
        head: the container.
    """

    def __init__(self, head: Any) -> None:
        self.head = head


class ByValue:
    """Decides what happens when the store fails: pass by value and warn once, or raise.

    Args:
        on_store_error: ``"fallback"`` or ``"raise"``.
    """

    def __init__(self, on_store_error: str = "fallback") -> None:
        self.on_store_error = on_store_error
        self._lock = forks.lock()
        self._warned: set[str] = set()

    def accept(self, error: BaseException, doing: str) -> None:
        """Return if the value may go by value instead; else raise the error."""
        if self.on_store_error == "raise":
            raise error
        story = f"{doing} {type(error).__name__} {getattr(error, 'store', '')}"
        self.warn(f"cannot {doing} through the store: {error}", story)

    def warn(self, problem: str, story: str = "", *, instead: bool = True) -> None:
        """Warn of a problem: once for each, or for each ``story``.

        Args:
            problem: one sentence or more.
            story: equal for problems of which one warning is enough.
            instead: values go by value because of it.
        """
        with self._lock:
            if (story or problem) in self._warned:
                return
            self._warned.add(story or problem)
        if ledger.book is not None:
            ledger.book.trouble(problem)
        if instead:
            problem = (
                f"{problem.rstrip('.')}. Values go through the engine instead, as without a store; "
                'set on_store_error = "raise" to make this an error.'
            )
        warn(problem)


class Outgoing:
    """The values of one call (one submit, one map, one graph).

    Within one call the same object is stored once, however often it appears. One that is equal to another of
    the call is stored by itself: in the task they are two, and it may change one of them. What several hold
    is one object in the task, too: they are stored as one (see `together`).

    Args:
        sharing: where large values go; an equal one that another call put there is not stored again.
        policy: which values are large.
        by_value: what to do when the store fails.
        should_proxy: a function of a value that may keep a large one out of the store.

    Attributes:
        references: of the objects that this call uses, each pinned once in the holdings.
        engine: whose call it is, for the ledger.
        label: name of the task, for the ledger.
    """

    engine = ""
    label = ""
    unites = True
    """Whether what several values hold is one object in the task."""

    exact = False
    """Whether an engine's values may be anywhere: small containers are looked into as well, and deep ones."""

    rebuilds_once = True
    """Whether a container with carriers in it is rebuilt once in the task, in however many places it is."""

    def __init__(
        self,
        sharing: Sharing,
        policy: Policy,
        by_value: ByValue,
        should_proxy: Callable[[Any], bool] | None = None,
    ) -> None:
        self.should_proxy = should_proxy
        self.sharing = sharing
        self.policy = policy
        self.by_value = by_value
        self.references: list[Reference] = []
        # By id; the values are kept so that no id is used again while this call lasts.
        self._stored: dict[int, tuple[Any, Reference | None]] = {}
        self._before: list[Any] = []
        self._shared: set[Reference] = set()
        self._rebuilt: dict[int, tuple[Any, Any]] = {}
        self._any_rebuilt = False
        self._repeated: dict[int, Any] = {}  # containers that go as one object, by id
        self._met: dict[int, Memo] = {}  # of values that were pickled, by id
        self._united: dict[int, tuple[Any, Any]] = {}
        self._made: list[Reference] = []  # of those made in this scope
        self._uses: Counter[Reference] = Counter()
        self._unused = False

    def carrier(self, reference: Reference, item: int | None = None) -> Any:
        """What the engine carries in place of the value.

        Args:
            reference: names the value, or the list that it is in.
            item: its place in that.
        """
        raise NotImplementedError

    def inside(self, value: Any) -> Iterable[Any] | None:
        """The values in an object of the engine's own; None for others."""
        return None

    def rebuilt(self, container: Any, items: Any) -> Any:
        """A container like ``container`` with some of its values replaced by carriers.

        Args:
            container: an exact list, tuple or dict.
            items: its new values, in its own type.
        """
        return items

    def engine_value(self, value: Any) -> Any:
        """What becomes of an object of the engine's own (a future, a node); NotImplemented for others."""
        return NotImplemented

    def plainly_large(self, value: Any) -> bool:
        """Whether a value is seen to be large without looking into containers; costs about 1 us."""
        kind = type(value)
        if kind in _TEXT:
            return len(value) >= self.policy.threshold
        return kind not in _SMALL and kind not in CONTAINERS and self.policy.over(value)

    def substitute(self, value: Any, depth: int = DEPTH) -> Any:
        """The value itself, or a carrier, or a container holding carriers. A user's proxy stays as it is.

        Args:
            value: any argument.
            depth: levels of containers that are looked into.
        """
        kind = type(value)
        if kind in _SMALL or kind is Proxy:
            return value
        if self._united and (one := self._united.get(id(value))) is not None:
            return one[1]
        if kind in _TEXT:
            return self._carried(value) if len(value) >= self.policy.threshold else self._small(value)
        own = self.engine_value(value)
        if own is not NotImplemented:
            return own
        if kind not in CONTAINERS:
            # Pickling it may have changed its size.
            large = id(value) in self._stored or self.policy.over(value)
            return self._carried(value) if large else self._small(value)
        if depth < DEPTH - DEEPEST or (not self.exact and (not depth or not self.policy.over(value))):
            return self._small(value)
        if self._repeated and id(value) in self._repeated:
            return self._carried(value)
        seen = self._rebuilt.get(id(value))
        if seen is None:
            self._rebuilt[id(value)] = value, _BEGUN
            try:
                made = self._container(value, depth - 1)
            except _CycleError as cycle:
                # What was made of the containers in it has the old ones in it.
                while next(reversed(self._rebuilt)) != id(value):
                    self._rebuilt.popitem()
                if cycle.head is not value:
                    del self._rebuilt[id(value)]
                    raise
                made = self._whole_or_not(value, depth - 1)
            self._rebuilt[id(value)] = seen = value, made
        elif seen[1] is _BEGUN:
            raise _CycleError(value)
        return seen[1]

    def substitute_all(self, values: Iterable[Any]) -> list[Any]:
        """`substitute` for each."""
        return [self.substitute(value) for value in values]

    def together(
        self,
        values: Sequence[Any],
        substitute: Callable[[], _T],
        rows: Sequence[Sequence[Any]] | None = None,
    ) -> _T:
        """What ``substitute`` makes of values that the engine pickles at once.

        Where some of them hold the same object, it is called again when they are in the store as one.

        Args:
            values: all that ``substitute`` looks at.
            substitute: calls `substitute` for each value, and may be called twice.
            rows: values that go one row a call, with ``values`` in each. Those of these that hold the same
                object are left to the engine.
        """
        outer, self._made = self._made, []
        try:
            with remembering() as memos:
                result = substitute()
                if self.unites and self._any_rebuilt and not self.rebuilds_once:
                    self._repeated = self._in_several_places(values, rows or ())
                    if self._repeated:
                        self._again()
                        result = substitute()
            if self.unites:
                self._met.update(memos)
            parts = self._parts(values) if self._met or self._made else []
            if not self._met and not any(part.may_hold_others for part in parts):
                groups = []  # what is stored are arrays that hold nothing
            elif rows is None:
                groups = united(parts)
            else:
                groups = united_by_row(parts, map(self._parts, rows))
            if groups:
                self._again()
                for group in groups:
                    reference = self._put_once(group) if rows is None else None
                    for item, value in enumerate(group):
                        carried = value if reference is None else self._carry(reference, item)
                        self._united[id(value)] = value, carried
                result = substitute()
                self._united.clear()
            self._uses.update(self._made)
            return result
        finally:
            self._made = outer
            self._repeated = {}

    def _again(self) -> None:
        self._made.clear()
        self._rebuilt.clear()
        self._unused = True

    def _in_several_places(self, values: Sequence[Any], rows: Iterable[Sequence[Any]]) -> dict[int, Any]:
        """Containers with carriers in them, by id, that one call has more than once."""
        found: dict[int, Any] = {}

        def look(value: Any, *seen: set[int]) -> None:
            if (inner := self.inside(value)) is None:
                made = self._rebuilt.get(id(value), (value, value))[1]
                if made is value or id(value) in self._stored:
                    return
                inner = value.values() if type(value) is dict else value
                before = any(id(value) in places for places in seen)
                if before and not self._holds_engine_values(value, DEPTH, set()):
                    found[id(value)] = value
                    return
                seen[0].add(id(value))
            for item in inner:
                look(item, *seen)

        in_all: set[int] = set()
        for value in values:
            look(value, in_all)
        for row in rows:
            in_row: set[int] = set()
            for value in row:
                look(value, in_row, in_all)
        return found

    def apart(self) -> None:
        """What is substituted from now on is not what was before, be it the same object."""
        self._before.append(self._stored)
        self._stored = {}
        self._rebuilt.clear()

    def settle(self) -> None:
        """All values are substituted: let go of those that were stored by themselves for nothing."""
        self._met.clear()
        if not self._unused:
            return
        for reference in [one for one in self.references if self._uses[one] <= 0]:
            self.references.remove(reference)
            if self.sharing.holdings.release(reference.key):
                try:
                    self.sharing.store.evict(reference.key)
                except StoreError as error:
                    self.by_value.warn(f"cannot evict an object: {error}", instead=False)

    def _carry(self, reference: Reference, item: int | None = None) -> Any:
        self._made.append(reference)
        return self.carrier(reference, item)

    def _parts(self, values: Iterable[Any]) -> list[Part]:
        """What `substitute` took each of some values for."""
        parts: list[Part] = []
        places: dict[int, int] = {}
        for value in values:
            self._look(value, parts, places)
        return parts

    def _look(self, value: Any, parts: list[Part], places: dict[int, int]) -> int | None:
        """Add the parts of a value; the place of its own."""
        kind = type(value)
        if kind in _SMALL or kind in _UNCHANGING or kind is Proxy:
            return None
        if id(value) in places:
            return places[id(value)]
        inner = self.inside(value)
        if inner is not None:
            for item in inner:
                self._look(item, parts, places)
            return None
        place = places[id(value)] = len(parts)
        reference = self._stored.get(id(value), (None, None))[1]
        container = self._rebuilt.get(id(value))
        if reference is not None:
            parts.append(Part(value, self._met.get(id(value)), reference.size))
        elif container is None or container[1] is value:
            parts.append(Part(value, whole=True, main_by_value=self.sharing.pickling.main_by_value))
        else:
            keys = [key for key in value if type(key) not in _KEYS] if kind is dict else []
            parts.append(part := Part(value, keys=keys, main_by_value=self.sharing.pickling.main_by_value))
            for item in value.values() if kind is dict else value:
                if (inside := self._look(item, parts, places)) is not None:
                    part.items.append(inside)
        return place

    def whole(self, value: Any) -> Reference | None:
        """The reference of a large value, stored whole and for this call alone; None if it is small."""
        if type(value) is Proxy or not self.policy.over(value):
            return None
        return self._put(value, shared=False)

    def _container(self, value: Any, depth: int) -> Any:
        if type(value) is dict:
            items: Any = {key: self.substitute(item, depth) for key, item in value.items()}
            changed = any(items[key] is not item for key, item in value.items())
        else:
            items = type(value)(self.substitute(item, depth) for item in value)
            changed = any(new is not old for new, old in zip(items, value, strict=True))
        if changed:
            self._any_rebuilt = True
            return self.rebuilt(value, items)
        # Nothing in it is large, but all of it is.
        return self._whole_or_not(value, depth)

    def _whole_or_not(self, value: Any, depth: int) -> Any:
        """A container as one object, or as it is where that would hide an engine's values."""
        if self.exact and not self.policy.over(value):
            return self._small(value)
        return value if self._holds_engine_values(value, depth, set()) else self._carried(value)

    def _holds_engine_values(self, value: Any, depth: int, seen: set[int]) -> bool:
        kind = type(value)
        if kind is Proxy or kind in _SMALL or kind in _TEXT:
            return kind is Proxy
        if kind in CONTAINERS:
            if depth < 0 or id(value) in seen:
                return False
            seen.add(id(value))
            items = value.values() if kind is dict else value
            return any(self._holds_engine_values(item, depth - 1, seen) for item in items)
        return self.engine_value(value) is not NotImplemented

    def _small(self, value: Any) -> Any:
        if ledger.book is not None:
            ledger.book.small(self.engine, value, self.policy.threshold)
        return value

    def _carried(self, value: Any) -> Any:
        if self.should_proxy is not None and not self.should_proxy(value):
            self._not_stored(value, "should_proxy said no")
            return value
        reference = self.reference(value)
        return value if reference is None else self._carry(reference)

    def reference(self, value: Any) -> Reference | None:
        """The value stored, once; None if it has to go by value."""
        stored = self._stored.get(id(value))
        if stored is None:
            reference = self._put_once(value)
            self._stored[id(value)] = stored = value, reference
        return stored[1]

    def _put_once(self, value: Any) -> Reference | None:
        """Store a value that this call has not stored yet."""
        reference = self._put(value, shared=True)
        if reference in self._shared and type(value) not in _UNCHANGING:
            self.sharing.holdings.release(self.references.pop().key)  # the other has a pin, too
            return self._put(value, shared=False)
        if reference is not None:
            self._shared.add(reference)
        return reference

    def _not_stored(self, value: Any, why: str) -> None:
        if ledger.book is not None:
            ledger.book.by_value(self.engine, why, sizeof(value))

    def _put(self, value: Any, *, shared: bool) -> Reference | None:
        sharing = self.sharing
        if sharing.closed:  # by another thread; the engine says what it says of a client that is closed
            return None
        if not sharing.pickling.takes_kind(type(value)):
            self._not_stored(value, "cannot be serialized")
            return None
        start = time.perf_counter()
        try:
            with progress.shown("storing", sizeof(value)):
                if shared:
                    reference = sharing.reference(value)
                else:
                    reference = sharing.store.reference(
                        value, session=sharing.session, pickling=sharing.pickling
                    )
                if sharing.closed:
                    sharing.take_back(reference.key)
                    return None
        except BaseException as error:
            if sharing.closed:
                with contextlib.suppress(StoreError):
                    sharing.take_back()
            if not isinstance(error, StoreError):
                raise
            if isinstance(error, SerializationError):
                self._not_stored(value, "cannot be serialized")
                return None  # the engine meets the same object and raises its own error
            self.by_value.accept(error, "pass an argument")
            self._not_stored(value, "the store failed")
            return None
        if (book := ledger.book) is not None:
            seconds = time.perf_counter() - start
            book.put("argument", self.engine, self.label, reference, seconds, book.caller())
        self.references.append(reference)
        return reference


def load(references: Sequence[Reference], *, shared: bool = True) -> list[Any]:
    """The objects of several references, each key fetched once, those of one store in parallel.

    Args:
        references: of any stores.
        shared: whether other processes of this host may want them, too.

    Raises:
        StoreError: one of them cannot be had; says which and why.
    """
    if (book := ledger.book) is not None and references:
        start = time.perf_counter()
        unique = dict.fromkeys(references)
        cached = sum(store_for(one.recipe).is_cached(one.key) for one in unique)
        values = _load(references, shared)
        size = sum(one.size for one in unique)
        book.get(len(unique), size, time.perf_counter() - start, cached)
        return values
    return _load(references, shared)


def _load(references: Sequence[Reference], shared: bool) -> list[Any]:
    size = sum([reference.size for reference in references])
    if size < progress.LONG:
        return _loaded(references, shared)
    with progress.shown("loading", size):
        return _loaded(references, shared)


def _loaded(references: Sequence[Reference], shared: bool) -> list[Any]:
    if len(references) == 1:
        return store_for(references[0].recipe).load_batch(references, shared=shared)
    stores: dict[str, list[Reference]] = {}
    for reference in dict.fromkeys(references):
        stores.setdefault(reference.recipe, []).append(reference)
    loaded: dict[Reference, Any] = {}
    for recipe, wanted in stores.items():
        loaded.update(zip(wanted, store_for(recipe).load_batch(wanted, shared=shared), strict=True))
    return [loaded[reference] for reference in references]
