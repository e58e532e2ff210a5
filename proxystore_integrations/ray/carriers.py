"""What Ray carries in place of large values: it becomes the value when a process unpickles it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

from proxystore_core import Proxy, Reference, SerializationError, StoreError
from proxystore_integrations.carriers import NotDeliveredError
from proxystore_integrations.ray.asking import asked_of
from proxystore_integrations.ray.engine import OWN
from proxystore_integrations.ray.joining import actor, node
from proxystore_integrations.ray.link import Guard, RayLink, Terms, called_for, joined
from proxystore_integrations.ray.owners import contain, outer
from proxystore_integrations.ray.pickling import refusing
from proxystore_integrations.transfer import DEPTH, ByValue, Outgoing, load

__all__ = ["RayOutgoing", "Stored", "Ticket"]

_WRITTEN = frozenset({list, dict})
"""Ray writes these without pickle, unless they are in something else: each time they appear, a new one."""


class Ticket:
    """What the carriers of one call, one result or one put have in common.

    Args:
        terms: of the session.
        guard: of the objects; None before they are all stored, and where something else keeps them.
        adopt: whether the objects go with the Ray object that the carriers are in.
    """

    __slots__ = ("adopt", "guard", "terms")

    def __init__(self, terms: Terms, guard: Any, adopt: bool = False) -> None:
        self.terms = terms
        self.guard = guard
        self.adopt = adopt

    def __reduce__(self) -> tuple[Any, ...]:
        return _ticket, self.parts()

    def parts(self) -> tuple[str, Any, bool]:
        """What travels of it: terms as text, ObjectRef of the guard, adopt."""
        guard = self.guard.reference if isinstance(self.guard, Guard) else self.guard
        return _written(self.terms), guard, self.adopt


class Stored:
    """Stands for a stored value; unpickled, it is the value.

    Args:
        reference: names the value.
        ticket: of the call.
        lazy: it becomes a lazy proxy.
    """

    __slots__ = ("lazy", "reference", "ticket")

    def __init__(self, reference: Reference, ticket: Ticket, lazy: bool) -> None:
        self.reference = reference
        self.ticket = ticket
        self.lazy = lazy

    def __reduce__(self) -> tuple[Any, ...]:
        # All in one: for each object with a function of its own Ray's pickler costs a call some 10 us.
        one = self.reference
        terms, guard, adopt = self.ticket.parts()
        # A value that is there keeps no guard: Ray's count of what waits for it is enough, and costs less.
        if guard is not None and not self.lazy and not adopt and contain(guard):
            guard = None
        return _arrived, (self.lazy, one.key, one.recipe, one.size, one.kind, terms, guard, adopt)

    def __repr__(self) -> str:
        return f"<stored {self.reference.describe()}>"


class Item:
    """Stands for an item of a stored list; unpickled, it is the item."""

    __slots__ = ("item", "stored")

    def __init__(self, stored: Stored, item: int) -> None:
        self.stored = stored
        self.item = item

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, (self.stored, self.item)

    def __repr__(self) -> str:
        return f"<item {self.item} of {self.stored!r}>"


class GuardedReference(Reference):
    """A reference that keeps its object in the store, wherever Ray takes it."""

    __slots__ = ("ticket",)

    def __init__(self, reference: Reference, ticket: Ticket) -> None:
        super().__init__(reference.key, reference.recipe, reference.size, reference.kind)
        self.ticket = ticket

    def __call__(self) -> Any:
        try:
            return super().__call__()
        except StoreError as error:
            return _asked(Reference(self.key, self.recipe, self.size, self.kind), self.ticket, error)

    def __reduce__(self) -> tuple[Any, ...]:
        return GuardedReference, (Reference(self.key, self.recipe, self.size, self.kind), self.ticket)


class RayOutgoing(Outgoing):
    """The values of one call, one result or one put.

    Args:
        link: this process's.
        lazy: values become lazy proxies.
        adopt: see `Ticket`.
    """

    def __init__(self, link: RayLink, *, lazy: bool = False, adopt: bool = False) -> None:
        super().__init__(link.sharing, link.policy, link.by_value)
        self.engine = link.engine
        self._link = link
        self._lazy = lazy
        self._ticket = Ticket(link.signed, None, adopt)
        self._carriers: dict[Reference, Stored] = {}
        self._pickled = False  # what is looked into now
        self.unites = not lazy

    def argument(self, value: Any) -> Any:
        """What stands for an argument, or a result. Ray pickles each by itself."""
        return self.together((value,), lambda: self.substitute(value))

    def carrier(self, reference: Reference, item: int | None = None) -> Any:
        # In what Ray pickles at once, one object stays one.
        carrier = self._carriers.get(reference)
        if carrier is None:
            carrier = self._carriers[reference] = Stored(reference, self._ticket, self._lazy)
        return carrier if item is None else Item(carrier, item)

    def inside(self, value: Any) -> Iterable[Any] | None:
        return () if isinstance(value, OWN) else None

    def _container(self, value: Any, depth: int) -> Any:
        before, self._pickled = self._pickled, self._pickled or type(value) not in _WRITTEN
        try:
            return super()._container(value, depth)
        finally:
            self._pickled = before

    def substitute(self, value: Any, depth: int = DEPTH) -> Any:
        if type(value) is bytearray:
            return value  # what Ray makes of it depends on where it is
        carried = super().substitute(value, depth)
        if type(carried) is Stored and type(value) in _WRITTEN and not self._pickled:
            return Stored(carried.reference, self._ticket, self._lazy)
        return carried

    def engine_value(self, value: Any) -> Any:
        return value if isinstance(value, OWN) else NotImplemented

    def reference(self, value: Any) -> Reference | None:
        known = self._stored.get(id(value))
        if known is None and not self._ticket.adopt and self._link.leaves(value):
            self._stored[id(value)] = value, None
            self._not_stored(value, "fast in Ray's own store")
            return None
        return super().reference(value)

    def exported(self, function: Any) -> Any:
        """What stands for a remote function until the session ends; itself where it cannot be stored."""
        reference = super().reference(function)
        return function if reference is None else self.carrier(reference)

    def guarded(self) -> Ticket | None:
        """To be held until Ray has the carriers; None if there are none.

        Raises:
            RayError: Ray takes no guard.
        """
        if not self.references:
            return None
        ticket = self._ticket
        ticket.guard = self._link.guard(reference.key for reference in self.references)
        return ticket

    def withdraw(self) -> None:
        """Nothing is sent after all."""
        self._link.withdraw([reference.key for reference in self.references])

    def _put(self, value: Any, *, shared: bool) -> Reference | None:
        if self._link.is_over(by_trip=False):
            return None
        with refusing():
            # What goes with one Ray object is evicted with it, by whoever owns that.
            reference = super()._put(value, shared=shared and not self._ticket.adopt)
        if reference is not None and self._link.is_over():
            self._link.clear([reference.key for reference in self.references])
            self.references.clear()
            return None
        return reference


# Where they arrive.


def _arrived(
    lazy: bool,
    key: str,
    recipe: str,
    size: int,
    kind: str,
    terms: str,
    guard: Any,
    adopt: bool,
) -> Any:
    reference, ticket = Reference(key, recipe, size, kind), _ticket(terms, guard, adopt)
    if ticket.terms.results == "always" and actor() and outer() is None:
        link = joined(ticket.terms)
        if link is not None:
            called_for(link)
    return Proxy(GuardedReference(reference, ticket)) if lazy else _value(reference, ticket)


@functools.lru_cache(16)
def _written(terms: Terms) -> str:
    return terms.written()


@functools.lru_cache(16)
def _read(terms: str) -> Terms:
    return Terms.read(terms)


def _ticket(terms: str, guard: Any, adopt: bool) -> Ticket:
    ticket = Ticket(_read(terms), guard, adopt)
    _install()
    joined(ticket.terms)
    return ticket


@functools.cache
def _install() -> None:
    from proxystore_integrations.ray.hooks import install  # it imports this module

    install()


def _value(reference: Reference, ticket: Ticket) -> Any:
    if ticket.adopt:
        link = joined(ticket.terms)
        if link is not None:
            link.adopt(reference.key, ticket.guard)
    own: BaseException | None = None
    try:
        return _loaded(reference, ticket)
    except StoreError as error:
        if isinstance(error, SerializationError):
            own = error.__cause__  # which its own code raises without a store, too
        if own is None:
            raise NotDeliveredError(
                f"a value of this task or object cannot be had here: {error.problem}",
                store=error.store,
                key=error.key,
                remedy=error.remedy,
            ) from error
    try:
        raise own
    finally:
        del own  # its traceback has this frame


def _loaded(reference: Reference, ticket: Ticket) -> Any:
    try:
        return load([reference])[0]
    except StoreError as error:
        return _asked(reference, ticket, error)


def _asked(reference: Reference, ticket: Ticket, error: StoreError) -> Any:
    """The value from the node that stored it, where this one does not reach the store.

    Raises:
        StoreError: the error given; the value is nowhere, or settings want what the store says.
    """
    terms = ticket.terms
    if not terms.node or terms.node == node() or terms.on_store_error == "raise":
        raise error
    try:
        value = asked_of(terms.node, reference)
    except Exception:  # whatever Ray says of it is not the cause
        raise error from None
    _by_value(terms.on_store_error).accept(error, "take a value")
    return value


_by_value = functools.cache(ByValue)
