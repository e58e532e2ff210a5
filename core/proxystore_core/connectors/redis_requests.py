"""Requests to Redis servers through redis-py: a client for each process, deadlines, tries, typed errors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from redis import ConnectionError as Disconnected
from redis import ResponseError
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from proxystore_core.connectors.redis_errors import FAILURES, Again, Diagnosis
from proxystore_core.connectors.redis_login import Login, Options
from proxystore_core.connectors.redis_replies import Part, receive
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    StoreError,
    UnreachableError,
)
from proxystore_core.warned import warn

__all__ = ["Command", "Requests"]

Command: TypeAlias = tuple[Any, ...]
"""What redis-py sends: a verb and its arguments; a memoryview is not copied."""

T = TypeVar("T")

_SLOWEST = 4e6  # bytes a second that a network moves at least: big objects get so much more time
_PAUSES = ExponentialBackoff(cap=1.0, base=0.01)  # seconds between tries
_COPIED = 8  # parts that redis-py reads at a time, where it must
_SMALL = 32 << 10  # bytes of a part up to which a copy is cheaper than reading it to where it is wanted
_asked: set[str] = set()  # URLs of servers whose settings were looked at
_droppers: set[str] = set()  # and of those that drop keys as they run full


class Requests:
    """Sends commands to the servers of one store. Safe in threads and after a fork.

    Every command may be sent twice: an answer may be lost, and the command is then sent again.

    Args:
        url: the store's, for messages.
        login: who connects.
        options: deadlines.
        connect: makes a client of redis-py.
        diagnose: what an error means, given the client that raised it.

    Attributes:
        ended: what everybody is told after `end`.
    """

    def __init__(
        self,
        url: str,
        login: Login,
        options: Options,
        connect: Callable[[Login], Any],
        diagnose: Callable[[BaseException, Any], Diagnosis],
    ) -> None:
        self._url = url
        self._login = login
        self._options = options
        self._connect = connect
        self._diagnose = diagnose
        self._clients: dict[int, Any] = {}  # by process: what a thread held at a fork stays held in the child
        self._down = False  # and whoever asked has been told
        self.ended = ""

    def end(self, problem: str) -> None:
        """Close, and ask nothing any more, also for who waits in another thread: tell him the problem."""
        self.ended = problem
        self.close()

    def close(self) -> None:
        """Close all connections; the next request opens others."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def until(self, moved: int = 0) -> float:
        """The time by which an operation that moves so many bytes should have ended."""
        return time.monotonic() + self._options.deadline + moved / _SLOWEST

    def run(self, commands: Sequence[Command], until: float | None = None) -> list[Any]:
        """The reply of each command, all in one trip to each server concerned. Raises as `persist`."""
        return self.persist(lambda client: _send(client, commands), until) if commands else []

    def read(self, parts: Sequence[Part], until: float, window: int) -> list[bool]:
        """Read each part to where it is wanted, from all servers concerned; whether it was there.

        Args:
            parts: what is wanted.
            until: the time by which it should be there.
            window: bytes to ask a server for before those before them are read.

        Raises:
            CorruptError: a part has another size than it should have.
            StoreError: as `persist`.
        """

        def fetch(client: Any) -> list[bool]:
            if len(parts) == 1 and parts[0].view.nbytes <= _SMALL:
                return _copy(client, parts)
            try:
                found = receive([_pool(client, part) for part in parts], parts, until, window)
            except FAILURES:
                if not _is_cluster(client):
                    raise
                found = None  # the cluster may have changed: redis-py asks it what is where
            return _copy(client, parts) if found is None else found

        try:
            return self.persist(fetch, until) if parts else []
        except CorruptError as error:
            error.store = self._url
            raise

    def persist(self, do: Callable[[Any], T], until: float | None = None) -> T:
        """What ``do`` says with a client, tried again while that makes sense; it may be done twice.

        Raises:
            FullError, RefusedError, ConfigurationError: the server says so; at once.
            UnreachableError, DeadlineError: no answer in time.
            StoreError: any other error of the server.
        """
        failures, back = 0, 0.0
        last = self.until() if until is None else until

        def attempt() -> T:
            if self.ended:
                raise ConfigurationError(self.ended, store=self._url)
            client = self._client()
            try:
                answer = do(client)
            except (AttributeError, TypeError, ValueError) as error:
                if self._clients.get(os.getpid()) is client:
                    raise
                raise Disconnected("another thread closed the connection") from error
            self._down = False
            return answer

        def fail(error: Exception) -> None:
            nonlocal failures, back
            if "without any password" in str(error) and self._login.go_without():
                self._clients.pop(os.getpid(), None)
                return
            found = self._diagnose(error, self._clients.get(os.getpid()))
            failures += 1
            now = time.monotonic()
            back = back or now + (0 if self._down else self._options.connect_timeout)
            end = {Again.NEVER: 0.0, Again.WHEN_READY: last, Again.WHEN_BACK: min(last, back)}[found.again]
            if now + _PAUSES.compute(failures) > end:
                kind = DeadlineError if now >= last and found.again is not Again.NEVER else found.kind
                self._down = kind is UnreachableError
                raise kind(found.problem, store=self._url, remedy=found.remedy) from error

        try:
            return attempt()
        except FAILURES as error:
            fail(error)
        time.sleep(_PAUSES.compute(1))
        return Retry(_PAUSES, -1, FAILURES).call_with_retry(attempt, fail)

    def _client(self) -> Any:
        process = os.getpid()
        client = self._clients.get(process)
        return client if client is not None else self._clients.setdefault(process, self._connect(self._login))

    @property
    def may_drop(self) -> bool:
        """Whether the server was seen to drop keys as it runs full."""
        return self._url in _droppers

    def warn_once_if_keys_may_be_dropped(self) -> None:
        """Warn when the server drops keys as it runs full: to us that is objects lost."""
        if self._url in _asked:
            return
        _asked.add(self._url)
        try:
            found = self.persist(lambda client: client.config_get("maxmemory*"))
        except (UnreachableError, DeadlineError):
            _asked.discard(self._url)
            return
        except StoreError:  # not every user may ask
            return
        policy = found.get("maxmemory-policy", "noeviction")
        if policy != "noeviction" and str(found.get("maxmemory")) != "0":
            _droppers.add(self._url)
            warn(
                f"the server of {self._url} may drop stored objects when it runs full: its maxmemory-policy "
                f"is {policy}. Let it say so instead: CONFIG SET maxmemory-policy noeviction."
            )


