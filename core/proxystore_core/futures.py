"""Distributed futures: a result that is set later, from any process, and proxies that wait for it.

Example:
    future = store.future()
    executor.submit(produce, future)            # calls future.set_result(...)
    executor.submit(consume, future.proxy())    # scheduled now; waits where the value is used
"""

from __future__ import annotations

import asyncio
import contextlib
import numbers
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from proxystore_core import forks
from proxystore_core.connectors.base import Buffer, Key, deferred, waiting
from proxystore_core.errors import ConfigurationError, DeadlineError, RefusedError, SerializationError
from proxystore_core.operators import PROXIES
from proxystore_core.plain import register_plain
from proxystore_core.proxy import Proxied, Proxy, get_factory
from proxystore_core.reference import Reference
from proxystore_core.registry import store_for
from proxystore_core.serialize import deserialize, serialize

if TYPE_CHECKING:
    from proxystore_core.store import Store

__all__ = ["DEADLINE", "Future", "Pending", "RemoteError"]

T = TypeVar("T")

DEADLINE = 3600.0
"""Seconds that a proxy waits for its future's result, by default."""

_ENDLESS = 1e9  # seconds: a wait that is longer has no end, and clocks overflow soon after
_PAUSES = 0.001, 0.05  # seconds between two looks where a backend wakes nobody: first, and longest
# Code that handles other people's objects: what it asks of a proxy must not wait for the object.
_CARRIERS = frozenset(
    "asyncio cloudpickle concurrent copy copyreg dask dill distributed executorlib globus_compute_common "
    "globus_compute_endpoint globus_compute_sdk joblib loky mpi4py msgpack multiprocessing parsl pickle "
    "proxystore_integrations ray tblib threading tlz toolz tornado typeguard weakref".split()
)
_ASKING = frozenset("abc contextlib functools inspect proxystore_core typing".split())  # for somebody else


class RemoteError(Exception):
    """What a producer raised cannot be pickled; the message says what it was."""


class _Failure:
    """What is stored instead of a result."""

    __slots__ = ("error", "story")

    def __init__(self, error: BaseException, story: str) -> None:
        self.error = error
        self.story = story

    def __reduce__(self) -> tuple[Any, ...]:
        return _Failure, (self.error, self.story)


def _plain_failure(failure: _Failure) -> tuple[str, str, str]:
    kind = "cancelled" if isinstance(failure.error, CancelledError) else ""
    return kind, "".join(traceback.format_exception_only(failure.error)).strip(), failure.story


def _failure_of(told: Any) -> _Failure:
    kind, text, story = told
    error = CancelledError("this future was cancelled") if kind == "cancelled" else RemoteError(str(text))
    return _Failure(error, str(story))


register_plain(_Failure, "failure", _plain_failure, _failure_of)


class Pending(Reference):
    """Names an object that may not be there yet; called, it waits for it and loads it.

    Args:
        key: as `Reference`.
        recipe: as `Reference`.
        kind: as `Reference`.
        evict: as `Reference`.
        deadline: seconds to wait at most; None for no end.
    """

    __slots__ = ("deadline",)

    def __init__(
        self, key: Key, recipe: str, kind: str = "", evict: bool = False, deadline: float | None = DEADLINE
    ) -> None:
        super().__init__(key, recipe, 0, kind, evict)
        self.deadline = deadline

    def __reduce__(self) -> tuple[Any, ...]:
        return Pending, (self.key, self.recipe, self.kind, self.evict, self.deadline)

    def __eq__(self, other: object) -> bool:
        return type(other) is Pending and self.key == other.key and self.recipe == other.recipe

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Pending({self.key!r}, {self.recipe!r})"

    def __call__(self) -> Any:
        """Wait for the object and load it.

        Raises:
            DeadlineError: it was not set in time.
            GoneError: it was evicted, or its session is over.
            StoreError: its store cannot be opened or read.
            BaseException: what was set as the exception.
        """
        return _value(self.fetch(self.deadline))

    @property
    def target_class(self) -> Callable[[], type[Any] | None]:
        """As of `Reference`. Of unknown kind, engines and picklers are told that nobody knows.

        They ask what every argument is, while its producer has not even started. Code that uses the
        object is answered by the object, for which it waits.
        """
        if self.kind:
            return super().target_class
        if _asked_by_carrier():
            return lambda: None
        raise AttributeError("target_class: the kind of this object is not known")

    def describe(self) -> str:
        """What and where, for people."""
        kind = self.kind.replace("builtins:", "").replace(":", ".")
        return f"a future's result{f' ({kind})' if kind else ''}, {self.recipe}"

    def wait(self, timeout: float | None) -> bool:
        """Wait until the object is there, ``timeout`` seconds at most; whether it is."""
        if timeout is not None and timeout > _ENDLESS:
            timeout = None
        connector = store_for(self.recipe).connector
        able = waiting(connector)
        if able is not None:
            return able.wait(self.key, timeout)
        start, pause = time.monotonic(), _PAUSES[0]
        while not connector.exists(self.key):
            left = None if timeout is None else timeout - (time.monotonic() - start)
            if left is not None and left <= 0:
                return False
            time.sleep(pause if left is None else min(pause, left))
            pause = min(2 * pause, _PAUSES[1])
        return True

    def fetch(self, timeout: float | None, *, evict: bool = True) -> Any:
        """The object, or the `_Failure` in its place; waits ``timeout`` seconds at most. Raises as a call.

        Args:
            timeout: None for no end.
            evict: whether it leaves the store if that was asked for.
        """
        self.arrive(timeout)
        return store_for(self.recipe).load(self if evict else Reference(self.key, self.recipe))

    def arrive(self, timeout: float | None) -> None:
        """Wait until the object is there. Raises as a call, when it is not in time or will never be."""
        if not self.wait(timeout):
            raise self.late(timeout)

    def late(self, timeout: float | None) -> DeadlineError:
        """What is raised when the object did not come within so many seconds."""
        return DeadlineError(
            f"nobody set this future's result within {timeout:g} s",
            store=self.recipe,
            key=self.key,
            remedy=(
                "Its producer is late, failed or never ran: tasks that wait may take all workers. Submit "
                "producers first, let them set exceptions, or give store.future(deadline=...) more time."
            ),
        )

    async def fetch_async(self) -> Callable[[], Any] | None:
        """Wait for the object in a thread that nobody has to wait for: who awaits may be cancelled before."""
        await _apart(lambda: self.arrive(self.deadline))
        return None


