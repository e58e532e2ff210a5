"""What a connector has put into the user session: ``close(clear=True)`` evicts it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable

from proxystore_core.connectors.base import Key
from proxystore_core.errors import StoreError

__all__ = ["OwnKeys"]

_MANY = 10_000  # keys that are remembered before anybody looks which of their objects are still there


class OwnKeys:
    """The keys of one connector's own objects in the user session. Safe in threads; a fork owns nothing.

    Others evict them, too. Those of objects that are gone are forgotten whenever there are twice as many keys
    as objects were there last: a listing in ten thousand puts or more.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._keys: set[Key] = set()
        self._limit = _MANY

    def __len__(self) -> int:
        return len(self._keys)

    def note(self, keys: Iterable[Key], listed: Callable[[], Iterable[Key]]) -> None:
        """Remember keys.

        Args:
            keys: of objects that are there, or reserved.
            listed: the keys of all objects in the user session now, and of all reservations.
        """
        if self._process != os.getpid():
            self.__init__()  # type: ignore[misc]
        self._keys.update(keys)
        if len(self._keys) >= self._limit:
            self._forget_gone(listed)

    def discard(self, keys: Iterable[Key]) -> None:
        """Forget keys."""
        self._keys.difference_update(keys)

    def mine(self) -> list[Key]:
        """The keys of what this process has put."""
        return list(self._keys) if self._process == os.getpid() else []

    def _forget_gone(self, listed: Callable[[], Iterable[Key]]) -> None:
        seen = set(self._keys)
        self._limit = 2 * len(seen)  # nobody else looks meanwhile
        with contextlib.suppress(StoreError):  # what was put is put; later, then
            self._keys -= seen.difference(listed())
            self._limit = max(_MANY, 2 * len(self._keys))
