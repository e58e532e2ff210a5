"""Submissions that a batch's other tasks, and later batches, survive.

The SDK's thread ends when the service refuses one batch, and with it all that is submitted later; a task
that cannot be pickled leaves its whole batch waiting for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from typing import Any

from proxystore_integrations.globus_compute.engine import (
    ComputeExecutor,
    ComputeFuture,
    GlobusAPIError,
    SerdeError,
)

__all__ = ["SurvivingExecutor"]

_REFUSED = frozenset({400, 413, 422})
"""What a service that took none of a batch's tasks answers when it is one of them that is wrong."""


class SurvivingExecutor(ComputeExecutor):
    """The SDK's executor, except that a task which cannot be submitted fails alone."""

    def _submit_tasks(self, *args: Any) -> None:
        *where, futures, tasks = args
        wanted = [pair for pair in zip(futures, tasks, strict=True) if not pair[0].cancelled()]
        if wanted:
            self._submit_batch(where, wanted)

    def _submit_batch(self, where: Sequence[Any], wanted: list[tuple[ComputeFuture, Any]]) -> None:
        # The SDK fails all futures of a batch that it cannot submit, so it gets others.
        shadows = [ComputeFuture() for _ in wanted]
        try:
            submit: Any = super()._submit_tasks
            submit(*where, shadows, [task for _, task in wanted])
        except Exception as error:
            self._submitter_thread_exception_captured = False
            if len(wanted) > 1 and _is_of_one_task(error):
                half = len(wanted) // 2
                self._submit_batch(where, wanted[:half])
                self._submit_batch(where, wanted[half:])
                return
            if getattr(error, "http_status", None) == 413:
                error.add_note(
                    "The service takes 10 MB: with a lower threshold more of it goes through the store."
                )
            for future, _ in wanted:
                _fail(future, error)
            return
        for (future, _), shadow in zip(wanted, shadows, strict=True):
            future._metadata.update(shadow._metadata)
            future.task_id = shadow.task_id
            if shadow.done():
                _fail(future, shadow.exception())


def _is_of_one_task(error: Exception) -> bool:
    """Whether nothing of the batch was taken, and parts of it may be."""
    if isinstance(error, GlobusAPIError):
        return error.http_status in _REFUSED
    return isinstance(error, SerdeError)


def _fail(future: ComputeFuture, error: BaseException | None) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled just now
        future.set_exception(error)
