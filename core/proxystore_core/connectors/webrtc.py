"""Objects at this host's endpoint, fetched from other hosts' endpoints over WebRTC, also through NAT.

What this host's endpoint keeps is in shared memory, which a process beside it writes and maps itself; the
daemon only hears of it. What others keep comes through the daemon (see `proxystore_core.endpoint`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import aiortc  # noqa: F401 - so that a missing extra is found when the store is named
import websockets  # noqa: F401

from proxystore_core.buffers import fresh_buffer
from proxystore_core.connectors.base import USER_SESSION, Buffer, Key, check_session
from proxystore_core.connectors.shm import ShmConnector, node
from proxystore_core.endpoint.objects import shared_memory
from proxystore_core.endpoint.settings import ENDPOINT, EndpointSettings, configured
from proxystore_core.endpoint.wire import MOST, Answer, Operation, Request, Status, WireError, error_of
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.urls import StoreURL

__all__ = ["EndpointConnector", "WebRTCConnector"]

_KEY = re.compile(r"[0-9a-f]{32}\.[A-Za-z0-9_-]{1,64}\.[0-9a-f]{20}(\.disk)?")
_ID = re.compile(r"[0-9a-f]{32}")
_DEADLINE = 60.0
_SLACK = 5.0  # seconds more than the daemon takes to say that it took too long
_IDLE = 8  # connections to the daemon that are kept
_LENGTH = struct.Struct("!I")


class EndpointConnector:
    """Keeps objects at this host's endpoint; ``webrtc://`` or ``webrtc://ID,ID``.

    A process uses the endpoint that ``PROXYSTORE_ENDPOINT`` names, else the one of this host that is among
    ``endpoints``, else the only one that this host has.

    Args:
        endpoints: ids of the endpoints that belong together, one on each host; any if empty.
        deadline: seconds that an endpoint may be silent.
        direct: read and write the endpoint's shared memory from here where this process sees it.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("webrtc",)
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False
    scattered_leases: ClassVar[bool] = True
    far: ClassVar[bool] = True

    def __init__(
        self, endpoints: Sequence[str] = (), *, deadline: float = _DEADLINE, direct: bool = True
    ) -> None:
        self._endpoints = [str(each).replace("-", "").lower() for each in endpoints]
        for each in self._endpoints:
            if not _ID.fullmatch(each):
                raise ConfigurationError(f"{each!r} is no endpoint's id: see proxystore endpoint list")
        if not deadline > 0:
            raise ConfigurationError(f"deadline is {deadline!r}: expected seconds, more than 0")
        self._deadline = deadline
        self._direct = direct
        self._own: set[tuple[int, Key]] = set()  # with the process that put it: a fork owns nothing
        self._lines: dict[int, _Lines] = {}  # by process: a child shares no connection with its parent

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        options = [f"deadline={self._deadline}"] if self._deadline != _DEADLINE else []
        options += [] if self._direct else ["direct=0"]
        return f"webrtc://{','.join(self._endpoints)}{'?' if options else ''}{'&'.join(options)}"

    def config(self) -> dict[str, Any]:
        return {"endpoints": list(self._endpoints), "deadline": self._deadline, "direct": self._direct}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EndpointConnector:
        return cls(**config)

    @classmethod
    def from_url(cls, url: str) -> EndpointConnector:
        parts = StoreURL.parse(url)
        if parts.path.strip("/") or parts.port is not None or parts.username:
            raise ConfigurationError(f"{parts.url!r} is more than endpoints: expected webrtc://ID,ID")
        return cls(parts.hosts, **parts.options({"deadline": float, "direct": _flag}))

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        check_session(session, self.url)
        lines = self._at_home()
        if lines.memory is not None:
            with self._named():
                lines.check()
                key = f"{lines.settings.id}.{lines.memory.put(data, session=session).partition('.')[2]}"
        else:
            key = lines.put(data, session, self._deadline)
        if session == USER_SESSION:
            self._own.add((os.getpid(), key))
        return key

    def get(self, key: Key) -> Buffer | None:
        lines, inner = self._place(key)
        if inner is None:
            return lines.get(Request(Operation.GET, key=key, seconds=self._deadline))
        assert lines.memory is not None
        with self._named(key):
            return lines.memory.get(inner)

    def exists(self, key: Key) -> bool:
        lines, inner = self._place(key)
        if inner is None:
            answer = lines.ask(Request(Operation.EXISTS, key=key, seconds=self._deadline))
            return answer.status is Status.OK
        assert lines.memory is not None
        with self._named(key):
            return lines.memory.exists(inner)

    def evict(self, key: Key) -> None:
        lines, inner = self._place(key)
        if inner is None:
            lines.ask(Request(Operation.EVICT, key=key, seconds=self._deadline))
        else:
            assert lines.memory is not None
            with self._named(key):
                lines.memory.evict(inner)
        self._own.discard((os.getpid(), key))

    def holds(self, key: Key) -> bool:
        """Whether the object is on this host already."""
        return self._place(key)[1] is not None

    def renew(self, session: str, seconds: float) -> None:
        check_session(session, self.url, leased=True)
        self._at_home().ask(Request(Operation.RENEW, session=session, seconds=seconds))

    def end(self, session: str) -> int:
        """Evict the session's objects here, and at the endpoints that this one is connected to."""
        check_session(session, self.url)
        request = Request(Operation.END, session=session, seconds=self._deadline)
        return self._at_home().ask(request).size

    def sessions(self) -> dict[str, float]:
        found: dict[str, float] = self._at_home().list(Request(Operation.SESSIONS, seconds=self._deadline))
        return found

    def sweep(self) -> list[str]:
        found: list[str] = self._at_home().list(Request(Operation.SWEEP, seconds=self._deadline))
        return found

    def keys(self, session: str) -> list[Key]:
        """The keys of what a session has at this host's endpoint."""
        check_session(session, self.url)
        request = Request(Operation.KEYS, session=session, seconds=self._deadline)
        found: list[Key] = self._at_home().list(request)
        return found

    def health(self) -> dict[str, Any]:
        """What the endpoint says of itself: its id, its relay, the peers that it is connected to."""
        found: dict[str, Any] = json.loads(self._at_home().ask(Request(Operation.INFO)).data)
        return found

    def ping(self, endpoint: str) -> None:
        """See whether another endpoint can be reached. Raises as `get`."""
        self._at_home().ask(Request(Operation.PING, key=endpoint, seconds=self._deadline))

    def close(self, *, clear: bool = False) -> None:
        if clear:
            for process, key in list(self._own):
                if process == os.getpid():
                    self.evict(key)
        lines = self._lines.pop(os.getpid(), None)
        if lines is not None:
            lines.close()

    def _place(self, key: Key) -> tuple[_Lines, Key | None]:
        """The endpoint here, and the object's key in shared memory if it is there for this process."""
        if _KEY.fullmatch(key) is None:
            raise RefusedError("not a key of an endpoint", store=self.url, key=key[:200])
        lines = self._at_home()
        where, _, rest = key.partition(".")
        if lines.memory is None or where != lines.settings.id:
            return lines, None
        return lines, f"{lines.memory.node}.{rest}"

    def _at_home(self) -> _Lines:
        lines = self._lines.get(os.getpid())
        if lines is None:
            opened = _Lines(self.url, self._settings(), self._direct, self._deadline)
            lines = self._lines.setdefault(os.getpid(), opened)
            if lines is not opened:
                opened.close()
        return lines

    def _settings(self) -> EndpointSettings:
        """Which of this host's endpoints is used."""
        named = os.environ.get(ENDPOINT)
        here = configured()
        chosen = [each for each in here if named is None or named in (each.name, each.id)]
        if named is None and self._endpoints:
            chosen = [each for each in here if each.id in self._endpoints]
        if len(chosen) != 1:
            running = [each for each in chosen if each.running]
            chosen = running if len(running) == 1 else chosen
        if len(chosen) == 1:
            return chosen[0]
        names = ", ".join(each.name for each in here) or "none"
        raise UnreachableError(
            f"{'several endpoints' if chosen else 'no endpoint'} of this host may be meant, of {names}",
            store=self.url,
            remedy=f"Run: proxystore endpoint configure NAME and start NAME, or set {ENDPOINT}.",
        )

    @contextlib.contextmanager
    def _named(self, key: Key | None = None) -> Iterator[None]:
        """Let errors of the shared memory name this store."""
        try:
            yield
        except StoreError as error:
            error.store, error.key = self.url, key or error.key
            raise


