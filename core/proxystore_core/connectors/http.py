"""Objects that a web server gives away: reading what a bucket or a file store has where nobody may write."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from proxystore_core.buffers import fresh_buffer
from proxystore_core.connectors.base import USER_SESSION, Buffer, Key
from proxystore_core.connectors.objects_reader import PART, BucketReader
from proxystore_core.errors import ConfigurationError, RefusedError, StoreError
from proxystore_core.urls import StoreURL

__all__ = ["HTTPConnector", "HTTPSConnector"]

_FILE = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9a-f]{20})")


class HTTPConnector(BucketReader):
    """Reads the objects of another store through a web server; ``http://host/path``.

    The server has at ``path`` what an `ObjectConnector` has under its prefix, or what a `FileConnector` has
    in its directory; keys are those of that store.

    Args:
        base: URL of the store's prefix or directory.
        options: see `BucketReader`.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("http",)

    def __init__(self, base: str, **options: Any) -> None:
        told, parts = StoreURL.parse(base), urllib.parse.urlsplit(base)
        if parts.scheme != self.schemes[0] or not parts.hostname or parts.query or parts.fragment:
            expected = f"expected {self.schemes[0]}://host/path"
            raise ConfigurationError(f"{told.url!r} names no web server: {expected}")
        told.expect(host=True, port=True, path=True)
        self.base = base.rstrip("/")
        super().__init__(self.base, **options)

    def config(self) -> dict[str, Any]:
        return {"base": self.base, **self._given}

    @classmethod
    def from_url(cls, url: str) -> HTTPConnector:
        parts = StoreURL.parse(url)
        parts.expect(host=True, port=True, path=True)
        base = urllib.parse.urlsplit(url)._replace(query="", fragment="").geturl()
        return cls(base, **parts.options(cls._OPTIONS))

    def get(self, key: Key) -> Buffer | None:
        path = self._file(key)
        if path is None:
            return super().get(key)
        found = self._run(lambda obs, client: obs.get(client, path), self._until(), key)
        if found is None:
            return None
        whole = self._room(found.meta["size"], key)
        size, until = len(whole), self._until(len(whole))
        if size > PART:  # nothing of it has been read: it is asked for again, by who has the time
            found = self._run(lambda obs, client: obs.get(self._client_for(obs, size), path), until, key)
            if found is None:
                return None
        self._fill(found, memoryview(whole), until, key)
        return whole

    async def get_async(self, key: Key) -> Buffer | None:
        path = self._file(key)
        if path is None:
            return await super().get_async(key)
        found = await self._ask(lambda obs, client: obs.get_async(client, path), self._until(), key)
        if found is None:
            return None
        whole = self._room(found.meta["size"], key)
        size, until = len(whole), self._until(len(whole))
        if size > PART:
            found = await self._ask(
                lambda obs, client: obs.get_async(self._client_for(obs, size), path), until, key
            )
            if found is None:
                return None
        await self._fill_async(found, memoryview(whole), until, key)
        return whole

    def exists(self, key: Key) -> bool:
        path = self._file(key)
        if path is None:
            return super().exists(key)
        return self._run(lambda obs, client: obs.head(client, path), self._until(), key) is not None

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> NoReturn:
        raise self._refused()

    async def put_async(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> NoReturn:
        raise self._refused()

    def evict(self, key: Key) -> NoReturn:
        raise self._refused(key)

    def _file(self, key: Key) -> str | None:
        """The path of an object of a file store; None for a key that tells the object's size."""
        match = _FILE.fullmatch(key)
        return None if match is None else f"{match[1]}/{match[2]}"

    def _room(self, size: int, key: Key) -> bytearray | memoryview:
        """Memory for as much as the server says that there is."""
        try:
            return fresh_buffer(size)
        except (MemoryError, OSError, OverflowError, ValueError) as error:
            raise StoreError(
                f"there is no memory for the {size} bytes that the server announces: {error}",
                store=self.url,
                key=key,
                remedy="If it announces more than there is, look at that server.",
            ) from error

    def _refused(self, key: Key | None = None) -> RefusedError:
        remedy = "Write through the store behind it, for example s3:// or file://."
        return RefusedError("this store is for reading only", store=self.url, key=key, remedy=remedy)

    def _connect(self, obs: Any, options: dict[str, Any]) -> Any:
        options["client_options"]["allow_http"] = self.schemes[0] == "http"
        return obs.store.HTTPStore.from_url(self.base, **options)


class HTTPSConnector(HTTPConnector):
    """As `HTTPConnector`, encrypted; ``https://host/path``."""

    schemes: ClassVar[tuple[str, ...]] = ("https",)
