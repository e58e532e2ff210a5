"""The scheduler's side: pins stored arguments while Dask knows their tasks, and orders evictions.

The scheduler's process needs neither the store's library nor its network: it asks the client that
stored an object, or, when that one is gone, any worker.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from proxystore_core import Pins
from proxystore_integrations.dask.nodes import StoreTask, stored_values
from proxystore_integrations.dask.page import add_page
from proxystore_integrations.dask.worker import StoreWorkerPlugin, portable_plugin

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["ClientSession", "StoreSchedulerPlugin"]

logger = logging.getLogger(__name__)
_announced: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("announced", default=None)


@dataclasses.dataclass(frozen=True)
class _Result:
    """Holds a task's stored result, as the task's key holds its arguments."""

    task: Any


@dataclasses.dataclass
class ClientSession:
    """What the scheduler knows of one client's session.

    Attributes:
        client: Dask's id of the client.
        session: the session's name in the store.
        recipe: how a worker opens the store.
        probe: key of an object by which a worker can tell whether it reaches a store that has no leases.
        lease: seconds.
        settings: what clients made inside tasks are to use, too.
        pins: the stored objects that tasks need.
        storing: tasks that put their results into the session, now or when they are computed again.
        graphs: for each stored object, how many graphs with it came since it was last let go of.
        here: whether the client is still connected.
        updating: graphs of the client that the scheduler is working on.
        updated: set while there are none.
    """

    client: str
    session: str
    recipe: str
    probe: str
    lease: float
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    pins: Pins = dataclasses.field(default_factory=Pins)
    storing: set[Any] = dataclasses.field(default_factory=set)
    graphs: Counter[str] = dataclasses.field(default_factory=Counter)
    here: bool = True
    updating: int = 0
    updated: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    @property
    def needed(self) -> bool:
        """Whether there are tasks that the session's objects are for."""
        return bool(self.pins or self.storing)


def _probe(session: ClientSession) -> dict[str, Any]:
    return {name: getattr(session, name) for name in ("recipe", "session", "probe", "settings")}


