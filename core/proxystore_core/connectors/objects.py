"""Objects in a bucket: Amazon S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.

<bucket>/<prefix>/<session>/<object>.<size>.<part>    objects of up to 8 MiB are one part
<bucket>/<prefix>/<session>/lease                     when the lease lapses

Parts are written and read side by side. They are objects of the bucket like any other, not parts of one
multipart upload: what a killed writer leaves of such an upload is in no listing, and stays, and is paid for.
Who has a rule in the bucket that ends such uploads can have them (``?multipart=true``): then

<bucket>/<prefix>/<session>/<object>.<size>m.0        is an object of more than 8 MiB, read by ranges.

An object's key says how many bytes it has, hence which parts, and nobody has the key before all are there.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime as dt
import os
import re
import secrets
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextvars import Context, copy_context
from typing import Any, ClassVar

from proxystore_core.buffers import byte_views, split
from proxystore_core.connectors.arguments import check_flag, check_text
from proxystore_core.connectors.base import USER_SESSION, Buffer, Held, Key, check_lease, check_session
from proxystore_core.connectors.lapsed import UNRENEWED, end_lapsed
from proxystore_core.connectors.objects_reader import (
    ABREAST,
    PART,
    WHOLE,
    BucketReader,
    abreast,
    abreast_async,
    parts_of,
)
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.connectors.survey import tally
from proxystore_core.errors import ConfigurationError, StoreError, UnreachableError
from proxystore_core.moving import moved
from proxystore_core.urls import StoreURL, flag

__all__ = ["AzureConnector", "GCSConnector", "ObjectConnector", "S3Connector"]

_PAGE = 1000  # objects that are listed or removed with one request
_PIECE = 1 << 20  # bytes that a multipart upload takes at a time
_AT_ONCE: dict[str, Any] = {"use_multipart": False}
_MULTIPART: dict[str, Any] = {"use_multipart": True, "chunk_size": PART, "max_concurrency": ABREAST}
_UNCONDITIONAL = ": 501", "NotImplemented", "required for conditional"  # of servers that know no such put
_GIVEN_UP = 1000  # paths of puts that failed that are remembered
_ENDS = 20  # an object may be published between the last listing and the lease's removal
_PATH = re.compile(r"([A-Za-z0-9_-]{1,64})/([0-9a-f]{20}\.(?:0|[1-9a-f][0-9a-f]{0,9})m?)\.(0|[1-9][0-9]*)")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LEASE = "lease"
_OVER = b"0.0"  # a lease that lapsed in 1970: of a session that somebody is ending
PREFIX = "proxystore"
"""Where objects go in a bucket unless the URL says so."""


class ObjectConnector(BucketReader):
    """Keeps objects in a bucket; a subclass says whose.

    Nothing is connected before the first operation. Credentials come from the environment (or where
    the service has machines find theirs) and are never part of the URL.

    Args:
        bucket: its name; it has to be there.
        prefix: what all objects' names in it start with, up to a slash.
        multipart: put what is larger than 8 MiB as one object of the bucket, by a multipart upload. A writer
            that is killed leaves such an upload behind, which only a rule of the bucket ends.
        options: see `BucketReader`, and the subclass.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    _OPTIONS: ClassVar = {**BucketReader._OPTIONS, "multipart": flag}

    def __init__(
        self, bucket: str, prefix: str = PREFIX, *, multipart: bool | None = None, **options: Any
    ) -> None:
        check_text("bucket", bucket)
        check_text("prefix", prefix)
        if multipart is not None:
            check_flag("multipart", multipart)
        self.bucket = bucket
        self.multipart = bool(multipart)
        self.prefix = prefix.strip("/") or PREFIX
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", bucket):
            raise ConfigurationError(
                f"{bucket!r} names no bucket: expected {self.schemes[0]}://bucket/prefix"
            )
        if any(part in ("", ".", "..") for part in self.prefix.split("/")) or not self.prefix.isprintable():
            raise ConfigurationError(f"{prefix!r} is no prefix of objects' names")
        place = f"{self.schemes[0]}://{bucket}"
        super().__init__(
            place if self.prefix == PREFIX else f"{place}/{urllib.parse.quote(self.prefix)}",
            multipart=multipart or None,
            **options,
        )
        self._own = OwnKeys()
        self._given_up: collections.deque[str] = collections.deque(
            maxlen=_GIVEN_UP
        )  # paths of puts that failed

    def config(self) -> dict[str, Any]:
        return {"bucket": self.bucket, "prefix": self.prefix, **self._given}

    @classmethod
    def from_url(cls, url: str) -> ObjectConnector:
        parts = StoreURL.parse(url)
        if parts.username or parts.password:
            raise ConfigurationError(
                f"{parts.scheme}:// takes no credentials, found some in {parts.url!r}",
                remedy="URLs travel: put credentials into the environment of each process.",
            )
        parts.expect(host=True, path=True)
        return cls(parts.host, parts.path, **parts.options(cls._OPTIONS))

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        name, size, parts = self._begun(data, session)
        until = self._until(size)

        def write(part: tuple[str, list[memoryview]]) -> None:
            path, (body, how) = part[0], self._upload(part[1])
            self._run(lambda obs, client: obs.put(client, path, body, **how), until)
            moved(0 if how is _MULTIPART else len(body))

        try:
            abreast(write, parts)
        except BaseException:
            paths = [path for path, _ in parts]
            if size > PART:
                self._undo(paths)
            else:
                self._given_up.extend(paths)
            raise
        return self._put(name, session)

    async def put_async(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        name, size, parts = self._begun(data, session)
        until = self._until(size)

        async def write(part: tuple[str, list[memoryview]]) -> None:
            path, (body, how) = part[0], self._upload(part[1])
            await self._ask(lambda obs, client: obs.put_async(client, path, body, **how), until)
            moved(0 if how is _MULTIPART else len(body))

        try:
            # A request that is dropped may have been heard: what it stores must be there to be removed.
            await abreast_async(write, parts, patience=self.connect_timeout)
            if session != USER_SESSION and not self._given_up:
                return f"{session}.{name}"
            return await asyncio.to_thread(self._put, name, session)  # once in a while it lists the bucket
        except BaseException as error:
            paths = [path for path, _ in parts]
            if size <= PART and not isinstance(error, asyncio.CancelledError):
                self._given_up.extend(paths)
            else:
                undoing = asyncio.get_running_loop().run_in_executor(None, self._undo, paths)
                await asyncio.wait([undoing], timeout=self.connect_timeout)
            raise

    def _begun(
        self, data: Sequence[Buffer], session: str
    ) -> tuple[str, int, list[tuple[str, list[memoryview]]]]:
        """A new object's name, its bytes, and its parts by their paths."""
        check_session(session, self.url)
        views = byte_views(data)
        size = sum([view.nbytes for view in views])
        name = f"{secrets.token_hex(10)}.{size:x}"
        if self.multipart and size > PART:
            name += WHOLE
            return name, size, [(f"{session}/{name}.0", views)]
        frames = enumerate(split(views, PART))
        return name, size, [(f"{session}/{name}.{part}", pieces) for part, pieces in frames]

    def _upload(self, frames: list[memoryview]) -> tuple[Any, dict[str, Any]]:
        """What obstore is to put, and how."""
        if self.multipart and sum([frame.nbytes for frame in frames]) > PART:
            return _pieces(frames, copy_context()), _MULTIPART
        return frames[0] if len(frames) == 1 else b"".join(frames), _AT_ONCE

    def _put(self, name: str, session: str) -> Key:
        if self._given_up:
            given_up, self._given_up = self._given_up, collections.deque(maxlen=_GIVEN_UP)
            self._undo(list(given_up))
        key = f"{session}.{name}"
        if session == USER_SESSION:
            self._own.note([key], self._keys_of_users)
        return key

    def _undo(self, paths: Sequence[str]) -> None:
        try:
            self._remove(paths)
        except StoreError:
            self._given_up.extend(paths)  # for the next put

    def evict(self, key: Key) -> None:
        session, name, size = self._parse(key)
        count = parts_of(name, size)
        if count <= _PAGE or self.exists(key):  # a forged key may exaggerate
            self._remove([f"{session}/{name}.{part}" for part in range(count)])
        self._own.discard([key])

    def keys(self, session: str) -> list[Key]:
        check_session(session, self.url)
        paths = [path for page in self._listed(session) for path in page]
        return [path.removesuffix(".0").replace("/", ".") for path in paths if path.endswith(".0")]

    def _keys_of_users(self) -> list[Key]:
        return self.keys(USER_SESSION)

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        lapses = repr(time.time() + seconds).encode()
        path = f"{session}/{_LEASE}"
        self._run(lambda obs, client: obs.put(client, path, lapses, use_multipart=False), self._until())

    def extend(self, session: str, seconds: float) -> bool:
        """As `extend_lease`: the lease is replaced only where it is as it was seen."""
        check_lease(session, seconds, self.url)
        path, until = f"{session}/{_LEASE}", self._until()
        lapses = repr(time.time() + seconds).encode()

        def replace(obs: Any, client: Any) -> bool | None:
            found = obs.get(client, path)
            if bytes(found.bytes()) == _OVER:
                return None
            return _put_over(obs, client, path, lapses, found.meta)  # if not, the next look tells why

        for _ in range(_ENDS):
            replaced = self._run(replace, until)
            if replaced is not False:
                return replaced is not None
        raise UnreachableError(f"the lease of session {session} changes again and again", store=self.url)

    def end(self, session: str) -> int:
        check_session(session, self.url)
        count = 0
        for _ in range(_ENDS):
            left = False
            for paths in self._listed(session):
                left = True
                self._remove(list(paths))
                count += sum(path.endswith(".0") for path in paths)
            if not left:
                break
        self._remove([f"{session}/{_LEASE}"])  # last: a crash in between leaves a session that lapses
        return count

    def sessions(self) -> dict[str, float]:
        listed = self._run(lambda obs, client: obs.list_with_delimiter(client), self._until())
        names = [path.rstrip("/") for path in (listed or {}).get("common_prefixes", ())]
        names = [
            name for name in names if name != USER_SESSION and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)
        ]
        expiries = zip(names, abreast(self._expiry, names), strict=True)
        now = time.time()
        return {name: expiry - now for name, expiry in expiries if expiry is not None}

    def held(self) -> dict[str, Held]:
        found: dict[str, Held] = {}
        for page in self._pages(None):
            for entry in page:
                match = _PATH.fullmatch(entry["path"])
                if match:
                    tally(found, match[1], match[3] == "0", entry["size"])
        return found

    def room(self) -> int | None:
        return None

    def sweep(self) -> list[str]:
        return end_lapsed(self.sessions(), self._end_lapsed)

    def _end_lapsed(self, session: str) -> bool:
        """End a session unless it has been renewed since somebody looked; whether it has ended.

        Its lease is replaced, where it is as it was seen, by one that is over: who renews it until then is
        heard, and who does so later begins anew, with what he puts from then on.
        """
        path, until = f"{session}/{_LEASE}", self._until()
        seen = self._run(lambda obs, client: obs.head(client, path), until)
        there = [list(paths) for paths in self._listed(session)]
        expiry = self._expiry(session)
        if expiry is None or expiry >= time.time():
            return False
        if not self._run(lambda obs, client: _put_over(obs, client, path, _OVER, seen), until):
            return False
        for paths in there:
            self._remove(paths)
        if self._run(lambda obs, client: bytes(obs.get(client, path).bytes()), self._until()) == _OVER:
            self._remove([path])
        return True

    def close(self, *, clear: bool = False) -> None:
        if clear:
            for key in self._own.mine():
                self.evict(key)
        super().close()

    def _expiry(self, session: str) -> float | None:
        """When a session's lease lapses, in seconds since the epoch; None if there is nothing of it."""
        path = f"{session}/{_LEASE}"
        found = self._run(lambda obs, client: bytes(obs.get(client, path).bytes()), self._until())
        if found is not None:
            with contextlib.suppress(ValueError):
                return float(found)
        last = [max(times.values()) for times in self._listed(session)]
        return max(last).timestamp() + UNRENEWED if last else None

    def _listed(self, session: str) -> Iterator[dict[str, dt.datetime]]:
        """All parts of a session's objects with when they were written, a page at a time; nobody else's."""
        for page in self._pages(session):
            ours = {
                entry["path"]: entry["last_modified"]
                for entry in page
                if (match := _PATH.fullmatch(entry["path"])) and match[1] == session
            }
            if ours:
                yield ours

    def _pages(self, session: str | None) -> Iterator[Sequence[Any]]:
        """What obstore says of all that is there, or of what a session has there."""
        stream: Any = self._run(
            lambda obs, client: obs.list(client, session, chunk_size=_PAGE), self._until()
        )
        while page := self._run(lambda obs, client: next(stream, None), self._until()):
            yield page

    def _remove(self, paths: Sequence[str]) -> None:
        """Remove objects of the bucket; missing ones are success."""
        until = self._until()
        if len(paths) > 1 and self._run(lambda obs, client: [obs.delete(client, paths)], until):
            return
        # Where a missing one is no success, the others may not have had their turn.
        for path in paths:
            self._run(lambda obs, client, path=path: obs.delete(client, path), until)  # type: ignore[misc]


