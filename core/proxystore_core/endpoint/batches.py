"""Many objects in one exchange of a client with its endpoint, which asks peers for them side by side."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import AsyncGenerator

from proxystore_core.connectors.base import Key
from proxystore_core.endpoint.objects import Objects
from proxystore_core.endpoint.peers import Peers
from proxystore_core.endpoint.wire import CHUNK, Answer, Operation, Request, Status
from proxystore_core.errors import CorruptError, StoreError

__all__ = ["answers_for"]

_SIDE_BY_SIDE = 32  # of at most one chunk each


async def answers_for(request: Request, objects: Objects, peers: Peers) -> AsyncGenerator[Answer]:
    """An answer for each key of a request, in order: an object's first chunk, or whether it is evicted.

    Args:
        request: its data are the keys, with spaces between them.
        objects: the endpoint's own.
        peers: for those of others.
    """
    keys = request.data.decode("ascii", "replace").split()
    begun: deque[asyncio.Task[Answer]] = deque()
    try:
        for key in keys:
            if len(begun) >= _SIDE_BY_SIDE:
                yield await begun.popleft()
            begun.append(asyncio.ensure_future(_one(key, request, objects, peers)))
        while begun:
            yield await begun.popleft()
    finally:
        for task in begun:
            task.cancel()


async def _one(key: Key, request: Request, objects: Objects, peers: Peers) -> Answer:
    number, reads = request.number, request.operation is Operation.GETS
    where = key.partition(".")[0]
    try:
        if where != objects.id:
            operation = Operation.READ if reads else Operation.EVICT
            said = Request(operation, key=key, length=CHUNK, seconds=request.seconds)
            answer = await peers.ask(where, said, request.seconds)
            whole = not answer.offset and len(answer.data) == min(CHUNK, answer.size)
            if reads and answer.status is Status.OK and not whole:
                raise CorruptError(f"endpoint {where} sent other bytes than were asked for", key=key)
            return dataclasses.replace(answer, number=number)
        if not reads:
            objects.store.evict(objects.inner(key))
            return Answer(Status.OK, number)
        found = objects.read(key, 0, CHUNK)
        if found is None:
            return Answer(Status.MISSING, number)
        return Answer(Status.OK, number, found[0], 0, found[1])
    except StoreError as error:
        return Answer.of_error(error, number)
