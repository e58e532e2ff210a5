"""The future of a task at an endpoint."""

from __future__ import annotations

import re
from typing import Any

from proxystore_integrations.calls import Call
from proxystore_integrations.carriers import NotDeliveredError, StoreFunction, VersionError
from proxystore_integrations.dependents import LaterFuture
from proxystore_integrations.globus_compute.engine import ComputeFuture, TaskExecutionFailed

__all__ = ["GlobusFuture"]

# Exceptions come back as text.
_NOT_DELIVERED = re.compile(rf"\b{NotDeliveredError.__name__}: (?P<problem>.+)")
_OTHER_VERSION = re.compile(rf"\b{VersionError.__name__}: (?P<problem>.+)")
_OURS = "proxystore_integrations|proxystore_core|cloudpickle|msgspec|xxhash"
_NOT_INSTALLED = re.compile(rf"ModuleNotFoundError: No module named '(?P<name>{_OURS})\b")


class GlobusFuture(LaterFuture, ComputeFuture):
    """A `ComputeFuture` whose result is plain, and which may be an argument of other tasks.

    Attributes:
        task_id: the service's, once it has the task; else None.
    """

    @property
    def task_id(self) -> str | None:
        return getattr(self.attempt, "task_id", None)

    @task_id.setter
    def task_id(self, value: str | None) -> None:
        if self.attempt is not None:
            self.attempt.task_id = value  # type: ignore[attr-defined]

    @property
    def _metadata(self) -> dict[str, Any]:
        return getattr(self.attempt, "_metadata", {})

    @_metadata.setter
    def _metadata(self, value: dict[str, Any]) -> None:
        """Set by the base class, which has none yet."""

    def cause(self, error: BaseException | None, call: Call) -> BaseException | None:
        """A `NotDeliveredError` where the function was not called, for want of its arguments or of us."""
        if not isinstance(error, TaskExecutionFailed):
            return error
        text = error.remote_data
        found = _OTHER_VERSION.search(text)
        if found and (call.is_stored or type(call.function) is StoreFunction):
            return VersionError(found["problem"].strip())
        found = _NOT_DELIVERED.search(text)
        if found and call.names(text):
            return NotDeliveredError(found["problem"].strip())
        found = _NOT_INSTALLED.search(text)
        if found and (call.is_stored or type(call.function) is StoreFunction):
            return VersionError(
                f"the endpoint's Python has no {found['name']}",
                remedy="Install proxystore-integrations there.",
            )
        return error
