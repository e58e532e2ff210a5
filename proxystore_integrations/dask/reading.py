"""Stored results as values for those who cannot read them: clients without a store, or with another one."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import distributed

from proxystore_core import GoneError, Reference
from proxystore_integrations.dask.engine import to_serialize
from proxystore_integrations.dask.results import StoredResult
from proxystore_integrations.transfer import load

if TYPE_CHECKING:
    from distributed import Worker

__all__ = ["Loading", "gather"]


class _WithoutStored:
    """A worker, for Dask's gather in one of its tasks, without those results that are in a store.

    Args:
        worker: whose memory is looked into.
    """

    def __init__(self, worker: Any) -> None:
        self._in_memory = worker.data
        self.data = self

    def __contains__(self, key: Any) -> bool:
        return key in self._in_memory and type(self._in_memory[key]) is not StoredResult

    def __getitem__(self, key: Any) -> Any:
        return self._in_memory[key]


_dasks_gather: Any = distributed.Client._gather


@functools.wraps(_dasks_gather)
async def gather(
    client: Any, futures: Any, errors: str = "raise", direct: Any = None, local_worker: Any = None
) -> Any:
    """Dask's, for the clients in tasks: those without a store, too, look into the worker's memory."""
    seen = None if local_worker is None else _WithoutStored(local_worker)
    return await _dasks_gather(client, futures, errors, direct, seen)


class Loading:
    """A comm to who cannot read stored results.

    Args:
        comm: Dask's.
        worker: whose results they are.
    """

    def __init__(self, comm: Any, worker: Worker) -> None:
        self._comm = comm
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    async def write(self, message: dict[str, Any], **kwargs: Any) -> Any:
        """Send results as what they are. Those that the store has lost are missing, and computed again."""
        data = message["data"]
        stored = {key: one.data.reference for key, one in data.items() if type(one.data) is StoredResult}
        if stored:
            loaded = await asyncio.to_thread(_loaded, stored)
            for key in stored.keys() - loaded.keys():
                del data[key]
                self._worker.batched_send({"op": "proxystore-lost", "key": key})
            data.update((key, to_serialize(value)) for key, value in loaded.items())
        return await self._comm.write(message, **kwargs)


def _loaded(references: dict[Any, Reference]) -> dict[Any, Any]:
    """The values of those that the store still has."""
    try:
        return dict(zip(references, load(list(references.values())), strict=True))
    except GoneError:
        if len(references) == 1:
            return {}
    return {key: value for one in references.items() for key, value in _loaded(dict([one])).items()}
