"""An executor around another one, with a store."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

import msgspec

from proxystore_core import ConfigurationError, Store, StoreError
from proxystore_integrations.calls import Call, CallLink
from proxystore_integrations.carriers import Filling
from proxystore_integrations.futures.future import Search, StoreFuture, when_done
from proxystore_integrations.futures.kinds import Kind, kind_of
from proxystore_integrations.settings import Settings

__all__ = ["THRESHOLD", "StoreExecutor"]

THRESHOLD = 500_000
"""Default size in bytes from which the store beats a pool's own pipes (see benchmarks/results)."""


class FuturesLink(CallLink):
    """A link to the store for one executor."""

    def __init__(self, settings: Settings, store: Store[Any] | None, main_by_value: bool) -> None:
        super().__init__(settings, store)
        self.main_by_value = main_by_value


class StoreExecutor(Executor):
    """Sends the large arguments and results of another executor's calls through a store.

    Futures are `concurrent.futures.Future`s whose results are plain objects. Unlike the bare executor's,
    they may also be arguments of other calls of this or another `StoreExecutor` (themselves, or in lists,
    tuples and dicts, among the first 1000 items): the call waits for them, without blocking, and gets their
    results, from the store where they are large.

    Args:
        executor: any executor. Thread pools are handed objects as they are; nothing is stored.
        store: URL of the store, or an open `Store`.
        threshold: size from which a value goes through the store, bytes or ``"1 MB"``; 500 kB where nothing
            says otherwise, since pools are fast below.
        should_proxy: a function of a value, picklable, which may keep large ones out of the store.
        is_local: whether workers are threads of this process; known for the usual executors.
        main_by_value: whether functions and classes of ``__main__`` are pickled by value, because workers
            do not have the same ``__main__``; known for the usual executors.
        **settings: ``inputs``, ``results``, ``on_store_error``, ``lease``.

    What is not given comes from the environment, ``proxystore.toml`` or the defaults (see
    `proxystore_integrations.settings`).

    Raises:
        ConfigurationError: a setting is unknown or wrong, or ``executor`` is none.
        StoreError: the store cannot be opened, and settings want that raised.
    """

    def __init__(
        self,
        executor: Executor,
        store: Any = None,
        *,
        threshold: int | str | None = None,
        should_proxy: Callable[[Any], bool] | None = None,
        is_local: bool | None = None,
        main_by_value: bool | None = None,
        **settings: Any,
    ) -> None:
        if not callable(getattr(executor, "submit", None)):
            raise ConfigurationError(
                f"{executor!r} is no executor", remedy="Expected one such as ProcessPoolExecutor()."
            )
        if isinstance(executor, StoreExecutor):
            raise ConfigurationError(
                "this executor has a store already", remedy="Give the settings where it is wrapped first."
            )
        known = kind_of(executor)
        self.executor = executor
        self.kind = Kind(
            known.is_local if is_local is None else is_local,
            known.main_by_value if main_by_value is None else main_by_value,
        )
        loaded, given = FuturesLink.settled(store=store, threshold=threshold, **settings)
        if loaded.origin("threshold") == "default":
            loaded = msgspec.structs.replace(loaded, threshold=THRESHOLD)
        self._link = FuturesLink(loaded, given, self.kind.main_by_value)
        self._link.should_proxy = should_proxy
        self._waiting: weakref.WeakSet[StoreFuture] = weakref.WeakSet()
        if not self.kind.is_local:
            try:
                self._link.open()
            except StoreError as error:
                self._link.by_value.accept(error, "work")

    def __repr__(self) -> str:
        return f"StoreExecutor({self.executor!r}, {self._link!r})"

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `concurrent.futures.Executor.submit`."""
        search = Search(args, kwargs)
        if not search.futures:
            if self.kind.is_local:
                return self.executor.submit(fn, *args, **kwargs)
            return StoreFuture(self._send, self._link.call(fn, args, kwargs))
        future = StoreFuture(self._send)
        self._waiting.add(future)
        when_done(search.futures, functools.partial(self._begin, future, fn, search))
        return future

    def _send(self, call: Call) -> Future[Any]:
        return self.executor.submit(call.function, *call.args, **call.kwargs)

    def _begin(
        self,
        future: StoreFuture,
        fn: Callable[..., Any],
        search: Search,
        error: BaseException | None,
    ) -> None:
        self._waiting.discard(future)
        if future.cancelled():
            return
        if isinstance(error, CancelledError):
            future.cancel()
            return
        try:
            if error is not None:
                raise error
            args, kwargs = search.results()
            if self.kind.is_local:
                fill = Filling()
                args, kwargs = fill(args), fill(kwargs)
                call = Call(self._link, fn, args, kwargs)
            else:
                call = self._link.call(fn, args, kwargs)
            future.begin(call)
        except BaseException as raised:
            future.set_exception(raised)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[Any]:
        """As `concurrent.futures.Executor.map`; ``chunksize`` calls travel as one."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1 or self.kind.is_local:
            return super().map(fn, *iterables, timeout=timeout, **options)
        items = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        results = super().map(functools.partial(_run_chunk, fn), chunks, timeout=timeout, **options)
        return itertools.chain.from_iterable(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `concurrent.futures.Executor.shutdown`; then nothing of it is left in the store.

        Results that somebody still has a future of are taken into this process's memory first.
        """
        waiting = list(self._waiting)
        if cancel_futures:
            for future in waiting:
                future.cancel()
        elif waiting and not wait:
            threading.Thread(target=self.shutdown, name="proxystore-shutdown").start()
            return
        else:
            for future in waiting:
                future.wait()
        try:
            if cancel_futures:
                self.executor.shutdown(wait=wait, cancel_futures=True)
            else:
                self.executor.shutdown(wait=wait)
        finally:
            self._link.close()

    def release(self) -> None:
        """Leave the store, and the inner executor as it is: for one that somebody else shuts down."""
        self._link.close()


def _run_chunk(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in chunk]
