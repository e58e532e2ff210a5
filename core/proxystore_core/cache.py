"""The bytes of objects fetched lately, bounded by bytes.

What is kept is the stored form, which nobody changes. Each reader decodes a copy of its own, so a
hit never hands two tasks the same mutable object.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from proxystore_core import forks

__all__ = ["ByteCache"]


class ByteCache:
    """Least recently used out first.

    Args:
        limit: bytes kept at most. One object takes at most an eighth of that: a cache that one
            large array empties serves nobody, and keeping its bytes would double its memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._lock = forks.lock()
        self._entries: OrderedDict[Hashable, memoryview] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> memoryview | None:
        """The bytes, read-only, or None. O(1)."""
        with self._lock:
            data = self._entries.get(key)
            if data is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return data

    def admit(self, key: Hashable, data: bytes | bytearray | memoryview) -> memoryview | None:
        """Keep the bytes and return a read-only view of them, or None when they are too many to keep.

        The caller must not change ``data`` afterwards.
        """
        view = memoryview(data).toreadonly()
        if view.nbytes > self.limit // 8:
            return None
        with self._lock:
            old = self._entries.pop(key, None)
            self.nbytes += view.nbytes - (0 if old is None else old.nbytes)
            self._entries[key] = view
            while self.nbytes > self.limit:
                _, dropped = self._entries.popitem(last=False)
                self.nbytes -= dropped.nbytes
        return view

    def drop(self, key: Hashable) -> None:
        """Forget one object; a missing one is success."""
        with self._lock:
            old = self._entries.pop(key, None)
            self.nbytes -= 0 if old is None else old.nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0
