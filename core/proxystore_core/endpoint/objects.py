"""What an endpoint keeps: objects in shared memory, and on disk where that is full."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from typing import NamedTuple

from proxystore_core.connectors.base import Buffer, Key
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.endpoint.settings import EndpointSettings
from proxystore_core.errors import CorruptError, RefusedError

__all__ = ["Objects", "shared_memory"]

_OPEN = 64  # objects that stay open between two reads
_IDLE = 10.0  # seconds after which one that nobody reads is closed


class _Open(NamedTuple):
    fd: int
    size: int
    used: float


class Objects:
    """The objects of one endpoint, with keys that name it."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.id = settings.id
        self.store = shared_memory(settings)
        self._open: OrderedDict[Key, _Open] = OrderedDict()

    def inner(self, key: Key) -> Key:
        """The key in shared memory of an object of ours.

        Raises:
            RefusedError: it is not ours.
        """
        where, _, rest = key.partition(".")
        if where != self.id:
            raise RefusedError("the object is not this endpoint's", key=key[:200])
        return f"{self.store.node}.{rest}"

    def outer(self, key: Key) -> Key:
        """The inverse of `inner`."""
        return f"{self.id}.{key.partition('.')[2]}"

    def read(self, key: Key, offset: int, length: int) -> tuple[int, bytes] | None:
        """The object's size, and some of its bytes; None when there is no such object.

        An object that is evicted while it is read, is read to its end.

        Raises:
            RefusedError: the key is none of ours, or the offset is beyond the object.
        """
        # Not through `store.get`: it reads all of what is on disk into memory, and this is an event loop.
        known = self._open.pop(key, None) if offset else None
        found = (known.fd, known.size) if known is not None else self._opened(key)
        if found is None:
            return None
        fd, size = found
        data, goes_on = b"", False
        try:
            if offset > size:
                raise RefusedError(f"the object has {size} bytes, none from {offset} on", key=key)
            data = os.pread(fd, min(length, size - offset), offset)
            if len(data) < min(length, size - offset):
                raise CorruptError("the object has become shorter than it was", key=key)
            goes_on = offset + len(data) < size
        finally:
            if goes_on:
                self._keep_open(key, fd, size)
            else:
                os.close(fd)
        return size, data

    def _opened(self, key: Key) -> tuple[int, int] | None:
        """A descriptor of an object, and its size."""
        session, _, name = self.inner(key).partition(".")[2].partition(".")
        fd = self.store.open_file(session, name)
        if fd is None:
            return None
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            os.close(fd)
            raise RefusedError("the object is another user's", key=key)
        return fd, status.st_size

    def _keep_open(self, key: Key, fd: int, size: int) -> None:
        before = self._open.pop(key, None)
        self._open[key] = _Open(fd, size, time.monotonic())
        if before is None and len(self._open) > _OPEN:
            _, before = self._open.popitem(last=False)
        if before is not None:
            os.close(before.fd)

    def put(self, data: Buffer, session: str) -> Key:
        return self.outer(self.store.put([data], session=session))

    def reserve(self, session: str) -> Key:
        """A key for an object that is set later."""
        return self.outer(self.store.reserve(session=session))

    def let_go(self) -> None:
        """Close what nobody has read for a while."""
        now = time.monotonic()
        while self._open:
            key, found = next(iter(self._open.items()))
            if now - found.used < _IDLE:
                break
            del self._open[key]
            os.close(found.fd)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1].fd)
        self.store.close()


def shared_memory(settings: EndpointSettings) -> ShmConnector:
    """The endpoint's shared memory, as the daemon and the clients beside it open it."""
    return ShmConnector(settings.shared, spill=settings.spill_directory)
