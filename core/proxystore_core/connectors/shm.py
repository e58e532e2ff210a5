"""Objects in this host's shared memory: files under /dev/shm that readers map instead of copying.

A put is one copy; a get is a private map, writable and isolated, which costs nothing until a page
is written. An evicted object's pages live on until the last map of them is gone, and a file is
never reused for another object (a private map would show the new bytes).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import socket
import tempfile
import urllib.parse
from collections.abc import Sequence
from typing import Any, ClassVar

from proxystore_core.buffers import MAP_FROM, read_file
from proxystore_core.connectors.base import USER_SESSION, Buffer, Held, Key, never_comes
from proxystore_core.connectors.file import LATER, FileConnector
from proxystore_core.connectors.segments import SegmentStock, has_room
from proxystore_core.connectors.survey import tally
from proxystore_core.errors import ConfigurationError, FullError, RefusedError, UnreachableError
from proxystore_core.maps import let_go, map_private
from proxystore_core.urls import StoreURL
from proxystore_core.warned import warn

__all__ = ["ShmConnector"]

_SHM = "/dev/shm"
_NAME = re.compile(r"[A-Za-z0-9_-]{0,64}")
_STOCK = 256 << 20
_DISK = ".disk"  # ends the keys of objects that went to the spill directory
_LEFT_TO_OTHERS = 0.1  # share of the file system that this store never takes


class ShmConnector(FileConnector):
    """Keeps each object in shared memory; ``shm://`` or ``shm://name``.

    When shared memory is full (64 MB in many containers), objects go to files in the temporary
    directory instead, and the process says so once.

    Args:
        name: connectors of one name and user on one host share their objects.
        stock: bytes of fresh segments that may be kept allocated ahead of the next puts.
        spill: directory for what does not fit.

    Raises:
        RefusedError: the store's directory is another user's.
    """

    _refill: ClassVar[float] = 0.0
    schemes: ClassVar[tuple[str, ...]] = ("shm",)
    checksum: ClassVar[bool] = False
    cheap_get: ClassVar[bool] = True

    def __init__(
        self, name: str = "", *, stock: int = _STOCK, spill: str | os.PathLike[str] | None = None
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} names no shared memory: use letters, digits, - and _")
        self.name = name
        given_spill = os.path.abspath(spill) if spill else None
        self._given = {"stock": stock, "spill": given_spill}
        folder = f"proxystore-{os.geteuid()}" + (f"-{name}" if name else "")
        super().__init__(os.path.join(_root(), folder), grace=0)
        self.node = node()
        self._spill_dir = given_spill or os.path.join(tempfile.gettempdir(), folder)
        self._spill_store: FileConnector | None = None
        self._stock = SegmentStock(stock, self._refill)

    def __repr__(self) -> str:
        return f"ShmConnector({self.name!r})"

    @property
    def url(self) -> str:
        usual = {"stock": _STOCK, "spill": None}
        options = {name: value for name, value in self._given.items() if value != usual[name]}
        query = f"?{urllib.parse.urlencode(options)}" if options else ""
        return f"{self.schemes[0]}://{self.name}{query}"

    def config(self) -> dict[str, Any]:
        return {"name": self.name, **self._given}

    @classmethod
    def from_url(cls, url: str) -> ShmConnector:
        parts = StoreURL.parse(url)
        parts.expect(host=True)
        return cls(parts.host, **parts.options({"stock": int, "spill": str}))

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        try:
            return super().put(data, session=session)
        except FullError as full:
            try:
                key = self._spill.put(data, session=session)
            except FullError as error:
                raise error from full
            _say_once(self.url, self._spill_dir)
            return f"{self.node}.{key}{_DISK}"

    def set(self, key: Key, data: Sequence[Buffer]) -> None:
        try:
            super().set(key, data)
        except FullError as full:
            path = self._path(key)
            session = os.path.basename(os.path.dirname(path))
            try:
                spilled = self._spill.put(data, session=session)
            except FullError as error:
                raise error from full
            _say_once(self.url, self._spill_dir)
            try:
                with self._translated(key), self._taken(path, key):
                    os.symlink(spilled, path)  # what tells `_spilled`, and those who wait
            except BaseException:
                self._spill.evict(spilled)
                raise

    def wait(self, key: Key, timeout: float | None = None) -> bool:
        if not key.endswith(_DISK):
            return super().wait(key, timeout)
        if self.exists(key):
            return True
        raise never_comes(self.url, key)

    def get(self, key: Key) -> Buffer | None:
        spilled = self._spilled(key)
        if spilled is None:
            return super().get(key)
        return self._spill.get(spilled) if self._has_spilled() else None

    def exists(self, key: Key) -> bool:
        spilled = self._spilled(key)
        if spilled is None:
            return super().exists(key)
        return self._has_spilled() and self._spill.exists(spilled)

    def evict(self, key: Key) -> None:
        spilled = self._spilled(key)
        if spilled is not None and self._has_spilled():
            self._spill.evict(spilled)
        if spilled is None or not key.endswith(_DISK):
            super().evict(key)

    def keys(self, session: str, *, reserved: bool = False) -> list[Key]:
        spilled = self._spill.keys(session) if self._has_spilled() else []
        return [*super().keys(session, reserved=reserved), *(f"{self.node}.{key}.disk" for key in spilled)]

    def end(self, session: str) -> int:
        # The lease is here, and goes last.
        count = self._spill.end(session) if self._has_spilled() else 0
        return count + super().end(session)

    def _end_lapsed(self, session: str) -> bool:
        if not os.path.isdir(self._directory(session)):
            return self._has_spilled() and self._spill._end_lapsed(session)
        if not super()._end_lapsed(session):
            return False
        if self._has_spilled():
            self._spill.end(session)
        return True

    def sessions(self) -> dict[str, float]:
        # A session of the spill directory alone is one that got objects after its end.
        spilled = self._spill.sessions() if self._has_spilled() else {}
        return spilled | super().sessions()

    def held(self) -> dict[str, Held]:
        found = super().held()
        for session, more in (self._spill.held() if self._has_spilled() else {}).items():
            tally(found, session, *more)
        return found

    def close(self, *, clear: bool = False) -> None:
        self._stock.drop()
        if self._spill_store is not None:
            self._spill_store.close(clear=clear)
        super().close(clear=clear)

    def has(self, session: str, name: str) -> bool:
        """Whether an object, or a reservation, of this name is there.

        Args:
            session: the object's.
            name: what its key ends with.

        Raises:
            RefusedError: no object has such a name.
        """
        there = self.exists(self._key(session, name))
        return there or (name.endswith(LATER) and os.path.lexists(f"{self._directory(session)}/.{name}"))

    def open_file(self, session: str, name: str) -> int | None:
        """A descriptor of an object's bytes, to be read and closed; None when the object is not there.

        Args:
            session: the object's.
            name: what its key ends with.

        Raises:
            RefusedError: no object has such a name.
        """
        path = None
        if name.endswith((_DISK, LATER)):
            spilled = self._spilled(self._key(session, name))
            if spilled is not None:
                if not self._has_spilled():
                    return None
                path = self._spill._path(spilled)
        try:
            return os.open(path or self._path_of(session, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None

    def _remove(self, directory: str, name: str) -> bool:
        # A link stands for an object in the spill directory, where it was counted.
        linked = name.endswith(LATER) and os.path.islink(os.path.join(directory, name))
        return super()._remove(directory, name) and not linked

    def _remove_if_empty(self) -> None:
        super()._remove_if_empty()
        for directory in (self.store_dir, self._spill_dir):
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    @property
    def _spill(self) -> FileConnector:
        if self._spill_store is None:
            self._spill_store = FileConnector(self._spill_dir)
        return self._spill_store

    @property
    def place(self) -> str:
        """This shared memory, and no other machine's or container's."""
        return self.node

    def _has_spilled(self) -> bool:
        """Whether anyone's objects went to the spill directory; a look never makes it."""
        if not os.path.isdir(self._spill_dir):
            return False
        try:
            return self._spill is not None
        except RefusedError:  # another user's: whatever is there, nothing of ours is
            return False

    def _spilled(self, key: Key) -> Key | None:
        """The spill directory's key of an object that went there, else None."""
        if not key.endswith(_DISK):
            if key.endswith(LATER):
                with contextlib.suppress(OSError):
                    return os.readlink(self._path(key))
            return None
        parsed = self._parse(key.removesuffix(_DISK))
        if parsed is None:
            raise RefusedError("not a key of this store", store=self.url, key=key)
        return ".".join(parsed)

    def _key(self, session: str, name: str) -> Key:
        return f"{self.node}.{session}.{name}"

    def _parse(self, key: Key) -> tuple[str, str] | None:
        where, _, rest = key.partition(".")
        session, dot, name = rest.partition(".")
        if not dot:
            return None
        if where != self.node:
            raise UnreachableError(
                f"the object is in the shared memory of {where}, this process sees that of {self.node}",
                store=self.url,
                key=key,
                remedy=(
                    "Use a store that all hosts reach, for example "
                    'store = "redis://host:6379" or "file:///shared/directory" in proxystore.toml.'
                ),
            )
        return session, name

    def _read(self, fd: int, status: os.stat_result) -> Buffer:
        if status.st_size >= MAP_FROM:
            try:
                return map_private(fd, status)
            except OSError as error:
                if error.errno != errno.ENOMEM:  # vm.max_map_count is reached: a copy still works
                    raise
        return read_file(fd, status.st_size)

    def _fresh(self, directory: str, size: int) -> int:
        fits = has_room(
            directory, size, _LEFT_TO_OTHERS
        )  # a missing directory is found before a segment is ordered
        fd = self._stock.take(directory, size)
        if fd is not None:
            return fd
        if not fits:
            self._stock.drop()
            let_go()  # an evicted object's pages live on in a map, which is undone in the background
            if not has_room(directory, size, _LEFT_TO_OTHERS):
                raise OSError(errno.ENOSPC, f"no room for {size} bytes in shared memory")
        return super()._fresh(directory, size)


def _root() -> str:
    return _SHM if os.path.isdir(_SHM) else tempfile.gettempdir()


@functools.cache
def node() -> str:
    """Names the shared memory that this process sees: processes that agree on it can share objects.

    The host's name is for people. What tells is the kernel's boot and the device number of the
    file system at /dev/shm, which differs between containers of one host unless they share it.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read()
    except OSError:
        boot = socket.gethostname()
    identity = f"{boot}{os.stat(_root()).st_dev}"
    host = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower())[:16].strip("-")
    return f"{host}-{hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()}"


@functools.cache
def _say_once(url: str, directory: str) -> None:
    warn(
        f"shared memory ({url}) is full: objects go to files in {directory} from here on, which is slower. "
        "Give the machine or container more (docker run --shm-size=...), or name another store."
    )
