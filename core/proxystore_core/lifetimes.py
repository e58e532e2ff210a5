"""Sessions, objects that belong to one run and go with it; and lifetimes, which users give to objects.

A session's lease is one record in the store. Its owner renews it; when the owner is killed the
lease lapses, and the next session that starts anywhere (or ``sweep``) removes the objects.

A lifetime is one session in every store that it is used with:

    with ContextLifetime() as lifetime:
        proxy = store.proxy(data, lifetime=lifetime)
"""

from __future__ import annotations

import atexit
import contextlib
import datetime as dt
import numbers
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from proxystore_core import forks
from proxystore_core.connectors.base import LONGEST_LEASE, Connector, Key, Leased, leased, new_session
from proxystore_core.errors import ConfigurationError, StoreError
from proxystore_core.proxy import Proxy

if TYPE_CHECKING:
    from proxystore_core.store import Store

__all__ = ["ContextLifetime", "LeaseLifetime", "Lifetime", "Session", "StaticLifetime"]

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
        lease = _seconds(lease, "a lease")
        self.name = name or new_session(connector)
        self.lease = lease
        self.connector = connector
        self._owner = forks.process
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
        return self._owner == forks.process

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
        except Exception:  # a defect of the connector; who ends this thread ends the objects
            threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()]))
        first = False
        del alive
        if over.wait(lease / 4):
            return


class Lifetime:
    """Objects that go together, in one or several stores. Safe in threads; a forked child ends nothing.

    Where a connector keeps no leases, the objects are remembered here and evicted one by one.
    """

    def __init__(self) -> None:
        self._owner = forks.process
        self._lock = forks.lock()
        self._sessions: dict[str, Session] = {}  # by the store's recipe
        self._keys: list[tuple[Store[Any], Key]] = []
        self._over = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._sessions)} stores{', over' if self._over else ''})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def session_in(self, store: Store[Any]) -> str:
        """The session of the objects of this lifetime in a store.

        Raises:
            ConfigurationError: the lifetime is over.
        """
        with self._lock:
            if self._over:
                raise self._late()
            known = self._sessions.get(store.recipe)
        if known is None:
            made = self._begin(store)
            with self._lock:
                if not self._over:
                    known = self._sessions.setdefault(store.recipe, made)
            if known is not made:
                made.end()
            if known is None:
                raise self._late()
            if known is made:
                self._begun(made)
        return known.name

    def note(self, store: Store[Any], session: str, keys: Sequence[Key]) -> None:
        """Take in what was stored for this lifetime's session; nothing of it stays if that ended meanwhile.

        Raises:
            ConfigurationError: the lifetime is over.
        """
        keeper = leased(store.connector)
        with self._lock:
            if not self._over:
                self._keys += [(store, key) for key in keys if keeper is None]
                return
        if keeper is not None:
            keeper.end(session)
        else:
            for key in keys:
                store.evict(key)
        raise self._late()

    def add_key(self, store: Store[Any], *keys: Key) -> None:
        """Let objects that are stored already go with this lifetime.

        Raises:
            ConfigurationError: the lifetime is over.
        """
        with self._lock:
            if self._over:
                raise self._late()
            self._keys += [(store, key) for key in keys]

    def add_proxy(self, *proxies: Proxy[Any]) -> None:
        """Let the objects of proxies go with this lifetime.

        Raises:
            TypeError: not a proxy.
            ConfigurationError: as `add_key`, or a proxy does not come from a store.
        """
        from proxystore_core.registry import get_key, get_store

        for proxy, key in [(proxy, get_key(proxy)) for proxy in proxies]:  # all or, when one is none, nothing
            store = get_store(proxy)
            assert store is not None
            self.add_key(store, key)

    def done(self) -> bool:
        """Whether it is over."""
        return self._over

    def close(self) -> None:
        """End it: evict all its objects. Idempotent.

        Raises:
            StoreError: a store failed; the other stores' objects are evicted all the same.
        """
        if self._owner != forks.process:
            return
        with self._lock:
            self._over = True
            sessions, self._sessions = self._sessions, {}
            keys, self._keys = self._keys, []
        failed: StoreError | None = None
        for end in [session.end for session in sessions.values()]:
            try:
                end()
            except StoreError as error:
                failed = error
        for store, key in keys:
            try:
                store.evict(key)
            except StoreError as error:
                failed = error
        if failed is not None:
            raise failed

    def _begin(self, store: Store[Any]) -> Session:
        return Session(store.connector)

    def _begun(self, session: Session) -> None:
        """A session is one of this lifetime's from now on."""

    def _late(self) -> ConfigurationError:
        return ConfigurationError(f"this {type(self).__name__} is over: nothing can be added to it")


