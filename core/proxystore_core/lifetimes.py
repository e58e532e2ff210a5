"""Sessions: objects that belong to one run and go with it.

A session's lease is one record in the store. Its owner renews it; when the owner is killed the
lease lapses, and the next session that starts anywhere (or ``sweep``) removes the objects.
"""

from __future__ import annotations

import os
import threading
import weakref

from proxystore_core.connectors.base import Connector, Leased, leased, new_session
from proxystore_core.errors import ConfigurationError, StoreError

__all__ = ["Session"]

_LAST_RENEWAL = 5.0  # seconds to wait for a renewal in progress, which would bring an ended session back


class Session:
    """One run's claim to the objects it stores.

    Args:
        connector: where the objects are. One that is not `Leased` gets no lease, and its objects
            go only by eviction.
        lease: seconds after which a session that nobody renews is dead; renewed four times as often.
        name: unique name; made up when not given.

    Raises:
        ConfigurationError: the lease is no positive number of seconds.
        StoreError: the connector cannot be reached, or refuses the name.

    The lease is renewed by a thread of its own until `end` or the process's exit. A forked child
    has a copy of the object but renews nothing and ends nothing.
    """

    def __init__(self, connector: Connector, *, lease: float = 600.0, name: str | None = None) -> None:
        if not lease > 0:
            raise ConfigurationError(f"a lease of {lease!r} s is over at once: expected more than 0")
        self.name = name or new_session(connector)
        self.lease = lease
        self.connector = connector
        self._owner = os.getpid()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        keeper = leased(connector)
        if keeper is not None:
            keeper.renew(self.name, lease)
            self._thread = threading.Thread(
                target=_renew,
                args=(weakref.ref(keeper), self.name, lease, self._over),
                name="proxystore-lease",
                daemon=True,
            )
            self._thread.start()

    def __repr__(self) -> str:
        return f"Session({self.name!r}, lease={self.lease:g} s{', over' if self._over.is_set() else ''})"

    @property
    def owned(self) -> bool:
        """Whether this process is the session's owner (and not a fork of it)."""
        return self._owner == os.getpid()

    def release(self) -> None:
        """Renew no more, and leave the objects to whoever else renews the lease."""
        self._over.set()

    def end(self) -> int:
        """Evict everything that the session still holds; returns how many objects. Idempotent."""
        if not self.owned:
            return 0
        self._over.set()
        if self._thread is not None:
            self._thread.join(_LAST_RENEWAL)
        keeper = leased(self.connector)
        return 0 if keeper is None else keeper.end(self.name)


def _renew(connector: weakref.ref[Leased], session: str, lease: float, over: threading.Event) -> None:
    first = True
    while True:
        alive = connector()
        if alive is None:
            return
        try:
            if first:
                alive.sweep()
            else:
                alive.renew(session, lease)
        except StoreError:
            pass  # out of reach for now: the lease outlives three failed renewals
        first = False
        del alive
        if over.wait(lease / 4):
            return
