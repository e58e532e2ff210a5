"""Objects as files in a directory of another machine, reached over SSH.

The files, keys and leases are those of a `FileConnector`: on that machine ``file://`` opens the same store.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, TypeVar

import asyncssh

from proxystore_core.buffers import byte_views, fresh_buffer
from proxystore_core.connectors.arguments import check_port, check_seconds, check_text
from proxystore_core.connectors.base import USER_SESSION, Buffer, ByURL, Held, Key, check_lease, check_session
from proxystore_core.connectors.lapsed import LEASE, UNRENEWED, end_files, end_lapsed
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.connectors.sftp_line import Line, Login
from proxystore_core.errors import ConfigurationError, CorruptError, RefusedError, UnreachableError
from proxystore_core.moving import moved
from proxystore_core.urls import StoreURL

__all__ = ["SFTPConnector"]

R = TypeVar("R")

_KEY = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9a-f]{20})")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OBJECT = re.compile(r"[0-9a-f]{20}")
_PART = re.compile(r"\.[0-9a-f]{20}")
_TRIES = 10  # a directory that is made can be ended beside us before it is used
_CHUNK = 1 << 20  # bytes that are copied at a time on their way out
_SLOWEST = 1e6  # bytes a second that a network moves at least: big objects get so much more time


class SFTPConnector(ByURL):
    """Keeps each object in a file of its own on a host that runs an SSH server; ``sftp://user@host/directory``.

    Nothing is connected before the first operation. Who logs in is found as ``ssh`` finds it: keys and the
    agent, ``~/.ssh/config`` and ``~/.ssh/known_hosts``; or a password in ``PROXYSTORE_SFTP_PASSWORD``.

    Args:
        host: the host.
        store_dir: directory of the store there, absolute; made with mode 0700 when missing.
        port: TCP port of the SSH server.
        username: whose account; by default as ``ssh`` has it.
        identity: path of a private key's file on every host that uses the store.
        known_hosts: path of a file with the server's key, instead of ``~/.ssh/known_hosts``.
        deadline: seconds that an operation may take, besides moving its bytes.
        connect_timeout: seconds for opening a connection.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("sftp",)
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False
    far: ClassVar[bool] = True

    _OPTIONS: ClassVar[dict[str, Callable[[str], Any]]] = {
        "identity": str,
        "known_hosts": str,
        "deadline": float,
        "connect_timeout": float,
    }

    def __init__(
        self,
        host: str,
        store_dir: str,
        *,
        port: int = 22,
        username: str | None = None,
        identity: str | None = None,
        known_hosts: str | None = None,
        deadline: float = 30.0,
        connect_timeout: float = 5.0,
    ) -> None:
        check_port(port)
        texts = {"username": username, "identity": identity, "known_hosts": known_hosts}
        given = {name: text for name, text in texts.items() if text is not None}
        for name, text in {"host": host, "store_dir": store_dir, **given}.items():
            check_text(name, text)
        self.store_dir = "/" + store_dir.strip("/")
        if not host or self.store_dir == "/":
            raise ConfigurationError(
                f"host {host!r} and directory {store_dir!r} are no store: expected sftp://host/directory"
            )
        self._given = {"host": host, "store_dir": self.store_dir, "port": port, "username": username}
        options = {"identity": identity, "known_hosts": known_hosts}
        deadline = check_seconds("deadline", deadline)
        connect_timeout = check_seconds("connect_timeout", connect_timeout)
        seconds = {"deadline": deadline, "connect_timeout": connect_timeout}
        self._given |= {**options, **seconds}
        usual = {"deadline": 30.0, "connect_timeout": 5.0}
        query = {name: value for name, value in {**options, **seconds}.items() if value != usual.get(name)}
        self.deadline = deadline
        user = f"{urllib.parse.quote(username, safe='')}@" if username else ""
        place = f"[{host}]" if ":" in host else host
        place += f":{port}" if port != 22 else ""
        text = urllib.parse.urlencode(query, safe="/:")
        self._url = f"sftp://{user}{place}{urllib.parse.quote(self.store_dir)}{'?' if text else ''}{text}"
        self._login = Login(self._url, host, port, username, identity, known_hosts, connect_timeout)
        self._lines: dict[int, Line] = {}  # by process: the thread at its other end stays behind at a fork
        self._own = OwnKeys()
        self._given_up: list[tuple[str, str]] = []  # directories and names of puts that failed

    @property
    def url(self) -> str:
        return self._url

    def config(self) -> dict[str, Any]:
        return dict(self._given)

    @classmethod
    def from_url(cls, url: str) -> SFTPConnector:
        parts = StoreURL.parse(url)
        if parts.password:
            raise ConfigurationError(
                f"sftp:// takes no password, found one in {parts.url!r}",
                remedy="URLs travel: use a key, or PROXYSTORE_SFTP_PASSWORD in each process's environment.",
            )
        options = parts.options(cls._OPTIONS)
        return cls(parts.host, parts.path, port=parts.port or 22, username=parts.username or None, **options)

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        directory = self._directory(session)
        views = byte_views(data)
        size = sum([view.nbytes for view in views])

        async def write(sftp: Any) -> Key:
            await self._discard(sftp)
            for _ in range(_TRIES):
                name = secrets.token_hex(10)
                try:
                    await self._write(sftp, directory, name, views)
                except asyncssh.SFTPNoSuchFile:  # also of a session that ended meanwhile
                    await self._begin(sftp, session, UNRENEWED)
                except BaseException:
                    self._given_up.append((directory, name))
                    await self._discard(sftp)
                    raise
                else:
                    return f"{session}.{name}"
            raise UnreachableError(f"the directory of session {session} goes again and again", store=self.url)

        key = self._run(write, size)
        if session == USER_SESSION:
            self._own.note([key], self._keys_of_users)
        return key

    async def _write(self, sftp: Any, directory: str, name: str, views: Sequence[memoryview]) -> None:
        part = f"{directory}/.{name}"
        async with await sftp.open(part, "wb", asyncssh.SFTPAttrs(permissions=0o600)) as file:
            for view in views:
                for start in range(0, view.nbytes, _CHUNK):
                    chunk = bytes(view[start : start + _CHUNK])
                    await file.write(chunk)
                    moved(len(chunk))
            # A server that runs full in the midst of a write may say that all went well.
            kept, size = (await file.stat()).size, sum([view.nbytes for view in views])
        if kept != size:
            raise asyncssh.SFTPNoSpaceOnFilesystem(f"no space: {kept} of {size} bytes were kept")
        await sftp.rename(part, f"{directory}/{name}")

    async def _discard(self, sftp: Any) -> None:
        """Remove what is there of puts that failed; later, if that fails as well."""
        for directory, name in list(self._given_up):
            try:
                for path in (f"{directory}/.{name}", f"{directory}/{name}"):
                    with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                        await sftp.remove(path)
            except (asyncssh.Error, OSError):
                return
            with contextlib.suppress(ValueError):  # another put has done so meanwhile
                self._given_up.remove((directory, name))

    def get(self, key: Key) -> Buffer | None:
        path = self._path(key)

        async def read(sftp: Any, patient: bool = False) -> Buffer | int:
            async with await sftp.open(path, "rb") as file:
                size: int = (await file.stat()).size or 0
                if size > _CHUNK and not patient:
                    return size  # it may take longer than what this was given
                whole = fresh_buffer(size)
                view, done = memoryview(whole), 0
                async for offset, chunk in await file.read_parallel(size, 0):
                    view[offset : offset + len(chunk)] = chunk
                    done += len(chunk)
                    moved(len(chunk))
            if done != size:
                raise CorruptError(f"{done} bytes came of a file of {size}", store=self.url, key=key)
            return whole

        try:
            found = self._run(read, key=key)
            if isinstance(found, int):
                found = self._run(lambda sftp: read(sftp, True), found, key)
        except FileNotFoundError:
            return None
        assert not isinstance(found, int)
        return found

    def exists(self, key: Key) -> bool:
        path = self._path(key)
        found: bool = self._run(lambda sftp: sftp.lexists(path), key=key)
        return found

    def evict(self, key: Key) -> None:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError):
            self._run(lambda sftp: sftp.remove(path), key=key)
        self._own.discard([key])

    def keys(self, session: str) -> list[Key]:
        directory = self._directory(session)
        names = self._run(lambda sftp: _names(sftp, directory))
        return [f"{session}.{name}" for name in names if _OBJECT.fullmatch(name)]

    def _keys_of_users(self) -> list[Key]:
        return self.keys(USER_SESSION)

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        lease = f"{self._directory(session)}/{LEASE}"
        expiry = time.time() + seconds

        async def extend(sftp: Any) -> None:
            for tries_left in reversed(range(_TRIES)):
                try:
                    await sftp.utime(lease, (expiry, expiry))
                    return
                except asyncssh.SFTPNoSuchFile:
                    if not tries_left:
                        raise
                    await self._begin(sftp, session, seconds)

        self._run(extend)

    def extend(self, session: str, seconds: float) -> bool:
        """As `extend_lease`."""
        check_lease(session, seconds, self.url)
        lease = f"{self._directory(session)}/{LEASE}"
        expiry = time.time() + seconds

        async def extend(sftp: Any) -> bool:
            try:
                await sftp.utime(lease, (expiry, expiry))
            except asyncssh.SFTPNoSuchFile:
                return False
            return bool(await sftp.exists(lease))  # a sweep may have taken it away at that very moment

        return self._run(extend)

    def end(self, session: str) -> int:
        directory = self._directory(session)

        async def remove(sftp: Any) -> int:
            count = 0
            for _ in range(_TRIES):  # an object may be published between the last removal and the directory's
                try:
                    # The lease goes last: a crash in between leaves a session that lapses, not one without.
                    for name in sorted(await sftp.listdir(directory), key=LEASE.__eq__):
                        is_object = _OBJECT.fullmatch(name) is not None
                        if is_object or name == LEASE or _PART.fullmatch(name):
                            with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                                await sftp.remove(f"{directory}/{name}")
                                count += is_object
                    await sftp.rmdir(directory)
                except asyncssh.SFTPNoSuchFile:
                    break
                except asyncssh.SFTPFailure:
                    continue  # not empty
                break
            return count

        return self._run(remove)

    def sessions(self) -> dict[str, float]:
        async def look(sftp: Any) -> dict[str, float]:
            found = {}
            for name in await _names(sftp, self.store_dir):
                if name != USER_SESSION and _SESSION.fullmatch(name):
                    with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                        found[name] = await _expiry(sftp, f"{self.store_dir}/{name}")
            return found

        now = time.time()
        return {session: expiry - now for session, expiry in self._run(look).items()}

    def held(self) -> dict[str, Held]:
        async def look(sftp: Any) -> dict[str, Held]:
            found = {}
            for name in await _names(sftp, self.store_dir):
                if _SESSION.fullmatch(name):
                    sizes = []
                    with contextlib.suppress(asyncssh.SFTPNoSuchFile):  # it may end while we look
                        entries = await sftp.readdir(f"{self.store_dir}/{name}")
                        sizes = [entry.attrs.size for entry in entries if _OBJECT.fullmatch(entry.filename)]
                    found[name] = Held(len(sizes), sum(sizes))
            return found

        return self._run(look)

    def room(self) -> int | None:
        async def look(sftp: Any) -> int | None:
            try:
                status = await sftp.statvfs(self.store_dir)
            except asyncssh.SFTPError:  # not every server tells
                return None
            return int(status.bavail * status.frsize) if status.blocks else None

        return self._run(look)

    def sweep(self) -> list[str]:
        return end_lapsed(self.sessions(), lambda session: end_files(_Files(self, self._directory(session))))

    def close(self, *, clear: bool = False) -> None:
        if clear:
            for key in self._own.mine():
                self.evict(key)
        line = self._lines.pop(os.getpid(), None)
        if line is not None:
            line.close()

    def _run(self, do: Callable[[Any], Awaitable[R]], moved: int = 0, key: Key | None = None) -> R:
        """What ``do`` says with an SFTP client; it may be done twice.

        Raises:
            FileNotFoundError: a file is missing.
            StoreError: anything else.
        """
        process = os.getpid()
        line = self._lines.get(process)
        if line is None:
            line = self._lines.setdefault(process, Line(self._login))
        return line.run(do, self.deadline + moved / _SLOWEST, key)

    async def _begin(self, sftp: Any, session: str, seconds: float) -> None:
        """Make a session's directory, with a lease unless it is the user's."""
        directory = f"{self.store_dir}/{session}"
        own = asyncssh.SFTPAttrs(permissions=0o700)
        try:
            await sftp.makedirs(directory, own, exist_ok=True)
        except asyncssh.SFTPNoSuchFile as error:
            raise RefusedError(
                f"no directory can be made at {directory}",
                store=self.url,
                remedy="Name another directory in the URL.",
            ) from error
        if session == USER_SESSION:
            return
        with contextlib.suppress(asyncssh.SFTPNoSuchFile):
            part = f"{directory}/.{secrets.token_hex(10)}"
            async with await sftp.open(part, "wb", asyncssh.SFTPAttrs(permissions=0o600)):
                pass
            expiry = time.time() + seconds
            await sftp.utime(part, (expiry, expiry))
            try:
                await sftp.rename(part, f"{directory}/{LEASE}")  # never seen with another time
            except asyncssh.SFTPFailure:  # somebody was faster
                await sftp.remove(part)

    def _directory(self, session: str) -> str:
        check_session(session, self.url)
        return f"{self.store_dir}/{session}"

    def _path(self, key: Key) -> str:
        match = _KEY.fullmatch(key)
        if match is None:
            raise RefusedError("not a key of this store", store=self.url, key=key[:200])
        return f"{self.store_dir}/{match[1]}/{match[2]}"


