"""A future whose call is made again, without the store, where a worker could not have its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from proxystore_integrations.calls import Call
from proxystore_integrations.carriers import NotDeliveredError

__all__ = ["CallFuture", "submitted"]


def submitted(call: Call, submit: Callable[[Call], Future[Any]]) -> Future[Any]:
    """Submit a call, and see to its end.

    Args:
        call: not submitted yet.
        submit: hands a call to the engine; returns the engine's future. For the second attempt it is
            called in whatever thread the engine completes futures in.

    Returns:
        The engine's future where the first attempt is sure to be the only one, else a `CallFuture`.
    """
    if call.is_stored:
        return CallFuture(call, submit)
    try:
        future = submit(call)
    except BaseException:
        call.done()
        raise
    future.add_done_callback(lambda _: call.done())
    return future


class CallFuture(Future[Any]):
    """Follows the engine's future of one call, or of its second attempt.

    Args:
        call: with stored arguments.
        submit: as for `submitted`.

    Attributes:
        attempt: the engine's future.
    """

    def __init__(self, call: Call, submit: Callable[[Call], Future[Any]]) -> None:
        super().__init__()
        self._submit = submit
        self._try(call)

    def cancel(self) -> bool:
        """As the engine's future; a call that is cancelled there is cancelled here."""
        return self.attempt.cancel() and self.cancelled()

    def running(self) -> bool:
        """Whether the engine says so."""
        return not self.done() and self.attempt.running()

    def _try(self, call: Call) -> None:
        try:
            attempt = self._submit(call)
        except BaseException:
            call.done()
            raise
        self.attempt = attempt
        attempt.add_done_callback(_Once(functools.partial(self._over, call)))

    def _over(self, call: Call, attempt: Future[Any]) -> None:
        if attempt.cancelled():
            call.done()
            if super().cancel():
                self.set_running_or_notify_cancel()
            return
        error = attempt.exception()
        if isinstance(error, NotDeliveredError):
            try:
                self._try(call.by_value(error))
                return
            except Exception as second:
                error = second
        call.done()
        if error is None:
            self.set_result(attempt.result())
        else:
            self.set_exception(error)
        # They have been called. What they know of the task would keep this future and its result alive.
        self._done_callbacks.clear()  # type: ignore[attr-defined]


class _Once:
    """Calls a function once, and forgets it: an engine may keep its last future until the next one."""

    def __init__(self, function: Callable[[Future[Any]], None]) -> None:
        self._function: Callable[[Future[Any]], None] | None = function

    def __call__(self, attempt: Future[Any]) -> None:
        function, self._function = self._function, None
        if function is not None:
            function(attempt)
