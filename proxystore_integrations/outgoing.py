"""The function and arguments of one call on an engine that runs functions elsewhere, on their way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from proxystore_core import Reference
from proxystore_core.memos import Memo, remembering
from proxystore_integrations.aliases import have_any_in_common, may_share, with_any_of
from proxystore_integrations.carriers import Owner, StoredArgument, StoredResult, owners
from proxystore_integrations.functions import carried, carries_large, name_of
from proxystore_integrations.transfer import DEPTH, Outgoing

if TYPE_CHECKING:
    from proxystore_integrations.calls import CallLink

__all__ = ["CallOutgoing", "outgoing_of"]

Sent: TypeAlias = tuple[StoredArgument | None, tuple[Any, ...], dict[str, Any]]


class CallOutgoing(Outgoing):
    """The function and arguments of one call.

    Args:
        link: the client's.

    Attributes:
        loads: references of what the worker is to load before it calls the function.
        results: earlier calls' that this one takes: kept in the store until this one is done.
    """

    def __init__(self, link: CallLink) -> None:
        super().__init__(link.sharing, link.policy, link.by_value, link.should_proxy)
        self.loads: dict[Reference, None] = {}
        self.results: list[StoredResult] = []
        self._link = link
        self._lenders: list[Owner] = []
        self._lazy = link.settings.inputs == "proxy"
        self.engine = link.engine
        self._main_by_value = link.pickling.main_by_value
        self.unites = not self._lazy

    def carrier(self, reference: Reference, item: int | None = None) -> StoredArgument:
        if not self._lazy:
            self.loads[reference] = None
        return StoredArgument(reference, self._lazy, item)

    def engine_value(self, value: Any) -> Any:
        if type(value) is not StoredResult:
            return NotImplemented
        link, reference = self._link, value.reference
        owner = owners.get(value.session)
        if owner is not link:
            if owner is None or reference.recipe != link.recipe:
                return self.substitute(value.value)  # its session is over, or nobody here keeps it
            owner.began()
            self._lenders.append(owner)
        self.results.append(value)
        return self.carrier(reference)

    def sent(
        self, function: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Sent:
        """What stands for a function, if it is given and carries large values, and its arguments."""
        self.label = name_of(function)
        stored = None if function is None else self.function(function)
        new_args = tuple(self.substitute_all(args))
        return stored, new_args, {name: self.substitute(value) for name, value in kwargs.items()}

    def sent_apart(
        self, function: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Sent:
        """As `sent`, for an engine that pickles function, arguments and keyword arguments one by one.

        What the same of these hold is one object in the task, and what two of them hold is two.
        """
        self.label = name_of(function)
        stored = None if function is None else self.function(function)
        if stored is not None:
            self._uses[stored.reference] += 1
        positional = self.together(args, lambda: tuple(self.substitute_all(args)))
        if not kwargs:
            self.settle()
            return stored, positional, {}
        self.apart()
        values = tuple(kwargs.values())
        named = self.together(values, lambda: self.substitute_all(values))
        self.settle()
        return stored, positional, dict(zip(kwargs, named, strict=True))

    def inside(self, value: Any) -> Iterable[Any] | None:
        return () if type(value) is StoredResult else None

    def settle(self) -> None:
        before = {*self.references}
        super().settle()
        for reference in before.difference(self.references):
            self.loads.pop(reference, None)

    def shares(self, memos: Mapping[int, Memo], sent: Any) -> bool:
        """Whether an object is in several of what is stored, or in one and in what is sent beside.

        Args:
            memos: of what is stored, by its id.
            sent: with carriers in it.
        """
        if self._lazy or self.should_proxy is not None or self.results:
            return False
        stored = [value for value, reference in self._stored.values() if reference is not None]
        apart = [value for value, made in self._rebuilt.values() if made is not value]
        return have_any_in_common(memos, stored, apart, sent)

    def over(self) -> None:
        """The call is: what was stored for it, and other sessions' results, may go."""
        self._link.withdraw([reference.key for reference in self.references])
        for owner in self._lenders:
            owner.ended()

    def function(self, function: Callable[..., Any]) -> StoredArgument | None:
        """What stands for a function that carries large values; None for any other."""
        if not carries_large(function, self.policy, self._main_by_value):
            return None
        reference = self.reference(function)
        if reference is None:
            return None
        self.loads[reference] = None
        return StoredArgument(reference)


def outgoing_of(
    link: CallLink, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], wrapped: bool
) -> tuple[CallOutgoing, Sent]:
    """What is stored of a call, and what stands for its function and arguments.

    Values that have an object in common are stored as one: else it would be two in the task.

    Args:
        link: the client's.
        function: the user's.
        args: its positional arguments.
        kwargs: its keyword arguments.
        wrapped: whether the function may be stored, too.

    Raises:
        StoreError: the store failed, and settings want that raised.
    """
    outgoing = CallOutgoing(link)
    sent: Sent | None = None
    try:
        if link.pickles_apart:
            return outgoing, outgoing.sent_apart(function if wrapped else None, args, kwargs)
        if not wrapped:
            return outgoing, outgoing.sent(None, args, kwargs)
        inside = carried(function, link.pickling.main_by_value)
        values = [inside, *args, *kwargs.values()]
        if not may_share([*inside, *values[1:]]):
            return outgoing, outgoing.sent(function, args, kwargs)
        joined = link.joined(function, len(values))
        if not joined or _holds_results(values, DEPTH, set()):
            with remembering() as memos:
                sent = outgoing.sent(function, args, kwargs)
            if not outgoing.shares(memos, (None if sent[0] else inside, *sent[1:])):
                return outgoing, sent
            joined = with_any_of(values, memos.values())
            link.join(function, len(values), joined)
        given = {i: values[i] if i else function for i in joined}
        again = _as_one(CallOutgoing(link), given, function, args, kwargs)
        if again is None:
            return outgoing, sent or outgoing.sent(function, args, kwargs)
    except BaseException:
        outgoing.over()
        raise
    outgoing.over()
    return again


def _holds_results(value: Any, depth: int, seen: set[int]) -> bool:
    kind = type(value)
    if kind is StoredResult:
        return True
    if not depth or kind not in (list, tuple, dict) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_holds_results(item, depth - 1, seen) for item in (value.values() if kind is dict else value))


def _as_one(
    outgoing: CallOutgoing,
    joined: Mapping[int, Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[CallOutgoing, Sent] | None:
    """A call whose values of these numbers (0 is the function) are one object; None if they cannot be."""
    try:
        reference = outgoing.reference(tuple(joined.values()))
        if reference is None:
            outgoing.over()
            return None
        outgoing.loads[reference] = None
        made = {i: StoredArgument(reference, part=part) for part, i in enumerate(joined)}
        stored = made.get(0) or outgoing.function(function)
        rest = [
            made.get(i) or outgoing.substitute(value)
            for i, value in enumerate((*args, *kwargs.values()), start=1)
        ]
    except BaseException:
        outgoing.over()
        raise
    count = len(args)
    return outgoing, (stored, tuple(rest[:count]), dict(zip(kwargs, rest[count:], strict=True)))
