"""Reasons to keep stored objects: an object with none left is evicted.

Nothing here does I/O: finding an equal object and pinning it is one atomic step, and so is
dropping the last pin and forgetting the object. Whoever is told that an object has no pin left
evicts it, after.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator

from proxystore_core.connectors.base import Key
from proxystore_core.reference import Reference

__all__ = ["Holdings", "Pins"]


class Pins:
    """Objects and who holds each; not locked, for one thread or event loop."""

    def __init__(self) -> None:
        self._holders: dict[Key, set[Hashable]] = {}
        self._held: dict[Hashable, set[Key]] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._holders

    def __iter__(self) -> Iterator[Key]:
        return iter(self._holders)

    def __len__(self) -> int:
        return len(self._holders)

    def pin(self, key: Key, holder: Hashable) -> None:
        """Let a holder keep an object; twice is once."""
        self._holders.setdefault(key, set()).add(holder)
        self._held.setdefault(holder, set()).add(key)

    def release(self, holder: Hashable) -> list[Key]:
        """Take away all of a holder's pins; returns the objects that have none left."""
        freed = []
        for key in self._held.pop(holder, ()):
            holders = self._holders[key]
            holders.discard(holder)
            if not holders:
                del self._holders[key]
                freed.append(key)
        return freed

    def clear(self) -> list[Key]:
        """Take away all pins; returns all objects."""
        freed = list(self._holders)
        self._holders.clear()
        self._held.clear()
        return freed


class Holdings:
    """The objects that one session shares among its calls, found by the digest of their stored bytes.

    Each call that uses an object pins it once. Safe in threads. A forked child starts with none: the
    objects are its parent's.
    """

    def __init__(self) -> None:
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._by_digest: dict[bytes, Reference] = {}
        self._pins: dict[Key, int] = {}
        self._digests: dict[Key, bytes] = {}

    def __len__(self) -> int:
        return len(self._pins)

    def find(self, digest: bytes) -> Reference | None:
        """The object with this digest, pinned once more, or None."""
        with self._lock:
            reference = self._by_digest.get(digest)
            if reference is not None:
                self._pins[reference.key] += 1
            return reference

    def add(self, digest: bytes, reference: Reference) -> None:
        """Hold an object that has just been stored, pinned once; calls after this one find it."""
        with self._lock:
            self._by_digest[digest] = reference
            self._digests[reference.key] = digest
            self._pins[reference.key] = 1

    def forget(self, key: Key) -> None:
        """Let nobody find an object any more, whoever has it pinned."""
        with self._lock:
            self._forget(key)

    def release(self, key: Key, pins: int = 1) -> bool:
        """Take away pins; returns whether none is left, and the caller has to evict the object.

        An object that is not held (any more) has none left.
        """
        with self._lock:
            left = self._pins.get(key, 0) - pins
            if left > 0:
                self._pins[key] = left
                return False
            self._forget(key)
            return True

    def _forget(self, key: Key) -> None:
        self._pins.pop(key, None)
        digest = self._digests.pop(key, b"")
        # Two threads may have stored equal objects at once: the other one stays findable.
        known = self._by_digest.get(digest)
        if known is not None and known.key == key:
            del self._by_digest[digest]

    def release_all(self, keys: Iterable[Key]) -> list[Key]:
        """Take one pin from each; returns those that have none left."""
        return [key for key in keys if self.release(key)]


_all: weakref.WeakSet[Holdings] = weakref.WeakSet()


def _after_fork() -> None:
    for holdings in list(_all):
        holdings._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