def _put_over(obs: Any, client: Any, path: str, data: bytes, seen: Any) -> bool:
    """Replace what was seen under a path (None: nothing) unless that has changed; whether it was replaced."""
    version = {name: seen[name] for name in ("e_tag", "version") if seen.get(name)} if seen else "create"
    try:
        obs.put(client, path, data, mode=version, **_AT_ONCE)
    except Exception as error:
        if type(error).__name__ in ("PreconditionError", "AlreadyExistsError"):
            return False
        if not any(words in str(error) for words in _UNCONDITIONAL):
            raise
        obs.put(client, path, data, **_AT_ONCE)
    return True


class S3Connector(ObjectConnector):
    """Keeps objects in a bucket of Amazon S3, MinIO, SeaweedFS, Ceph ...; ``s3://bucket/prefix``.

    Args:
        bucket: as for `ObjectConnector`.
        prefix: as for `ObjectConnector`.
        endpoint: URL of the server, where it is not Amazon's; by default ``AWS_ENDPOINT_URL``.
        region: by default ``AWS_REGION`` or ``AWS_DEFAULT_REGION``.
        options: see `ObjectConnector`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("s3",)
    _OPTIONS: ClassVar = {**ObjectConnector._OPTIONS, "endpoint": str, "region": str}

    def __init__(
        self,
        bucket: str,
        prefix: str = PREFIX,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        **options: Any,
    ) -> None:
        endpoint = endpoint or _variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        region = region or _variable("AWS_REGION", "AWS_DEFAULT_REGION")
        super().__init__(bucket, prefix, endpoint=_checked(endpoint), region=region, **options)

    def _connect(self, obs: Any, options: dict[str, Any]) -> Any:
        endpoint, region = self._given["endpoint"], self._given["region"]
        config = {"region": region or "us-east-1"} | ({"endpoint": endpoint} if endpoint else {})
        provider = _profile()
        if provider is not None:
            options["credential_provider"] = provider
        options["client_options"]["allow_http"] = bool(endpoint and endpoint.startswith("http://"))
        return obs.store.S3Store(self.bucket, prefix=self.prefix, config=config, **options)


class GCSConnector(ObjectConnector):
    """Keeps objects in a bucket of Google Cloud Storage; ``gs://bucket/prefix``.

    Args:
        bucket: as for `ObjectConnector`.
        prefix: as for `ObjectConnector`.
        endpoint: URL of the server, where it is not Google's.
        options: see `ObjectConnector`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("gs",)
    _OPTIONS: ClassVar = {**ObjectConnector._OPTIONS, "endpoint": str}

    def __init__(
        self, bucket: str, prefix: str = PREFIX, *, endpoint: str | None = None, **options: Any
    ) -> None:
        super().__init__(bucket, prefix, endpoint=_checked(endpoint), **options)

    def _connect(self, obs: Any, options: dict[str, Any]) -> Any:
        endpoint = self._given["endpoint"]
        config = {"base_url": endpoint} if endpoint else {}
        options["client_options"]["allow_http"] = bool(endpoint and endpoint.startswith("http://"))
        return obs.store.GCSStore(self.bucket, prefix=self.prefix, config=config, **options)


