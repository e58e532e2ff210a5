"""A connection to an SSH server, kept by a thread of its own for callers that wait; what its errors mean."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncssh

from proxystore_core.connectors.base import Key
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)

__all__ = ["Line", "Login"]

R = TypeVar("R")

PASSWORD = "PROXYSTORE_SFTP_PASSWORD"  # the variable's name
_LOST = (asyncssh.ConnectionLost, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, BrokenPipeError)
_CLOSE = 5.0  # seconds for saying goodbye


@dataclasses.dataclass(frozen=True)
class Login:
    """Who connects, and where to.

    Attributes:
        url: the store's, for messages.
        host: the server's host.
        port: its TCP port.
        username: None for what ``ssh`` would take.
        identity: path of a private key; None for those that ``ssh`` would try.
        known_hosts: path of a file with the server's key; None for the user's.
        connect_timeout: seconds for opening a connection.
    """

    url: str
    host: str
    port: int
    username: str | None
    identity: str | None
    known_hosts: str | None
    connect_timeout: float

    async def connect(self) -> Any:
        """A connection, logged in."""
        options: dict[str, Any] = {}
        if self.username is not None:
            options["username"] = self.username
        if self.identity is not None:
            options["client_keys"] = [self.identity]
        if self.known_hosts is not None:
            options["known_hosts"] = self.known_hosts
        password = os.environ.get(PASSWORD)
        if password:
            options["password"] = password
        timeout = self.connect_timeout
        return await asyncssh.connect(
            self.host,
            self.port,
            connect_timeout=timeout,
            login_timeout=timeout,
            keepalive_interval=30,
            **options,
        )


class Line:
    """One connection, opened when it is first used and again when it was lost. Safe in threads.

    Args:
        login: who connects.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._loop = asyncio.new_event_loop()
        self._connections: list[Any] = []  # those that are open
        self._sftp: Any = None
        self._opening = asyncio.Lock()
        self._thread = threading.Thread(
            target=_turn, args=(self._loop, self._connections), name="proxystore-sftp", daemon=True
        )
        self._thread.start()
        self._stop = weakref.finalize(self, _stop, os.getpid(), self._loop, self._thread)  # at exit, too

    def run(self, do: Callable[[Any], Awaitable[R]], seconds: float, key: Key | None = None) -> R:
        """What ``do`` says with an SFTP client; once more if the connection had been lost.

        Raises:
            FileNotFoundError: the server says so.
            StoreError: anything else that went wrong.
        """
        asked = asyncio.run_coroutine_threadsafe(self._persist(do), self._loop)
        try:
            return asked.result(seconds)
        except concurrent.futures.TimeoutError as error:
            if asked.done():
                raise self._typed(error, key) from error
            asked.cancel()
            raise DeadlineError(
                f"no answer within {seconds:.0f} s",
                store=self._login.url,
                key=key,
                remedy="Look at the server's load and the network, or name a longer ?deadline= (seconds).",
            ) from error
        except asyncssh.SFTPNoSuchFile as error:
            raise FileNotFoundError(error.reason) from error
        except StoreError:  # some are errors of the system, too
            raise
        except (asyncssh.Error, OSError, ValueError) as error:
            raise self._typed(error, key) from error

    def close(self) -> None:
        """Close the connection and end the thread. Idempotent."""
        self._stop()

    async def _persist(self, do: Callable[[Any], Awaitable[R]]) -> R:
        known = self._sftp
        try:
            return await do(await self._client())
        except _LOST:
            if known is None:
                raise
            self._forget(known)
            return await do(await self._client())

    async def _client(self) -> Any:
        if self._sftp is None:
            async with self._opening:
                if self._sftp is None:
                    connection = await self._login.connect()
                    self._connections[:] = [connection]
                    self._sftp = await connection.start_sftp_client()
        return self._sftp

    def _forget(self, sftp: Any) -> None:
        if self._sftp is sftp:
            self._sftp = None
            for connection in self._connections:
                connection.abort()

    def _typed(self, error: BaseException, key: Key | None) -> StoreError:
        kind, problem, remedy = _meaning(error)
        return kind(problem, store=self._login.url, key=key, remedy=remedy)


def _meaning(error: BaseException) -> tuple[type[StoreError], str, str]:
    """A typed error's class, what happened, and what to do about it."""
    text = str(error) or type(error).__name__
    low = text.lower()
    full = asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded
    if isinstance(error, full) or "no space" in low or "quota" in low:
        return FullError, f"the server says: {text}", "Evict objects, or name a store with more room."
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        remedy = (
            "Put the server's key into ~/.ssh/known_hosts (ssh-keyscan), or name a file with ?known_hosts=."
        )
        return RefusedError, f"this host does not know the server's key: {text}", remedy
    if isinstance(error, asyncssh.PermissionDenied):
        remedy = "Check user and key (?identity=, the agent, PROXYSTORE_SFTP_PASSWORD)."
        return RefusedError, f"the server does not let this user in: {text}", remedy
    if isinstance(error, asyncssh.SFTPPermissionDenied | asyncssh.SFTPWriteProtect):
        return RefusedError, f"the server says: {text}", "Name a directory that this user may write to."
    if isinstance(error, FileNotFoundError | PermissionError | ValueError):  # asyncssh's of keys are the last
        return ConfigurationError, f"a key or a file of keys cannot be read: {text}", "Check the path."
    if isinstance(error, asyncssh.SFTPError) and not isinstance(error, _LOST):
        return UnreachableError, f"the server says: {text}", "See the server's log."
    remedy = "Check host and port, and that an SSH server runs and is reachable from this host."
    return UnreachableError, f"no connection: {text}", remedy


def _turn(loop: asyncio.AbstractEventLoop, connections: list[Any]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        for connection in connections:
            connection.close()
            with contextlib.suppress(TimeoutError):
                loop.run_until_complete(asyncio.wait_for(connection.wait_closed(), _CLOSE))
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
        loop.close()


def _stop(owner: int, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if owner == os.getpid() and not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(_CLOSE)
