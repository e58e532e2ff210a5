"""The future of a call: shows the user plain results, and gives references to calls that take it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

from proxystore_core import register_sizeof
from proxystore_integrations.attempts import CallFuture
from proxystore_integrations.calls import Call
from proxystore_integrations.carriers import plain

__all__ = ["StoreFuture", "futures_in", "replaced", "when_done"]

_DEPTH = 8
_LOOKED_INTO = 1000
"""Containers with more items than this are not searched for futures."""


class StoreFuture(CallFuture):
    """A call's future; the call may have to wait for those that it takes results of."""

    def result(self, timeout: float | None = None) -> Any:
        """The call's result, always the same object. As `concurrent.futures.Future.result`."""
        return plain(super().result(timeout))

    def begin(self, call: Call) -> None:
        """Submit the call now; raises what the executor raises."""
        self._try(call)

    def wait(self) -> None:
        """Wait until it is done, however it ends."""
        with contextlib.suppress(CancelledError):
            self.exception()


register_sizeof(StoreFuture, lambda future: 1 << 62)


def futures_in(value: Any, depth: int = _DEPTH) -> Iterator[StoreFuture]:
    """Our futures in a value: itself, or in lists, tuples and dicts of moderate length."""
    kind = type(value)
    if kind is StoreFuture:
        yield value
    elif (kind is list or kind is tuple or kind is dict) and depth and len(value) <= _LOOKED_INTO:
        for item in value.values() if kind is dict else value:
            yield from futures_in(item, depth - 1)


def replaced(value: Any, depth: int = _DEPTH) -> Any:
    """The value with futures replaced by their results as they came, stored ones as references.

    Raises:
        Exception: that of a call which failed.
    """
    kind = type(value)
    if kind is StoreFuture:
        return Future.result(value)
    if (kind is list or kind is tuple or kind is dict) and depth and any(futures_in(value, depth)):
        if kind is dict:
            return {key: replaced(item, depth - 1) for key, item in value.items()}
        return kind(replaced(item, depth - 1) for item in value)
    return value


def when_done(futures: list[StoreFuture], then: Callable[[BaseException | None], None]) -> None:
    """Call ``then`` once all are done, or one of them failed or was cancelled, with its exception."""
    lock = threading.Lock()
    waiting = len(futures)

    def one_done(future: Future[Any]) -> None:
        nonlocal waiting
        error = CancelledError() if future.cancelled() else future.exception()
        with lock:
            if waiting <= 0:
                return
            waiting = 0 if error is not None else waiting - 1
            last = waiting == 0
        if last:
            then(error)

    for future in futures:
        future.add_done_callback(one_done)
