"""Reading objects from a bucket: what all who can do that have in common.

See `proxystore_core.connectors.objects` for what is where.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, ClassVar, TypeVar

from proxystore_core.buffers import fresh_buffer
from proxystore_core.connectors.arguments import check_seconds, check_text
from proxystore_core.connectors.base import Buffer, ByURL, Key
from proxystore_core.connectors.objects_library import diagnosis, library
from proxystore_core.errors import ConfigurationError, CorruptError, DeadlineError, RefusedError, StoreError
from proxystore_core.moving import moved

__all__ = ["ABREAST", "PART", "WHOLE", "BucketReader", "abreast", "abreast_async", "parts_of"]

T = TypeVar("T")
R = TypeVar("R")

PART = 8 << 20
"""Bytes of every part but the last; part of the layout: another number cannot read what this one wrote."""

WHOLE = "m"
"""What the name of an object ends with that is one object of the bucket, whatever its size."""

ABREAST = 4
"""Parts of one object that move at the same time."""

_CHUNK = 512 << 10  # bytes that a part's reader holds besides the object
_SLOWEST = 4e6  # bytes a second that a network moves at least: big objects get so much more time
_KEY = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9a-f]{20}\.(0|[1-9a-f][0-9a-f]{0,9})m?)")


class BucketReader(ByURL):
    """Reads what an `ObjectConnector` has written; a subclass says how to reach it.

    Args:
        deadline: seconds that an operation may take, besides moving its bytes.
        connect_timeout: seconds for opening a connection, and for a server to come back.
        ca: path of the certificate of the authority to trust, besides the system's.
        given: arguments of the subclass that are no default.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False
    far: ClassVar[bool] = True

    _OPTIONS: ClassVar[dict[str, Callable[[str], Any]]] = {
        "deadline": float,
        "connect_timeout": float,
        "ca": str,
    }

    def __init__(
        self,
        place: str,
        *,
        deadline: float = 30.0,
        connect_timeout: float = 5.0,
        ca: str | None = None,
        **given: Any,
    ) -> None:
        deadline = check_seconds("deadline", deadline)
        connect_timeout = check_seconds("connect_timeout", connect_timeout)
        options = {"deadline": deadline, "connect_timeout": connect_timeout}
        if ca is not None:
            check_text("ca", ca)  # a number would be taken for a file that somebody has open
        self.deadline = deadline
        self.connect_timeout = connect_timeout
        self.ca = ca
        usual = {"deadline": 30.0, "connect_timeout": 5.0, "ca": None}
        self._given = {**given, **options, "ca": ca}
        query = {
            name: "true" if value is True else value
            for name, value in self._given.items()
            if value is not None and value != usual.get(name)
        }
        text = urllib.parse.urlencode(query, safe="/:")
        self._url = f"{place}{'?' if text else ''}{text}"
        self._stores: dict[int, tuple[Any, Any]] = {}  # by process: obstore and a client of it

    @property
    def url(self) -> str:
        return self._url

    def get(self, key: Key) -> Buffer | None:
        session, name, size = self._parse(key)
        until = self._until(size)

        def open_part(part: int) -> Any:
            path, asked = _part(session, name, size, part)
            found = self._run(lambda obs, client: obs.get(client, path, options=asked), until, key)
            return self._checked(found, name, size, part, key)

        first = open_part(0)  # memory for the whole, which a forged key may exaggerate, comes after that
        if first is None:
            return None
        if size <= _CHUNK:
            data: Any = self._run(lambda obs, client: first.bytes(), until, key)
            return bytearray(data)  # the caller may change it
        whole = fresh_buffer(size)
        view = memoryview(whole)

        def fetch(part: int) -> bool:
            found = open_part(part) if part else first
            target = view[part * PART : (part + 1) * PART]
            return found is not None and self._fill(found, target, until, key)

        return whole if all(abreast(fetch, range(_count(size)))) else None

    async def get_async(self, key: Key) -> Buffer | None:
        session, name, size = self._parse(key)
        until = self._until(size)

        async def open_part(part: int) -> Any:
            path, asked = _part(session, name, size, part)
            found = await self._ask(
                lambda obs, client: obs.get_async(client, path, options=asked), until, key
            )
            return self._checked(found, name, size, part, key)

        first = await open_part(0)  # memory for the whole comes after that, as above
        if first is None:
            return None
        if size <= _CHUNK:
            return bytearray(await self._ask(lambda obs, client: first.bytes_async(), until, key))
        whole = fresh_buffer(size)
        view = memoryview(whole)

        async def fetch(part: int) -> bool:
            found = await open_part(part) if part else first
            target = view[part * PART : (part + 1) * PART]
            return found is not None and await self._fill_async(found, target, until, key)

        return whole if all(await abreast_async(fetch, range(_count(size)))) else None

    def exists(self, key: Key) -> bool:
        session, name, size = self._parse(key)
        last = f"{session}/{name}.{parts_of(name, size) - 1}"
        return self._run(lambda obs, client: obs.head(client, last), self._until(), key) is not None

    def close(self, *, clear: bool = False) -> None:
        self._stores.pop(os.getpid(), None)

    # What a connector to other servers changes.

    def _connect(self, obs: Any, options: dict[str, Any]) -> Any:
        """A client of obstore, which connects when it is used."""
        raise NotImplementedError

    def _parse(self, key: Key) -> tuple[str, str, int]:
        match = _KEY.fullmatch(key)
        if match is None or (match[2].endswith(WHOLE) and int(match[3], 16) <= PART):
            raise RefusedError("not a key of an object store", store=self.url, key=key[:200])
        return match[1], match[2], int(match[3], 16)

    # The rest is the same for all.

    def _fill(self, found: Any, target: memoryview, until: float, key: Key) -> bool:
        def read(obs: Any, client: Any) -> int:
            done = 0
            for chunk in found.stream(min_chunk_size=_CHUNK):
                target[done : done + len(chunk)] = chunk
                done += len(chunk)
                moved(len(chunk))
            return done

        if self._run(read, until, key) != target.nbytes:
            raise self._altered(key)
        return True

    async def _fill_async(self, found: Any, target: memoryview, until: float, key: Key) -> bool:
        async def read(obs: Any, client: Any) -> int:
            done = 0
            async for chunk in found.stream(min_chunk_size=_CHUNK):
                target[done : done + len(chunk)] = chunk
                done += len(chunk)
                moved(len(chunk))
            return done

        if await self._ask(read, until, key) != target.nbytes:
            raise self._altered(key)
        return True

    def _checked(self, found: Any, name: str, size: int, part: int, key: Key) -> Any:
        """What was found of a part, if it is as long as it should be."""
        if found is not None:
            nbytes = min(PART, size - part * PART)
            start, end = found.range
            if end - start != nbytes or found.meta["size"] != (size if name.endswith(WHOLE) else nbytes):
                raise self._altered(key)
        return found

    def _altered(self, key: Key) -> CorruptError:
        return CorruptError("a part has another length than was stored", store=self.url, key=key)

    def _until(self, moved: int = 0) -> float:
        return time.monotonic() + self.deadline + moved / _SLOWEST

    def _client(self) -> tuple[Any, Any]:
        process = os.getpid()
        known = self._stores.get(process)
        if known is None:
            obs = library()
            known = self._stores.setdefault(process, (obs, self._client_for(obs, PART)))
        return known

    def _client_for(self, obs: Any, largest: int) -> Any:
        """A client that has time for answers of so many bytes: its deadline is for all of an answer."""
        second = dt.timedelta(seconds=1)
        timeout = (self.deadline + largest / _SLOWEST) * second
        http: dict[str, Any] = {"timeout": timeout, "connect_timeout": self.connect_timeout * second}
        if self.ca is not None:
            http["root_certificate"] = self._certificate()
        backoff = {"init_backoff": second / 20, "max_backoff": second}
        retries = {"max_retries": 20, "retry_timeout": self.connect_timeout * second, "backoff": backoff}
        return self._connect(obs, {"client_options": http, "retry_config": retries})

    def _certificate(self) -> bytes:
        assert self.ca is not None
        try:
            with open(self.ca, "rb") as file:
                return file.read()
        except OSError as error:
            raise ConfigurationError(
                f"a certificate cannot be read: {error}",
                store=self.url,
                remedy="?ca= is the path of a PEM file.",
            ) from error

    def _run(self, do: Callable[[Any, Any], Any], until: float, key: Key | None = None) -> Any:
        """What ``do`` says with obstore and a client of it; None when there is no such object."""
        self._in_time(until, key)
        try:
            return do(*self._client())
        except (StoreError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            return self._nothing(error, key)

    async def _ask(
        self, do: Callable[[Any, Any], Awaitable[Any]], until: float, key: Key | None = None
    ) -> Any:
        """As `_run`, of a function to be awaited."""
        self._in_time(until, key)
        try:
            # The first look for credentials may take a while, and so may a child's library.
            known = self._stores.get(os.getpid())
            if known is None:
                known = await asyncio.to_thread(self._client)
            return await do(*known)
        except (StoreError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            return self._nothing(error, key)

    def _in_time(self, until: float, key: Key | None) -> None:
        if time.monotonic() > until:
            remedy = "Look at the server's load and the network, or name a longer ?deadline= (seconds)."
            raise DeadlineError("no answer in time", store=self.url, key=key, remedy=remedy)

    def _nothing(self, error: Exception, key: Key | None) -> None:
        """None for an error that says there is no such object; others are raised, typed."""
        found = diagnosis(error)
        if not isinstance(error, FileNotFoundError) or found.kind is ConfigurationError:
            raise found.kind(found.problem, store=self.url, key=key, remedy=found.remedy) from error


def abreast(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The function's results, several items at a time; the first error is raised once all have ended."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(len(items), ABREAST), thread_name_prefix="proxystore-objects") as executor:
        # Each in a context like this one's: who listens for what moves is told.
        futures = [executor.submit(copy_context().run, function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


async def abreast_async(
    function: Callable[[T], Awaitable[R]], items: Sequence[T], *, patience: float = 0.0
) -> list[R]:
    """As `abreast`, of a function to be awaited.

    Args:
        function: as there.
        items: as there.
        patience: seconds for what is on its way when one fails, or this is cancelled; it is cancelled then.
    """
    results: dict[int, R] = {}
    numbered = iter(enumerate(items))

    async def work() -> None:
        for number, item in numbered:
            results[number] = await function(item)

    workers = [asyncio.ensure_future(work()) for _ in range(min(len(items), ABREAST))]
    try:
        done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        for worker in done:
            worker.result()
    except BaseException:
        for _ in numbered:  # nobody begins another one
            pass
        try:
            if patience:
                await asyncio.wait(workers, timeout=patience)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        raise
    return [results[number] for number in range(len(items))]


def parts_of(name: str, size: int) -> int:
    """How many objects of the bucket an object of so many bytes is."""
    return 1 if name.endswith(WHOLE) else _count(size)


def _count(size: int) -> int:
    """How many parts an object of so many bytes is read in."""
    return max(1, -(-size // PART))


def _part(session: str, name: str, size: int, part: int) -> tuple[str, Any]:
    """Where a part is to be read: the path, and what obstore is to be asked besides."""
    if name.endswith(WHOLE):
        return f"{session}/{name}.0", {"range": (part * PART, min(size, (part + 1) * PART))}
    return f"{session}/{name}.{part}", None
