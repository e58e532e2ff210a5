"""Transfers and deletes at the Globus Transfer service, with its own words in our typed errors."""

from __future__ import annotations

import datetime as dt
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import globus_sdk
from globus_sdk.token_storage.validating_token_storage import TokenValidationError
from globus_sdk.transport import RequestsTransport, RetryConfig

from proxystore_core.connectors.globus_endpoints import GlobusEndpoint
from proxystore_core.connectors.globus_login import app
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.moving import heard, moved

__all__ = ["Tasks"]

T = TypeVar("T")

_ANSWER = 30.0  # seconds for one answer of the service
_TRIES = 3
_LIFE = dt.timedelta(days=1)  # what Globus could not do by then it gives up
_REPORTS = 15  # seconds between two lines about a transfer that is waited for
_SHOWN = 2  # seconds between two looks at it, where somebody looks on
_KNOWN = 10_000  # ended tasks that are remembered
_LOGIN = "Run: proxystore login globus"
_log = logging.getLogger("proxystore_core.globus")


class Tasks:
    """What one store asks of the service. Safe in threads and after a fork: each has a client of its own.

    Args:
        url: the store's, for messages.
        deadline: seconds to wait for a task.
        polling: seconds between two looks at a task.
        access: mapped collections that need a consent of their own.
        encrypt: have Globus encrypt what it transfers.
    """

    def __init__(
        self, url: str, *, deadline: float, polling: int, access: Sequence[str] = (), encrypt: bool = False
    ) -> None:
        self._url = url
        self._deadline = deadline
        self._polling = polling
        self._access = list(access)
        self._encrypt = encrypt
        self._local = threading.local()
        self._clients: list[tuple[int, globus_sdk.TransferClient]] = []
        self._succeeded: dict[str, None] = {}

    def close(self) -> None:
        """Close all connections; the next request opens others."""
        while self._clients:
            process, client = self._clients.pop()
            if process == os.getpid():
                client.close()
        self._local = threading.local()

    def transfer(self, origin: GlobusEndpoint, to: GlobusEndpoint, paths: Iterable[str], label: str) -> str:
        """Submit one task that copies files to another endpoint; its id.

        A file that is gone by the time Globus looks is left out: it was evicted.

        Raises:
            StoreError: Globus refuses it, or cannot be reached.
        """
        data = globus_sdk.TransferData(
            origin.uuid,
            to.uuid,
            label=label,
            deadline=dt.datetime.now(dt.UTC) + _LIFE,
            encrypt_data=self._encrypt,
            skip_source_errors=True,
            fail_on_quota_errors=True,
            notify_on_succeeded=False,
            notify_on_failed=False,
            notify_on_inactive=False,
        )
        for path in paths:
            data.add_item(f"{origin.endpoint_path}/{path}", f"{to.endpoint_path}/{path}")
        return str(self._ask(lambda client: client.submit_transfer(data))["task_id"])

    def delete(
        self, at: GlobusEndpoint, paths: Iterable[str], label: str, *, recursive: bool = False
    ) -> None:
        """Submit one task that deletes files, or directories, at an endpoint; what is missing is success.

        Raises:
            StoreError: Globus refuses it, or cannot be reached.
        """
        data = globus_sdk.DeleteData(
            at.uuid,
            label=label,
            recursive=recursive,
            ignore_missing=True,
            notify_on_succeeded=False,
            notify_on_failed=False,
            notify_on_inactive=False,
        )
        for path in paths:
            data.add_item(f"{at.endpoint_path}/{path}")
        self._ask(lambda client: client.submit_delete(data))

    def active(self, task: str) -> bool:
        """Whether a task is still at work. One that Globus has forgotten is not."""
        if task in self._succeeded:
            return False
        found = self._task(task)
        return found is not None and found["status"] in ("ACTIVE", "INACTIVE")

    def wait(self, task: str, key: str | None = None) -> None:
        """Wait until a transfer has succeeded; says how far it is in the log ``proxystore_core.globus``.

        Raises:
            DeadlineError: it is not done in time.
            StoreError: it failed, expired or stands still; with what Globus says about it.
        """
        until = time.monotonic() + self._deadline
        told, done = -float(_REPORTS), 0
        while task not in self._succeeded:
            found = self._task(task)
            status = "SUCCEEDED" if found is None else found["status"]
            if found is not None:
                transferred = found.get("bytes_transferred") or 0
                moved(transferred - done, "transferring")
                done = transferred
            if status == "SUCCEEDED":
                while len(self._succeeded) >= _KNOWN:
                    self._succeeded.pop(next(iter(self._succeeded)), None)
                self._succeeded[task] = None
                return
            if status != "ACTIVE":
                raise self._failure(task, found, key)
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineError(
                    f"transfer {task} is not done after {self._deadline:g} s: {_progress(found)}",
                    store=self._url,
                    key=key,
                    remedy="Look at it at app.globus.org/activity, or name a longer ?deadline= (seconds).",
                )
            if time.monotonic() - told >= _REPORTS:
                told = time.monotonic()
                _log.info("waiting for transfer %s: %s", task, _progress(found))
            self._look_for(task, max(1, min(int(left), _SHOWN if heard() else _REPORTS)))

    def cancel(self, label: str) -> None:
        """Stop all transfers with this label, and wait until they have stopped."""
        listed = self._ask(
            lambda client: list(client.task_list(limit=1000, filter={"status": "ACTIVE,INACTIVE"}))
        )
        for task in listed:
            if task["label"] == label and task["type"] == "TRANSFER":
                self._cancel(task["task_id"])

    def modified(self, at: GlobusEndpoint, directory: str, name: str) -> float | None:
        """When a file at an endpoint was changed, in seconds since the epoch; None if it is not there."""
        path = f"{at.endpoint_path}/{directory}"
        try:
            entries = self._ask(
                lambda client: list(client.operation_ls(at.uuid, path=path, filter={"name": name}))
            )
        except _NotThereError:
            return None
        for entry in entries:
            if entry["name"] == name:
                return dt.datetime.fromisoformat(entry["last_modified"]).timestamp()
        return None

    def _task(self, task: str) -> Any | None:
        try:
            return self._ask(lambda client: client.get_task(task))
        except _NotThereError:
            return None

    def _look_for(self, task: str, seconds: int) -> None:
        """Wait a while for a task's end."""
        self._ask(lambda client: client.task_wait(task, timeout=seconds, polling_interval=self._polling))

    def _cancel(self, task: str) -> None:
        self._ask(lambda client: client.cancel_task(task))
        self._look_for(task, _REPORTS)

    def _client(self) -> globus_sdk.TransferClient:
        process, client = getattr(self._local, "client", (0, None))
        if client is None or process != os.getpid():
            client = globus_sdk.TransferClient(
                app=app(),
                transport=RequestsTransport(http_timeout=_ANSWER),
                retry_config=RetryConfig(max_retries=_TRIES),
            )
            if self._access:
                client.add_app_data_access_scope(self._access)
            self._local.client = os.getpid(), client
            self._clients.append(self._local.client)
        return client

    def _ask(self, do: Callable[[globus_sdk.TransferClient], T]) -> T:
        try:
            return do(self._client())
        except globus_sdk.GlobusError as error:
            raise self._translated(error) from error

    def _translated(self, error: globus_sdk.GlobusError) -> StoreError:
        said = f"Globus says: {getattr(error, 'message', None) or error}"
        kind: type[StoreError] = UnreachableError
        remedy = "Check this host's network and status.globus.org."
        if isinstance(error, TokenValidationError):
            kind, said, remedy = RefusedError, f"no valid login at Globus: {error}", f"{_LOGIN}."
        elif isinstance(error, globus_sdk.GlobusTimeoutError):
            kind, said = DeadlineError, f"Globus did not answer in time: {error}"
        elif isinstance(error, globus_sdk.NetworkError):
            said = f"Globus cannot be reached: {error}"
        elif isinstance(error, globus_sdk.GlobusAPIError):
            consent = error.info.consent_required
            if consent:
                kind = RefusedError
                remedy = f"{_LOGIN} --collection UUID for each mapped collection, and name them in ?access=."
                said += f" (a consent is missing: {', '.join(consent.required_scopes or ())})"
            elif error.http_status in (401, 403):
                kind, remedy = RefusedError, f"{_LOGIN} --force, and check your rights at the endpoint."
            elif error.http_status == 404:
                kind = _NotThereError
                remedy = "Check the endpoints' UUIDs and paths in the store's URL."
            elif error.http_status < 500 and error.http_status != 429:
                kind, remedy = RefusedError, "Check the endpoints' UUIDs and paths in the store's URL."
        return kind(said, store=self._url, remedy=remedy)

    def _failure(self, task: str, found: Any, key: str | None) -> StoreError:
        fatal = found.get("fatal_error") or {}
        words = (
            fatal.get("description"),
            found.get("nice_status_details"),
            found.get("nice_status_short_description"),
        )
        said = "; ".join(dict.fromkeys(word for word in words if word)) or "no reason given"
        code = str(fatal.get("code") or found.get("nice_status") or "")
        kind: type[StoreError] = UnreachableError
        remedy = "Look at it at app.globus.org/activity; put the object again."
        if "QUOTA" in code or "SPACE" in code:
            kind, remedy = FullError, "Make room at the endpoint, then put the object again."
        elif found["status"] == "INACTIVE" or "CREDENTIAL" in code or "PERMISSION" in code:
            kind, remedy = RefusedError, f"{_LOGIN} --force, and check your rights at the endpoint."
        state = "stands still" if found["status"] == "INACTIVE" else "failed"
        return kind(
            f"transfer {task} {state}. Globus says: {said}{f' ({code})' if code else ''}",
            store=self._url,
            key=key,
            remedy=remedy,
        )


class _NotThereError(ConfigurationError):
    """No such endpoint, directory or task."""


def _progress(task: Any) -> str:
    said = task.get("nice_status_short_description") or task.get("nice_status") or "under way"
    return (
        f"{task.get('files_transferred') or 0} of {task.get('files') or '?'} files, "
        f"{(task.get('bytes_transferred') or 0) / 1e6:.1f} MB, {said}"
    )
