"""An executor around another one, with a store."""

from __future__ import annotations

import contextlib
import functools
import inspect
import pickle
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from types import FunctionType
from typing import Any

import msgspec

from proxystore_core import ConfigurationError, Session, Store, StoreError, forks
from proxystore_core.borrowing import alive
from proxystore_core.insides import goes_by_name
from proxystore_core.pickling import Pickling
from proxystore_integrations import ledger
from proxystore_integrations.calls import Call, CallLink
from proxystore_integrations.carriers import StoreFunction, call_given, call_pickled
from proxystore_integrations.dependents import holds_any, may_hide_futures, store_futures
from proxystore_integrations.executor import CallExecutor
from proxystore_integrations.functions import asked
from proxystore_integrations.futures.instrumentation import STORE
from proxystore_integrations.futures.kinds import Kind, kind_of
from proxystore_integrations.light import lightened
from proxystore_integrations.settings import Settings
from proxystore_integrations.tuned import POOLS

__all__ = ["StoreExecutor"]


_SENT = 1000
"""Futures of small calls that are remembered before those which are done are forgotten."""


_NAMED = 256
"""Functions that are remembered to go by their names."""


class FuturesLink(CallLink):
    """A link to the store for one executor.

    Attributes:
        named: what a small call takes by functions that go by their names: what `call_pickled` is to call;
            the names of its module, and its own: another may have it by now; threshold and pickling. Empty
            where there is no session.
        given: what `call_given` takes with other functions; None where the engine is to see the function.
    """

    given: bytes | None = None

    def __init__(self, settings: Settings, store: Store[Any] | None, kind: Kind) -> None:
        super().__init__(settings, store, kind.engine)
        jobs, results = kind.reducers
        self.pickling = kind.pickling._replace(left=jobs)
        # The worker is told of them by name.
        names = tuple(f"{each.__module__}:{each.__qualname__}" for each in results)
        self.results_pickling = kind.pickling._replace(left=names)
        self.shows_parameters = kind.asks_parameters
        self._kind = kind
        self._most = _SENT
        self.named: dict[FunctionType, tuple[bytes, dict[str, Any], str, int, Pickling]] = {}
        _links.add(self)

    def open(self) -> Session:
        session = super().open()
        if self._hides_functions and self.should_proxy is None:  # that one may go by value
            self.given = pickle.dumps(StoreFunction(None, self._terms, ""))
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
        """As `CallLink.call`; as the call is, where the engine is to see what is in it."""
        futures = self._kind.futures
        if self._is_awaited(function) or (futures and holds_any(futures, (*args, *kwargs.values()))):
            return self.by_itself(function, args, kwargs)
        return super().call(function, args, kwargs, wrapped=wrapped, results=results)

    def small(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self._is_awaited(function) else super().small(function)

    @property
    def _hides_functions(self) -> bool:
        """Whether the engine may be given a function of ours with the user's inside, for its result."""
        return self._terms is not None and not (self._kind.shows_names or self._kind.asks_parameters)

    def _is_awaited(self, function: Callable[..., Any]) -> bool:
        return self._kind.awaits and (
            inspect.iscoroutinefunction(function) or asked(function, "__tornado_coroutine__") is True
        )

    def sent(self, future: Future[Any]) -> Future[Any]:
        """A small call is on its way: the session lasts until its future is done.

        Cheaper than `began` and `ended`: nobody is told when it is done, closing looks.

        Returns:
            The same future, as a `StoreFuture`.
        """
        sent = self._sent
        sent.append(weakref.ref(future))
        if len(sent) > self._most:
            self._forget_done()
        future.__class__ = store_futures[type(future)]
        return future

    def _forget_done(self) -> None:
        with self._lock:
            seen = list(self._sent)
            self._sent[: len(seen)] = [kept for kept in seen if (call := kept()) and not call.done()]
            self._most = 2 * len(self._sent) + _SENT

    def pickled(self, function: Callable[..., Any]) -> bytes | None:
        """What `call_pickled` is to call for a function that goes by its name; None for any other."""
        if (
            not self._hides_functions
            or type(function) is not FunctionType
            or not goes_by_name(function, self.pickling.main_by_value)
        ):
            return None
        with contextlib.suppress(Exception):  # the engine meets the same, and raises its own error
            pickled = pickle.dumps(self._wrapped(function))
            if len(self.named) >= _NAMED:
                self.named.clear()
            name, names = function.__qualname__, vars(sys.modules[function.__module__])
            if name not in names:  # a class's
                names = {name: function}
            self.named[function] = pickled, names, name, self.settings.threshold, self.pickling
            return pickled
        return None

    def close(self, *, keep: bool = False) -> None:
        self.named.clear()
        super().close(keep=keep)


_links: weakref.WeakSet[FuturesLink] = weakref.WeakSet()


@forks.in_child
def _forget_names() -> None:
    for link in list(_links):  # their sessions are the parent's
        link.named.clear()


class StoreExecutor(CallExecutor):
    """Sends the large arguments and results of another executor's calls through a store.

    Futures are `concurrent.futures.Future`s whose results are plain objects. Unlike the bare executor's,
    they may also be arguments of other calls of this or another `StoreExecutor` (themselves, or in lists,
    tuples and dicts, among the first 1000 items of each): the call waits for them, without blocking, and
    gets their results, from the store where they are large.

    Args:
        executor: any executor. Thread pools are handed objects as they are; nothing is stored.
        store: URL of the store, or an open `Store`.
        threshold: size from which a value goes through the store, bytes or ``"1 MB"``; 1.5 MB where nothing
            says otherwise, since pools are fast below.
        should_proxy: a function of a value, picklable, which may keep large ones out of the store.
        is_local: whether workers are threads of this process; known for the usual executors.
        main_by_value: whether functions and classes of ``__main__`` are pickled by value, because workers
            do not have the same ``__main__``; known for the usual executors.
        kind: all that is known of the executor, where it is another one's stand-in.
        **settings: ``inputs``, ``results``, ``on_store_error``, ``lease``.

    What is not given comes from the environment, ``proxystore.toml`` or the defaults (see
    `proxystore_integrations.settings`).

    Raises:
        ConfigurationError: a setting is unknown or wrong, or ``executor`` is none.
        StoreError: the store cannot be opened, and settings want that raised.
    """

    _link: FuturesLink

    def __init__(
        self,
        executor: Executor,
        store: Any = None,
        *,
        threshold: int | str | None = None,
        should_proxy: Callable[[Any], bool] | None = None,
        is_local: bool | None = None,
        main_by_value: bool | None = None,
        kind: Kind | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
            raise ConfigurationError(
                f"{executor!r} is no executor", remedy="Expected one such as ProcessPoolExecutor()."
            )
        if isinstance(executor, StoreExecutor):
            raise ConfigurationError(
                "this executor has a store already", remedy="Give the settings where it is wrapped first."
            )
        known = kind or kind_of(executor)
        self.executor = executor
        if hasattr(executor, "__dict__"):
            executor.__dict__.setdefault(STORE, None)
        self.kind = known._replace(
            is_local=known.is_local if is_local is None else is_local,
            main_by_value=known.main_by_value if main_by_value is None else main_by_value,
        )
        loaded, given = FuturesLink.settled(store=store, threshold=threshold, **settings)
        if loaded.origin("threshold") == "default":
            loaded = msgspec.structs.replace(loaded, threshold=POOLS)
        self.chunked = self.kind.chunks and not self.kind.is_local
        super().__init__(FuturesLink(loaded, given, self.kind))
        self._link.should_proxy = should_proxy
        if not self.kind.is_local:
            try:
                self._link.open()
            except StoreError as error:
                self._link.by_value.accept(error, "work")

    def __repr__(self) -> str:
        return f"StoreExecutor({self.executor!r}, {self._link!r})"

    def __getattr__(self, name: str) -> Any:
        """What the inner executor has beside: ``num_workers``, ``starmap``; or what libraries look for."""
        if name == "executor" or (name.startswith("_") and name != "_max_workers"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name == "starmap":  # mpi4py's own map
            return functools.partial(self.executor.starmap.__func__, self)  # type: ignore[attr-defined]
        return getattr(self.executor, name)

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **options: Any) -> Iterator[Any]:
        """As the inner executor's; each item is looked at."""
        if hasattr(type(self.executor), "starmap"):
            results: Iterator[Any] = self.starmap(fn, zip(*iterables, strict=False), **options)
            return results
        if self.kind.engine == "executorlib":  # in which a future may be what is mapped
            iterables = tuple(each.result() if isinstance(each, Future) else each for each in iterables)
        return super().map(fn, *iterables, **options)

    def release(self) -> None:
        """Leave the store, and the inner executor as it is: for one that somebody else shuts down."""
        self._link.close()

    def shutdown(self, wait: bool = True, *others: Any, **options: Any) -> None:
        """As the inner executor's, and `CallExecutor.shutdown`: loky takes ``kill_workers`` by position."""
        if others:
            signature = inspect.signature(self.executor.shutdown)
            signature.bind(wait, *others, **options)  # raises what the executor's own does
            options.update(zip(list(signature.parameters)[1:], others, strict=False))
        super().shutdown(wait, **options)

    def _options_among(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: kwargs.pop(name) for name in self.kind.options if name in kwargs}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `concurrent.futures.Executor.submit`. What is borrowed for the call ends with it."""
        if alive:
            return super().submit(fn, *args, **kwargs)
        link = self._link
        # Each line is a share of a small call's time: what is nearly always so is asked first.
        kept = link.named.get(fn) if type(fn) is FunctionType else None
        if kept is not None:
            pickled, names, name, threshold, pickling = kept
            light = lightened(args, threshold, pickling, not kwargs)
            if (
                light is not None
                and names.get(name) is fn
                and ledger.book is None
                and not link.elsewhere
                and not self._shut
                and (not kwargs or lightened((*kwargs.values(),), threshold, pickling, False))
            ):
                return link.sent(self.executor.submit(call_pickled, pickled, *light, **kwargs))
        # No future of ours is small, nor what is seen to hold one: this call waits for no other. Options of
        # the executor's own are among kwargs here, as it takes them.
        if (
            self.kind.is_local
            or self._shut
            or may_hide_futures(args, kwargs)
            or not link.are_small(args, kwargs)
        ):
            return super().submit(fn, *args, **kwargs)
        by_name = link.pickled(fn)
        if by_name is not None:
            return link.sent(self.executor.submit(call_pickled, by_name, *args, **kwargs))
        if link.is_light(fn):
            if link.given is not None:
                return link.sent(self.executor.submit(call_given, link.given, fn, *args, **kwargs))
            return link.sent(self.executor.submit(link.small(fn), *args, **kwargs))
        return super().submit(fn, *args, **kwargs)

    def _begin(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> Future[Any]:
        if self.kind.is_local:
            return self.executor.submit(function, *args, **kwargs, **options)
        return super()._begin(function, args, kwargs, options)

    def _call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: bool = False,
    ) -> Call:
        if self.kind.is_local:
            return self._link.by_itself(function, args, kwargs)
        return super()._call(function, args, kwargs, results)

    def _send(self, call: Call, **options: Any) -> Future[Any]:
        return self.executor.submit(call.function, *call.args, **call.kwargs, **options)

    def _stop(self, wait: bool, cancel_futures: bool, **options: Any) -> None:
        if cancel_futures:  # the argument is newer than some executors
            options["cancel_futures"] = True
        self.executor.shutdown(wait=wait, **options)
