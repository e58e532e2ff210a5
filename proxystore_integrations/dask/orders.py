"""What the scheduler tells clients and workers, and what it has one of them do in a store.

The scheduler's process needs neither the store's library nor its network: it asks the client that stored an
object, or, when that one is gone, a worker. Only where no worker is left it tries by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from proxystore_core import store_for
from proxystore_core.connectors.base import extend_lease, has_scattered_leases, leased

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["Order", "Orders", "carry_out"]

logger = logging.getLogger(__name__)
_PATIENCE = 30.0  # seconds for one worker to carry out an order
_TRIES = 3  # workers that are asked


class Order(NamedTuple):
    """Something to do in a store.

    Attributes:
        what: ``"evict"`` the keys, ``"end"`` the session, or ``"renew"`` its lease.
        recipe: of the store.
        session: its name.
        keys: of objects.
        lease: seconds.
    """

    what: str
    recipe: str
    session: str
    keys: Collection[str] = ()
    lease: float = 0.0


def carry_out(order: Order) -> None:
    """Do what an order says; again is success.

    Raises:
        StoreError: the store cannot be opened or does not answer.
    """
    store = store_for(order.recipe)
    for key in order.keys:
        store.evict(key)
    keeper = leased(store.connector)
    if keeper is None:
        return
    if order.what == "end":
        keeper.end(order.session)
    elif order.what == "renew" and has_scattered_leases(store.connector) and not hasattr(keeper, "extend"):
        keeper.renew(order.session, order.lease)  # what is seen here says nothing
    elif order.what == "renew":
        # An order that came late does not bring back a session that has ended since, or ends just now.
        extend_lease(keeper, order.session, order.lease)


class Orders:
    """The scheduler's orders. Those that workers carry out go one after another, each until it is done.

    Side by side, a renewal might overtake the end of its session, and bring the lease back.

    Args:
        scheduler: whose.
        lacking: workers that cannot carry out any.
    """

    def __init__(self, scheduler: Scheduler, lacking: Collection[str]) -> None:
        self._scheduler = scheduler
        self._lacking = lacking
        self._waiting: deque[tuple[Order, str, Collection[str]]] = deque()
        self._carrying: asyncio.Task[None] | None = None
        self._asked: tuple[str, asyncio.Task[str]] | None = None

    def tell(self, client: str, message: dict[str, Any]) -> bool:
        """Send a message to a client; returns whether it is there."""
        comm = self._scheduler.client_comms.get(client)
        if comm is None or comm.closed():
            return False
        comm.send(message)
        return True

    def tell_workers(self, message: dict[str, Any]) -> None:
        """Send a message to all workers."""
        for worker in self._able():
            self._scheduler.stream_comms[worker].send(message)

    def ask(self, order: Order, *, first: str = "", elsewhere: Collection[str] = ()) -> None:
        """Have an order carried out by a worker.

        Args:
            order: what to do.
            first: the worker that is asked before all others.
            elsewhere: workers that do not reach the store.
        """
        self._waiting.append((order, first, elsewhere))
        if self._carrying is None or self._carrying.done():
            self._carrying = asyncio.ensure_future(self._carry_out())

    def gone(self, worker: str) -> None:
        """A worker does nothing any more: another is asked instead."""
        if self._asked is not None and self._asked[0] == worker:
            self._asked[1].cancel()

    async def carried_out(self, seconds: float) -> None:
        """Wait until all orders are, so long at most."""
        if self._carrying is not None:
            await asyncio.wait([self._carrying], timeout=seconds)

    def _able(self, elsewhere: Collection[str] = ()) -> list[str]:
        return [
            worker
            for worker, comm in self._scheduler.stream_comms.items()
            if not comm.closed() and worker not in self._lacking and worker not in elsewhere
        ]

    async def _carry_out(self) -> None:
        while self._waiting:
            order, first, elsewhere = self._waiting.popleft()
            if not await self._done_by_any(order, first, elsewhere):
                await self._do(order)

    async def _done_by_any(self, order: Order, first: str, elsewhere: Collection[str]) -> bool:
        asked = set(elsewhere)
        for _ in range(_TRIES):
            workers = self._able(asked)  # only those that are still here: of the others `gone` has been told
            if not workers:
                return False
            worker = first if first in workers else workers[0]
            if await self._done_by(worker, order):
                return True
            asked.add(worker)
        return False

    async def _done_by(self, worker: str, order: Order) -> bool:
        self._asked = worker, asyncio.ensure_future(self._order(worker, order))
        _, answer = self._asked
        await asyncio.wait([answer], timeout=_PATIENCE)
        answer.cancel()
        problem = "no answer" if answer.cancelled() or not answer.done() else answer.result()
        if problem:
            logger.info("worker %s could not %s in %s: %s", worker, order.what, order.recipe, problem)
        return not problem

    async def _order(self, worker: str, order: Order) -> str:
        try:
            return str(await self._scheduler.rpc(worker).proxystore_order(order=list(order)))
        except Exception as error:  # it is going
            return f"{type(error).__name__}: {error}"

    async def _do(self, order: Order) -> None:
        try:
            await asyncio.to_thread(carry_out, order)
        except Exception as error:  # the lease will
            logger.info("nobody could %s in %s: %s", order.what, order.recipe, error)
