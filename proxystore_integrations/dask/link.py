"""A client's tie to its store."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from proxystore_core import Session, Sharing, Store, StoreError
from proxystore_core.connectors.base import leased
from proxystore_integrations.dask.graph import DaskOutgoing
from proxystore_integrations.policy import Policy
from proxystore_integrations.settings import Settings
from proxystore_integrations.transfer import ByValue

__all__ = ["GATHER_FROM", "Link"]

GATHER_FROM = 2_000_000
"""Size in bytes from which gathering through the store beats the scheduler (see benchmarks/results)."""

_INHERITED = ("threshold", "inputs", "results", "on_store_error", "lease")


class Link:
    """The store, the session in it, and whether the cluster's workers reach it.

    Args:
        settings: as loaded for the client.
        store: an open store to use instead of opening the one that the settings name.

    Attributes:
        elsewhere: workers that do not reach the store, with the reason.
        by_value_keys: tasks whose results are to be gathered by value.
    """

    def __init__(self, settings: Settings, store: Store[Any] | None = None) -> None:
        self.settings = settings
        self.policy = Policy(settings.threshold)
        self.by_value = ByValue(settings.on_store_error)
        self.elsewhere: dict[str, str] = {}
        self.by_value_keys: set[Any] = set()
        self._known = False  # to the scheduler
        self._given = store
        self._store: Store[Any] | None = None
        self._sharing: Sharing | None = None
        self._session: Session | None = None
        self._evictions: ThreadPoolExecutor | None = None

    def open(self, client: str) -> dict[str, Any]:
        """Open the store and a session in it.

        Args:
            client: Dask's id of the client.

        Returns:
            What the scheduler is told of the session.

        Raises:
            StoreError: the store cannot be opened or written to.
        """
        store = self._given or Store.from_url(self.settings.store)
        session = Session(store.connector, lease=self.settings.lease)
        probe = "" if leased(store.connector) else store.put("probe", session=session.name)
        self._evictions = ThreadPoolExecutor(1, thread_name_prefix="proxystore-evict")
        self._session, self._store = session, store
        # A pin for each graph that the scheduler was told of and has not let go of yet.
        self._sharing = Sharing(store, session.name)
        return {
            "client": client,
            "session": session.name,
            "recipe": store.recipe,
            "probe": probe,
            "lease": session.lease,
            "settings": {name: getattr(self.settings, name) for name in _INHERITED},
        }

    def join(self, elsewhere: dict[str, str]) -> None:
        """The scheduler knows the session now.

        Args:
            elsewhere: workers that do not reach the store, with the reason.
        """
        self.elsewhere = elsewhere
        self._known = True

    def close(self, *, keep: bool = False) -> None:
        """End the session; with ``keep`` leave its objects to the scheduler. Idempotent."""
        session, store, evictions = self._session, self._store, self._evictions
        self._session = self._store = self._evictions = None
        if session is None or store is None or evictions is None:
            return
        evictions.shutdown(wait=True)
        try:
            if keep:
                session.release()
            else:
                session.end()
        except StoreError as error:
            self.by_value.warn(f"cannot remove what this session stored, its lease will: {error}")
        if store is not self._given:
            store.close()

    @property
    def joined(self) -> bool:
        """Whether there is a session and the scheduler knows it."""
        return self._known and self._session is not None

    @property
    def reached(self) -> bool:
        """Whether there is a session and every worker reaches its store; says so once if one does not."""
        if not self.joined:
            return False
        if self.elsewhere:
            worker, reason = next(iter(self.elsewhere.items()))
            self.by_value.warn(f"the worker {worker} does not reach the store: {reason}")
            return False
        return True

    @property
    def publishes_from(self) -> int | None:
        """Size in bytes from which gathered results come through the store; None for never."""
        return None if self.settings.results == "never" else max(self.settings.threshold, GATHER_FROM)

    @property
    def stores_results(self) -> bool:
        """Whether results are stored at the task's end."""
        return self.settings.results == "always" and self.reached

    def outgoing(self) -> DaskOutgoing:
        """A collector for the values of one call."""
        assert self._sharing is not None
        outgoing = DaskOutgoing(self._sharing, self.policy, self.by_value)
        outgoing.lazy = self.settings.inputs == "proxy"
        return outgoing

    def unreachable(self, worker: str, reason: str) -> None:
        """A worker came that does not reach the store; with an empty reason: it went."""
        if reason:
            self.elsewhere[worker] = reason
        else:
            self.elsewhere.pop(worker, None)

    def released(self, keys: Iterable[tuple[str, int]]) -> None:
        """The scheduler lets go of objects.

        Args:
            keys: each with the number of graphs with it that the scheduler has seen. While more of
                them are on their way, the object stays; the scheduler will let go of it again.
        """
        if self._sharing is not None:
            holdings = self._sharing.holdings
            self.evict_later([key for key, graphs in keys if holdings.release(key, graphs)])

    def withdraw(self, keys: Iterable[str]) -> None:
        """A graph with these objects was not sent."""
        if self._sharing is not None:
            self.evict_later(self._sharing.holdings.release_all(keys))

    def evict_later(self, keys: Iterable[str]) -> None:
        """Evict objects of this session in the background: freeing a large one takes milliseconds."""
        keys = list(keys)
        store, evictions = self._store, self._evictions
        if keys and store is not None and evictions is not None:
            evictions.submit(self._evict, store, keys)

    def _evict(self, store: Store[Any], keys: Iterable[str]) -> None:
        for key in keys:
            try:
                store.evict(key)
            except StoreError as error:
                self.by_value.warn(f"cannot evict an object: {error}")
