"""One process' connections to the daemon of its host's endpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from proxystore_core import forks
from proxystore_core.buffers import fresh_buffer
from proxystore_core.connectors.base import Buffer, Key
from proxystore_core.connectors.shm import ShmConnector, node
from proxystore_core.endpoint.objects import shared_memory
from proxystore_core.endpoint.settings import EndpointSettings
from proxystore_core.endpoint.wire import MOST, Answer, Operation, Request, Status, WireError, error_of
from proxystore_core.errors import DeadlineError, StoreError, UnreachableError
from proxystore_core.moving import STEP, moved

__all__ = ["Lines"]

_SLACK = 5.0  # seconds more than the daemon takes to say that it took too long
_IDLE = 8  # connections to the daemon that are kept
_KEYS = 480  # in one request: of at most 130 bytes each
_LENGTH = struct.Struct("!I")


class Lines:
    """Connections to a daemon; each exchange has one of them to itself.

    Args:
        url: the store's, for messages.
        settings: the endpoint's.
        direct: use the endpoint's shared memory where this process sees it.
        deadline: seconds that the daemon may be silent.

    Attributes:
        memory: the endpoint's shared memory, or None where it is out of reach.

    Raises:
        UnreachableError: the daemon does not answer.
        RefusedError: it is another user's, or the token is stale.
    """

    def __init__(self, url: str, settings: EndpointSettings, direct: bool, deadline: float) -> None:
        self.settings = settings
        self._url = url
        self._deadline = deadline
        self._idle: list[socket.socket] = []
        self._lock = forks.lock()
        weakref.finalize(self, _close_all, self._idle)
        link, said = self._open()
        self._idle.append(link)
        # The same shared memory, unless the daemon's is another container's.
        self.memory: ShmConnector | None = None
        if direct and said.get("node") == node():
            self.memory = shared_memory(settings)

    def close(self) -> None:
        _close_all(self._idle)
        if self.memory is not None:
            self.memory.close()

    def check(self) -> None:
        """See that the daemon is still there: it has not closed a connection, or takes another one."""
        with self._link():
            pass

    def ask(self, request: Request, patience: float = 0.0) -> Answer:
        """The daemon's answer. Raises the error that it tells of.

        Args:
            request: what is asked.
            patience: seconds to wait for the answer, where those of the request are something else.
        """
        with self._link(patience or request.seconds) as link:
            _send(link, request.encode())
            answer = _receive(link)
        return self._checked(answer, request.key or None)

    def put(self, data: Sequence[Buffer], session: str, seconds: float) -> Key:
        """Store an object at this host's endpoint."""
        return self._upload(Request(Operation.PUT, session=session, seconds=seconds), data)

    def set(self, key: Key, data: Sequence[Buffer], seconds: float) -> None:
        """Publish an object under a reserved key, of whichever endpoint."""
        self._upload(Request(Operation.SET, key=key, seconds=seconds), data)

    def _upload(self, request: Request, data: Sequence[Buffer]) -> Key:
        key = request.key or None
        views = [memoryview(buffer).cast("B") for buffer in data if memoryview(buffer).nbytes]
        size = sum(view.nbytes for view in views)
        with self._link(request.seconds) as link:
            _send(link, dataclasses.replace(request, offset=size).encode())
            self._checked(_receive(link), key)
            for view in views:
                for start in range(0, view.nbytes, STEP):
                    part = view[start : start + STEP]
                    link.sendall(part)
                    moved(part.nbytes)
            answer = _receive(link)
        return self._checked(answer, key).data.decode()

    def list(self, request: Request) -> Any:
        """What the daemon lists, be it long."""
        return json.loads(bytes(self.get(request) or b"null"))

    def ask_each(self, operation: Operation, keys: Sequence[Key], seconds: float) -> Sequence[Answer]:
        """The daemon's answer for each of several keys, in one exchange. Raises the first error of them."""
        found: list[Answer] = []
        for start in range(0, len(keys), _KEYS):
            some = keys[start : start + _KEYS]
            request = Request(operation, data=" ".join(some).encode("ascii"), seconds=seconds)
            with self._link(seconds) as link:
                _send(link, request.encode())
                found += [_receive(link) for _ in some]
        return [self._checked(answer, key) for answer, key in zip(found, keys, strict=True)]

    def get(self, request: Request) -> Buffer | None:
        """What the daemon says in several answers: an object's bytes; None where there is none."""
        key = request.key or None
        with self._link(request.seconds) as link:
            _send(link, request.encode())
            answer = _receive(link)
            if answer.status is Status.MISSING:
                return None
            self._checked(answer, key)
            try:
                buffer = fresh_buffer(answer.size)
            except (MemoryError, OSError) as error:
                link.close()  # what comes now is not for the next exchange
                raise StoreError(
                    f"there is no memory for the {answer.size} bytes that are announced: {error}",
                    store=self._url,
                    key=key,
                    remedy="If that is more than was stored, look at the endpoint that has the object.",
                ) from error
            view = memoryview(buffer)
            done = 0
            while True:
                view[done : done + len(answer.data)] = answer.data
                done += len(answer.data)
                moved(len(answer.data))
                if done >= answer.size:
                    return buffer
                answer = _receive(link)
                if answer.status is Status.MISSING:
                    return None  # evicted meanwhile
                self._checked(answer, key)
                if answer.offset != done or answer.size != len(view):
                    raise WireError("the endpoint's answers do not fit together")

    def _checked(self, answer: Answer, key: Key | None) -> Answer:
        error = error_of(answer, self._url, key)
        if error is not None:
            raise error
        return answer

    @contextlib.contextmanager
    def _link(self, seconds: float = 0.0) -> Iterator[socket.socket]:
        """A connection for one exchange; one that was in the midst of another is not used again."""
        with self._lock:
            link = self._idle.pop() if self._idle else None
        if link is not None and _is_dead(link):
            link.close()
            link = None
        if link is None:
            link, _ = self._open()
        clean = False
        try:
            link.settimeout((seconds or self._deadline) + _SLACK)
            yield link
            clean = True
        except StoreError:
            clean = True  # what the daemon told us: it waits for the next request
            raise
        except TimeoutError as error:
            raise DeadlineError(
                f"endpoint {self.settings.name!r} did not answer",
                store=self._url,
                remedy=f"See {self.settings.directory / 'log'}, or name a longer ?deadline= (seconds).",
            ) from error
        except (OSError, WireError) as error:
            raise self._unreachable(error) from error
        finally:
            if clean:
                self._keep(link)
            else:
                link.close()

    def _keep(self, link: socket.socket) -> None:
        with self._lock:
            if len(self._idle) < _IDLE and link.fileno() >= 0:
                self._idle.append(link)
                return
        link.close()

    def _open(self) -> tuple[socket.socket, dict[str, Any]]:
        try:
            for tries_left in (1, 0):
                link = self.settings.connect(min(self._deadline, 10.0))
                try:
                    _send(link, Request(Operation.HELLO, data=self.settings.token().encode()).encode())
                    answer = _receive(link)
                except BaseException:
                    link.close()
                    raise
                if answer.status is Status.REFUSED and tries_left:  # restarted between the two
                    link.close()
                    continue
                error = error_of(answer, self._url)
                if error is not None:
                    link.close()
                    if answer.status is Status.REFUSED:
                        error.remedy = "Is the daemon this user's? Start it again: proxystore endpoint start."
                    raise error
                return link, dict(json.loads(answer.data))
        except (OSError, WireError) as error:
            if isinstance(error, StoreError):
                raise
            raise self._unreachable(error) from error
        raise AssertionError

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"endpoint {self.settings.name!r} of this host does not answer: {error}",
            store=self._url,
            remedy=f"Run: proxystore endpoint start {self.settings.name}",
        )


def _close_all(links: list[socket.socket]) -> None:
    while links:
        links.pop().close()


def _is_dead(link: socket.socket) -> bool:
    """Whether the daemon has closed a connection, or said something that nobody asked for."""
    link.setblocking(False)
    try:
        link.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _send(link: socket.socket, message: bytes) -> None:
    link.sendall(_LENGTH.pack(len(message)) + message)


def _receive(link: socket.socket) -> Answer:
    (length,) = _LENGTH.unpack(_exactly(link, _LENGTH.size))
    if length > MOST:
        raise WireError(f"an answer of {length} bytes: {MOST} at most")
    return Answer.decode(_exactly(link, length))


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = link.recv_into(view)
        if not count:
            raise ConnectionResetError("the endpoint closed the connection")
        view = view[count:]
    return bytes(data)
