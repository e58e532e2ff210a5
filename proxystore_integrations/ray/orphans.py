"""Stored results whose producer may be gone, and with it the guard that would have had them evicted."""

from __future__ import annotations

import functools
import time
from collections import deque
from typing import Any, NamedTuple

from proxystore_core import Store
from proxystore_integrations.ray import owners

__all__ = ["Orphan", "Orphans"]

_MOST = 10_000  # that are looked after; any more go with the session
_PAUSE = 1.0  # seconds between two looks at those that are still there


class Orphan(NamedTuple):
    """A stored object whose Ray object nobody refers to any more.

    Attributes:
        key: of the object.
        guard: name of its guard's ObjectRef, hexadecimal.
        producer: that owns the guard, as `owners.owner_of` gives it.
        outer: name of the Ray object's ObjectRef, binary.
    """

    key: str
    guard: str
    producer: bytes
    outer: bytes


class Orphans:
    """Those of the Ray objects that this process owned.

    Ray puts a small object's bytes into the calls that take it, and lets go of the object while they wait:
    what the bytes name is still needed. Its producer knows, as long as it lives, and then this process does,
    unless it has lent the object: whom another process has called with it nobody knows. That goes with the
    session.
    """

    def __init__(self) -> None:
        self._left: deque[Orphan] = deque(maxlen=_MOST)
        self._next = 0.0

    def __len__(self) -> int:
        return len(self._left)

    def add(self, orphan: Orphan) -> None:
        """Look after one more; may be called in any thread."""
        self._left.append(orphan)

    def over(self, store: Store[Any]) -> list[str]:
        """Keys of those that nobody needs and nobody else evicts. Not for several threads at once.

        Args:
            store: that they are in.

        Raises:
            StoreError: the store does not answer; they are looked at again.
        """
        if time.monotonic() < self._next:
            return []
        lives, referred_to = functools.cache(owners.owner_lives), functools.cache(owners.referred_to)
        found = []
        for _ in range(len(self._left)):
            orphan = self._left[0]
            if store.exists(orphan.key):
                if lives(orphan.producer) or orphan.guard in referred_to():
                    self._left.append(orphan)
                elif not owners.has_lent(orphan.outer):
                    found.append(orphan.key)
            self._left.popleft()
        self._next = time.monotonic() + _PAUSE if self._left else 0.0
        return found
