"""An object's way to the bytes that a connector keeps, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from proxystore_core.cache import ByteCache
from proxystore_core.connectors.base import (
    Buffer,
    Connector,
    Key,
    batched,
    holder_of,
    is_far,
    is_here,
    routed,
)
from proxystore_core.encryption import Encrypted, decrypt, is_encrypted, name_of
from proxystore_core.errors import CorruptError, StoreError
from proxystore_core.flight import Flights
from proxystore_core.frames import nbytes
from proxystore_core.near import NEAR_FROM, NearCopies
from proxystore_core.observe import Metrics, Observed
from proxystore_core.pickling import Pickling
from proxystore_core.secret import Secret, lacking
from proxystore_core.serialize import deserialize, serialize

__all__ = ["C", "Deserializer", "Serializer", "StoredBytes"]

C = TypeVar("C", bound=Connector)
Serializer = Callable[[Any], Buffer]
Deserializer = Callable[[Buffer], Any]

_NO_SIZES: Mapping[Key, int] = MappingProxyType({})


class StoredBytes(Generic[C]):
    """What a store does below its objects: serialization, encryption, the cache, near copies.

    Args:
        connector: where the bytes go.
        recipe: of the store, for errors and near copies.
        serializer: as for `Store`, and so on.
        deserializer: its inverse.
        cache_size: bytes of fetched objects kept by this process.
        metrics: told of every operation; None for nobody.
        compression: ``"lz4"``, ``"zstd"`` or None.
        session: that objects belong to unless said otherwise.
        near: whether large objects that come over a network are kept for all processes of this host.
        secret: that objects are encrypted with; None for plain ones.
        allow_pickle: False to store and take only what needs no pickle.
    """

    def __init__(
        self,
        connector: C,
        recipe: str,
        *,
        serializer: Serializer | None,
        deserializer: Deserializer | None,
        cache_size: int,
        metrics: Metrics | None,
        compression: str | None,
        session: str,
        near: bool,
        secret: Secret | None,
        allow_pickle: bool,
    ) -> None:
        self.recipe = recipe
        self.metrics = metrics
        self.connector: C = Observed(connector, metrics) if metrics else connector  # type: ignore[assignment]
        self.secret = secret
        if secret is not None:
            self.connector = Encrypted(self.connector, secret)  # type: ignore[assignment]
        self.session = session
        self.compression = compression
        self.cache_size = cache_size
        self.allow_pickle = allow_pickle
        self._serializer = serializer
        self._deserializer = deserializer
        self._cache = ByteCache(cache_size)
        self._flights = Flights()
        self.near = near
        self._near = NearCopies() if near and is_far(connector) else None
        self._routes = routed(connector) is not None
        self._batched = None if metrics else batched(self.connector)  # metrics count objects one by one

    def encode(self, obj: Any, *, pickling: Pickling = Pickling()) -> list[Buffer]:  # noqa: B008  unchanging
        """An object as this store stores it: buffers that alias it, for `put_frames`.

        Args:
            obj: as for `put`.
            pickling: whose readers the object is for.

        Raises:
            SerializationError: the object cannot be turned into bytes.
        """
        return self._encode(obj, self._serializer, pickling)

    def put_frames(
        self,
        frames: Sequence[Buffer],
        *,
        session: str | None = None,
        kind: str = "",
        tags: Collection[str] = (),
    ) -> tuple[Key, int]:
        """Store what `encode` returned; its key and its size in bytes. Raises as `put`.

        Args:
            frames: what `encode` returned.
            session: as for `put`.
            kind: ``module:name`` of the object's class, where the connector may choose by it.
            tags: as for `put`.
        """
        hints: dict[str, Any] = {"kind": kind, "tags": tags} if self._routes else {}
        key = self.connector.put(frames, session=self.session if session is None else session, **hints)
        return key, nbytes(frames)

    def _encode(
        self,
        obj: Any,
        serializer: Serializer | None,
        pickling: Pickling = Pickling(),  # noqa: B008  unchanging
    ) -> list[Buffer]:
        def encode() -> list[Buffer]:
            return serialize(
                obj,
                compression=self.compression,
                checksum=self.connector.checksum and self.secret is None,
                serializer=serializer,
                pickling=pickling,
                allow_pickle=self.allow_pickle,
            )

        if self.metrics is None:
            return encode()
        frames: list[Buffer] = self.metrics.timed("serialize", encode, nbytes)
        return frames

    def stored(self, key: Key) -> Buffer | None:
        """The bytes that `put_frames` was given, or None when there is no such object. Raises as `get`."""
        data = self.connector.get(key)
        return None if data is None else self._decrypted(key, data)

    def _decrypted(self, key: Key, data: Buffer) -> Buffer:
        if self.secret is not None:
            return decrypt(data, self.secret, name_of(key))
        if is_encrypted(data):
            raise lacking()
        return data

    def _decode(self, key: Key, data: Buffer, deserializer: Deserializer | None) -> Any:
        def decode() -> Any:
            return deserialize(
                self._decrypted(key, data),
                deserializer=deserializer or self._deserializer,
                allow_pickle=self.allow_pickle,
            )

        try:
            if self.metrics is None:
                return decode()
            return self.metrics.timed("deserialize", decode, lambda result: len(data))
        except StoreError as error:
            if isinstance(error, CorruptError) and self._near and self._near.evict(self.recipe, key):
                fetched = self.connector.get(key)  # it was a copy: what was stored may be sound
                if fetched is not None:
                    return self._decode(key, fetched, deserializer)
            if error.store is None and error.key is None:
                error.store, error.key = self.recipe, key
            if error.remedy is None and isinstance(error, CorruptError):
                error.remedy = "Evict it and store it again; what altered it may have altered more."
            raise

    def _bytes(self, key: Key, size: int = 0) -> Buffer | None:
        """The stored bytes: private to this caller, or read-only and shared with the cache.

        Args:
            key: the object.
            size: its bytes, where they are known and worth sharing with other processes; else 0.
        """
        holder, inner = holder_of(self.connector, key) if self._routes else (self.connector, key)
        if holder.cheap_get or is_here(holder, inner):
            return self.connector.get(key)
        if self._near is not None and size >= NEAR_FROM and is_far(holder):
            return self._near.get(self.recipe, key, size, lambda: self.connector.get(key))
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        private: list[Buffer | None] = []

        def fetch() -> memoryview | None:
            data = self.connector.get(key)
            shared = None if data is None else self._cache.admit(key, data)
            if shared is None:
                private.append(data)
            return shared

        shared = self._flights.run(key, fetch)
        if private:
            return private[0]
        # Too big to be shared by those who waited for the same flight: each fetches bytes of its own.
        return self.connector.get(key) if shared is None else shared

    def _bytes_batch(self, keys: Sequence[Key], sizes: Mapping[Key, int] = _NO_SIZES) -> list[Buffer | None]:
        """As `_bytes` of each key, in one trip for all that are not cached or large."""
        assert self._batched is not None
        found: dict[Key, Buffer | None] = {}
        missing = []
        for key in dict.fromkeys(keys):
            if is_here(self.connector, key) or (self._near is not None and sizes.get(key, 0) >= NEAR_FROM):
                continue
            cached = self._cache.get(key)
            if cached is None:
                missing.append(key)
            else:
                found[key] = cached
        for key, data in zip(missing, self._batched.get_batch(missing), strict=True):
            found[key] = data if data is None else self._cache.admit(key, data) or data
        # Private bytes are for one reader: who names a key twice has them fetched twice.
        return [found.pop(key) if key in found else self._bytes(key, sizes.get(key, 0)) for key in keys]

    def _map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        if len(items) < 2 or self.connector.cheap_get:
            return [function(item) for item in items]
        workers = min(len(items), 4 * (os.cpu_count() or 1), 16)
        with ThreadPoolExecutor(workers, thread_name_prefix="proxystore") as executor:
            # Each in a context like this one's: who listens for what moves is told.
            contexts = [copy_context() for _ in items]
            return list(executor.map(lambda context, item: context.run(function, item), contexts, items))