class ContextLifetime(Lifetime):
    """Objects that go at the end of a with-block. A killed process's go when its lease lapses."""


class LeaseLifetime(Lifetime):
    """Objects that go when a lease lapses, unless it is extended before.

    The backend itself evicts them where it expires keys (Redis); else this process does, or when it has
    been killed the next session that starts on the store.

    Args:
        expiry: seconds, a timedelta, or when (a datetime with a time zone).
        heartbeat: extend it all the while that this process lives.

    Raises:
        ConfigurationError: the expiry is past, or no time.
    """

    def __init__(self, expiry: float | dt.timedelta | dt.datetime, *, heartbeat: bool = False) -> None:
        super().__init__()
        self.heartbeat = heartbeat
        self._seconds = _seconds(expiry)
        self._end = time.monotonic() + self._seconds
        self._timer: threading.Timer | None = None
        if not heartbeat:
            self._set_timer()

    def extend(self, expiry: float | dt.timedelta | dt.datetime) -> None:
        """Let it lapse so much later than now.

        Raises:
            ConfigurationError: it is over, or the expiry is past, or no time.
            StoreError: a store failed.
        """
        if self._over:
            raise ConfigurationError("this LeaseLifetime is over: its objects are gone")
        self._seconds = _seconds(expiry)
        self._end = time.monotonic() + self._seconds
        for session in list(self._sessions.values()):
            keeper = leased(session.connector)
            if keeper is not None:
                keeper.renew(session.name, self._seconds)
        if not self.heartbeat:
            self._set_timer()

    def close(self) -> None:
        """End it now."""
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def _begin(self, store: Store[Any]) -> Session:
        session = Session(store.connector, lease=max(0.001, self._end - time.monotonic()))
        if not self.heartbeat:
            session.release()
        return session

    def _begun(self, session: Session) -> None:
        left, keeper = self._end - time.monotonic(), leased(session.connector)
        if left > session.lease and keeper is not None:  # extended while it began
            keeper.renew(session.name, left)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self._seconds, self._lapse)
        self._timer.daemon = True
        self._timer.start()

    def _lapse(self) -> None:
        with contextlib.suppress(StoreError):  # the next sweep will
            super().close()


class StaticLifetime(Lifetime):
    """Objects that go when this process exits. All instances are one, until that is closed."""

    _one: StaticLifetime | None = None

    def __new__(cls) -> Self:
        """The one of this process."""
        if cls._one is None or cls._one._over or cls._one._owner != forks.process:
            cls._one = super().__new__(cls)
            Lifetime.__init__(cls._one)
            atexit.register(cls._one._at_exit)
        assert isinstance(cls._one, cls)
        return cls._one

    def __init__(self) -> None:
        pass

    def _at_exit(self) -> None:
        with contextlib.suppress(StoreError):  # their lease will
            self.close()


def _seconds(expiry: float | dt.timedelta | dt.datetime, what: str = "a lifetime") -> float:
    if isinstance(expiry, dt.datetime):
        if expiry.tzinfo is None:
            raise ConfigurationError(f"{expiry!r} has no time zone: expected for example datetime.now(UTC)")
        expiry = expiry - dt.datetime.now(dt.UTC)
    seconds = expiry.total_seconds() if isinstance(expiry, dt.timedelta) else expiry
    if not isinstance(seconds, numbers.Real) or isinstance(seconds, bool) or not seconds > 0:
        raise ConfigurationError(f"{what} of {expiry!r} s is over at once: expected seconds, more than 0")
    return min(float(seconds), LONGEST_LEASE)
