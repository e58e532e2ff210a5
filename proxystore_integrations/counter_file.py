"""A file of counters that outlive a killed process, and cost no system call when they count.

A record follows the other:

length      8 bytes, of the label; 0 after the last record
counters    four numbers of 8 bytes (IEEE 754, little endian, as the length)
label       what is counted, filled up with zeros to 8 bytes
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

from proxystore_core import forks

__all__ = ["CounterFile", "Place", "counters_of"]

_ROOM = 64 << 10  # bytes that are asked of the file system at once
_LENGTH = struct.Struct("<Q")
_COUNTERS = struct.Struct("<4d")
_HEAD = _LENGTH.size + _COUNTERS.size

Place = tuple[mmap.mmap, int]
"""Where the counters of a record are."""


class CounterFile:
    """Counters in memory that is the file's: what is there when the process dies is in the file.

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

    def add(self, label: bytes) -> Place:
        """Append a record, all of whose counters are 0.

        Args:
            label: what will be counted; not empty.

        Raises:
            OSError: the file system is full.
        """
        size = _HEAD + len(label) + -len(label) % 8
        with self._lock:
            if self._map is None or self._at + size > self._end:
                self._grow(size)
            assert self._map is not None
            at = self._at - self._begin
            self._map[at + _HEAD : at + _HEAD + len(label)] = label
            _LENGTH.pack_into(self._map, at, len(label))  # last: it says that there is a record
            self._at += size
            return self._map, at + _LENGTH.size

    @staticmethod
    def set(place: Place, values: list[float]) -> None:
        """Say how far the counters of a record are.

        Args:
            place: as `add` gave it.
            values: four of them.
        """
        _COUNTERS.pack_into(place[0], place[1], *values)

    def close(self) -> None:
        """Let go of the file: no record is added any more."""
        os.close(self._fd)

    def _grow(self, least: int) -> None:
        begin = self._at - self._at % mmap.ALLOCATIONGRANULARITY
        room = _ROOM * (1 + (self._at - begin + least) // _ROOM)
        # A page that the file system has no room for would end this process when it is written.
        os.posix_fallocate(self._fd, begin, room)
        self._map = mmap.mmap(self._fd, room, offset=begin)
        self._begin, self._end = begin, begin + room


def counters_of(path: str) -> Iterator[tuple[bytes, tuple[float, ...]]]:
    """The label and the four counters of every record of a file.

    Args:
        path: of the file.
    """
    with open(path, "rb") as file:
        data = file.read()
    at = 0
    while at + _HEAD <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        end = at + _HEAD + length
        if not length or end > len(data):
            return
        yield data[at + _HEAD : end], _COUNTERS.unpack_from(data, at + _LENGTH.size)
        at = end + -length % 8
