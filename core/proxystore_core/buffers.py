"""Fresh memory to read into, private maps of files, and writing buffers without joining them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence

from proxystore_core.connectors.base import Buffer
from proxystore_core.moving import STEP, moved

__all__ = [
    "MAP_FROM",
    "blank_buffer",
    "byte_views",
    "fresh_buffer",
    "map_private",
    "read_file",
    "split",
    "write_file",
]

MAP_FROM = 1 << 20
"""Size in bytes from which a map is cheaper than a copy: it costs some 30 us, and a page fault a page."""

_HEAP = 32 << 20  # bytes from which malloc always maps: what is smaller it gives again, its pages paid for
_IOV_MAX = 1024  # Linux' bound on the buffers of one writev
_maps: set[int] = set()  # addresses of the private maps that this process holds


def fresh_buffer(size: int) -> bytearray | memoryview:
    """Writable memory of ``size`` bytes, all zero; of a big one no page is paid for before it is written."""
    if size < MAP_FROM:
        return bytearray(size)
    # Not mmap's default, a shared map: a forked child would write into its parent's buffer.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)  # 100 MB: 19 ms to fill instead of 54
    return memoryview(pages)


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


def map_private(fd: int, size: int) -> memoryview:
    """A writable private map of a file's first ``size`` bytes: changes are never seen by anyone else.

    The descriptor can be closed at once (``mmap.mmap`` would keep a duplicate of it open for as
    long as the map lives, and a process that holds a thousand arrays would run out of them).
    The map lives as long as any view of it.

    Raises:
        OSError: the system refuses another map, or this process has half of all that it may have
            (``ENOMEM``: vm.max_map_count). At the bound itself not even malloc works any more.
    """
    if sys.platform != "linux":
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_COPY))
    if len(_maps) >= _most_maps():
        raise OSError(errno.ENOMEM, f"{len(_maps)} objects are mapped already: see vm.max_map_count")
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno() or errno.ENOMEM
        raise OSError(number, f"cannot map {size} bytes: {os.strerror(number)}")
    array = (ctypes.c_ubyte * size).from_address(address)
    # At exit the arrays may outlive the finalizer's turn: the kernel unmaps then.
    _maps.add(address)
    weakref.finalize(array, _unmap, address, size).atexit = False
    return memoryview(array).cast("B")


def _unmap(address: int, size: int) -> None:
    _maps.discard(address)  # first: once unmapped, the address may be another thread's
    _libc().munmap(address, size)


@functools.cache
def _most_maps() -> int:
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
            return int(file.read()) // 2
    except OSError:
        return 32_765


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc
