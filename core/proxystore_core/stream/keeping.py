"""How long an item's object stays in its store when nobody consumes it.

A producer may die after it has stored an object and before the broker has the event; a broker drops events
that grow old, and those that nobody is there for. Nobody knows such an object any more, and the store cannot
tell it from one whose event still waits at the broker. What it can tell is its age: an object stays as long
as the broker keeps an event, and goes then.

So objects belong to sessions of streams, one for all that is sent to a store within an eighth of that time,
by whomever. Its name says when it lapses: so long after the last of them, whoever still lives. Connectors
that keep a record of it all the same are asked to once a minute at most. Redis drops what has lapsed by
itself; elsewhere any later session does, or ``proxystore gc``.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from proxystore_core.connectors.base import LONGEST_LEASE, USER_SESSION, Leased, leased, session_until
from proxystore_core.errors import ConfigurationError, StoreError
from proxystore_core.store import Store

__all__ = ["WEEK", "Keeping"]

WEEK = 7 * 24 * 3600.0  # seconds that Kafka keeps messages by default, and our Redis streams
_PERIODS = 8  # sessions at a time
_AGAIN = 60.0  # seconds until a lease is renewed for what is sent later: its server may have started anew


class Keeping:
    """The sessions of what one producer sends. Safe in threads, and after a fork.

    Args:
        seconds: that an object stays at least; `math.inf`, or more than a lease can have, for no end.

    Raises:
        ConfigurationError: that is no time.
    """

    def __init__(self, seconds: float) -> None:
        if type(seconds) not in (int, float) or not seconds > 0:
            raise ConfigurationError(
                f"keep is {seconds!r}: expected seconds, more than 0; math.inf for no end"
            )
        self.seconds = float(seconds)
        self._is_endless = self.seconds * (1 + 1 / _PERIODS) > LONGEST_LEASE
        self._known: dict[str, tuple[str, float]] = {}  # by recipe: the session, and until when it is good

    def session_in(self, store: Store[Any]) -> str:
        """The session of what is stored now, with a lease; the store's own if that has one, or none can be.

        Raises:
            StoreError: the store failed.
        """
        keeper = leased(store.connector)
        if store.session != USER_SESSION or keeper is None or self._is_endless:
            return store.session
        now = time.time()
        session, good = self._known.get(store.recipe, ("", 0.0))
        if now < good:
            return session
        period = self.seconds / _PERIODS
        over = (now // period + 1) * period
        name = session_until("stream", over + self.seconds)
        keeper.renew(name, over + self.seconds - now)
        self._known[store.recipe] = name, min(over, now + _AGAIN)
        if name != session:
            threading.Thread(target=_sweep, args=(keeper,), name="proxystore-lease", daemon=True).start()
        return name


def _sweep(keeper: Leased) -> None:
    with contextlib.suppress(StoreError):  # the next session will
        keeper.sweep()
