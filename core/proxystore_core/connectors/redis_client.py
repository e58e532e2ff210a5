"""Requests to a Redis server, or to the right ones of a cluster: pools, deadlines, retries, typed errors."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence

from proxystore_core.connectors.redis_nodes import Nodes
from proxystore_core.connectors.resp import Address, Login, Reply, Request, ServerError, Wire, command
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)

__all__ = ["Client"]

_SLOWEST = 4e6  # bytes a second that a network moves at least: big objects get so much more time
_IDLE = 16  # connections kept for each server
_PAUSES = (0.01, 1.0)  # seconds between tries: at first, at most
_REDIRECTS = 16
_PASSING = frozenset("BUSY CLUSTERDOWN LOADING MASTERDOWN NOREPLICAS READONLY TRYAGAIN UNBLOCKED".split())
_REFUSALS = frozenset("DENIED NOAUTH NOPERM WRONGPASS".split())


class Client:
    """Sends requests to the servers that they concern. Safe in threads and after a fork.

    Every request may be sent twice: an answer may be lost, and the request is then sent again.

    Args:
        url: the store, for messages.
        nodes: which server has which slot.
        login: who connects.
        deadline: seconds that an operation may take, besides a second for each 4 MB that it moves.
        connect_timeout: seconds that a connection may take to open, and that a server that has
            answered before is given to come back.
    """

    def __init__(
        self, url: str, nodes: Nodes, login: Login, *, deadline: float, connect_timeout: float
    ) -> None:
        self.url = url
        self.nodes = nodes
        self._login = login
        self._deadline = deadline
        self._connect_timeout = connect_timeout
        self._down = False  # and whoever asked has been told
        self._drop()
        _clients.add(self)

    def _drop(self) -> None:
        self._idle: dict[Address, deque[Wire]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections that are not in use; the next request opens others."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for wires in idle.values():
            for wire in wires:
                wire.close()

    def run(self, requests: Sequence[Request], moved: int = 0) -> list[Reply]:
        """The last reply of each request, all in as few trips as there are servers concerned.

        Args:
            requests: what to do.
            moved: bytes that they move, for the deadline.

        Raises:
            FullError, RefusedError, ConfigurationError: the server says so; at once.
            UnreachableError, DeadlineError: no answer in time, after tries with growing pauses.
            StoreError: any other error of the server.
        """
        results: list[Reply] = [None] * len(requests)
        with self._patience(moved) as patience:
            while True:
                try:
                    self._attempt(requests, results, patience.until)
                    self._down = False
                    return results
                except (OSError, ServerError) as error:
                    patience.wait(error)
                    self.nodes.forget()

    def run_everywhere(self, request: Request) -> list[tuple[Address, Reply]]:
        """The last reply of every server. Raises as `run`."""
        with self._patience(0) as patience:
            while True:
                try:
                    addresses = self.nodes.all(self, patience.until)
                    return [
                        (address, _last(self._exchange(address, [request], patience.until)[0]))
                        for address in addresses
                    ]
                except (OSError, ServerError) as error:
                    patience.wait(error)
                    self.nodes.forget()

    def run_at(self, address: Address, request: Request) -> Reply:
        """The last reply of one server. Raises as `run`."""
        with self._patience(0) as patience:
            while True:
                try:
                    return _last(self._exchange(address, [request], patience.until)[0])
                except (OSError, ServerError) as error:
                    patience.wait(error)
                    self.nodes.forget()

    def first_answer(
        self, addresses: Sequence[Address], request: Request, until: float, *, sentinel: bool = False
    ) -> tuple[Reply, Address]:
        """What the first server that can be reached says of the others, and which one it is."""
        failure: Exception = ConnectionError("no server is named")
        for address in addresses:
            try:
                if not sentinel:
                    return _last(self._exchange(address, [request], until)[0]), address
                wire = Wire(address, Login(tls=self._login.tls), self._opening(until))
                try:
                    return _last(wire.exchange([request], self._opening(until))[0]), address
                finally:
                    wire.close()
            except (OSError, ServerError) as error:
                failure = error
        raise failure

    def _attempt(self, requests: Sequence[Request], results: list[Reply], until: float) -> None:
        waiting = list(range(len(requests)))
        for _ in range(_REDIRECTS):
            parts: dict[Address, list[int]] = {}
            for number in waiting:
                address = self.nodes.address(requests[number].slot, self, until)
                parts.setdefault(address, []).append(number)
            waiting = []
            for address, numbers in parts.items():
                answers = self._exchange(address, [requests[number] for number in numbers], until)
                for number, replies in zip(numbers, answers, strict=True):
                    try:
                        results[number] = _last(replies)
                    except ServerError as error:
                        if not self.nodes.several:
                            raise
                        if error.code == "MOVED":
                            self.nodes.forget()
                            waiting.append(number)
                        elif error.code == "ASK":
                            results[number] = self._ask(str(error), requests[number], until)
                        else:
                            raise
            if not waiting:
                return
        raise ServerError("CLUSTERDOWN the servers send us from one to another")

    def _ask(self, error: str, request: Request, until: float) -> Reply:
        """What the server says to which a slot is just being moved."""
        host, _, port = error.split(" ")[2].rpartition(":")
        asking = Request([command(b"ASKING"), *request.frames], 0, request.replies + 1, request.into)
        return _last(self._exchange((host, int(port)), [asking], until)[0])

    def _exchange(self, address: Address, requests: Sequence[Request], until: float) -> list[list[Reply]]:
        while True:
            wire = self._take(address, until)
            fresh = wire.fresh
            try:
                answers = wire.exchange(requests, until)
            except BaseException as error:
                wire.close()
                # The server was restarted, or has closed what was idle: that is no reason to pause.
                if isinstance(error, ConnectionError | ssl.SSLEOFError) and not fresh:
                    self.close()
                    continue
                raise
            wires = self._idle.get(address)
            if wires is None:
                with self._lock:
                    wires = self._idle.setdefault(address, deque())
            if len(wires) < _IDLE:
                wires.append(wire)
            else:
                wire.close()
            return answers

    def _take(self, address: Address, until: float) -> Wire:
        wires = self._idle.get(address)
        if wires:
            with contextlib.suppress(IndexError):
                return wires.pop()
        return Wire(address, self._login, self._opening(until))

    def _opening(self, until: float) -> float:
        return min(until, time.monotonic() + self._connect_timeout)

    @contextlib.contextmanager
    def _patience(self, moved: int) -> Iterator[_Patience]:
        patience = _Patience(self._deadline + moved / _SLOWEST, 0 if self._down else self._connect_timeout)
        try:
            yield patience
        except (OSError, ServerError) as error:
            if isinstance(error, StoreError):
                raise
            typed = self._typed(error, patience)
            self._down = isinstance(typed, UnreachableError)
            self.nodes.forget()
            raise typed from error

    def _typed(self, error: OSError | ServerError, patience: _Patience) -> StoreError:
        text = str(error)
        if isinstance(error, ServerError):
            kind, remedy = _server_said(error)
            return kind(f"the server says: {text}", store=self.url, remedy=remedy)
        if isinstance(error, ssl.SSLError) and (
            isinstance(error, ssl.SSLCertVerificationError) or "ALERT" in (error.reason or "")
        ):
            return RefusedError(
                f"no trust between this process and the server: {error.reason or text}",
                store=self.url,
                remedy="Name the authority's certificate with ?ca=, and your own with &cert= and &key=.",
            )
        if isinstance(error, PermissionError) and error.errno in (errno.EACCES, errno.EPERM):
            return RefusedError(
                f"the socket is not for this user: {error.strerror}",
                store=self.url,
                remedy="Have the server make it for you (unixsocketperm), or use another address.",
            )
        if isinstance(error, TimeoutError) and patience.over():
            return DeadlineError(
                f"no answer within {patience.seconds:.3g} s",
                store=self.url,
                remedy="Look at the server's load and the network, or name a longer ?deadline= (seconds).",
            )
        remedy = "Check host and port, and that the server runs and is reachable from this host."
        if isinstance(error, ssl.SSLError) or (self._login.tls and not patience.heard):
            remedy += " Does this port speak TLS? Without it: redis://."
        elif isinstance(error, ConnectionResetError):
            remedy += " If the port speaks TLS: rediss://."
        return UnreachableError(f"no connection: {text}", store=self.url, remedy=remedy)


class _Patience:
    """How long one operation goes on trying."""

    def __init__(self, seconds: float, reconnect: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()
        self.until = self._began + seconds
        self.heard = False
        self._reconnect = reconnect
        self._give_up: float | None = None
        self._pause = _PAUSES[0]

    def over(self) -> bool:
        return time.monotonic() >= self.until - 0.001

    def wait(self, error: OSError | ServerError) -> None:
        """Pause before the next try, or raise the error when there should be none."""
        now = time.monotonic()
        if isinstance(error, ServerError):
            self.heard = True
            if error.code not in _PASSING and "max number of clients" not in str(error):
                raise error
        elif isinstance(error, ssl.SSLError | PermissionError) and not isinstance(error, ssl.SSLEOFError):
            raise error
        else:
            if self._give_up is None:
                # What took its time already, such as a host that does not answer, gets no more of it.
                self._give_up = self._reconnect + (self._began if isinstance(error, TimeoutError) else now)
            if now + self._pause > self._give_up:
                raise error
        if now + self._pause > self.until:
            raise error
        time.sleep(self._pause)
        self._began = time.monotonic()
        self._pause = min(2 * self._pause, _PAUSES[1])


def _last(replies: Sequence[Reply]) -> Reply:
    """The last reply; the first error among all of them is raised, also one within a transaction."""
    for reply in replies:
        if isinstance(reply, ServerError):
            raise reply
    last = replies[-1]
    if isinstance(last, list):
        for reply in last:
            if isinstance(reply, ServerError):
                raise reply
    return last


def _server_said(error: ServerError) -> tuple[type[StoreError], str]:
    text = str(error)
    if error.code == "OOM" or "maxmemory" in text:
        return FullError, "Evict objects, or give the server more memory (maxmemory)."
    if error.code == "MISCONF":
        return FullError, "The server cannot write its snapshots: make room on its disk, or see its log."
    if error.code in _REFUSALS or "AUTH" in text or "invalid password" in text:
        remedy = "Set PROXYSTORE_REDIS_PASSWORD, or PROXYSTORE_STORE with the password in its URL; see also"
        return RefusedError, f"{remedy} the user's rights (docs/redis.md)."
    if error.code == "MOVED":
        return ConfigurationError, "It is one server of a cluster: expected redis+cluster://."
    if error.code in _PASSING or "max number of clients" in text:
        return UnreachableError, "The server is there but not ready: look at its log, or wait."
    if "DB index" in text or "SELECT" in text or "unknown command" in text or "cluster support" in text:
        return ConfigurationError, "Check the database's number and the scheme of the URL."
    return StoreError, "See the server's log."


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    # The parent goes on using its connections: the child's copies are closed, which ends none of them.
    for client in list(_clients):
        for wires in client._idle.values():
            for wire in wires:
                wire.close()
        client._drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