class AzureConnector(ObjectConnector):
    """Keeps objects in a container of Azure Blob Storage; ``az://container/prefix?account=name``.

    Args:
        bucket: the container's name.
        prefix: as for `ObjectConnector`.
        account: name of the storage account; by default ``AZURE_STORAGE_ACCOUNT_NAME``.
        endpoint: URL of the server, where it is not Microsoft's.
        options: see `ObjectConnector`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("az",)
    _OPTIONS: ClassVar = {**ObjectConnector._OPTIONS, "account": str, "endpoint": str}

    def __init__(
        self,
        bucket: str,
        prefix: str = PREFIX,
        *,
        account: str | None = None,
        endpoint: str | None = None,
        **options: Any,
    ) -> None:
        account = account or _variable("AZURE_STORAGE_ACCOUNT_NAME")
        if not account:
            raise ConfigurationError(
                "az:// needs the storage account's name: expected az://container?account=name"
            )
        super().__init__(bucket, prefix, account=account, endpoint=_checked(endpoint), **options)

    def _connect(self, obs: Any, options: dict[str, Any]) -> Any:
        endpoint = self._given["endpoint"]
        config = {"account_name": self._given["account"]} | ({"endpoint": endpoint} if endpoint else {})
        options["client_options"]["allow_http"] = bool(endpoint and endpoint.startswith("http://"))
        return obs.store.AzureStore(self.bucket, prefix=self.prefix, config=config, **options)


def _pieces(frames: Sequence[memoryview], context: Context) -> Iterator[memoryview]:
    """An object's bytes for an upload, which asks for the next ones in threads of its own."""
    for frame in frames:
        for start in range(0, frame.nbytes, _PIECE):
            piece = frame[start : start + _PIECE]
            yield piece
            context.run(moved, piece.nbytes)


