"""The worker's side: publishes results that a client gathers, and carries out evictions."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cloudpickle
import distributed
from dask.utils import typename
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.pickle import dumps

from proxystore_core import Reference, StoreError, forks, store_for
from proxystore_core.connectors.base import Leased, leased
from proxystore_integrations.carriers import check_version
from proxystore_integrations.dask._task_spec import StoreTask
from proxystore_integrations.dask.orders import Order, carry_out
from proxystore_integrations.dask.reading import Loading, gather
from proxystore_integrations.dask.results import StoredResult, over, put, unclaimed
from proxystore_integrations.settings import Settings

if TYPE_CHECKING:
    from distributed import Worker

__all__ = ["StoreWorkerPlugin", "pack", "portable_plugin", "unpack"]

logger = logging.getLogger(__name__)
_ELSEWHERE = (
    "{recipe} is another store on {node}. Use one that all hosts reach, for example "
    'store = "file:///shared/directory" in proxystore.toml'
)
_REMEMBERED = 10_000  # sessions that are over

_NOT_RUN = ("memory", "released", "forgotten", "fetch", "missing", "error")
"""States of a task that is not run any more."""


def pack(reference: Reference) -> tuple[Any, ...]:
    """A reference as plain values for Dask's messages."""
    return reference.key, reference.recipe, reference.size, reference.kind


def unpack(packed: Sequence[Any]) -> Reference:
    """The inverse of `pack`."""
    return Reference(*packed)


