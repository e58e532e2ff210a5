"""A client's link to its store: the session, what is pinned for it, and what it evicts."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from queue import Empty, SimpleQueue
from typing import Any

from proxystore_core import Session, Sharing, Store, StoreError
from proxystore_core.connectors.base import leased, place_of
from proxystore_core.pickling import Pickling
from proxystore_core.secret import Secret
from proxystore_integrations import ledger
from proxystore_integrations.policy import Policy
from proxystore_integrations.settings import Settings, format_size
from proxystore_integrations.transfer import ByValue

__all__ = ["Link", "open_store"]

IDLE = 0.1
"""Seconds."""


class Link:
    """The store, and a session in it, of one client of an engine.

    Args:
        settings: as loaded for the client.
        store: an open store to use instead of opening the one that the settings name; its owner closes it.
        engine: whose client it is.

    Attributes:
        elsewhere: workers that do not reach the store, with the reason; an empty one has been told already.
        marker: key of an object by which workers tell that they reach the store, or that the session is not
            over; it is no value of anybody's. Empty where none is needed.
    """

    pickling = Pickling()
    """As the engine would."""

    def __init__(self, settings: Settings, store: Store[Any] | None = None, engine: str = "") -> None:
        self._given = store
        url = settings.store if store is None else store.connector.url
        self.settings = settings = settings.for_engine(engine, url)
        self.engine = engine
        self.policy = Policy(settings.threshold)
        self.by_value = ByValue(settings.on_store_error)
        self.elsewhere: dict[str, str] = {}
        self.marker = ""
        self._tried = False
        self._store: Store[Any] | None = None
        self._sharing: Sharing | None = None
        self._session: Session | None = None
        self._evictions: Evictions | None = None

    def __repr__(self) -> str:
        state = self.recipe if self.is_open else "no session"
        return f"{type(self).__name__}({state}, threshold={format_size(self.settings.threshold)})"

    @staticmethod
    def settled(
        engine: tuple[str, Mapping[str, Any]] | None = None, *, store: Any = None, **settings: Any
    ) -> tuple[Settings, Store[Any] | None]:
        """Settings from everywhere, and the store if one is given open.

        Args:
            engine: as for `Settings.load`.
            store: URL of the store, an open store, or None.
            **settings: as for `Settings.load`.

        Raises:
            ConfigurationError: a setting is unknown or wrong.
        """
        given = store if isinstance(store, Store) else None
        return Settings.load(engine, store=None if given else store, **settings), given

    def open(self) -> Session:
        """Open the store and a session in it.

        Raises:
            StoreError: the store cannot be opened or written to.
        """
        self._tried = True
        store = self._given or open_store(self.settings)
        session = Session(store.connector, lease=self.settings.lease)
        self._evictions = Evictions(store, self.by_value, weakref.WeakMethod(self.idle))
        self._session, self._store = session, store
        if ledger.book is not None:
            ledger.book.session(self.engine, session.name, store.recipe, self.settings.threshold)
        # A pin for each call that the engine was told of and has not let go of yet.
        self._sharing = Sharing(store, session.name, pickling=self.pickling)
        return session

    def close(self, *, keep: bool = False) -> None:
        """End the session; with ``keep`` leave its objects to who else renews its lease. Idempotent."""
        session, store, evictions = self._session, self._store, self._evictions
        self._session = self._store = self._evictions = None
        if session is None or store is None or evictions is None:
            return
        self.sharing.close(None if keep else session)
        evictions.close()
        try:
            if keep:
                session.release()
            else:
                if self.marker and leased(store.connector) is None:
                    store.evict(self.marker)
                session.end()
        except StoreError as error:
            problem = f"cannot remove what this session stored, its lease will: {error}"
            self.by_value.warn(problem, instead=False)
        if store is not self._given:
            store.close()

    @property
    def is_open(self) -> bool:
        """Whether there is a session, and this process is its owner."""
        return self._session is not None and self._session.owned

    @property
    def was_opened(self) -> bool:
        """Whether it is open, has been, or could not be opened."""
        return self._tried

    @property
    def url(self) -> str:
        """The store's, open or not."""
        return self.settings.store if self._given is None else self._given.connector.url

    @property
    def place(self) -> str:
        """Where a worker has to be to reach the store, while it is open; empty when anywhere will do."""
        assert self._store is not None
        return place_of(self._store.connector)

    @property
    def session(self) -> str:
        """Name of the session, while it is open."""
        assert self._session is not None
        return self._session.name

    @property
    def recipe(self) -> str:
        """How other processes open the store, while it is open."""
        assert self._store is not None
        return self._store.recipe

    @property
    def sharing(self) -> Sharing:
        """Where arguments are stored, while it is open."""
        assert self._sharing is not None
        return self._sharing

    @property
    def reached(self) -> bool:
        """Whether there is a session and every worker reaches its store; says so once if one does not."""
        session = self._session
        if session is None or not session.owned:  # not `is_open`: every call asks this
            return False
        if self.elsewhere:
            worker, reason = next(iter(self.elsewhere.items()))
            if reason:
                self.by_value.warn(f"the worker {worker} does not reach the store: {reason}")
            return False
        return True

    def withdraw(self, keys: Iterable[str]) -> None:
        """Take one pin from each of these objects; those that have none left are evicted."""
        if self._sharing is not None:
            self.evict_later(self._sharing.holdings.release_all(keys))

    def idle(self) -> None:
        """Nothing has been evicted or let go of for a moment; called in the background."""

    def evict_later(self, keys: Iterable[str]) -> None:
        """Evict objects of this session in the background: freeing a large one takes milliseconds.

        Safe in a destructor. Nothing happens in a forked child, whose parent owns the objects.
        """
        if self._evictions is not None:
            for key in keys:
                self._evictions.order(key)


