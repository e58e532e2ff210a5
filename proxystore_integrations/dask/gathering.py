"""The scheduler's gather: large results come through the store of the client that asks."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxystore_integrations.dask.sessions import ClientSession, Sessions

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["Gathering"]

logger = logging.getLogger(__name__)


class Gathering:
    """Has the workers that hold large results publish them.

    Args:
        scheduler: Dask's.
        sessions: of its clients.
    """

    def __init__(self, scheduler: Scheduler, sessions: Sessions) -> None:
        self._scheduler = scheduler
        self._sessions = sessions

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
        session = self._sessions.of(client)
        holders = {} if session is None else self._holders(keys, threshold, frozenset(by_value))
        if not holders or session is None:
            return await self._dasks(keys)
        published = await asyncio.gather(
            *(self._published(worker, held, session) for worker, held in holders.items())
        )
        references = {key: packed for found, _ in published for key, packed in found.items()}
        stored = {key: packed for _, found in published for key, packed in found.items()}
        rest = [key for key in keys if key not in references and key not in stored]
        response = await self._dasks(rest) if rest else {"status": "OK", "data": {}}
        return {"references": references, "stored": stored, **response}

    def _holders(self, keys: Sequence[Any], threshold: int, by_value: frozenset[Any]) -> dict[str, list[Any]]:
        """For each worker the results that it is to publish."""
        holders: defaultdict[str, list[Any]] = defaultdict(list)
        for key in keys:
            task = self._scheduler.tasks.get(key)
            if task is None or not task.who_has or key in by_value:
                continue
            if task.nbytes >= threshold or key in self._sessions.results:
                holders[next(iter(task.who_has)).address].append(key)
        return holders

    async def _published(
        self, worker: str, keys: list[Any], session: ClientSession
    ) -> tuple[dict[Any, Any], dict[Any, Any]]:
        try:
            published, stored = await self._scheduler.rpc(worker).proxystore_publish(
                keys=keys, recipe=session.recipe, session=session.session
            )
        except Exception as error:  # the worker is dying: Dask's own gather knows what to do
            logger.info("worker %s did not publish its results: %s", worker, error)
            return {}, {}
        if self._sessions.of(session.client) is not session:  # the client left, and evicts nothing any more
            for key, *_ in published.values():
                self._sessions.drop(worker, (session.session, key, session.recipe))
        return published, stored

    async def _dasks(self, keys: Sequence[Any]) -> dict[str, Any]:
        return dict[str, Any](await self._scheduler.gather(keys=keys))  # type: ignore[arg-type]
