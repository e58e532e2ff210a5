"""Objects in this process's own memory: for tests, and for stores that no other process reads."""

from __future__ import annotations

import itertools
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from proxystore_core import forks
from proxystore_core.connectors.base import (
    USER_SESSION,
    Buffer,
    ByURL,
    Key,
    check_lease,
    check_session,
    never_comes,
    no_reservation,
)
from proxystore_core.connectors.lapsed import UNRENEWED, end_lapsed
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.errors import RefusedError, UnreachableError
from proxystore_core.urls import StoreURL

__all__ = ["MemoryConnector"]

_AT_ONCE = 1 << 20  # bytes that an event loop copies by itself
_KEY = re.compile(r"([0-9a-f]{12})\.([\w-]{1,64})\.([0-9]+)", re.ASCII)


class _Space:
    """What all connectors with one name in one process share."""

    def __init__(self) -> None:
        self.objects: dict[Key, bytes] = {}
        self.reserved: set[Key] = set()
        self.changed = threading.Condition()  # a reservation was set or taken back
        self.leases: dict[str, float] = {}
        self.open = 0


_spaces: dict[str, _Space] = {}
_lock = forks.lock()
_numbers = itertools.count()  # one series for all names: a key means nothing in another store
_process = uuid.uuid4().hex[:12]


@forks.in_child
def _after_fork() -> None:
    # The child has copies of the objects but is nobody's owner: what it changes no one else sees.
    global _process
    _process = uuid.uuid4().hex[:12]
    _spaces.clear()


class MemoryConnector(ByURL):
    """Keeps objects in a dictionary of this process; ``memory://`` or ``memory://name``.

    Objects live until they are evicted or the last connector of that name is closed.

    Args:
        name: connectors of the same name in one process share their objects.
    """

    schemes: ClassVar[tuple[str, ...]] = ("memory",)
    checksum: ClassVar[bool] = False
    cheap_get: ClassVar[bool] = True

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._closed = False
        self._own = OwnKeys()
        with _lock:
            _spaces.setdefault(name, _Space()).open += 1

    def __repr__(self) -> str:
        return f"MemoryConnector({self.name!r})"

    @property
    def place(self) -> str:
        """This process."""
        return _process

    @property
    def url(self) -> str:
        return f"{self.schemes[0]}://{urllib.parse.quote(self.name, safe='')}"

    def config(self) -> dict[str, Any]:
        return {"name": self.name}

    @classmethod
    def from_url(cls, url: str) -> MemoryConnector:
        parts = StoreURL.parse(url)
        parts.expect(host=True)
        return cls(parts.host, **parts.options({}))

    @property
    def _space(self) -> _Space:
        with _lock:
            return _spaces.setdefault(self.name, _Space())

    def _check(self, key: Key) -> None:
        match = _KEY.fullmatch(key)
        if match is None:
            raise RefusedError("not a key of a memory store", store=self.url, key=key)
        if match[1] != _process:
            raise UnreachableError(
                "the object is in the memory of another process",
                store=self.url,
                key=key,
                remedy="Use a store that all processes reach, for example shm://.",
            )

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        space, key = self._new(session)
        space.objects[key] = b"".join(data)
        self._placed(space, session, key)
        return key

    def reserve(self, *, session: str = USER_SESSION) -> Key:
        space, key = self._new(session)
        with space.changed:
            space.reserved.add(key)
        self._placed(space, session, key)
        return key

    def _new(self, session: str) -> tuple[_Space, Key]:
        check_session(session, self.url)
        space = self._space
        key = f"{_process}.{session}.{next(_numbers)}"
        return space, key

    def _placed(self, space: _Space, session: str, key: Key) -> None:
        """After an object is there: an end beside us takes away the object, or leaves the lease to come."""
        if session == USER_SESSION:
            self._own.note([key], self._keys_of_users)
        else:
            space.leases.setdefault(session, time.time() + UNRENEWED)

    def set(self, key: Key, data: Sequence[Buffer]) -> None:
        self._check(key)
        whole = b"".join(data)
        space = self._space
        with space.changed:
            if key not in space.reserved:
                raise no_reservation(self.url, key)
            space.objects[key] = whole
            space.reserved.remove(key)
            space.changed.notify_all()

    def wait(self, key: Key, timeout: float | None = None) -> bool:
        self._check(key)
        space = self._space
        with space.changed:
            space.changed.wait_for(lambda: key not in space.reserved, timeout)
            if key in space.objects:
                return True
            if key not in space.reserved:
                raise never_comes(self.url, key)
            return False

    def get(self, key: Key) -> bytearray | None:
        self._check(key)
        data = self._space.objects.get(key)
        return None if data is None else bytearray(data)

    async def put_async(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        check_session(session, self.url)
        whole = await _copied(b"".join, data, sum(memoryview(buffer).nbytes for buffer in data))
        space, key = self._new(session)
        space.objects[key] = whole
        self._placed(space, session, key)
        return key

    async def get_async(self, key: Key) -> bytearray | None:
        self._check(key)
        data = self._space.objects.get(key)
        return None if data is None else await _copied(bytearray, data, len(data))

    def exists(self, key: Key) -> bool:
        self._check(key)
        return key in self._space.objects

    def evict(self, key: Key) -> None:
        self._check(key)
        space = self._space
        space.objects.pop(key, None)
        if key in space.reserved:
            with space.changed:
                space.reserved.discard(key)
                space.changed.notify_all()
        self._own.discard([key])

    def keys(self, session: str, *, reserved: bool = False) -> list[Key]:
        check_session(session, self.url)
        space = self._space
        keys = [*space.objects, *(space.reserved.copy() if reserved else ())]
        return [key for key in keys if key.split(".")[1] == session]

    def _keys_of_users(self) -> list[Key]:
        return self.keys(USER_SESSION, reserved=True)

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        space = self._space
        with space.changed:
            space.leases[session] = time.time() + seconds

    def extend(self, session: str, seconds: float) -> bool:
        """As `extend_lease`."""
        check_lease(session, seconds, self.url)
        space = self._space
        with space.changed:
            there = session in space.leases
            if there:
                space.leases[session] = time.time() + seconds
        return there

    def end(self, session: str) -> int:
        check_session(session, self.url)
        space = self._space
        space.leases.pop(session, None)
        ended = self.keys(session)
        for key in ended:
            space.objects.pop(key, None)
        with space.changed:
            space.reserved = {key for key in space.reserved if key.split(".")[1] != session}
            space.changed.notify_all()
        return len(ended)

    def sessions(self) -> dict[str, float]:
        now = time.time()
        return {session: expiry - now for session, expiry in list(self._space.leases.items())}

    def sweep(self) -> list[str]:
        space = self._space

        def end(session: str) -> bool:
            with space.changed:
                lapsed = space.leases.get(session, 0.0) < time.time()
                if lapsed:
                    self.end(session)
            return lapsed

        return end_lapsed(self.sessions(), end)

    def close(self, *, clear: bool = False) -> None:
        if clear:
            for key in self._own.mine():
                self.evict(key)
        with _lock:
            space = _spaces.get(self.name)
            if self._closed or space is None:
                return
            self._closed = True
            space.open -= 1
            if not space.open:
                del _spaces[self.name]


async def _copied(copy: Callable[[Any], Any], data: Any, size: int) -> Any:
    if size <= _AT_ONCE:
        return copy(data)
    import asyncio

    return await asyncio.to_thread(copy, data)