class StoreWorkerPlugin(WorkerPlugin):
    """Gives a worker the abilities that the scheduler's plugin asks for."""

    name = "proxystore"

    async def setup(self, worker: Worker) -> None:
        self.worker = worker
        self.inherited: dict[str, tuple[str, dict[str, Any]]] = {}  # by session, the last to join at the end
        self._lock = forks.lock()
        self._update_data = worker.handlers["update_data"]
        self._get_data = worker.handlers["get_data"]
        self._dasks_get_client = worker._get_client
        worker._get_client = self.get_client  # type: ignore[method-assign]
        distributed.Client._gather = gather  # type: ignore[method-assign]
        worker.handlers.update(
            {
                "proxystore_probe": self.probe,
                "proxystore_publish": self.publish,
                "proxystore_order": self.order,
                "update_data": self.update_data,
                "get_data": self.get_data,
            }
        )
        worker.stream_handlers["proxystore-over"] = self.over
        for client, arguments in await worker.scheduler.proxystore_sessions():
            reason = await self.probe(**arguments)
            if reason:
                await worker.scheduler.proxystore_report(
                    worker=worker.contact_address, client=client, reason=reason
                )

    def teardown(self, worker: Worker) -> None:
        worker.handlers["update_data"] = self._update_data
        worker.handlers["get_data"] = self._get_data
        worker._get_client = self._dasks_get_client  # type: ignore[method-assign]

    def get_client(self, timeout: float | None = None) -> Any:
        """The client that tasks of this worker use, with the store and settings of the last to join."""
        from proxystore_integrations.dask.client import equip
        from proxystore_integrations.dask.link import DaskLink
        from proxystore_integrations.dask.mixin import StoreMixin

        client = self._dasks_get_client(timeout)
        # No lock over what waits for the event loop: a coroutine may ask for the client, too.
        with self._lock:
            made_here = client in self.worker._initialized_clients  # else it is the user's own
            inherited = list(self.inherited.values())
            if not inherited or not made_here or isinstance(client, StoreMixin):
                return client
            recipe, settings = inherited[-1]
            try:
                link = DaskLink(Settings(**settings), store_for(recipe))
            except StoreError as error:
                logger.warning("a client inside a task works without a store: %s", error)
                return client
            equip(client, link)
        joining = client.sync(client._join)  # type: ignore[attr-defined]
        if joining is not None:
            self._joining = asyncio.ensure_future(joining)  # until then it passes by value
        return client

    async def probe(
        self,
        recipe: str,
        session: str,
        marker: str,
        settings: dict[str, Any] | None = None,
        version: str = "",
    ) -> str:
        """Why this worker does not reach a client's store; empty when it does.

        Args:
            recipe: the store.
            session: the client's session, whose lease is there.
            marker: key of an object that is there, where a store has no leases.
            settings: of the client, for those made inside tasks.
            version: of this package, as the client has it.
        """

        def there() -> bool:
            check_version(version)
            store = store_for(recipe)
            if store.secret is not None:
                store.secret.check()
            return store.exists(marker) if marker else session in _leased(recipe).sessions()

        try:
            found = await asyncio.to_thread(there)
        except StoreError as error:
            return str(error)
        if found and settings and session not in over:  # the client may have gone again
            self.inherited[session] = recipe, settings
        return "" if found else _ELSEWHERE.format(recipe=recipe, node=socket.gethostname())

    async def publish(
        self, keys: Sequence[Any], recipe: str, session: str
    ) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Put results of this worker's memory into a client's store.

        Returns:
            The packed reference of each that could be stored, and of each that is in this store anyway; the
            others go Dask's way.
        """
        published, stored = {}, {}
        for key in keys:
            if key not in self.worker.data:
                continue
            value = self.worker.data[key]
            if type(value) is StoredResult:
                if value.reference.recipe == recipe:
                    stored[key] = pack(value.reference)
                continue
            try:
                reference = await asyncio.to_thread(put, value, recipe, session, key, "gathered")
            except StoreError as error:
                logger.warning("result %r is gathered through the scheduler: %s", key, error)
            else:
                if reference is not None:
                    published[key] = pack(reference)
        return published, stored

    async def update_data(self, data: dict[Any, Any], **kwargs: Any) -> Any:
        """Dask's scatter, with stored values loaded first: a worker's memory holds the values themselves."""
        stored = {key: value for key, value in data.items() if type(value) is StoredResult}
        if stored:
            loaded = await asyncio.to_thread(lambda: [value.reference() for value in stored.values()])
            data = {**data, **dict(zip(stored, loaded, strict=True))}
        return self._update_data(data=data, **kwargs)

    async def get_data(self, comm: Any, who: str | None = None, **kwargs: Any) -> Any:
        """Dask's way of fetching results; who is no worker (a client without a store, too) gets values."""
        if who is None:
            comm = Loading(comm, self.worker)
        return await self._get_data(comm, who=who, **kwargs)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        task = self.worker.state.tasks.get(key)
        # ``finish`` is what was asked for: a running task is not released, a cancelled one not in memory.
        state = "forgotten" if task is None else task.state
        if key in unclaimed and state in _NOT_RUN:
            dropped = unclaimed.pop(key)
            if state != "memory":  # it was cancelled while it ran
                self.worker.batched_send({"op": "proxystore-unwanted", "stored": _metadata(dropped)})
        if task is None:
            return
        if finish in ("ready", "constrained", "executing"):
            if (
                task.run_spec is not None
                and type(task.run_spec) is not StoreTask
                and any(dep.type is StoredResult for dep in task.dependencies)
            ):
                task.run_spec = StoreTask(task.run_spec)
        elif finish == state == "memory" and task.type is StoredResult:
            result = self.worker.data[key]
            assert type(result) is StoredResult
            task.metadata["proxystore"] = _metadata(result)
            if result.kind is not None:
                task.metadata["proxystore_type"] = _pickled(result.kind), typename(result.kind)

    # Orders of the scheduler.

    def over(self, session: str) -> None:
        """A session has ended, or ends just now: nothing may be put into it any more."""
        self.inherited.pop(session, None)
        over[session] = None
        if len(over) > _REMEMBERED:
            del over[next(iter(over))]

    async def order(self, order: Sequence[Any]) -> str:
        """Carry out an order; returns why that failed, if it did."""
        try:
            await asyncio.to_thread(carry_out, Order(*order))
        except StoreError as error:
            return str(error)
        return ""


def portable_plugin() -> bytes:
    """The plugin, pickled so that a worker without this package loads it, too, and says that it lacks it."""

    def load() -> WorkerPlugin:
        try:
            from proxystore_integrations.dask.worker import StoreWorkerPlugin
        except Exception as error:  # whatever is missing or too old there
            reason = f"it could not load proxystore_integrations ({type(error).__name__}: {error})"
        else:
            return StoreWorkerPlugin()
        from distributed.diagnostics.plugin import WorkerPlugin

        class Lacking(WorkerPlugin):
            name = "proxystore"

            async def setup(self, worker: Any) -> None:
                await worker.scheduler.proxystore_report(
                    worker=worker.contact_address, client=None, reason=reason
                )

        return Lacking()

    class Portable:
        def __reduce__(self) -> tuple[Any, tuple[()]]:
            return load, ()

    return bytes(cloudpickle.dumps(Portable()))


def _pickled(kind: type) -> bytes:
    try:
        return bytes(dumps(kind))
    except Exception:  # its name, as Dask does
        return bytes(dumps(typename(kind)))


def _metadata(result: StoredResult) -> tuple[str, str, str]:
    return result.session, result.reference.key, result.reference.recipe


def _leased(recipe: str) -> Leased:
    keeper = leased(store_for(recipe).connector)
    assert keeper is not None
    return keeper
