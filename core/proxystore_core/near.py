"""Copies of far objects in this host's shared memory: whoever needs one, each host fetches it once.

<shared memory>/proxystore-<uid>.near/    mode 0700; goes with the last process that uses it
    <copy>            an object's bytes, published whole; its modification time is its last use
    <copy>.lock       locked by the one process that fetches for all
    live              share-locked by every process that uses the directory

A killed process leaves no lock, and what it leaves otherwise is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import time
import weakref
from collections.abc import Callable

from proxystore_core import forks
from proxystore_core.buffers import MAP_FROM, read_file
from proxystore_core.connectors.base import Buffer, Key
from proxystore_core.connectors.file import FileConnector
from proxystore_core.errors import StoreError
from proxystore_core.locks import OPEN, is_at, locked
from proxystore_core.maps import map_private

__all__ = ["NEAR_FROM", "NearCopies"]

NEAR_FROM = MAP_FROM
"""Size in bytes from which an object is worth a copy."""

_SHM = "/dev/shm"
_LIVE = "live"
_LOCK = ".lock"
_SHARE = 0.25  # of what is free: this is a convenience, objects and programs come first
_TRIES = 20  # a directory that is made can be removed beside us before it is used
_PAUSES = 0.001, 0.02  # seconds between two looks of one who waits: first, and longest
_instances: weakref.WeakSet[NearCopies] = weakref.WeakSet()


class NearCopies:
    """Keeps what was fetched for all processes of this user on this host.

    Where shared memory is missing, full, or not this user's, everything is simply fetched.

    Args:
        root: directory in shared memory that holds this user's directory; ``/dev/shm`` by default.
        limit: bytes that all copies may take; by default a quarter of what is free without them.
            Processes that publish at the same moment may exceed it by their objects.
        lease: seconds unused after which a copy goes.
        patience: seconds to wait for another process' fetch before fetching without a copy.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        limit: int | None = None,
        lease: float = 600.0,
        patience: float = 60.0,
    ) -> None:
        self.directory = os.path.join(root or _SHM, f"proxystore-{os.geteuid()}.near")
        self.limit = limit
        self.lease = lease
        self.patience = patience
        self._files: FileConnector | None = None
        self._live: list[int] = []  # the descriptor that is share-locked
        self._locks: set[int] = set()  # descriptors of what is being fetched
        self._entering = forks.lock()
        self._leave = weakref.finalize(self, _leave, self.directory, self._live)  # at exit, too
        _instances.add(self)

    def get(self, recipe: str, key: Key, size: int, fetch: Callable[[], Buffer | None]) -> Buffer | None:
        """An object's bytes, mapped if this host has them, else fetched and left here for the others.

        Args:
            recipe: names the store.
            key: names the object there.
            size: its bytes: where they have no room, nobody waits for anybody.
            fetch: called without arguments when this process is the one that fetches.

        Returns:
            Bytes that are the caller's own, or None when ``fetch`` finds no such object.

        Raises:
            BaseException: what ``fetch`` raises; those who waited then fetch themselves.
        """
        name = _name(recipe, key)
        lock = None
        try:
            try:
                self._enter()
                until, pause = time.monotonic() + self.patience, _PAUSES[0]
                while True:
                    copy = self._map(name)
                    if copy is not None:
                        return copy
                    if lock is not None or time.monotonic() > until or size > self._room(self._copies()):
                        break
                    lock = self._lock(name)
                    if lock is None:
                        time.sleep(pause)
                        pause = min(2 * pause, _PAUSES[1])
            except (OSError, StoreError):
                self.close()  # somebody removed the directory, or there never can be one
            data = fetch()
            return data if data is None or lock is None else self._publish(name, data)
        finally:
            if lock is not None:
                self._unlock(name, lock)

    def evict(self, recipe: str, key: Key) -> bool:
        """Remove this host's copy; tells whether there was one. Maps of it stay valid."""
        try:
            os.unlink(os.path.join(self.directory, _name(recipe, key)))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Use the directory no longer, and remove it when nobody else does. The next `get` begins anew."""
        with self._entering:
            _leave(self.directory, self._live)

    def _enter(self) -> None:
        with self._entering:
            os.stat(os.path.dirname(self.directory))  # never made here: what is missing is no shared memory
            for _ in range(_TRIES):
                if self._live:
                    return
                self._files = FileConnector(self.directory, grace=0)  # makes the directory, or refuses it
                with contextlib.suppress(FileNotFoundError):
                    live = locked(os.path.join(self.directory, _LIVE), fcntl.LOCK_SH)
                    if live is not None:
                        self._live.append(live)
                        # multiprocessing ends forked children in its own way, past atexit.
                        util = sys.modules.get("multiprocessing.util")
                        if util is not None:
                            util.Finalize(self, _leave, (self.directory, self._live), exitpriority=0)
                        return
                time.sleep(_PAUSES[0])
            raise TimeoutError(f"{self.directory} is being removed for ever")

    def _map(self, name: str) -> Buffer | None:
        try:
            fd = os.open(os.path.join(self.directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid():
                raise PermissionError(f"{self.directory} has become another user's")
            os.utime(fd)
            try:
                return map_private(fd, status)
            except OSError:  # too many maps: a copy still works
                return read_file(fd, status.st_size)
        finally:
            os.close(fd)

    def _lock(self, name: str) -> int | None:
        lock = locked(os.path.join(self.directory, name + _LOCK), fcntl.LOCK_EX)
        if lock is not None:
            self._locks.add(lock)
        return lock

    def _unlock(self, name: str, lock: int) -> None:
        if lock not in self._locks:
            return  # a child that was forked in mid-fetch: the lock is its parent's
        self._locks.discard(lock)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.directory, name + _LOCK))
        # A child being forked right now has the descriptor, too: closing alone would not unlock.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)

    def _publish(self, name: str, data: Buffer) -> Buffer:
        assert self._files is not None
        try:
            if self._make_room(memoryview(data).nbytes):
                self._files._publish(self.directory, [data], name)
                return self._map(name) or data
        except OSError:  # full after all, or removed: a copy less
            pass
        return data

    def _make_room(self, size: int) -> bool:
        """Remove what nobody used for long, and the oldest copies as far as needed."""
        stale = time.time() - self.lease
        copies = self._copies(stale)
        room = self._room(copies)
        held = sum(copy[1] for copy in copies)
        for _, nbytes, path in sorted(copies) if size <= room else ():
            if held + size <= room:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            held -= nbytes
        return size <= room

    def _copies(self, stale: float = 0.0) -> list[tuple[float, int, str]]:
        """Last use, bytes and path of every copy, once what was last used before ``stale`` is removed."""
        copies = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.name == _LIVE:
                        continue
                    if status.st_mtime < stale:
                        os.unlink(entry.path)
                    elif not entry.name.endswith(_LOCK):
                        copies.append((status.st_mtime, status.st_size, entry.path))
        return copies

    def _room(self, copies: list[tuple[float, int, str]]) -> int:
        """Bytes that all copies together may take."""
        system = os.statvfs(self.directory)
        room = int((system.f_bavail * system.f_frsize + sum(copy[1] for copy in copies)) * _SHARE)
        return room if self.limit is None else min(room, self.limit)


def _name(recipe: str, key: Key) -> str:
    return hashlib.blake2b(f"{recipe}\n{key}".encode(), digest_size=16).hexdigest()


def _leave(directory: str, live: list[int]) -> None:
    """Let go of the directory and remove it if that was the last hold, be it one of a killed process."""
    path = os.path.join(directory, _LIVE)
    try:
        fd = live.pop() if live else os.open(path, OPEN)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(fd, path) and os.stat(directory).st_uid == os.geteuid():
            for name in sorted(os.listdir(directory), key=_LIVE.__eq__):  # whoever enters waits for the last
                os.unlink(os.path.join(directory, name))
            os.rmdir(directory)
    except OSError:
        pass  # others use it
    finally:
        os.close(fd)


@forks.in_child
def _after_fork() -> None:
    # The child's descriptors share the parent's locks: they would keep them, or remove what is in use.
    for near in list(_instances):
        for fd in (*near._live, *near._locks):
            os.close(fd)
        near._live.clear()
        near._locks.clear()