class StoreSchedulerPlugin(SchedulerPlugin):
    """Follows the tasks of all clients that use a store; registered by the first of them."""

    name = "proxystore"

    def __init__(self) -> None:
        self.sessions: dict[str, ClientSession] = {}
        self.lacking: dict[str, str] = {}  # workers without this package, and why
        self._orders: defaultdict[str, list[str]] = defaultdict(list)
        self._results: set[Any] = set()  # tasks whose results are in a store

    # Not a coroutine: no other client's plugin gets in before this one is known to the scheduler.
    def start(self, scheduler: Scheduler) -> None:  # type: ignore[override]
        self.scheduler = scheduler
        self._joining = asyncio.Lock()
        self._update_graph = scheduler.stream_handlers["update-graph"]
        scheduler.stream_handlers["update-graph"] = self._announced_graph
        self._task_finished = scheduler.stream_handlers["task-finished"]
        scheduler.stream_handlers["task-finished"] = self._finished
        scheduler.stream_handlers["proxystore-unwanted"] = self.unwanted
        scheduler.stream_handlers["proxystore-leave"] = self.leave
        add_page(scheduler, self)
        scheduler.handlers.update(
            {
                "proxystore_join": self.join,
                "proxystore_gather": self.gather,
                "proxystore_sessions": self.probes,
                "proxystore_report": self.report,
            }
        )

    # Clients and workers come and go.

    async def join(self, session: dict[str, Any]) -> dict[str, str]:
        """A client opens its session.

        Returns:
            For each worker that cannot reach the client's store, why not.
        """
        joined = ClientSession(**session)
        joined.updated.set()
        async with self._joining:
            await self.scheduler.register_worker_plugin(
                None, portable_plugin(), name=StoreWorkerPlugin.name, idempotent=True
            )
        if not self.sessions:
            self.scheduler.loop.call_later(joined.lease / 4, self._keep_orphans)
        self.sessions[joined.client] = joined
        answers = await self.scheduler.broadcast(
            msg={"op": "proxystore_probe", **_probe(joined)},
            workers=[worker for worker in self.scheduler.workers if worker not in self.lacking],
            on_error="ignore",
        )
        return {**{worker: reason for worker, reason in answers.items() if reason}, **self.lacking}

    async def leave(self, client: str) -> None:
        """A client is about to close; it is told whether tasks that go on without it still need its objects.

        This comes in the client's own stream, after all that it submitted.
        """
        scheduler, session = self.scheduler, self.sessions.get(client)
        needed = False
        if session is not None:
            await session.updated.wait()
            state = scheduler.clients.get(client)
            if state is not None:
                scheduler.client_releases_keys(
                    keys=[task.key for task in state.wants_what],
                    client=client,
                    stimulus_id="proxystore-leave",
                )
            session.here = False
            needed = session.needed
            if not needed:
                del self.sessions[client]
        self._tell(client, {"op": "proxystore-left", "needed": needed})

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        session = self.sessions.get(client)
        if session is not None:  # it did not say goodbye
            session.here = False
            self._end_if_over(session)

    async def probes(self) -> list[tuple[str, dict[str, Any]]]:
        """What a worker that joins late has to try: each client, and the arguments of the probe."""
        return [(one.client, _probe(one)) for one in self.sessions.values() if one.here]

    async def report(self, worker: str, client: str | None, reason: str) -> None:
        """A worker cannot reach a client's store; with no client: any client's, it lacks this package."""
        if client is None:
            self.lacking[worker] = reason
        for told in self.sessions if client is None else [client]:
            self._tell_unreachable(told, worker, reason)

    def _tell_unreachable(self, client: str, worker: str, reason: str) -> None:
        self._tell(client, {"op": "proxystore-unreachable", "worker": worker, "reason": reason})

    def _tell(self, client: str, message: dict[str, Any]) -> bool:
        """Send a message to a client; returns whether it is there."""
        comm = self.scheduler.client_comms.get(client)
        if comm is None or comm.closed():
            return False
        comm.send(message)
        return True

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self.lacking.pop(worker, None)
        for client in self.sessions:
            self._tell_unreachable(client, worker, "")

    # Tasks come and go.

    async def _announced_graph(self, proxystore: dict[str, Any] | None = None, **message: Any) -> None:
        session = self.sessions.get(message["client"])
        if proxystore is None or session is None:
            await self._update_graph(**message)
            return
        token = _announced.set(proxystore)
        session.updating += 1
        session.updated.clear()
        try:
            await self._update_graph(**message)
        finally:
            session.updating -= 1
            if not session.updating:
                session.updated.set()
            _announced.reset(token)
            session.graphs.update(proxystore["keys"])
            # What no task took (it was known already under its key, or the graph failed) goes at once.
            self._evict(session, (key for key in proxystore["keys"] if key not in session.pins))

    def update_graph(self, scheduler: Scheduler, *, client: str, tasks: Iterable[Any], **kwargs: Any) -> None:
        announced = _announced.get()
        session = self.sessions.get(client)
        if announced is None or session is None:
            return
        announced_keys = set(announced["keys"])
        results = (session.recipe, session.session, announced["results"]) if announced["results"] else None
        for key in tasks:
            task = scheduler.tasks.get(key)
            if task is None or task.run_spec is None or type(task.run_spec) is StoreTask:
                continue
            values = list(stored_values(task.run_spec)) if announced_keys else []
            if not values and results is None:
                continue
            for value in values:
                if value.reference.key in announced_keys:
                    session.pins.pin(value.reference.key, key)
            wanted = tuple(dict.fromkeys(value.reference for value in values if not value.lazy))
            task.run_spec = StoreTask(task.run_spec, wanted, None if task.actor else results)
            if task.run_spec.results is not None:
                session.storing.add(key)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if key in self._results and (start == "memory" or finish == "memory"):
            self._results.discard(key)
            self._release(_Result(key))
        if finish == "memory":
            stored = (kwargs.get("metadata") or {}).get("proxystore")
            if stored is not None:
                self._pin_result(key, *stored[:2])
        elif finish == "forgotten":
            self._release(key, forgotten=True)

    def _pin_result(self, task: Any, name: str, stored_key: str) -> None:
        for session in self.sessions.values():
            if session.session == name:
                session.pins.pin(stored_key, _Result(task))
                self._results.add(task)

    def _finished(self, key: Any, worker: str, **message: Any) -> None:
        """A worker has finished a task; perhaps nobody wants it any more, or another has finished it, too."""
        self._task_finished(key=key, worker=worker, **message)
        stored = (message.get("metadata") or {}).get("proxystore")
        if stored is None:
            return
        task = self.scheduler.tasks.get(key)
        if task is not None and task.state == "memory":
            self._pin_result(key, *stored[:2])
        else:
            self.unwanted(worker, stored)

    def unwanted(self, worker: str, stored: Sequence[str]) -> None:
        """A worker has stored the result of a task that was let go of while it ran.

        Args:
            worker: its address.
            stored: the session's name, the object's key and the store's recipe.
        """
        name, stored_key, recipe = stored
        order: dict[str, Any] = {"op": "proxystore-evict", "recipe": recipe, "keys": [stored_key]}
        if all(session.session != name for session in self.sessions.values()):
            order = {"op": "proxystore-end", "recipe": recipe, "session": name}  # once more
        if (comm := self.scheduler.stream_comms.get(worker)) is not None:
            comm.send(order)

    def _release(self, holder: Any, forgotten: bool = False) -> None:
        for session in list(self.sessions.values()):
            freed = session.pins.release(holder)
            if forgotten:
                session.storing.discard(holder)
            if freed:
                self._evict(session, freed)
            if not session.here:
                self._end_if_over(session)

    def restart(self, scheduler: Scheduler) -> None:
        for session in list(self.sessions.values()):
            session.storing.clear()
            self._evict(session, session.pins.clear())
            self._end_if_over(session)
        self._results.clear()

    # Eviction is an order that the client carries out, else a worker.

    def _evict(self, session: ClientSession, keys: Iterable[str]) -> None:
        orders = self._orders[session.client]
        orders.extend(keys)
        if orders:
            self.scheduler.loop.add_callback(functools.partial(self._flush, session))

    def _flush(self, session: ClientSession) -> None:
        orders = dict.fromkeys(self._orders.pop(session.client, ()))
        keys = [(key, max(session.graphs.pop(key, 0), 1)) for key in orders if key not in session.pins]
        # A client that has taken its leave evicts no more, though its stream may still be open.
        order = {"op": "proxystore-evict", "keys": keys}
        if keys and not (session.here and self._tell(session.client, order)):
            self._ask_worker(
                {"op": "proxystore-evict", "recipe": session.recipe, "keys": [key for key, _ in keys]}
            )

    def _end_if_over(self, session: ClientSession) -> None:
        if not session.here and not session.needed and self.sessions.pop(session.client, None) is not None:
            self._ask_worker({"op": "proxystore-end", "recipe": session.recipe, "session": session.session})

    def _keep_orphans(self) -> None:
        """Have the leases renewed of sessions whose client is gone and whose tasks are not."""
        orphans = [one for one in self.sessions.values() if not one.here]
        for one in orphans:
            self._ask_worker(
                {"op": "proxystore-renew", "recipe": one.recipe, "session": one.session, "lease": one.lease}
            )
        if self.sessions:
            shortest = min(one.lease for one in self.sessions.values())
            self.scheduler.loop.call_later(shortest / 4, self._keep_orphans)

    def _ask_worker(self, message: dict[str, Any]) -> None:
        for worker, comm in self.scheduler.stream_comms.items():
            if not comm.closed() and worker not in self.lacking:
                comm.send(message)
                return

    # Gathering.

    async def gather(
        self, keys: Sequence[Any], client: str, threshold: int, by_value: Sequence[Any] = ()
    ) -> dict[str, Any]:
        """Dask's gather, with large results published in the client's store by the workers that hold them.

        Args:
            keys: of the results.
            client: who asks.
            threshold: size in bytes from which a result is published.
            by_value: keys that are not.

        Returns:
            What Dask's gather returns, plus ``references``: the published results, and ``stored``: those that
            are in the client's store anyway.
        """
        session = self.sessions.get(client)
        holders: defaultdict[str, list[Any]] = defaultdict(list)
        for key in keys if session is not None else ():
            task = self.scheduler.tasks.get(key)
            if task is None or not task.who_has or key in by_value:
                continue
            if task.nbytes >= threshold or key in self._results:
                holders[next(iter(task.who_has)).address].append(key)
        if not holders or session is None:
            return dict[str, Any](await self.scheduler.gather(keys=keys))  # type: ignore[arg-type]
        references: dict[Any, Any] = {}
        stored: dict[Any, Any] = {}
        for worker, held in holders.items():
            try:
                published, kept = await self.scheduler.rpc(worker).proxystore_publish(
                    keys=held, recipe=session.recipe, session=session.session
                )
            except Exception as error:  # the worker is dying: Dask's own gather knows what to do
                logger.info("worker %s did not publish its results: %s", worker, error)
            else:
                references.update(published)
                stored.update(kept)
        rest = [key for key in keys if key not in references and key not in stored]
        response = await self.scheduler.gather(keys=rest) if rest else {"status": "OK", "data": {}}
        return {"references": references, "stored": stored, **response}  # type: ignore[dict-item]
