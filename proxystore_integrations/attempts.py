"""A future whose call is made again, without the store, where a worker could not have its arguments."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from proxystore_integrations.calls import Call
from proxystore_integrations.carriers import NotDeliveredError

__all__ = ["CallFuture", "Once"]


class CallFuture(Future[Any]):
    """Follows the engine's future of one call, or of its second attempt.

    Args:
        submit: hands a call to the engine; returns the engine's future. For the second attempt it is
            called in whatever thread the engine completes futures in.
        call: not submitted yet; None while it cannot be made.

    Attributes:
        attempt: the engine's future; None before there is one.
    """

    attempt: Future[Any] | None = None

    def __init__(self, submit: Callable[[Call], Future[Any]], call: Call | None = None) -> None:
        super().__init__()
        self._submit = submit
        if call is not None:
            self._try(call)

    def cancel(self) -> bool:
        """As the engine's future; a call that is cancelled there is cancelled here."""
        if self.attempt is not None:
            return self.attempt.cancel() and self.cancelled()
        return self._cancelled()

    def running(self) -> bool:
        """Whether the engine says so."""
        return self.attempt is not None and not self.done() and self.attempt.running()

    def cause(self, error: BaseException | None, call: Call) -> BaseException | None:
        """What a call failed with, where the engine tells it in a way of its own."""
        return error

    def _cancelled(self) -> bool:
        if not super().cancel():
            return False
        if self._state != "CANCELLED_AND_NOTIFIED":
            self.set_running_or_notify_cancel()  # else `wait` would not see it
        return True

    def _try(self, call: Call) -> None:
        try:
            attempt = self._submit(call)
        except BaseException:
            call.done()
            raise
        self.attempt = attempt
        attempt.add_done_callback(Once(functools.partial(self._over, call)))

    def _over(self, call: Call, attempt: Future[Any]) -> None:
        if attempt.cancelled() or self.cancelled():
            call.done()
            self._cancelled()
            return
        raised = attempt.exception()
        error = self.cause(raised, call)
        if isinstance(error, NotDeliveredError) and (error is not raised or call.lacked(error)):
            try:
                self._try(call.by_value(error))
                return
            except Exception as second:
                error = second
        call.done()
        with contextlib.suppress(InvalidStateError):  # cancelled just now
            if error is None:
                self.set_result(attempt.result())
            else:
                self.set_exception(error)
        # They have been called. What they know of the task would keep this future and its result alive.
        self._done_callbacks.clear()  # type: ignore[attr-defined]


class Once:
    """Calls a function once, and forgets it: an engine may keep its last future until the next one."""

    def __init__(self, function: Callable[[Future[Any]], None]) -> None:
        self._function: Callable[[Future[Any]], None] | None = function

    def __call__(self, attempt: Future[Any]) -> None:
        function, self._function = self._function, None
        if function is not None:
            function(attempt)
