"""A store's way for coroutines: bytes move without a thread where the connector can do that."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from proxystore_core.connectors.base import Awaited, Buffer, Key, awaited
from proxystore_core.encryption import name_of
from proxystore_core.flight import LoopFlights
from proxystore_core.near import NEAR_FROM
from proxystore_core.reference import Reference
from proxystore_core.secret import lacking
from proxystore_core.stored_bytes import C, Deserializer, Serializer, StoredBytes

__all__ = ["AwaitedBytes"]

T = TypeVar("T")


class AwaitedBytes(StoredBytes[C]):
    """What a store does for coroutines.

    Objects are turned into bytes and made of them in threads, also small ones: to pickle is to run anybody's
    code, which may take long, wait, or start an event loop of its own. A thread does all where the connector
    is not `Awaited`, or as cheap as the thread, chooses among several, or where there is a copy in this
    host's memory, or is to be one: so no thread waits for a network unless a large object comes.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loop_flights = LoopFlights()
        self._awaited = None if self.connector.cheap_get or self._routes else awaited(self.connector)

    async def get_async(
        self, key: Key, default: T | None = None, *, deserializer: Deserializer | None = None
    ) -> Any | T:
        """As `get`, while the event loop goes on."""
        import asyncio  # costs more than all of this package

        if self._awaited is None:
            return await asyncio.to_thread(self.get, key, default, deserializer=deserializer)
        if self.secret is None and name_of(key):
            raise lacking()
        data = await self._bytes_async(self._awaited, key)
        return default if data is None else await asyncio.to_thread(self._decode, key, data, deserializer)

    async def put_async(
        self,
        obj: Any,
        *,
        session: str | None = None,
        serializer: Serializer | None = None,
        tags: Collection[str] = (),
    ) -> Key:
        """As `put`, while the event loop goes on. Nobody may change the object before this returns.

        Whoever is cancelled has stored nothing.
        """
        import asyncio

        if self._awaited is None:
            put = functools.partial(self.put, obj, session=session, serializer=serializer, tags=tags)
            return await self._put_in_thread(put)
        frames = await asyncio.to_thread(self._encode, obj, serializer or self._serializer)
        return await self._awaited.put_async(frames, session=self.session if session is None else session)

    async def fetch_async(self, reference: Reference) -> Callable[[], Any] | None:
        """The bytes that a reference names are fetched; a function that loads of them, for a thread.

        None where `load` does better, in a thread from the start. Errors as there.
        """
        shared = 0 if reference.evict else reference.size
        if self._awaited is None or (self._near is not None and shared >= NEAR_FROM):
            return None
        data = await self._bytes_async(self._awaited, reference.key)
        return functools.partial(self._load, reference, data)

    async def _bytes_async(self, able: Awaited, key: Key) -> Buffer | None:
        """As `_bytes`. Coroutines of one event loop share a flight, and none with those of others."""
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        private: list[Buffer | None] = []

        async def fetch() -> memoryview | None:
            data = await able.get_async(key)
            shared = None if data is None else self._cache.admit(key, data)
            if shared is None:
                private.append(data)
            return shared

        shared = await self._loop_flights.run(key, fetch)
        if private:
            return private[0]
        return await able.get_async(key) if shared is None else shared

    async def _put_in_thread(self, put: Callable[[], Key]) -> Key:
        """The key that ``put`` returned in a thread, which evicts the object if nobody waits any more."""
        import asyncio

        lock = threading.Lock()
        stored: list[Key] = []
        given_up = False

        def run() -> Key:
            key = put()
            with lock:
                stored.append(key)
                unwanted = given_up
            if unwanted:
                self.evict(key)
            return key

        try:
            return await asyncio.to_thread(run)
        except asyncio.CancelledError:
            with lock:
                given_up = True
            if stored:
                await asyncio.to_thread(self.evict, stored[0])
            raise

    if TYPE_CHECKING:  # what `Store` adds

        def get(
            self, key: Key, default: T | None = None, *, deserializer: Deserializer | None = None
        ) -> Any | T: ...

        def put(
            self,
            obj: Any,
            *,
            session: str | None = None,
            serializer: Serializer | None = None,
            tags: Collection[str] = (),
        ) -> Key: ...

        def evict(self, key: Key) -> None: ...

        def _load(self, reference: Reference, data: Buffer | None) -> Any: ...
