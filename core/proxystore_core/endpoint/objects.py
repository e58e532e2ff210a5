"""What an endpoint keeps: objects in shared memory, and on disk where that is full."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import NamedTuple

from proxystore_core.connectors.base import Buffer, Key
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.endpoint.settings import EndpointSettings
from proxystore_core.errors import RefusedError

__all__ = ["Objects", "shared_memory"]

_OPEN = 16  # objects that stay open between two reads
_IDLE = 10.0  # seconds after which one that nobody reads is closed


class _Open(NamedTuple):
    data: memoryview
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
        found = self._open.pop(key, None) if offset else None
        data = None if found is None else found.data
        if data is None:
            whole = self.store.get(self.inner(key))
            if whole is None:
                return None
            data = memoryview(whole)
        if offset > data.nbytes:
            raise RefusedError(f"the object has {data.nbytes} bytes, none from {offset} on", key=key)
        end = min(offset + length, data.nbytes)
        if end < data.nbytes:
            self._open[key] = _Open(data, time.monotonic())
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return data.nbytes, bytes(data[offset:end])

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

    def close(self) -> None:
        self._open.clear()
        self.store.close()


def shared_memory(settings: EndpointSettings) -> ShmConnector:
    """The endpoint's shared memory, as the daemon and the clients beside it open it."""
    return ShmConnector(settings.shared, spill=settings.spill_directory)