def _checked(endpoint: str | None) -> str | None:
    """The endpoint, without a slash at its end.

    Raises:
        ConfigurationError: it is no URL, or has credentials in it.
    """
    if endpoint is None:
        return None
    check_text("endpoint", endpoint)
    bare = "://" not in endpoint
    told = StoreURL.parse(f"http://{endpoint}" if bare else endpoint)  # a bad port lets the library panic
    if told.username or told.password:
        raise ConfigurationError("endpoint has credentials in it: put them into the environment")
    if bare or told.scheme not in ("http", "https") or not told.host or told.query or "#" in endpoint:
        shown = told.url.removeprefix("http://") if bare else told.url
        raise ConfigurationError(f"endpoint is {shown!r}: expected http://host:port or https://host")
    return endpoint.rstrip("/")


def _variable(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _profile() -> Any:
    """Credentials of a profile in ~/.aws, which boto3 can read; None where the environment has some."""
    if _variable(
        "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
    ):
        return None
    folder = os.path.expanduser("~/.aws")
    files = (os.path.join(folder, "credentials"), os.path.join(folder, "config"))
    if not _variable("AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE") and not any(map(os.path.exists, files)):
        return None
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    session = boto3.Session()
    return None if session.get_credentials() is None else Boto3CredentialProvider(session)
