"""What executors in the shape of `concurrent.futures` share: a store, and calls that wait for others."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

from proxystore_core.ownership import borrows_in, end_with
from proxystore_integrations.calls import Call, CallLink
from proxystore_integrations.dependents import LaterFuture, Search, may_hold_futures, when_done

__all__ = ["CallExecutor"]


class CallExecutor(Executor):
    """Sends its calls' large arguments and results through a store; subclasses send the calls.

    Futures that it returned may be arguments of other calls (themselves, or in lists, tuples and dicts,
    among the first 1000 items of each): the call waits for them, without blocking, and gets their results,
    from the store where they are large.

    Args:
        link: to the store.
    """

    future: type[LaterFuture] = LaterFuture
    """What `submit` returns."""

    chunked = True
    """Whether `map` sends several calls as one when it is told to."""

    def __init__(self, link: CallLink) -> None:
        self._link = link
        self._waiting: weakref.WeakSet[LaterFuture] = weakref.WeakSet()
        self._shut = False

    def _call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: bool = False,
    ) -> Call:
        """The call as it is to be sent, with stored results anywhere in its arguments if there are any."""
        return self._link.call(function, args, kwargs, results=results)

    def _send(self, call: Call, **options: Any) -> Future[Any]:
        """Hand a call to the engine, with options of its own; its future."""
        raise NotImplementedError

    def _stop(self, wait: bool, cancel_futures: bool, **options: Any) -> None:
        """Shut the engine's executor down, with options of its own."""
        raise NotImplementedError

    def _options_among(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the engine's ``submit`` takes for itself, taken out of a call's keyword arguments."""
        return {}

    def _sender(self, options: dict[str, Any]) -> Callable[[Call], Future[Any]]:
        return functools.partial(self._send, **options) if options else self._send

    def _later(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What calls a function later, with the executor's settings as they are now."""
        return function

    def _begin(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> Future[Any]:
        """Submit a call that waits for no other."""
        return self.future(self._sender(options), self._call(function, args, kwargs))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `concurrent.futures.Executor.submit`. What is borrowed for the call ends with it."""
        borrowed = borrows_in((args, kwargs))
        return end_with(self._submit(fn, args, kwargs), borrowed)

    def _submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        if self._shut and self._waiting:  # for these the engine's own executor is open still
            raise RuntimeError("cannot schedule new futures after shutdown")
        options = self._options_among(kwargs)
        search = Search(args, kwargs) if may_hold_futures(args, kwargs) else None
        if search is None or not search.futures:
            return self._begin(fn, args, kwargs, options)
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = self.future(self._sender(options))
        self._waiting.add(future)
        when_done(search.futures, self._later(functools.partial(self._begin_later, future, fn, search)))
        return future

    def _begin_later(
        self,
        future: LaterFuture,
        function: Callable[..., Any],
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
            future.begin(self._call(function, *search.results(), results=True))
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
        if self.chunked and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        # Not what the engine's own class inherits: it may have another map, or none.
        if chunksize == 1 or not self.chunked:
            return Executor.map(self, fn, *iterables, timeout=timeout, **options)
        items = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        results = Executor.map(self, functools.partial(_run_chunk, fn), chunks, timeout=timeout, **options)
        return _one_by_one(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, **options: Any) -> None:
        """As `concurrent.futures.Executor.shutdown`; then nothing of it is left in the store.

        Results that somebody still has a future of are taken into this process's memory first.

        Args:
            wait: for the calls to be done.
            cancel_futures: cancel those that have not begun.
            **options: the engine's own, such as loky's ``kill_workers``.
        """
        self._shut = True
        waiting = list(self._waiting)
        if cancel_futures or options.get("kill_workers"):
            for future in waiting:
                future.cancel()
        elif waiting and not wait:
            later = functools.partial(self.shutdown, **options)
            threading.Thread(target=later, name="proxystore-shutdown").start()
            return
        else:
            for future in waiting:
                future.wait()
        try:
            self._stop(wait, cancel_futures, **options)
        finally:
            self._link.close()


def _one_by_one(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    """The results in some chunks, which are let go of one by one; closed, it cancels what has not begun."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _run_chunk(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in chunk]
