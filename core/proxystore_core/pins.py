"""Reasons to keep stored objects: an object with none left is evicted.

Nothing here does I/O: finding an equal object and pinning it is one atomic step, and so is
dropping the last pin and forgetting the object. Whoever is told that an object has no pin left
evicts it, after.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator

from proxystore_core import forks
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


@dataclasses.dataclass
class _Held:
    reference: Reference
    look: bytes
    digest: bytes | None
    pins: int = 1


class Holdings:
    """The objects that one session shares among its calls: equal ones are stored once.

    An object is recognized by its *look* (its size and a few samples of its bytes), which costs
    microseconds, and then by the digest of all its bytes, which is taken only of objects that look
    like one that is held. Each call that uses an object pins it once.

    Safe in threads. A forked child starts with none: the objects are its parent's.
    """

    def __init__(self) -> None:
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[Key, _Held] = {}
        self._by_look: dict[bytes, list[_Held]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def looks(self, look: bytes) -> list[Reference] | None:
        """The objects of this look whose digest nobody has taken yet; None when nothing looks like this."""
        with self._lock:
            alike = self._by_look.get(look)
            return None if alike is None else [one.reference for one in alike if one.digest is None]

    def learn(self, key: Key, digest: bytes) -> None:
        """Note the digest of a held object."""
        with self._lock:
            held = self._by_key.get(key)
            if held is not None:
                held.digest = digest

    def find(self, look: bytes, digest: bytes) -> Reference | None:
        """The object with this look and digest, pinned once more, or None."""
        with self._lock:
            for held in self._by_look.get(look, ()):
                if held.digest == digest:
                    held.pins += 1
                    return held.reference
        return None

    def add(self, look: bytes, reference: Reference, digest: bytes | None = None) -> None:
        """Hold an object that has just been stored, pinned once; calls after this one find it."""
        held = _Held(reference, look, digest)
        with self._lock:
            self._by_key[reference.key] = held
            self._by_look.setdefault(look, []).append(held)

    def release(self, key: Key, pins: int = 1) -> bool:
        """Take away pins; returns whether none is left, and the caller has to evict the object.

        An object that is not held (any more) has none left.
        """
        with self._lock:
            held = self._by_key.get(key)
            if held is not None and held.pins > pins:
                held.pins -= pins
                return False
            self._forget(key)
            return True

    def release_all(self, keys: Iterable[Key]) -> list[Key]:
        """Take one pin from each; returns those that have none left."""
        return [key for key in keys if self.release(key)]

    def forget(self, key: Key) -> None:
        """Let nobody find an object any more, whoever has it pinned."""
        with self._lock:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        held = self._by_key.pop(key, None)
        if held is not None:
            alike = self._by_look[held.look]
            alike.remove(held)
            if not alike:
                del self._by_look[held.look]


_all: weakref.WeakSet[Holdings] = weakref.WeakSet()


@forks.in_child
def _after_fork() -> None:
    for holdings in list(_all):
        holdings._reset()
