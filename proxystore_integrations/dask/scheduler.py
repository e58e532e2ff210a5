"""The scheduler's side: pins stored arguments while Dask knows their tasks.

What a decision is about has a room of its own: `sessions` (what is pinned, and when a session is over),
`orders` (who is asked to evict) and `gathering`. Here they are tied to what happens in Dask.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from proxystore_integrations.carriers import check_version
from proxystore_integrations.dask._task_spec import StoreTask, has_own_kind, stored_values
from proxystore_integrations.dask.gathering import Gathering
from proxystore_integrations.dask.orders import Orders
from proxystore_integrations.dask.page import add_page
from proxystore_integrations.dask.sessions import ClientSession, Sessions
from proxystore_integrations.dask.worker import StoreWorkerPlugin, portable_plugin

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["StoreSchedulerPlugin"]

_announced: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("announced", default=None)
_LAST_ORDERS = 5.0  # seconds for them when the scheduler closes


class StoreSchedulerPlugin(SchedulerPlugin):
    """Follows the tasks of all clients that use a store; registered by the first of them."""

    name = "proxystore"

    # Not a coroutine: no other client's plugin gets in before this one is known to the scheduler.
    def start(self, scheduler: Scheduler) -> None:  # type: ignore[override]
        self.scheduler = scheduler
        self.lacking: dict[str, str] = {}  # workers without this package, and why
        self.orders = Orders(scheduler, self.lacking)
        self.sessions = Sessions(scheduler, self.orders)
        self._joining = asyncio.Lock()
        self._update_graph = scheduler.stream_handlers["update-graph"]
        self._task_finished = scheduler.stream_handlers["task-finished"]
        scheduler.stream_handlers.update(
            {
                "update-graph": self._announced_graph,
                "task-finished": self._finished,
                "proxystore-unwanted": self.sessions.drop,
                "proxystore-lost": self.lost,
                "proxystore-leave": self.leave,
            }
        )
        scheduler.handlers.update(
            {
                "proxystore_join": self.join,
                "proxystore_gather": Gathering(scheduler, self.sessions).gather,
                "proxystore_sessions": self.probes,
                "proxystore_report": self.report,
            }
        )
        add_page(scheduler, self)

    async def before_close(self) -> None:
        self.sessions.end_orphans()
        await self.orders.carried_out(_LAST_ORDERS)

    # Clients and workers come and go.

    async def join(self, session: dict[str, Any]) -> dict[str, str]:
        """A client opens its session.

        Returns:
            For each worker that cannot reach the client's store, why not.

        Raises:
            VersionError: the client has another version of this package.
        """
        check_version(session.get("version", ""))
        joined = ClientSession(**session)
        async with self._joining:
            await self.scheduler.register_worker_plugin(
                None, portable_plugin(), name=StoreWorkerPlugin.name, idempotent=True
            )
        self.sessions.begin(joined)
        answers = await self.scheduler.broadcast(
            msg={"op": "proxystore_probe", **joined.terms},
            workers=[worker for worker in self.scheduler.workers if worker not in self.lacking],
            on_error="ignore",
        )
        elsewhere = {worker: reason for worker, reason in answers.items() if reason}
        joined.elsewhere.update(elsewhere)
        if joined.client not in self.scheduler.clients:  # it has gone meanwhile
            self.sessions.leave(joined.client)
        return {**elsewhere, **self.lacking}

    def leave(self, client: str) -> None:
        """A client is about to close; it is told whether tasks that go on without it still need its objects.

        This comes in the client's own stream, after all that it submitted.
        """
        state = self.scheduler.clients.get(client)
        if state is not None and self.sessions.of(client) is not None:
            self.scheduler.client_releases_keys(
                keys=[task.key for task in state.wants_what], client=client, stimulus_id="proxystore-leave"
            )
        needed = self.sessions.leave(client, ends=True)
        self.orders.tell(client, {"op": "proxystore-left", "needed": needed})

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        self.sessions.leave(client)  # unless it said goodbye

    async def probes(self) -> list[tuple[str, dict[str, Any]]]:
        """What a worker that joins late has to try: each client, and the arguments of the probe."""
        return [(one.client, one.terms) for one in self.sessions if one.here]

    async def report(self, worker: str, client: str | None, reason: str) -> None:
        """A worker cannot reach a client's store; with no client: any client's, it lacks this package."""
        if client is None:
            self.lacking[worker] = reason
        for session in self.sessions:
            if client is None or session.client == client:
                session.elsewhere.add(worker)
                self._tell_unreachable(session, worker, reason)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self.lacking.pop(worker, None)
        self.orders.gone(worker)
        for session in self.sessions:
            session.elsewhere.discard(worker)
            self._tell_unreachable(session, worker, "")

    def _tell_unreachable(self, session: ClientSession, worker: str, reason: str) -> None:
        message = {"op": "proxystore-unreachable", "worker": worker, "reason": reason}
        self.orders.tell(session.client, message)

    # Tasks come and go.

    async def _announced_graph(self, proxystore: dict[str, Any] | None = None, **message: Any) -> None:
        session = self.sessions.of(message["client"])
        if proxystore is None or session is None:
            await self._update_graph(**message)
            return
        token = _announced.set(proxystore)
        try:
            await self._update_graph(**message)
        finally:
            _announced.reset(token)
            session.graphs.update(proxystore["keys"])
            # What no task took (it was known already under its key, or the graph failed) goes at once.
            self.sessions.evict(session, (key for key in proxystore["keys"] if key not in session.pins))

    def update_graph(self, scheduler: Scheduler, *, client: str, tasks: Iterable[Any], **kwargs: Any) -> None:
        announced = _announced.get()
        session = self.sessions.of(client)
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
                    self.sessions.pin(session, value.reference.key, key)
            if has_own_kind(task.run_spec):
                continue
            wanted = tuple(dict.fromkeys(value.reference for value in values if not value.lazy))
            task.run_spec = StoreTask(task.run_spec, wanted, None if task.actor else results)
            if task.run_spec.results is not None:
                self.sessions.stores(session, key)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if (start == "memory" or finish == "memory") and key in self.sessions.results:
            self.sessions.release_result(key)
        if finish == "memory":
            stored = (kwargs.get("metadata") or {}).get("proxystore")
            if stored is not None:
                self.sessions.pin_result(key, *stored[:2])
        elif finish == "forgotten":
            self.sessions.forget(key)

    def _finished(self, key: Any, worker: str, **message: Any) -> None:
        """A worker has finished a task; perhaps nobody wants it any more, or another has finished it, too."""
        metadata = message.get("metadata") or {}
        if (kind := metadata.pop("proxystore_type", None)) is not None:  # not that of what stands for it
            message["type"], message["typename"] = kind
        self._task_finished(key=key, worker=worker, **message)
        stored = metadata.get("proxystore")
        if stored is None:
            return
        task = self.scheduler.tasks.get(key)
        if task is not None and task.state == "memory":
            self.sessions.pin_result(key, *stored[:2])
        else:
            self.sessions.drop(worker, stored)

    def lost(self, worker: str, key: Any) -> None:
        """The store has lost a task's result: it is computed again, as one that a worker has lost."""
        task = self.scheduler.tasks.get(key)
        if task is not None and task.state == "memory" and key in self.sessions.results:
            self.scheduler.transitions({key: "released"}, stimulus_id="proxystore-lost")

    def restart(self, scheduler: Scheduler) -> None:
        self.sessions.clear()
