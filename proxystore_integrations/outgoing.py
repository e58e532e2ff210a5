"""The function and arguments of one call on an engine that runs functions elsewhere, on their way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from proxystore_core import Reference
from proxystore_integrations.carriers import Owner, StoredArgument, StoredResult, owners
from proxystore_integrations.functions import carries_large, name_of
from proxystore_integrations.transfer import Outgoing

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
        named_loads: those of keyword arguments that the engine pickles by themselves.
        results: earlier calls' that this one takes: kept in the store until this one is done.
    """

    def __init__(self, link: CallLink) -> None:
        super().__init__(link.sharing, link.policy, link.by_value, link.should_proxy)
        self.loads: dict[Reference, None] = {}
        self.named_loads: dict[Reference, None] = {}
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

        def substitute() -> Sent:
            stored = None if function is None else self.function(function)
            new_args = tuple(self.substitute_all(args))
            return stored, new_args, {name: self.substitute(value) for name, value in kwargs.items()}

        if function is None:
            return substitute()
        sent = self.together((function, *args, *kwargs.values()), substitute)
        self.settle()
        return sent

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
        loads, self.loads = self.loads, {}
        values = tuple(kwargs.values())
        named = self.together(values, lambda: self.substitute_all(values))
        self.named_loads, self.loads = self.loads, loads
        self.settle()
        return stored, positional, dict(zip(kwargs, named, strict=True))

    def inside(self, value: Any) -> Iterable[Any] | None:
        return () if type(value) is StoredResult else None

    def settle(self) -> None:
        before = {*self.references}
        super().settle()
        for reference in before.difference(self.references):
            self.loads.pop(reference, None)
            self.named_loads.pop(reference, None)

    def over(self) -> None:
        """The call is: what was stored for it, and other sessions' results, may go."""
        self._link.withdraw([reference.key for reference in self.references])
        for owner in self._lenders:
            owner.ended()

    def function(self, function: Callable[..., Any]) -> StoredArgument | None:
        """What stands for a function that carries large values; None for any other."""
        if (one := self._united.get(id(function))) is not None:
            return one[1] if type(one[1]) is StoredArgument else None
        if not carries_large(function, self.policy, self._main_by_value):
            return None
        reference = self.reference(function)
        if reference is None:
            return None
        self._made.append(reference)
        self.loads[reference] = None
        return StoredArgument(reference)


def outgoing_of(
    link: CallLink,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    wrapped: bool,
    results: bool = False,
) -> tuple[CallOutgoing, Sent]:
    """What is stored of a call, and what stands for its function and arguments.

    Values that have an object in common are stored as one: else it would be two in the task.

    Args:
        link: the client's.
        function: the user's.
        args: its positional arguments.
        kwargs: its keyword arguments.
        wrapped: whether the function may be stored, too.
        results: whether stored results may be anywhere in the arguments.

    Raises:
        StoreError: the store failed, and settings want that raised.
    """
    outgoing = CallOutgoing(link)
    outgoing.exact = results
    send = outgoing.sent_apart if link.pickles_apart else outgoing.sent
    try:
        return outgoing, send(function if wrapped else None, args, kwargs)
    except BaseException:
        outgoing.over()
        raise