class Future(Generic[T]):
    """A result that is set later, once, by whoever has the future; made by `Store.future`.

    Pickles as a reference of some 150 bytes, to any process that reaches the store. The names are those
    of `concurrent.futures.Future`; ``await future`` gives the result, too.

    Args:
        reference: of the result.
    """

    __slots__ = ("__weakref__", "_callbacks", "_lock", "reference")

    def __init__(self, reference: Pending) -> None:
        self.reference = reference
        self._lock = forks.lock()
        self._callbacks: list[Callable[[Future[T]], object]] | None = None

    @classmethod
    def reserved(
        cls,
        store: Store[Any],
        *,
        evict: bool = False,
        deadline: float | None = DEADLINE,
        kind: type[T] | None = None,
        session: str | None = None,
    ) -> Future[T]:
        """What `Store.future` returns, which see."""
        able = deferred(store.connector)
        if able is None:
            raise ConfigurationError(
                f"this store ({store.connector.url}) cannot set an object later, so it has no futures",
                remedy="Use one that can, for example shm://, file:///path or redis://host.",
            )
        if deadline is not None and not (isinstance(deadline, numbers.Real) and deadline > 0):
            raise ConfigurationError(
                f"a deadline of {deadline!r} s is over at once: expected seconds, more than 0, or None"
            )
        key = able.reserve(session=store.session if session is None else session)
        name = f"{kind.__module__}:{kind.__qualname__}" if kind is not None else ""
        return cls(Pending(key, store.recipe, name, evict, deadline))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reference,)

    def __repr__(self) -> str:
        return f"<Future of {self.reference.describe()}, key {self.reference.key!r}>"

    def __eq__(self, other: object) -> bool:
        return type(other) is Future and self.reference == other.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    @property
    def key(self) -> Key:
        """The key of the result in its store."""
        return self.reference.key

    def proxy(self) -> Proxied[T]:
        """A proxy of the result, as often as wanted. Its first use waits for the result, and loads it."""
        return Proxy(self.reference)

    # Producers.

    def set_result(self, result: T) -> None:
        """Store the result and wake who waits for it.

        Raises:
            RefusedError: it is set already, cancelled, or evicted.
            ConfigurationError: it is this future's own proxy, which would wait for itself.
            SerializationError: it cannot be turned into bytes.
            StoreError: the store failed; says why.
        """
        given: Any = result
        if type(given) in PROXIES and get_factory(given) == self.reference:
            raise ConfigurationError(
                "this future's result is its own proxy, which has no object but that",
                store=self.reference.recipe,
                key=self.key,
                remedy="Set the object that the proxy is to stand for.",
            )
        self._set(store_for(self.reference.recipe).encode(result))

    def set_exception(self, exception: BaseException) -> None:
        """Let everyone who asks for the result get an exception. Raises as `set_result`."""
        if not isinstance(exception, BaseException):
            raise TypeError(f"an exception is needed, not {type(exception).__name__}")
        story = ""
        if exception.__traceback__ is not None:
            story = f"Where the result was to be made:\n{''.join(traceback.format_exception(exception))}"
        failure = _Failure(exception, story)
        try:
            frames = self._encoded(failure)
        except SerializationError:
            text = "".join(traceback.format_exception_only(exception)).strip()
            frames = self._encoded(_Failure(RemoteError(text), story))
        self._set(frames)

    def _encoded(self, failure: _Failure) -> list[Buffer]:
        """A failure as it is stored, whatever serializer the store has; what nobody could load is refused."""
        store = store_for(self.reference.recipe)
        frames = serialize(failure, checksum=store.connector.checksum, allow_pickle=store.allow_pickle)
        deserialize(b"".join(frames), allow_pickle=store.allow_pickle)
        return frames

    def cancel(self) -> bool:
        """Let everyone who asks for the result get a CancelledError; False if it is set already.

        Nobody is stopped: a producer that sets the result later gets a RefusedError.
        """
        try:
            self.set_exception(CancelledError("this future was cancelled"))
        except RefusedError:
            return self.cancelled()
        return True

    def _set(self, frames: Sequence[Buffer]) -> None:
        able = deferred(store_for(self.reference.recipe).connector)
        assert able is not None
        able.set(self.key, frames)

    # Consumers.

    def done(self) -> bool:
        """Whether the result, or an exception, is there now; False also when it was evicted."""
        return store_for(self.reference.recipe).exists(self.key)

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.done() and isinstance(self.exception(0), CancelledError)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result: a private copy that the caller may change. It stays in the store.

        Args:
            timeout: seconds; by default the future's deadline.

        Raises:
            DeadlineError: it was not set in time; a TimeoutError.
            GoneError: it was evicted, or its session is over.
            StoreError: the store failed; says why.
            BaseException: what was set as the exception.
        """
        found: T = _value(self._fetch(timeout))
        return found

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the result; the exception that was set, or None. Raises as `result`, but for that."""
        found = self._fetch(timeout)
        return found.error if type(found) is _Failure else None

    def _fetch(self, timeout: float | None) -> Any:
        return self.reference.fetch(self.reference.deadline if timeout is None else timeout, evict=False)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call ``fn(future)`` once the result is set (or will never be), from a thread of this future.

        At once, if that is so already. Errors of ``fn`` are shown by `threading.excepthook`.
        """
        with self._lock:
            if self._callbacks is not None:
                self._callbacks.append(fn)
                return
            self._callbacks = [fn]
        threading.Thread(target=self._call_back, name="proxystore-future", daemon=True).start()

    def _call_back(self) -> None:
        with contextlib.suppress(Exception):  # `result` raises it again, to whom it may concern
            self.reference.wait(None)
        with self._lock:
            callbacks, self._callbacks = self._callbacks or [], None
        for fn in callbacks:
            try:
                fn(self)
            except Exception:
                threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()]))

    def __await__(self) -> Generator[Any, None, T]:
        return self._awaited().__await__()

    async def _awaited(self) -> T:
        loop = asyncio.get_running_loop()
        settled = loop.create_future()

        def settle() -> None:
            if not settled.done():
                settled.set_result(None)

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle)

        self.add_done_callback(tell)
        deadline = self.reference.deadline
        await asyncio.wait([settled], timeout=deadline)
        if not settled.done():
            raise self.reference.late(deadline)
        found: T = await _apart(lambda: self.result(0))
        return found


async def _apart(function: Callable[[], Any]) -> Any:
    """What a function returns in a thread of its own.

    A loop that ends, and the interpreter, wait for the threads of `asyncio.to_thread`, and so for whatever
    these wait for, for hours.
    """
    loop = asyncio.get_running_loop()
    settled: asyncio.Future[Callable[[], Any]] = loop.create_future()

    def settle(outcome: Callable[[], Any]) -> None:
        if not settled.done():
            settled.set_result(outcome)

    def run() -> None:
        found, error = None, None
        try:
            found = function()
        except BaseException as raised:
            error = raised

        def outcome() -> Any:  # as no future of asyncio carries every exception
            if error is not None:
                raise error
            return found

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=copy_context().run, args=(run,), name="proxystore-future", daemon=True).start()
    return (await settled)()


def _value(found: Any) -> Any:
    if type(found) is not _Failure:
        return found
    if found.story:
        found.error.add_note(found.story)
    raise found.error


def _asked_by_carrier() -> bool:
    frame = sys._getframe(2)
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__", ""))
        top = name.partition(".")[0]
        if top not in _ASKING:
            return top in _CARRIERS and ".testing" not in name  # whose tasks stand for a user's
        frame = frame.f_back
    return False
