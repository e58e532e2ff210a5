"""Fresh memory to read into, and writing buffers without joining them."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence

from proxystore_core.connectors.base import Buffer
from proxystore_core.maps import map_fresh
from proxystore_core.moving import STEP, moved

__all__ = [
    "MAP_FROM",
    "blank_buffer",
    "byte_views",
    "fresh_buffer",
    "read_file",
    "split",
    "write_file",
]

MAP_FROM = 1 << 20
"""Size in bytes from which a map is cheaper than a copy: it costs some 30 us, and a page fault a page."""

_HEAP = 32 << 20  # bytes from which malloc always maps: what is smaller it gives again, its pages paid for
_IOV_MAX = 1024  # Linux' bound on the buffers of one writev


def fresh_buffer(size: int) -> bytearray | memoryview:
    """Writable memory of ``size`` bytes for who fills all of it; of big ones it may hold anything.

    No page of a big one is paid for before it is written, and none at all where one of this size was there
    lately, and went.

    Raises:
        MemoryError, OSError, OverflowError, ValueError: there is not so much.
    """
    return bytearray(size) if size < MAP_FROM else map_fresh(size)


def blank_buffer(size: int) -> bytearray | memoryview:
    """Writable memory of ``size`` bytes that may hold anything, for who fills all of it at once.

    Zeroing 1 MB first takes 20 us, a third of what AES does in that time.
    """
    return _bytearray()(None, size) if size < _HEAP else fresh_buffer(size)


@functools.cache
def _bytearray() -> Callable[[None, int], bytearray]:
    # A prototype of our own: what a function of pythonapi itself is told counts for everybody.
    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)
    return prototype(("PyByteArray_FromStringAndSize", ctypes.pythonapi))


def read_file(fd: int, size: int) -> bytearray | memoryview:
    """The first ``size`` bytes of a file, in memory of their own; fewer if the file is shorter."""
    buffer = fresh_buffer(size)
    view = memoryview(buffer)
    done = 0
    while done < size:
        count = os.preadv(fd, [view[done : done + STEP]], done)
        if not count:
            return view[:done]
        done += count
        moved(count)
    return buffer


def write_file(fd: int, data: Sequence[Buffer]) -> None:
    """Write all buffers one after another at the file's position, in as few calls as the system allows."""
    # Counted in bytes below, whatever the elements of the buffers are.
    views = [memoryview(buffer).cast("B") for buffer in data if len(buffer)]
    start = 0
    while start < len(views):
        batch, room = [], STEP
        for view in views[start : start + _IOV_MAX]:
            batch.append(view[:room])
            room -= view.nbytes
            if room <= 0:
                break
        count = os.writev(fd, batch)
        moved(count)
        # Less than the batch when interrupted.
        while start < len(views) and count >= views[start].nbytes:
            count -= views[start].nbytes
            start += 1
        if count:
            views[start] = views[start][count:]


def byte_views(data: Sequence[Buffer]) -> list[memoryview]:
    """The buffers that are not empty, each as a view of its single bytes."""
    return [view.cast("B") for buffer in data if (view := memoryview(buffer)).nbytes]


def split(views: Sequence[memoryview], part: int) -> Iterator[list[memoryview]]:
    """The buffers of each part of an object, cut where a part ends; nothing is copied.

    Args:
        views: views of single bytes, none of them empty.
        part: bytes of every part but the last.

    Yields:
        At least one list, which is empty for an empty object.
    """
    if sum([view.nbytes for view in views]) <= part:
        yield list(views)
        return
    cut, room = [], part
    for view in views:
        start = 0
        while view.nbytes - start >= room:
            cut.append(view[start : start + room])
            yield cut
            start += room
            cut, room = [], part
        if start < view.nbytes:
            cut.append(view[start:])
            room -= view.nbytes - start
    if cut:
        yield cut
