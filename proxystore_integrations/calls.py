"""One call on an engine that runs functions elsewhere, seen from the client.

The engine's ``submit`` asks its `CallLink` for a `Call`, hands the engine the call's function and
arguments, and says `Call.done` when that attempt is over. Where the result was large, what comes back
is a `StoredResult`: the user is given its value (`carriers.plain`), and a call that takes it as an
argument passes the reference on.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from proxystore_core import SerializationError, Session, Store, StoreError, forks
from proxystore_core.pickling import DEFAULT, Pickling
from proxystore_integrations import ledger
from proxystore_integrations.carriers import (
    NAMED,
    Filling,
    NotDeliveredError,
    Packed,
    StoredResult,
    StoreFunction,
    Terms,
    VersionError,
    owners,
)
from proxystore_integrations.functions import carries_large, name_of
from proxystore_integrations.link import Link
from proxystore_integrations.outgoing import CallOutgoing, outgoing_of
from proxystore_integrations.settings import Settings

__all__ = ["Call", "CallLink"]

_FUNCTIONS = 256  # wrapped functions kept


class Call:
    """One attempt at a call, as the engine is to make it.

    Attributes:
        function: what to submit.
        args: positional arguments to submit.
        kwargs: keyword arguments to submit.
        link: the client's; None once it is done.
    """

    __slots__ = ("_outgoing", "args", "function", "kwargs", "link")

    def __init__(
        self,
        link: CallLink,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outgoing: CallOutgoing | None = None,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self._outgoing = outgoing
        self.link: CallLink | None = link
        link.began()

    def __repr__(self) -> str:
        return f"<call of {self.function!r}{' with stored arguments' if self.is_stored else ''}>"

    @property
    def is_stored(self) -> bool:
        """Whether any of its arguments is in the store: the worker may fail to have it."""
        return self._outgoing is not None

    def names(self, text: str) -> bool:
        """Whether a text has the key of one of its arguments in it."""
        outgoing = self._outgoing
        if outgoing is None:
            return False
        stored = [*outgoing.references, *(result.reference for result in outgoing.results)]
        return any(reference.key in text for reference in stored)

    def lacked(self, error: NotDeliveredError) -> bool:
        """Whether it was not made for want of its arguments; else it raised that of a call of its own."""
        if isinstance(error, VersionError):
            return self.is_stored or type(self.function) is StoreFunction
        return self.is_stored and (not error.key or self.names(str(error.key)))

    def done(self) -> None:
        """This attempt is over, or could not be made: its arguments may go. Idempotent."""
        link, outgoing = self.link, self._outgoing
        self.link = self._outgoing = None
        if link is None:
            return
        if outgoing is not None:
            outgoing.over()
        link.ended()

    def by_value(self, error: NotDeliveredError) -> Call:
        """The same call without a store, for another attempt; this one is done then.

        Args:
            error: why the worker could not have the arguments.

        Raises:
            NotDeliveredError: ``error``: settings want it raised, or nobody has the arguments any more.
            Exception: an argument's own code raises it where it is unpickled, here as there.
        """
        link = self.link
        assert link is not None
        try:
            link.by_value.accept(error, "pass an argument")
            if isinstance(error, VersionError):
                link.elsewhere.setdefault("with another version", "")  # which has just been said
            if self._outgoing is None:
                return Call(link, _original(self.function), self.args, self.kwargs)
            packed: Packed = self.args[0]
            try:
                function, args, kwargs = packed.filled(self.kwargs.get(NAMED))
            except StoreError as here:
                own = here.__cause__ if isinstance(here, SerializationError) else None
            else:
                return Call(link, function or _original(self.function), args, kwargs)
            try:
                raise own or error
            finally:
                del own  # its traceback has this frame
        finally:
            self.done()


class CallLink(Link):
    """A link that makes calls.

    Closing waits for the last call. Results that somebody still holds then are taken out of the store
    into this process's memory, where a bare engine has them all.
    """

    outlived = False
    """Whether calls go on without this process, so that another may ask for their results."""

    pickles_apart = False
    """Whether the engine pickles function, arguments and keyword arguments one by one."""

    shows_parameters = False
    """Whether the engine asks a function for the names of its parameters."""

    should_proxy: Callable[[Any], bool] | None = None
    """May keep a large value out of the store."""

    pickling = DEFAULT
    results_pickling: Pickling | None = None
    """As the engine pickles results; as all else if None."""

    def __init__(self, settings: Settings, store: Store[Any] | None = None, engine: str = "") -> None:
        super().__init__(settings, store, engine)
        self._lock = forks.lock()
        self._calls = 0
        self._closing = self._keep = False
        self._sent: list[weakref.ref[Future[Any]]] = []  # of calls that nobody counts
        self._last: str | None = None  # an argument with a pin of ours
        self._terms: Terms | None = None
        self._functions: dict[int, tuple[Any, StoreFunction]] = {}
        self._results: weakref.WeakSet[StoredResult] = weakref.WeakSet()

    def open(self) -> Session:
        session = super().open()
        if self.settings.results != "never":
            settings = self.settings
            self._terms = Terms(
                self.recipe,
                session.name,
                settings.threshold,
                settings.on_store_error,
                self.results_pickling or self.pickling,
                self.place,
                self.engine,
            )
        owners[session.name] = self
        _open.add(self)
        assert self._evictions is not None
        # Nobody closed it: the eviction thread ends the session, since this may run anywhere.
        order_end = functools.partial(self._evictions.order_end, session)
        weakref.finalize(self, _when_done, self._sent, order_end).atexit = False
        return session

    def call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        wrapped: bool = True,
        results: bool = False,
    ) -> Call:
        """A call as the engine is to make it: large values in the store, where that can be.

        Args:
            function: the user's.
            args: its positional arguments; results of earlier calls as `StoredResult` among them.
            kwargs: its keyword arguments.
            wrapped: whether the engine may be given another function: else the engine fills `Packed`
                arguments in, and results are what the function returns.
            results: whether stored results of earlier calls may be anywhere in the arguments: a size that is
                an estimate does not tell.

        Raises:
            StoreError: the store failed, and settings want that raised.
        """
        if not self.reached:
            return self.by_itself(function, args, kwargs)
        if wrapped and not results and self.is_small(function, args, kwargs):
            return Call(self, self.small(function), args, kwargs)
        outgoing, (stored, new_args, new_kwargs) = outgoing_of(self, function, args, kwargs, wrapped, results)
        if not outgoing.references and not outgoing.results:
            return Call(self, self.small(function) if wrapped else function, new_args, new_kwargs)
        named: dict[str, Any] = {}
        if wrapped and self.pickles_apart and new_kwargs:
            named[NAMED] = Packed(None, (), new_kwargs, tuple(outgoing.named_loads))
            packed = Packed(stored, new_args, {}, tuple(outgoing.loads))
        else:
            packed = Packed(stored, new_args, new_kwargs, (*{**outgoing.loads, **outgoing.named_loads},))
        if stored is not None:
            shown = tuple(inspect.signature(function).parameters) if self.shows_parameters else ()
            sent: Any = StoreFunction(None, self._terms, name_of(function), self.should_proxy, shown)
        else:
            sent = self._wrapped(function) if wrapped else function
        return Call(self, sent, (packed,), named, outgoing)

    def by_itself(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A call without the store, as the engine would have it: results of earlier calls are loaded."""
        fill = Filling()
        return Call(self, function, fill(args), fill(kwargs))

    def is_small(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call needs nothing of the store until it has a result.

        Nearly every call of a fine-grained workflow is: what is spared there is a share of its time.
        """
        return self.is_light(function) and self.are_small(args, kwargs)

    def is_light(self, function: Callable[..., Any]) -> bool:
        """Whether nothing large travels with a function."""
        return not carries_large(function, self.policy, self.pickling.main_by_value)

    def are_small(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether nothing of a call's arguments is to be stored."""
        if not self.reached:
            return False
        over = self.policy.over
        for value in args:
            if over(value):
                return False
        if kwargs and any(map(over, kwargs.values())):
            return False
        if (book := ledger.book) is not None:
            for value in (*args, *kwargs.values()):
                book.small(self.engine, value, self.policy.threshold)
        return True

    def small(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What to submit in place of a function, with arguments as they are; the same for the same one."""
        return self._wrapped(function) if self._terms else function

    def pack(self, value: Any) -> Packed | None:
        """A value whose large parts are in the store, as the one argument of a call; None if it has none.

        They stay there until the session ends.

        Raises:
            StoreError: the store failed, and settings want that raised.
        """
        outgoing = CallOutgoing(self)
        packed = Packed(None, (outgoing.substitute(value),), {}, tuple(outgoing.loads))
        return packed if outgoing.references else None

    def _wrapped(self, function: Callable[..., Any]) -> StoreFunction:
        """The same object for the same function: engines keep what they pickle of one."""
        kept = self._functions.get(id(function))
        if kept is not None and kept[0] is function:
            return kept[1]
        wrapped = StoreFunction(function, self._terms, name_of(function), self.should_proxy)
        if isinstance(function, types.FunctionType | functools.partial):
            if len(self._functions) >= _FUNCTIONS:
                self._functions.clear()
            self._functions[id(function)] = function, wrapped
        return wrapped

    def withdraw(self, keys: Iterable[str]) -> None:
        """Take one pin from each of these objects; those that have none left are evicted.

        The last one waits for a moment, or until another takes its place: where calls that share an
        argument are done one by one, it is not stored for each of them.
        """
        keys = list(keys)
        if keys and self._evictions is not None:
            with self._lock:
                previous, self._last = self._last, keys.pop()
            super().withdraw(keys if previous is None else [*keys, previous])
            self._evictions.wake()

    def idle(self) -> None:
        with self._lock:
            last, self._last = self._last, None
        if last is not None:
            super().withdraw([last])

    # Results.

    def received(self, result: StoredResult) -> None:
        self._results.add(result)
        if self._evictions is not None:
            self._evictions.hold(result.reference.key)

    def dropped(self, key: str) -> None:
        if self._evictions is not None:
            self._evictions.drop(key)

    # The end.

    def close(self, *, keep: bool = False) -> None:
        """End the session when the last call is done; now if there is none. Idempotent."""
        self.began()
        with self._lock:
            self._closing = True
            self._keep = keep
        _when_done(self._sent, self.ended)

    def close_now(self, *, keep: bool = False) -> None:
        """End the session, whatever calls there are."""
        if not self.is_open:
            return
        for result in list(self._results):
            try:
                result.value  # noqa: B018  loads it
            except StoreError as error:
                self.by_value.warn(f"a result is lost: {error}", instead=False)
        owners.pop(self.session, None)
        super().close(keep=keep)

    def leave(self) -> None:
        """End the session at the interpreter's exit. What calls need that go on is left to its lease."""
        self._results.clear()  # nobody will ask
        self.close_now(keep=self.outlived and self._calls > 0)

    def began(self) -> None:
        """One call more is on its way: the session lasts until it has `ended`."""
        with self._lock:
            self._calls += 1

    def ended(self) -> None:
        """A call that `began` is over."""
        with self._lock:
            self._calls -= 1
            last = self._closing and not self._calls
        if last:
            self.close_now(keep=self._keep)


def _when_done(sent: list[weakref.ref[Future[Any]]], then: Callable[[], None]) -> None:
    """Call ``then`` when all of these are done; now if they are."""
    while sent:
        future = sent.pop()()
        if future is not None and not future.done():
            future.add_done_callback(lambda _: _when_done(sent, then))
            return
    then()


def _original(function: Any) -> Any:
    return function.function if type(function) is StoreFunction else function


_open: weakref.WeakSet[CallLink] = weakref.WeakSet()


def _end_all() -> None:
    for link in list(_open):
        if link.is_open:
            link.leave()


atexit.register(_end_all)