class _Files:
    """See `SessionFiles`."""

    def __init__(self, connector: SFTPConnector, directory: str) -> None:
        self._connector = connector
        self._directory = directory

    def _do(self, do: Callable[[Any], Awaitable[R]]) -> R:
        return self._connector._run(do)

    def _at(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def names(self) -> list[str]:
        return list(self._do(lambda sftp: sftp.listdir(self._directory)))

    def lapse(self, lease: str) -> float:
        return self._do(lambda sftp: _expiry(sftp, self._directory, lease))

    def rename(self, name: str, new: str) -> None:
        self._do(lambda sftp: sftp.rename(self._at(name), self._at(new)))

    def put_back(self, name: str, new: str) -> None:
        async def rename(sftp: Any) -> None:
            try:
                await sftp.rename(self._at(name), self._at(new))
            except asyncssh.SFTPFailure:  # it has begun anew
                await sftp.remove(self._at(name))

        self._do(rename)

    def remove(self, name: str) -> None:
        if _OBJECT.fullmatch(name) or _PART.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                self._do(lambda sftp: sftp.remove(self._at(name)))

    def remove_directory(self) -> None:
        async def remove(sftp: Any) -> None:
            with contextlib.suppress(asyncssh.SFTPFailure, asyncssh.SFTPNoSuchFile):  # there is more by now
                await sftp.rmdir(self._directory)

        self._do(remove)


async def _names(sftp: Any, directory: str) -> list[str]:
    """What is in a directory; nothing where there is none."""
    try:
        return list(await sftp.listdir(directory))
    except asyncssh.SFTPNoSuchFile:
        return []


async def _expiry(sftp: Any, directory: str, lease: str = LEASE) -> float:
    """When a session's lease lapses, in seconds since the epoch."""
    with contextlib.suppress(asyncssh.SFTPNoSuchFile):
        return _modified(await sftp.stat(f"{directory}/{lease}"))
    status = await sftp.stat(directory)
    if not stat.S_ISDIR(status.permissions or 0):
        raise asyncssh.SFTPNoSuchFile("no session")
    return _modified(status) + UNRENEWED


def _modified(status: Any) -> float:
    return float(status.mtime or 0) + (status.mtime_ns or 0) / 1e9
