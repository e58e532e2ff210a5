"""Waiting for names to come and go in directories: woken by the kernel (inotify), else by looking again.

A process has one inotify instance, and only while somebody waits: a user has 128 of them by default.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import struct
import threading
from collections.abc import Iterator

from proxystore_core import forks

__all__ = ["Change", "told_of", "watching"]

_FOR = (
    0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x01000000
)  # moved from and to, created, deleted, the directory itself deleted and moved; directories only
_CLOSED = 0x80000 | 0x800  # IN_CLOEXEC | IN_NONBLOCK
_EVENT = struct.Struct("iIII")
_IDLE = 5.0  # seconds without anyone waiting after which the instance is given back
_LOOK = 0.01  # seconds between two looks where the kernel tells nothing
_LOOK_ALL_THE_SAME = 1.0  # seconds, where it should tell: some file systems keep changes to themselves
_NETWORK = frozenset(
    "nfs nfs4 lustre gpfs beegfs ceph cifs smb3 panfs afs wekafs fuse.sshfs fuse.glusterfs".split()
)


class Change:
    """Tells one waiter that something happened to a name in a directory.

    Args:
        woken: whether the kernel tells.
    """

    def __init__(self, woken: bool) -> None:
        self.woken = woken
        self._event = threading.Event()

    def wait(self, seconds: float | None) -> None:
        """Wait for a change since the last call, or until it is time to look again; ``seconds`` at most."""
        longest = _LOOK_ALL_THE_SAME if self.woken else _LOOK
        self._event.wait(longest if seconds is None else min(longest, seconds))
        self._event.clear()

    def tell(self) -> None:
        self._event.set()


@contextlib.contextmanager
def watching(directory: str, names: tuple[str, ...], *, told: bool = True) -> Iterator[Change]:
    """Learn of changes to some names of a directory. What happens from here on is not missed.

    Args:
        directory: need not be there; then nothing tells that it comes.
        names: entries of the directory.
        told: False where the kernel does not know (a network file system's other hosts).
    """
    watched = _inotify.add(directory, names) if told else None
    if watched is None:
        yield Change(False)
        return
    try:
        yield watched[1]
    finally:
        _inotify.remove(*watched)


def told_of(path: str) -> bool:
    """Whether all changes near a path are made by this host's kernel, which then tells of them."""
    return _file_system(path) not in _NETWORK


def _file_system(path: str) -> str:
    """Type of the file system that holds a path, as the kernel names it; empty when it does not say."""
    best, kind = "", ""
    with contextlib.suppress(OSError), open("/proc/self/mounts", "rb") as mounts:
        for line in mounts.read().decode(errors="replace").splitlines():
            _, point, name, *_ = line.split(" ")
            point = point.replace("\\040", " ")
            if len(point) >= len(best) and (path + "/").startswith(point.rstrip("/") + "/"):
                best, kind = point, name
    return kind


class _Inotify:
    """This process's inotify instance, read by one thread for all who wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = -1
        self._waiting: dict[int, dict[Change, tuple[bytes, ...]]] = {}  # by watch descriptor

    def add(self, directory: str, names: tuple[str, ...]) -> tuple[int, Change] | None:
        """A watch of the directory and what it tells; None when the kernel refuses."""
        libc = _libc()
        if libc is None:
            return None
        change = Change(True)
        with self._lock:
            fresh = self._fd < 0
            if fresh:
                self._fd = libc.inotify_init1(_CLOSED)
                if self._fd < 0:
                    return None
            watch: int = libc.inotify_add_watch(self._fd, os.fsencode(directory), _FOR)
            if watch >= 0:
                self._waiting.setdefault(watch, {})[change] = tuple(map(os.fsencode, names))
            if fresh:
                read = threading.Thread(
                    target=self._read, args=(self._fd,), name="proxystore-watch", daemon=True
                )
                read.start()
        return (watch, change) if watch >= 0 else None

    def remove(self, watch: int, change: Change) -> None:
        with self._lock:
            those = self._waiting.get(watch)
            if those is not None and change in those:
                del those[change]
                if not those:
                    del self._waiting[watch]
                    libc = _libc()
                    if libc is not None:
                        libc.inotify_rm_watch(self._fd, watch)  # fails when the directory is gone

    def _read(self, fd: int) -> None:
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        while True:
            if not ready.poll(_IDLE * 1000):
                with self._lock:
                    if not self._waiting:
                        self._fd = -1
                        break
                continue
            with contextlib.suppress(BlockingIOError):
                self._tell(os.read(fd, 1 << 16))
        os.close(fd)

    def _tell(self, events: bytes) -> None:
        place = 0
        with self._lock:
            while place < len(events):
                watch, mask, _, length = _EVENT.unpack_from(events, place)
                place += _EVENT.size + length
                name = events[place - length : place].rstrip(b"\0")
                for change, names in self._of(watch).items():
                    # Without a name: the directory itself went, or events were lost (watch -1).
                    if not name or name in names:
                        change.tell()
                if mask & 0x8000:  # IN_IGNORED: the kernel has ended this watch, and may reuse its number
                    self._waiting.pop(watch, None)

    def _of(self, watch: int) -> dict[Change, tuple[bytes, ...]]:
        if watch >= 0:
            return self._waiting.get(watch, {})
        return {change: names for those in self._waiting.values() for change, names in those.items()}


@functools.cache
def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "inotify_init1") else None


_inotify = _Inotify()


@forks.in_child
def _after_fork() -> None:
    # The instance is the parent's: to read from it would take away what its waiters are told.
    global _inotify
    if _inotify._fd >= 0:
        os.close(_inotify._fd)
    _inotify = _Inotify()
