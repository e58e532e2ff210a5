"""What Ray carries in place of large values: it becomes the value when a process unpickles it."""

from __future__ import annotations

import functools
import json
import uuid
from collections import OrderedDict
from typing import Any

from proxystore_core import Proxy, Reference, StoreError, forks
from proxystore_integrations.carriers import NotDeliveredError
from proxystore_integrations.ray.engine import OWN
from proxystore_integrations.ray.link import Guard, RayLink, Terms, joined
from proxystore_integrations.ray.pickling import refusing
from proxystore_integrations.transfer import DEPTH, Outgoing, load

__all__ = ["RayOutgoing", "Stored", "Ticket"]

_CALLS = 32  # whose values are remembered while their arguments are being unpickled, at most


class Ticket:
    """What the carriers of one call, one result or one put have in common.

    Args:
        terms: of the session.
        guard: of the objects; None before they are all stored, and where something else keeps them.
        call: names the call among all, if one of its objects is in several of its arguments.
        adopt: whether the objects go with the Ray object that the carriers are in.
    """

    __slots__ = ("adopt", "call", "guard", "terms")

    def __init__(self, terms: Terms, guard: Any, call: str = "", adopt: bool = False) -> None:
        self.terms = terms
        self.guard = guard
        self.call = call
        self.adopt = adopt

    def __reduce__(self) -> tuple[Any, ...]:
        return _ticket, self.parts()

    def parts(self) -> tuple[str, Any, str, bool]:
        """What travels of it: terms as text, ObjectRef of the guard, call, adopt."""
        guard = self.guard.reference if isinstance(self.guard, Guard) else self.guard
        return _written(self.terms), guard, self.call, self.adopt


class Stored:
    """Stands for a stored value; unpickled, it is the value.

    Args:
        reference: names the value.
        ticket: of the call.
        lazy: it becomes a lazy proxy.
    """

    __slots__ = ("lazy", "reference", "ticket", "uses")

    def __init__(self, reference: Reference, ticket: Ticket, lazy: bool) -> None:
        self.reference = reference
        self.ticket = ticket
        self.lazy = lazy
        self.uses = 1
        """Arguments of the call that it is in: each is unpickled by itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        # All in one: for each object with a function of its own Ray's pickler costs a call some 10 us.
        one = self.reference
        return _arrived, (self.lazy, self.uses, one.key, one.recipe, one.size, one.kind, *self.ticket.parts())

    def __repr__(self) -> str:
        return f"<stored {self.reference.describe()}>"


class GuardedReference(Reference):
    """A reference that keeps its object in the store, wherever Ray takes it."""

    __slots__ = ("ticket",)

    def __init__(self, reference: Reference, ticket: Ticket) -> None:
        super().__init__(reference.key, reference.recipe, reference.size, reference.kind)
        self.ticket = ticket

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
        assert link.terms is not None
        self._link = link
        self._lazy = lazy
        self._ticket = Ticket(link.terms, None, "", adopt)
        self._carriers: dict[Reference, Stored] = {}
        self._within: set[Reference] = set()  # the argument that is looked into now

    def carrier(self, reference: Reference) -> Stored:
        carrier = self._carriers.get(reference)
        if carrier is None:
            carrier = self._carriers[reference] = Stored(reference, self._ticket, self._lazy)
            self._within.add(reference)
        elif reference not in self._within:
            self._within.add(reference)
            carrier.uses += 1
            self._ticket.call = self._ticket.call or uuid.uuid4().hex
        return carrier

    def substitute(self, value: Any, depth: int = DEPTH) -> Any:
        if type(value) is bytearray:
            return value  # what Ray makes of it depends on where it is
        return super().substitute(value, depth)

    def engine_value(self, value: Any) -> Any:
        return value if isinstance(value, OWN) else NotImplemented

    def reference(self, value: Any) -> Reference | None:
        known = self._stored.get(id(value))
        if known is None and not self._ticket.adopt and self._link.leaves(value):
            self._stored[id(value)] = value, None
            self._not_stored(value, "fast in Ray's own store")
            return None
        return super().reference(value)

    def argument(self, value: Any) -> Any:
        """`substitute` for one argument, which Ray pickles by itself."""
        self._within.clear()
        return self.substitute(value)

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
        with refusing():
            # What goes with one Ray object is evicted with it, by whoever owns that.
            return super()._put(value, shared=shared and not self._ticket.adopt)


# Where they arrive.

_loaded: OrderedDict[str, dict[str, list[Any]]] = OrderedDict()
_lock = forks.lock()


def _arrived(
    lazy: bool,
    uses: int,
    key: str,
    recipe: str,
    size: int,
    kind: str,
    terms: str,
    guard: Any,
    call: str,
    adopt: bool,
) -> Any:
    reference, ticket = Reference(key, recipe, size, kind), _ticket(terms, guard, call, adopt)
    return Proxy(GuardedReference(reference, ticket)) if lazy else _value(reference, ticket, uses)


@functools.lru_cache(16)
def _written(terms: Terms) -> str:
    return json.dumps(terms)


@functools.lru_cache(16)
def _read(terms: str) -> Terms:
    return Terms(*json.loads(terms))


def _ticket(terms: str, guard: Any, call: str, adopt: bool) -> Ticket:
    ticket = Ticket(_read(terms), guard, call, adopt)
    _install()
    joined(ticket.terms)
    return ticket


@functools.cache
def _install() -> None:
    from proxystore_integrations.ray.hooks import install  # it imports this module

    install()


def _value(reference: Reference, ticket: Ticket, uses: int) -> Any:
    """The value. One that several arguments of a call have is one object, as in the call."""
    if ticket.adopt:
        link = joined(ticket.terms)
        if link is not None:
            link.adopt(reference.key, ticket.guard)
    if uses == 1:
        return _load(reference)
    with _lock:
        values = _loaded.setdefault(ticket.call, {})
        known = values.get(reference.key)
        if known is not None:
            known[1] -= 1
            if not known[1]:
                del values[reference.key]
                if not values:
                    del _loaded[ticket.call]
            return known[0]
    value = _load(reference)
    with _lock:
        _loaded.setdefault(ticket.call, {})[reference.key] = [value, uses - 1]
        while len(_loaded) > _CALLS:
            _loaded.popitem(last=False)
    return value


def _load(reference: Reference) -> Any:
    try:
        return load([reference])[0]
    except StoreError as error:
        raise NotDeliveredError(
            f"a value of this task or object cannot be had here: {error.problem}",
            store=error.store,
            key=error.key,
            remedy=error.remedy,
        ) from error