def _send(client: Any, commands: Sequence[Command]) -> list[Any]:
    if not _is_cluster(client):
        replies = _exchange(client, commands)
    elif len(commands) == 1:
        return [client.execute_command(*commands[0])]
    else:
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies = pipeline.execute(raise_on_error=False)
    for reply in replies:
        for each in reply if isinstance(reply, list) else (reply,):  # a list: of a transaction
            if isinstance(each, Exception):
                raise each
    return replies


def _exchange(client: Any, commands: Sequence[Command]) -> list[Any]:
    """Each command's reply, or error. What redis-py does besides takes as long again: `persist` does that."""
    pool = client.connection_pool
    connection = pool.get_connection()
    replies: list[Any] = []
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        for command in commands:
            try:
                replies.append(client.parse_response(connection, command[0]))
            except ResponseError as error:
                replies.append(error)
    except BaseException:
        connection.disconnect()  # the replies that are left would be taken for those of the next commands
        raise
    finally:
        pool.release(connection)
    return replies


def _is_cluster(client: Any) -> bool:
    return hasattr(client, "get_node_from_key")


def _pool(client: Any, part: Part) -> Any:
    """The pool of connections to the server that should have the part."""
    if _is_cluster(client):
        client = client.get_redis_connection(client.get_node_from_key(part.command[1]))
    return client.connection_pool


def _copy(client: Any, parts: Sequence[Part]) -> list[bool]:
    """As `receive`, by redis-py's own reading."""
    found = []
    for start in range(0, len(parts), _COPIED):
        some = parts[start : start + _COPIED]
        for part, data in zip(some, _send(client, [part.command for part in some]), strict=True):
            if data is not None and len(data) != part.view.nbytes:
                raise part.corrupt()
            part.view[: len(data or b"")] = data or b""
            found.append(data is not None)
    return found
