"""What an engine that runs functions elsewhere carries in place of large values: inert, unpacked by us alone.

To the worker go a `StoreFunction` and, where arguments are stored, one `Packed` argument. Back comes
the result, or a `StoredResult`.
"""

from __future__ import annotations

import inspect
import operator
import pickle
import socket
import time
import weakref
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from sys import getsizeof
from typing import Any, Protocol

import msgspec

from proxystore_core import Proxy, Reference, SerializationError, StoreError, register_sizeof, store_for
from proxystore_core.connectors.base import place_of
from proxystore_core.flight import Flights
from proxystore_core.pickling import Pickling
from proxystore_integrations import __version__, ledger
from proxystore_integrations.functions import name_of
from proxystore_integrations.light import PLAIN, lightened
from proxystore_integrations.policy import Policy
from proxystore_integrations.transfer import DEEPEST, ByValue, load

__all__ = [
    "NAMED",
    "Filling",
    "NotDeliveredError",
    "Owner",
    "Packed",
    "StoreFunction",
    "StoredArgument",
    "StoredResult",
    "Terms",
    "VersionError",
    "call_given",
    "call_pickled",
    "check_version",
    "plain",
]


NAMED = "__proxystore_named__"
"""The keyword argument that has all others, where an engine pickles keyword arguments by themselves."""


class NotDeliveredError(StoreError):
    """A worker could not have a call's arguments from the store, so the function was not called."""


class VersionError(NotDeliveredError):
    """Client and worker have versions of this package that do not understand each other, or one has none."""


def check_version(theirs: str, problem: str = "") -> None:
    """Check that what another process has sent means here what it meant there.

    Args:
        theirs: the version of this package that it has; empty where it told none.
        problem: why it cannot be read, whatever the versions are.

    Raises:
        VersionError: it does not, or nobody can tell. The last of three numbers makes no difference.
    """
    if problem or theirs.split(".")[:2] != __version__.split(".")[:2]:
        text = f"the client has proxystore-integrations {theirs or 'of another version'}, "
        text += f"{socket.gethostname()} has {__version__}"
        raise VersionError(
            f"{text}: {problem}" if problem else text, remedy="Install the same version on both."
        )


class StoredArgument:
    """Stands for a stored value until the worker fills it in.

    Args:
        reference: names the value.
        lazy: the function gets a lazy proxy.
        item: index of the value in the stored object, where several are stored as one.
    """

    __slots__ = ("item", "lazy", "reference")

    def __init__(self, reference: Reference, lazy: bool = False, item: int | None = None) -> None:
        self.reference = reference
        self.lazy = lazy
        self.item = item

    def __reduce__(self) -> tuple[type[StoredArgument], tuple[Any, ...]]:
        given = (self.reference, self.lazy)
        return StoredArgument, given if self.item is None else (*given, self.item)

    def __repr__(self) -> str:
        return f"<stored {self.reference.describe()}>"


