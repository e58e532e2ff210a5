"""A small stock of fresh shared-memory segments, allocated in the background.

Most of the time of a put goes into the kernel's allocating of pages. A segment whose pages were
allocated beforehand takes the bytes at nearly the speed of a copy in memory. Segments have no
name until they are published, so whatever happens to this process, nothing of the stock is left.
"""

from __future__ import annotations

import os
import threading
import time
import weakref

from proxystore_core import forks
from proxystore_core.buffers import MAP_FROM

__all__ = ["SegmentStock"]

_IDLE = 5.0  # seconds without a put after which the stock is given back
_ALLOCATION = 0.5  # seconds that giving back waits for an allocation in progress
_KEPT = 4  # segments at most
_LEFT_TO_OBJECTS = 0.5  # share of the file system that no stock takes
_stocks: weakref.WeakSet[SegmentStock] = weakref.WeakSet()


def has_room(directory: str, size: int, left: float) -> bool:
    """Whether ``size`` bytes fit into a file system so that a share ``left`` of all of it stays free."""
    status = os.statvfs(directory)
    free = status.f_bavail - left * status.f_blocks
    return not status.f_blocks or size <= free * status.f_frsize  # no blocks: a tmpfs without a bound


class SegmentStock:
    """Fresh segments of the sizes that were asked for last.

    Args:
        limit: bytes that the stock may hold; 0 for no stock.
        pause: seconds between a put and the allocation of its successor: on a small machine that would slow
            down whoever uses what was put.
    """

    def __init__(self, limit: int, pause: float = 0.0) -> None:
        self.limit = limit
        self.pause = pause
        self._reset()
        _stocks.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._busy = False  # an order is being carried out
        self._wake = threading.Event()
        self._ready: list[tuple[int, int]] = []  # (capacity in bytes, descriptor)
        self._wanted: list[tuple[str, int]] = []  # (directory, capacity)
        self._thread: threading.Thread | None = None
        self._allocating: int | None = None  # the thread's descriptor that is not in stock yet

    def take(self, directory: str, size: int) -> int | None:
        """A descriptor with at least ``size`` bytes allocated and the length cut to it, or None.

        Either way a segment of that size is ordered for the next put.
        """
        if size < MAP_FROM or size > self.limit:
            return None
        with self._lock:
            fitting = [entry for entry in self._ready if size <= entry[0] <= size * 5 // 4]
            found = min(fitting, default=None)
            if found is not None:
                self._ready.remove(found)
            self._wanted = [*self._wanted[-_KEPT + 1 :], (directory, size)]
            if self._thread is None:
                self._thread = threading.Thread(target=self._allocate, name="proxystore-stock", daemon=True)
                self._thread.start()
            self._wake.set()
        if found is None:
            return None
        if found[0] != size:
            os.ftruncate(found[1], size)
        return found[1]

    def drop(self) -> None:
        """Give back all segments."""
        with self._lock:
            self._wanted = []
        # A segment that is being allocated (some 25 ms per 100 MB) takes room as well.
        until = time.monotonic() + _ALLOCATION
        while self._busy and threading.current_thread() is not self._thread and time.monotonic() < until:
            time.sleep(0.001)
        with self._lock:
            dropped, self._ready = self._ready, []
        for _, fd in dropped:
            os.close(fd)

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(capacity for capacity, _ in self._ready)

    def _allocate(self) -> None:
        while True:
            if not self._wake.wait(_IDLE):
                with self._lock:
                    if not self._wake.is_set():
                        self._thread = None
                        break
                continue
            time.sleep(self.pause)
            with self._lock:
                self._wake.clear()
            while True:
                with self._lock:
                    # One at a time: giving back cancels the orders that are left, and waits for this one.
                    self._busy = bool(self._wanted)
                    if not self._busy:
                        break
                    directory, capacity = self._wanted.pop(0)
                self._make_room(capacity)
                try:
                    if not has_room(directory, capacity, _LEFT_TO_OBJECTS):
                        continue
                    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
                    self._allocating = fd
                except OSError:  # the session was ended: its next put makes the directory again
                    continue
                try:
                    os.posix_fallocate(fd, 0, capacity)
                except OSError:  # full: puts will see it themselves
                    self._allocating = None
                    os.close(fd)
                    continue
                with self._lock:
                    self._allocating = None
                    self._ready.append((capacity, fd))
        self.drop()

    def _make_room(self, capacity: int) -> None:
        while True:
            with self._lock:
                if not self._ready or (self.nbytes + capacity <= self.limit and len(self._ready) < _KEPT):
                    return
                _, fd = self._ready.pop(0)
            os.close(fd)


@forks.in_child
def _after_fork() -> None:
    # The child's descriptors are the parent's segments: used by both, one would overwrite the other's object.
    for stock in list(_stocks):
        held = [fd for _, fd in stock._ready]
        for fd in held if stock._allocating is None else [*held, stock._allocating]:
            os.close(fd)
        stock._reset()