class WebRTCConnector(EndpointConnector):
    """Another name of `EndpointConnector`."""


class _Lines:
    """One process' connections to its endpoint's daemon."""

    def __init__(self, url: str, settings: EndpointSettings, direct: bool, deadline: float) -> None:
        self.settings = settings
        self._url = url
        self._deadline = deadline
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
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

    def ask(self, request: Request) -> Answer:
        """The daemon's answer. Raises the error that it tells of."""
        with self._link(request.seconds) as link:
            _send(link, request.encode())
            answer = _receive(link)
        return self._checked(answer, request.key or None)

    def put(self, data: Sequence[Buffer], session: str, seconds: float) -> Key:
        views = [memoryview(buffer).cast("B") for buffer in data if memoryview(buffer).nbytes]
        size = sum(view.nbytes for view in views)
        with self._link(seconds) as link:
            _send(link, Request(Operation.PUT, session=session, offset=size, seconds=seconds).encode())
            self._checked(_receive(link), None)
            for view in views:
                link.sendall(view)
            answer = _receive(link)
        return self._checked(answer, None).data.decode()

    def list(self, request: Request) -> Any:
        """What the daemon lists, be it long."""
        return json.loads(bytes(self.get(request) or b"null"))

    def get(self, request: Request) -> Buffer | None:
        """What the daemon says in several answers: an object's bytes; None where there is none."""
        key = request.key or None
        with self._link(request.seconds) as link:
            _send(link, request.encode())
            answer = _receive(link)
            if answer.status is Status.MISSING:
                return None
            self._checked(answer, key)
            buffer = fresh_buffer(answer.size)
            view = memoryview(buffer)
            done = 0
            while True:
                view[done : done + len(answer.data)] = answer.data
                done += len(answer.data)
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
            if len(self._idle) < _IDLE:
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


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return text == "1"
