"""A file of lines that outlive a killed process, and cost no system call each."""

from __future__ import annotations

import mmap
import os

from proxystore_core import forks

__all__ = ["LineFile", "lines_of"]

_ROOM = 64 << 10  # bytes that are asked of the file system at once


class LineFile:
    """Lines written to memory that is the file's: what is there when the process dies is in the file.

    A system call would let go of the interpreter: in a process with busy threads, getting it back takes
    longer than everything else here.

    Args:
        path: of the file, which must not be there.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._lock = forks.lock()
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._map: mmap.mmap | None = None
        self._begin = 0  # of the map, in the file
        self._at = 0
        self._end = 0

    def add(self, line: bytes) -> None:
        """Append a line.

        Args:
            line: without its end; no byte of it is 0 or a newline.

        Raises:
            OSError: the file system is full.
        """
        line += b"\n"
        with self._lock:
            if self._map is None or self._at + len(line) > self._end:
                self._grow(len(line))
            assert self._map is not None
            at = self._at - self._begin
            self._map[at : at + len(line)] = line
            self._at += len(line)

    def close(self) -> None:
        """Let go of the file: nothing is added any more."""
        os.close(self._fd)

    def _grow(self, least: int) -> None:
        begin = self._at - self._at % mmap.ALLOCATIONGRANULARITY
        room = _ROOM * (1 + (self._at - begin + least) // _ROOM)
        # A page that the file system has no room for would end this process when it is written.
        os.posix_fallocate(self._fd, begin, room)
        self._map = mmap.mmap(self._fd, room, offset=begin)
        self._begin, self._end = begin, begin + room


def lines_of(path: str) -> list[bytes]:
    """The whole lines of a file; one that was cut off when its process was killed is left out.

    Args:
        path: of the file.
    """
    with open(path, "rb") as file:
        return file.read().split(b"\n")[:-1]
