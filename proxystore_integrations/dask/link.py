"""What a Dask client knows of its store: the session, what is pinned for it, and who reaches it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from proxystore_core import Store
from proxystore_core.connectors.base import has_scattered_leases, leased
from proxystore_integrations import __version__
from proxystore_integrations.dask.graph import DaskOutgoing
from proxystore_integrations.link import Link
from proxystore_integrations.settings import Settings

__all__ = ["GATHER_FROM", "DaskLink"]

GATHER_FROM = 2_000_000
"""Size in bytes from which gathering through the store beats the scheduler (see benchmarks/results)."""

_INHERITED = ("threshold", "inputs", "results", "on_store_error", "lease")


class DaskLink(Link):
    """The store, the session in it, and whether the cluster's workers reach it.

    Args:
        settings: as loaded for the client.
        store: an open store to use instead of opening the one that the settings name.

    Attributes:
        by_value_keys: tasks whose results are to be gathered by value.
    """

    def __init__(self, settings: Settings, store: Store[Any] | None = None) -> None:
        super().__init__(settings, store, "dask")
        self.by_value_keys: set[Any] = set()
        self._known = False  # to the scheduler

    def announce(self, client: str) -> dict[str, Any]:
        """Open the store and a session in it.

        Args:
            client: Dask's id of the client.

        Returns:
            What the scheduler is told of the session.

        Raises:
            StoreError: the store cannot be opened or written to.
        """
        session = self.open()
        assert self._store is not None
        tells = leased(session.connector) and not has_scattered_leases(session.connector)
        # Where leases do not travel they do not tell a worker either.
        self.marker = "" if tells else self._store.put(b"", session=session.name)
        return {
            "version": __version__,
            "client": client,
            "session": session.name,
            "recipe": self.recipe,
            "marker": self.marker,
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

    def part(self) -> None:
        """The scheduler that knew the session is gone: values go through the engine until another does."""
        self._known = False
        self.by_value_keys.clear()

    @property
    def joined(self) -> bool:
        """Whether there is a session and the scheduler knows it."""
        return self._known and self.is_open

    @property
    def reached(self) -> bool:
        return self._known and super().reached

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
        lazy = self.settings.inputs == "proxy"
        outgoing = DaskOutgoing(self.sharing, self.policy, self.by_value, lazy=lazy)
        outgoing.engine = self.engine
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
