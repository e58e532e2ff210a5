"""Objects at this host's endpoint, fetched from other hosts' endpoints over WebRTC, also through NAT.

What this host's endpoint keeps is in shared memory, which a process beside it writes and maps itself; the
daemon only hears of it. What others keep comes through the daemon (see `proxystore_core.endpoint`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import aiortc  # noqa: F401 - so that a missing extra is found when the store is named
import websockets  # noqa: F401

from proxystore_core.connectors.base import USER_SESSION, Buffer, ByURL, Held, Key, check_lease, check_session
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.endpoint.lines import Lines
from proxystore_core.endpoint.settings import ENDPOINT, EndpointSettings, configured
from proxystore_core.endpoint.wire import IF_KNOWN, LONGEST_WAIT, Operation, Request, Status
from proxystore_core.errors import (
    ConfigurationError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.urls import StoreURL, flag

__all__ = ["EndpointConnector", "WebRTCConnector"]

_KEY = re.compile(r"[0-9a-f]{32}\.[A-Za-z0-9_-]{1,64}\.[0-9a-f]{20}(w|\.disk)?")
_ID = re.compile(r"[0-9a-f]{32}")
_DEADLINE = 60.0
_LONGEST = 1e8  # seconds, three years: more than that neither sockets nor the daemon take
_TURN = 0.05  # seconds before an endpoint that does not wait is asked to again


class EndpointConnector(ByURL):
    """Keeps objects at this host's endpoint; ``webrtc://`` or ``webrtc://ID,ID``.

    A process uses the endpoint that ``PROXYSTORE_ENDPOINT`` names, else the one of this host that is among
    ``endpoints``, else the only one that this host has.

    Args:
        endpoints: ids of the endpoints that belong together, one on each host; any if empty.
        deadline: seconds that an endpoint may be silent; `math.inf` for any number of them.
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
        self._deadline = min(deadline, _LONGEST)
        self._direct = direct
        self._own = OwnKeys()
        self._lines: dict[int, Lines] = {}  # by process: a child shares no connection with its parent

    @property
    def url(self) -> str:
        options = [f"deadline={self._deadline}"] if self._deadline != _DEADLINE else []
        options += [] if self._direct else ["direct=0"]
        return f"webrtc://{','.join(self._endpoints)}{'?' if options else ''}{'&'.join(options)}"

    def config(self) -> dict[str, Any]:
        return {"endpoints": list(self._endpoints), "deadline": self._deadline, "direct": self._direct}

    @classmethod
    def from_url(cls, url: str) -> EndpointConnector:
        parts = StoreURL.parse(url)
        if parts.path.strip("/") or parts.port is not None or parts.username:
            raise ConfigurationError(f"{parts.url!r} is more than endpoints: expected webrtc://ID,ID")
        return cls(parts.hosts, **parts.options({"deadline": float, "direct": flag}))

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
            self._own.note([key], self._keys_of_users)
        return key

    def put_batch(self, items: Sequence[Sequence[Buffer]], *, session: str = USER_SESSION) -> list[Key]:
        keys: list[Key] = []
        try:
            # This host's memory is at hand, or a socket away.
            keys.extend(self.put(data, session=session) for data in items)
        except BaseException:
            for key in keys:
                with contextlib.suppress(StoreError):
                    self.evict(key)
            raise
        return keys

    def get_batch(self, keys: Sequence[Key]) -> list[Buffer | None]:
        """As `get`: small objects of other hosts side by side, in one exchange with the endpoint here."""
        far = [key for key in keys if self._place(key)[1] is None]
        answers = iter(self._at_home().ask_each(Operation.GETS, far, self._deadline) if far else ())
        found: list[Buffer | None] = []
        for key in keys:
            if self._place(key)[1] is not None:
                found.append(self.get(key))
                continue
            answer = next(answers)
            if answer.status is Status.OK and answer.size == len(answer.data):
                found.append(bytearray(answer.data))
            else:
                found.append(None if answer.status is Status.MISSING else self.get(key))
        return found

    def evict_batch(self, keys: Sequence[Key]) -> None:
        far = [key for key in keys if self._place(key)[1] is None]
        if far:
            self._at_home().ask_each(Operation.EVICTS, far, self._deadline)
            self._own.discard(far)
        for key in set(keys).difference(far):
            self.evict(key)

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
        self._own.discard([key])

    def reserve(self, *, session: str = USER_SESSION) -> Key:
        check_session(session, self.url)
        lines = self._at_home()
        if lines.memory is not None:
            with self._named():
                lines.check()
                key = f"{lines.settings.id}.{lines.memory.reserve(session=session).partition('.')[2]}"
        else:
            asked = Request(Operation.RESERVE, session=session, seconds=self._deadline)
            key = lines.ask(asked).data.decode()
        if session == USER_SESSION:
            self._own.note([key], self._keys_of_users)
        return key

    def set(self, key: Key, data: Sequence[Buffer]) -> None:
        lines, inner = self._place(key)
        if inner is None:
            lines.set(key, data, self._deadline)
            return
        assert lines.memory is not None
        with self._named(key):
            lines.memory.set(inner, data)

    def wait(self, key: Key, timeout: float | None = None) -> bool:
        lines, inner = self._place(key)
        if inner is not None:
            assert lines.memory is not None
            with self._named(key):
                return lines.memory.wait(inner, timeout)
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = max(0.0, until - time.monotonic())
            asked = Request(Operation.WAIT, key=key, seconds=min(left, LONGEST_WAIT))
            begun = time.monotonic()
            if lines.ask(asked, self._deadline).status is Status.OK:
                return True
            if time.monotonic() >= until:
                return False
            if time.monotonic() - begun < _TURN:
                time.sleep(_TURN)  # too many wait at the endpoint

    def holds(self, key: Key) -> bool:
        """Whether the object is on this host already."""
        return self._place(key)[1] is not None

    def _keys_of_users(self) -> list[Key]:
        return self.keys(USER_SESSION, reserved=True)

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        self._at_home().ask(Request(Operation.RENEW, session=session, seconds=seconds))

    def extend(self, session: str, seconds: float) -> bool:
        """As `extend_lease`, here; and at the endpoints that this one is connected to, where it is there."""
        check_lease(session, seconds, self.url)
        request = Request(Operation.RENEW, session=session, seconds=seconds, data=IF_KNOWN)
        return self._at_home().ask(request).status is Status.OK

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

    def keys(self, session: str, *, reserved: bool = False) -> list[Key]:
        """The keys of what a session has at this host's endpoint."""
        check_session(session, self.url)
        data = b"reserved too" if reserved else b""
        request = Request(Operation.KEYS, session=session, seconds=self._deadline, data=data)
        found: list[Key] = self._at_home().list(request)
        return found

    def held(self) -> dict[str, Held]:
        """What each session has at this host's endpoint."""
        asked = Request(Operation.HELD, seconds=self._deadline)
        return {session: Held(*held) for session, held in self._at_home().list(asked).items()}

    def room(self) -> int | None:
        lines = self._at_home()
        return None if lines.memory is None else lines.memory.room()

    def health(self) -> dict[str, Any]:
        """What the endpoint says of itself: its id, its relay, the peers that it is connected to."""
        found: dict[str, Any] = json.loads(self._at_home().ask(Request(Operation.INFO)).data)
        return found

    def ping(self, endpoint: str) -> None:
        """See whether another endpoint can be reached. Raises as `get`."""
        self._at_home().ask(Request(Operation.PING, key=endpoint, seconds=self._deadline))

    def close(self, *, clear: bool = False) -> None:
        if clear:
            for key in self._own.mine():
                self.evict(key)
        lines = self._lines.pop(os.getpid(), None)
        if lines is not None:
            lines.close()

    def _place(self, key: Key) -> tuple[Lines, Key | None]:
        """The endpoint here, and the object's key in shared memory if it is there for this process."""
        if _KEY.fullmatch(key) is None:
            raise RefusedError("not a key of an endpoint", store=self.url, key=key[:200])
        lines = self._at_home()
        where, _, rest = key.partition(".")
        if lines.memory is None or where != lines.settings.id:
            return lines, None
        return lines, f"{lines.memory.node}.{rest}"

    def _at_home(self) -> Lines:
        lines = self._lines.get(os.getpid())
        if lines is None:
            opened = Lines(self.url, self._settings(), self._direct, self._deadline)
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
        names = ", ".join(each.name for each in here)
        which = f"{'several endpoints' if chosen else 'no endpoint'} of this host may be meant, of {names}"
        raise UnreachableError(
            which if here else "this host has no endpoint",
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