class Packed:
    """The arguments of one call, with stored values among them.

    Args:
        function: what to call, where it is stored itself; else None.
        args: positional arguments.
        kwargs: keyword arguments.
        references: of all that is to be loaded.
    """

    __slots__ = ("args", "function", "kwargs", "references")

    def __init__(
        self,
        function: StoredArgument | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        references: tuple[Reference, ...],
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.references = references

    def __reduce__(self) -> tuple[Callable[..., Packed], tuple[Any, ...]]:
        return _packed, (__version__, self.function, self.args, self.kwargs, self.references)

    def __repr__(self) -> str:
        return f"<{len(self.args) + len(self.kwargs)} arguments, {len(self.references)} to load>"

    def filled(self, named: Packed | None = None) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Function, arguments and keyword arguments with all values in their places.

        Each is loaded once: one that appears twice is one object, as it is without a store.

        Args:
            named: has the keyword arguments, where they came by themselves.

        Raises:
            StoreError: a value cannot be had.
        """
        loaded = dict(zip(self.references, load(self.references), strict=True))
        fill = Filling(loaded)
        kwargs = fill(self.kwargs) if named is None else named.filled()[2]
        return fill(self.function, 0), fill(self.args), kwargs

    def delivered(self, to: str, named: Packed | None = None) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """`filled`, in a worker.

        Args:
            to: what they are for.
            named: as for `filled`.

        Raises:
            NotDeliveredError: a value cannot be had.
        """
        try:
            return self.filled(named)
        except NotDeliveredError:
            raise
        except StoreError as error:
            raise NotDeliveredError(
                f"{socket.gethostname()} cannot have the arguments of {to}: {error.problem}",
                store=error.store,
                key=error.key,
                remedy=error.remedy,
            ) from error


class _Unread(Packed):
    """Arguments that another version has packed.

    Args:
        error: that says so, when they are asked for: an engine may not survive one as it unpickles.
    """

    __slots__ = ("_error",)

    def __init__(self, error: VersionError) -> None:
        super().__init__(None, (), {}, ())
        self._error = error

    def filled(self, named: Packed | None = None) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        raise self._error


def _packed(version: str, /, *given: Any) -> Packed:
    try:
        check_version(version)
        return Packed(*given)
    except VersionError as error:
        return _Unread(error)


class Filling:
    """Puts values in the places of those that stand for them, in exact lists, tuples and dicts.

    A container that holds any is made anew, once however often it appears.

    Args:
        loaded: the values of `StoredArgument`s.
    """

    def __init__(self, loaded: Mapping[Reference, Any] | None = None) -> None:
        self._loaded = loaded or {}
        # By id; the containers are kept so that no id is used again.
        self._seen: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any, depth: int = DEEPEST + 2) -> Any:
        kind = type(value)
        if kind is StoredArgument:
            if value.lazy:
                return Proxy(value.reference)
            loaded = self._loaded[value.reference]
            return loaded if value.item is None else loaded[value.item]
        if kind is StoredResult:
            return value.value
        if not depth or (kind is not list and kind is not tuple and kind is not dict):
            return value
        seen = self._seen.get(id(value))
        if seen is None:
            self._seen[id(value)] = (
                value,
                value,
            )  # for what refers back to it: nothing that stands for any does
            old = value.values() if kind is dict else value
            new = [self(item, depth - 1) for item in old]
            filled = value
            if not all(map(operator.is_, new, old)):
                filled = dict(zip(value, new, strict=True)) if kind is dict else kind(new)
            self._seen[id(value)] = seen = value, filled
        return seen[1]


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """How a worker treats results.

    Attributes:
        recipe: opens the store.
        session: that results belong to.
        threshold: size from which a result is stored, bytes.
        on_store_error: ``"fallback"`` or ``"raise"``.
        pickling: as the engine would.
        place: where the store is (see `connectors.base.place_of`); elsewhere it is another one.
        engine: whose call it is, for the ledger.
    """

    recipe: str
    session: str
    threshold: int
    on_store_error: str
    pickling: Pickling
    place: str
    engine: str = ""

    def outgoing(
        self, result: Any, function: Any, name: str, should_proxy: Callable[[Any], bool] | None
    ) -> Any:
        """The result itself, or what stands for it when it is large.

        Args:
            result: what the function returned.
            function: that did, for the ledger.
            name: of it.
            should_proxy: may keep a large result out of the store.

        Raises:
            StoreError: the store failed, and settings want that raised.
        """
        if not _policy(self.threshold).over(result):
            if ledger.book is not None and type(result) is not Proxy:
                ledger.book.small(self.engine, result, self.threshold)
            return result
        if not self.pickling.takes_kind(type(result)):
            return result
        start = time.perf_counter()
        if should_proxy is not None and not should_proxy(result):
            return result
        try:
            store = store_for(self.recipe)
            if place_of(store.connector) != self.place:
                return result
            reference = store.reference(result, session=self.session, pickling=self.pickling)
        except SerializationError:
            return result  # the engine meets the same object and raises its own error
        except StoreError as error:
            _by_value(self.on_store_error).accept(error, "return a result")
            return result
        if (book := ledger.book) is not None:
            seconds = time.perf_counter() - start
            book.put("result", self.engine, name, reference, seconds, book.home(function))
        return StoredResult(reference, self.session)


_policy = cache(Policy)
_by_value = cache(ByValue)


class StoreFunction:
    """A function on its way to a worker: takes arguments from the store, and puts its result there.

    Args:
        function: the user's; None when it is in the store itself.
        terms: for its result; None when results go by value.
        name: what the engine shows.
        should_proxy: may keep a large result out of the store.
        parameters: names of those of a function that is in the store, for an engine that asks.
    """

    def __init__(
        self,
        function: Callable[..., Any] | None,
        terms: Terms | None,
        name: str,
        should_proxy: Callable[[Any], bool] | None = None,
        parameters: tuple[str, ...] = (),
    ) -> None:
        self.function = function
        self.terms = terms
        self.__name__ = name
        self.should_proxy = should_proxy
        self._parameters = parameters

    def __reduce__(self) -> tuple[Callable[..., StoreFunction], tuple[Any, ...]]:
        terms = None if self.terms is None else msgspec.msgpack.encode(self.terms)
        given = (__version__, self.function, terms, self.__name__)
        if self._parameters:
            return _store_function, (*given, self.should_proxy, self._parameters)
        return _store_function, given if self.should_proxy is None else (*given, self.should_proxy)

    def __repr__(self) -> str:
        return f"<{self.__name__} with a store>"

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's, or one with parameters of the same names; engines ask for it."""
        if self.function is not None:
            return inspect.signature(self.function)
        if not self._parameters:
            raise AttributeError("__signature__")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature([inspect.Parameter(name, kind) for name in self._parameters])

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        function: Any = self.function
        if args and type(args[0]) is Packed:
            named = kwargs.pop(NAMED, None)
            stored, args, given = args[0].delivered(f"{self.__name__}()", named)
            kwargs.update(given)  # an engine may have added some
            function = stored or function
        result = function(*args, **kwargs)
        return self.outgoing(result, function)

    def outgoing(self, result: Any, function: Any) -> Any:
        """What to return for what the function returned.

        Args:
            result: of it.
            function: that did, for the ledger.

        Raises:
            StoreError: the store failed, and settings want that raised.
        """
        if self.terms is None:
            return result
        return self.terms.outgoing(result, function, self.__name__, self.should_proxy)


def call_pickled(pickled: bytes, /, *args: Any, **kwargs: Any) -> Any:
    """Call a function as `StoreFunction` does; arguments are as they are.

    An engine pickles the function with every small call. This one it pickles by its name, and the other is
    bytes, which a worker reads once.

    Args:
        pickled: a `StoreFunction` with terms.
        *args: for it.
        **kwargs: for it.
    """
    function, threshold, pickling, sent = _unpickled(pickled)
    result = function(*args, **kwargs)
    if ledger.book is None:
        if type(result) in PLAIN and getsizeof(result) < threshold:
            return result
        light = lightened((result,), threshold, pickling)
        if light is not None:
            return light[0]
    return sent.outgoing(result, function)


def call_given(pickled: bytes, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """As `call_pickled`, of a function that the engine pickles as it pickles any.

    Args:
        pickled: a `StoreFunction` without a function, with terms.
        function: to call.
        *args: for it.
        **kwargs: for it.
    """
    _, threshold, pickling, sent = _unpickled(pickled)
    result = function(*args, **kwargs)
    light = None if ledger.book is not None else lightened((result,), threshold, pickling)
    if light is None:
        return StoreFunction(function, sent.terms, name_of(function)).outgoing(result, function)
    return light[0]


# By a name of the package's own, it is found in half the time, at both ends.
call_pickled.__module__ = call_given.__module__ = "proxystore_integrations"


@lru_cache(256)
def _unpickled(pickled: bytes) -> tuple[Callable[..., Any], int, Pickling, StoreFunction]:
    made = pickle.loads(pickled)
    if type(made) is not StoreFunction:
        made()  # raises
    return made.function, made.terms.threshold, made.terms.pickling, made


@lru_cache(256)
def _terms(version: str, encoded: bytes) -> Terms:
    check_version(version)
    try:
        return msgspec.msgpack.decode(encoded, type=Terms)
    except msgspec.MsgspecError as error:
        check_version(version, str(error))
        raise


def _store_function(version: str, /, *given: Any) -> StoreFunction:
    try:
        check_version(version)
        function, terms, *more = given
        return StoreFunction(function, None if terms is None else _terms(version, terms), *more)
    except VersionError as error:
        return _UnreadFunction(error)


class _UnreadFunction(StoreFunction):
    """A function that another version has sent, as `_Unread`."""

    def __init__(self, error: VersionError) -> None:
        super().__init__(None, None, "a function")
        self._error = error

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        raise self._error


class Owner(Protocol):
    """The link of the client whose session it is."""

    def received(self, result: StoredResult) -> None:
        """A result arrived in the client's process."""

    def dropped(self, key: str) -> None:
        """One that had been received is gone; called by destructors."""

    def began(self) -> None:
        """One call more needs the session."""

    def ended(self) -> None:
        """A call that `began` is over."""


class StoredResult:
    """A result that is in the store. In its client's process the object is evicted with the last of these.

    Args:
        reference: names the value.
        session: that it belongs to.
    """

    __slots__ = ("__weakref__", "_owner", "_value", "reference", "session")

    def __init__(self, reference: Reference, session: str) -> None:
        self.reference = reference
        self.session = session
        self._value: tuple[Any] | None = None
        self._owner = owners.get(session)
        if self._owner is not None:
            self._owner.received(self)

    def __reduce__(self) -> tuple[type[StoredResult], tuple[Reference, str]]:
        return StoredResult, (self.reference, self.session)

    def __repr__(self) -> str:
        return f"<stored {self.reference.describe()}>"

    def __del__(self) -> None:
        if self._owner is not None:
            self._owner.dropped(self.reference.key)

    @property
    def value(self) -> Any:
        """The result itself: loaded once, from then on the same object.

        Raises:
            StoreError: it cannot be had.
        """
        if self._value is None:
            _flights.run(id(self), self._load)
        assert self._value is not None
        return self._value[0]

    def _load(self) -> None:
        if self._value is None:
            self._value = tuple(load([self.reference]))


# A container that holds any is to be looked into, whatever else is in it.
register_sizeof(StoredResult, lambda result: 1 << 64)

_flights = Flights()

owners: weakref.WeakValueDictionary[str, Owner] = weakref.WeakValueDictionary()
"""The links of this process that make calls, by session."""


def plain(result: Any) -> Any:
    """What the user gets for a result as it came from the engine.

    Raises:
        StoreError: it is in the store and cannot be had.
    """
    return result.value if type(result) is StoredResult else result
