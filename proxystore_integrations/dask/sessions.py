"""The sessions of a cluster's clients, and which of their objects tasks still need."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from proxystore_core import Pins
from proxystore_integrations.dask.orders import Order, Orders

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["ClientSession", "Sessions"]


@dataclasses.dataclass(frozen=True)
class _Result:
    """Holds a task's stored result, as the task's key holds its arguments."""

    task: Any


@dataclasses.dataclass(eq=False)
class ClientSession:
    """What the scheduler knows of one client's session.

    Attributes:
        version: of this package, as the client has it.
        client: Dask's id of the client.
        session: the session's name in the store.
        recipe: how a worker opens the store.
        marker: key of an object by which a worker can tell whether it reaches a store that has no leases.
        lease: seconds.
        settings: what clients made inside tasks are to use, too.
        pins: the stored objects that tasks need.
        storing: tasks that put their results into the session, now or when they are computed again.
        graphs: for each stored object, how many graphs with it came since it was last let go of.
        elsewhere: workers that do not reach the store.
        freed: objects that nothing needs any more, until somebody is asked to evict them.
        here: whether the client is still connected.
    """

    version: str
    client: str
    session: str
    recipe: str
    marker: str
    lease: float
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    pins: Pins = dataclasses.field(default_factory=Pins)
    storing: set[Any] = dataclasses.field(default_factory=set)
    graphs: Counter[str] = dataclasses.field(default_factory=Counter)
    elsewhere: set[str] = dataclasses.field(default_factory=set)
    freed: list[str] = dataclasses.field(default_factory=list)
    here: bool = True

    @property
    def needed(self) -> bool:
        """Whether there are tasks that the session's objects are for."""
        return bool(self.pins or self.storing)

    @property
    def terms(self) -> dict[str, Any]:
        """What a worker needs in order to try whether it reaches the store."""
        return {name: getattr(self, name) for name in ("version", "recipe", "session", "marker", "settings")}


class Sessions:
    """The sessions of clients that are here, and of those that left tasks behind.

    Args:
        scheduler: whose clients they are of.
        orders: to those who evict objects and end sessions.
    """

    def __init__(self, scheduler: Scheduler, orders: Orders) -> None:
        self._loop = scheduler.loop
        self._orders = orders
        self._by_name: dict[str, ClientSession] = {}
        self._of_client: dict[str, ClientSession] = {}  # of those that are here
        self._holding: defaultdict[Any, set[ClientSession]] = defaultdict(set)  # by task or result
        self.results: set[Any] = set()  # tasks whose results are in a store

    def __iter__(self) -> Iterator[ClientSession]:
        return iter(list(self._by_name.values()))

    def of(self, client: str) -> ClientSession | None:
        """The session of a client that is here."""
        return self._of_client.get(client)

    def begin(self, session: ClientSession) -> None:
        """A client has opened a session."""
        self.leave(session.client)
        self._by_name[session.session] = self._of_client[session.client] = session

    def leave(self, client: str, ends: bool = False) -> bool:
        """A client is gone; returns whether tasks that go on without it need its objects.

        Args:
            client: Dask's id of it.
            ends: where nothing is needed the client itself ends its session.
        """
        session = self._of_client.pop(client, None)
        if session is None:
            return False
        session.here = False
        if not session.needed:
            self._over(session, ended=ends)
            return False
        self._keep(session)
        return True

    def pin(self, session: ClientSession, key: str, task: Any) -> None:
        """A task needs an object."""
        session.pins.pin(key, task)
        self._holding[task].add(session)

    def stores(self, session: ClientSession, task: Any) -> None:
        """A task puts its result into the session."""
        session.storing.add(task)
        self._holding[task].add(session)

    def pin_result(self, task: Any, name: str, key: str) -> None:
        """A task's result is an object of a session."""
        session = self._by_name.get(name)
        if session is not None:
            self.pin(session, key, _Result(task))
            self.results.add(task)

    def release_result(self, task: Any) -> None:
        """Dask has let go of a task's result."""
        self.results.discard(task)
        self._release(_Result(task))

    def forget(self, task: Any) -> None:
        """Dask has forgotten a task."""
        for session in self._holding.get(task, ()):
            session.storing.discard(task)
        self._release(task)

    def clear(self) -> None:
        """Dask has forgotten all tasks."""
        self.results.clear()
        self._holding.clear()
        for session in self:
            session.storing.clear()
            self.evict(session, session.pins.clear())
            self._end_if_over(session)

    def evict(self, session: ClientSession, keys: Iterable[str]) -> None:
        """Have those objects evicted that nothing needs, by the client or else by a worker."""
        waiting = bool(session.freed)
        session.freed.extend(keys)
        if session.freed and not waiting:
            self._loop.add_callback(self._evict_freed, session)

    def drop(self, worker: str, stored: Sequence[str]) -> None:
        """Nobody wants what a worker has stored.

        Args:
            worker: its address.
            stored: the session's name, the object's key and the store's recipe.
        """
        name, key, recipe = stored
        # A session that is over has begun again with this object, so that it is to be ended once more.
        order = Order("evict", recipe, name, [key]) if name in self._by_name else Order("end", recipe, name)
        self._orders.ask(order, first=worker)

    def end_orphans(self) -> None:
        """End the sessions of clients that are gone, whatever tasks they left behind."""
        for session in self:
            if not session.here:
                self._over(session)

    def _release(self, holder: Any) -> None:
        for session in self._holding.pop(holder, ()):
            self.evict(session, session.pins.release(holder))
            self._end_if_over(session)

    def _evict_freed(self, session: ClientSession) -> None:
        freed, session.freed = dict.fromkeys(session.freed), []
        keys = [(key, max(session.graphs.pop(key, 0), 1)) for key in freed if key not in session.pins]
        # A client that has taken its leave evicts no more, though its stream may still be open.
        order = {"op": "proxystore-evict", "keys": keys}
        if keys and not (session.here and self._orders.tell(session.client, order)):
            self._ask(session, "evict", keys=[key for key, _ in keys])

    def _end_if_over(self, session: ClientSession) -> None:
        if not session.here and not session.needed and session.session in self._by_name:
            self._over(session)

    def _over(self, session: ClientSession, ended: bool = False) -> None:
        del self._by_name[session.session]
        self._orders.tell_workers({"op": "proxystore-over", "session": session.session})
        if not ended:
            self._ask(session, "end")

    def _keep(self, session: ClientSession) -> None:
        """Have the lease renewed of a session whose client is gone and whose tasks are not."""
        if session.session in self._by_name:
            self._ask(session, "renew", lease=session.lease)
            self._loop.call_later(session.lease / 4, self._keep, session)

    def _ask(self, session: ClientSession, what: str, **more: Any) -> None:
        order = Order(what, session.recipe, session.session, **more)
        self._orders.ask(order, elsewhere=session.elsewhere)