def open_store(settings: Settings) -> Store[Any]:
    """The store that settings name, with the secret that they name.

    Raises:
        StoreError: it cannot be opened.
    """
    secret = Secret.of(settings.secret, settings.origin("secret")) if settings.secret else None
    return Store.from_url(settings.store, secret=secret, allow_pickle=settings.allow_pickle)


class Evictions:
    """Evicts in the background, in the order asked for. Every order is safe in a destructor.

    Args:
        store: the objects' store.
        by_value: told of what cannot be evicted.
        idle: called `IDLE` seconds after the last order, unless its object is gone.
    """

    def __init__(
        self, store: Store[Any], by_value: ByValue, idle: weakref.WeakMethod[Callable[[], None]]
    ) -> None:
        # Unlike Queue.put, SimpleQueue.put may be interrupted by a destructor that puts as well.
        self._orders: SimpleQueue[tuple[str, int] | Session | None] = SimpleQueue()
        self._owner = os.getpid()
        self._thread = threading.Thread(
            target=_carry_out,
            args=(self._orders, store, by_value, idle),
            name="proxystore-evict",
            daemon=True,
        )
        self._thread.start()

    def order(self, key: str) -> None:
        """Evict an object."""
        self._put((key, 0))

    def wake(self) -> None:
        """Evict nothing, and be idle later."""
        self._put(("", 0))

    def hold(self, key: str) -> None:
        """Count one more holder of an object."""
        self._put((key, 1))

    def drop(self, key: str) -> None:
        """Count one holder less, and evict with the last."""
        self._put((key, -1))

    def order_end(self, session: Session) -> None:
        """End a session, and stop."""
        self._put(session)

    def close(self) -> None:
        """Carry out all orders, and stop. Idempotent."""
        self._put(None)
        if self._owner == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join()

    def _put(self, order: tuple[str, int] | Session | None) -> None:
        if self._owner == os.getpid():
            self._orders.put(order)


def _carry_out(
    orders: SimpleQueue[tuple[str, int] | Session | None],
    store: Store[Any],
    by_value: ByValue,
    idle: weakref.WeakMethod[Callable[[], None]],
) -> None:
    holders: Counter[str] = Counter()
    patience: float | None = None
    while True:
        try:
            order = orders.get(timeout=patience)
        except Empty:
            patience = None
            if (call := idle()) is not None:
                call()
            del call
            continue
        patience = IDLE
        if order is None:
            return
        try:
            if isinstance(order, Session):
                order.end()
                return
            key, change = order
            holders[key] += change
            if holders[key] <= 0:
                del holders[key]
                if key:
                    store.evict(key)
        except StoreError as error:
            by_value.warn(f"cannot evict an object: {error}", instead=False)
