"""Private maps, of files and of fresh memory: writable memory that costs nothing before it is touched.

Tasks that share an argument map the same file one after another, and pay each time for a page fault a page
and for taking them back: 1 ms for 10 MB. So a map of a file that was mapped before is not undone at once
when nobody has it any more, if nobody has written to it: the next one who maps the file gets it, pages and
all. A first write to a page is a page fault, and often there was none in the process while somebody had the
map; else Linux tells in ``/proc/self/pagemap``, which takes 66 us for 10 MB. One that nobody wants is undone
within two seconds: until then it keeps the memory of a file that is evicted.

Fresh memory is used again in the same way by who asks for as much as was asked for before: 100 MB cost 20 ms
to fill for the first time, and ten times that in a virtual machine that gives free memory back to its host.
One such map is kept at a time, for three seconds or four; up to 32 MB, which malloc would keep for good, for
half a minute.

The last map of a file that is evicted frees its pages: 100 MB take 24 ms, and longer than their copy took. A
thread of its own does that, not the one that happens to drop an array.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import sys
import threading
import time
import weakref
from _thread import LockType, allocate_lock
from collections import OrderedDict
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from proxystore_core import forks

if sys.platform != "win32":
    import resource

__all__ = ["let_go", "map_fresh", "map_private"]

Place = tuple[int, int, int, int]
"""A file that nobody changes, as long as one maps it: device, inode, time of its change, bytes of the map.

Of fresh memory the first number is -1.
"""

Faults = tuple[int, int, int]
"""Page faults of a process: its number, minor ones, major ones."""

Leaving: TypeAlias = tuple[int, int] | LockType
"""A map that is to be undone, address and size; or what is released when all before it are."""

_PATIENCE: Final = 1.0  # seconds
_UNUSED: Final = 1.0  # seconds that a map of a file is kept
_UNUSED_FRESH: Final = 3.0  # the same of fresh memory, which keeps nobody else's
_UNUSED_MODEST: Final = 30.0  # the same of so little that it does not matter
_MODEST: Final = 32 << 20  # bytes
_REMEMBERED: Final = 64  # files, and sizes of fresh memory
_MOST: Final = 256 << 20  # bytes of fresh memory that may be kept
_GRAIN: Final = 64 << 10  # bytes: sizes that differ by less are one
_HEAVY: Final = 4 << 20  # bytes from which a map is undone in the background
_WAITING: Final = 4  # maps that may wait for it: more would keep the memory of what is long gone
_HUGE: Final = 14  # MADV_HUGEPAGE
_ENTRY: Final = 8  # bytes of a page's entry in a pagemap, little endian
_OURS: Final = bytes(
    # Of an entry's highest byte: swapped out, or present and no page of a file.
    byte
    for byte in range(256)
    if byte & 0x40 or (byte & 0x80 and not byte & 0x20)
)
_CLEAN: Final = bytes(set(range(256)) - set(_OURS))

_maps: set[int] = set()  # addresses of the maps of files that this process holds
_known: OrderedDict[Place, None] = OrderedDict()  # mapped lately
# Changed by finalizers, which run wherever the interpreter pleases: by single operations, without a lock.
_kept: dict[Place, tuple[int, float]] = {}  # address, and since when nobody has had it
_dropping = False  # whether a thread takes back what is kept
# Unlike Queue.put, SimpleQueue.put may be interrupted by a destructor that puts as well.
_leaving: SimpleQueue[Leaving] = SimpleQueue()  # what that thread is to undo
_undoing = False  # whether there is a thread that does


def map_private(fd: int, status: os.stat_result) -> memoryview:
    """A writable private map of a file: changes are never seen by anyone else.

    The descriptor can be closed at once (``mmap.mmap`` would keep a duplicate of it open for as
    long as the map lives, and a process that holds a thousand arrays would run out of them).
    The map lives as long as any view of it.

    Args:
        fd: of a file that nobody writes to any more.
        status: the file's, of which no more than its size at that time is mapped.

    Raises:
        OSError: the system refuses another map, or this process has half of all that it may have
            (``ENOMEM``: vm.max_map_count). At the bound itself not even malloc works any more.
    """
    size = status.st_size
    if sys.platform != "linux":
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_COPY))
    return _map((status.st_dev, status.st_ino, status.st_mtime_ns, size), fd, size)


def map_fresh(size: int) -> memoryview:
    """Writable memory of ``size`` bytes, more than none, for who fills all of it: it may hold anything.

    Raises:
        OSError, OverflowError: there is not so much.
    """
    if sys.platform != "linux":
        return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE))
    capacity = -(-size // _GRAIN) * _GRAIN
    place = -1, 0, 0, capacity
    if place not in _kept:
        _drop_fresh()
    return _map(place, -1, capacity)[:size]


def _map(place: Place, fd: int, size: int) -> memoryview:
    array_type = ctypes.c_ubyte * size  # checks the size, which the call of mmap does not
    if size >= _HEAVY:
        _start_undoing()
    known = place in _known
    kept = _kept.pop(place, None) if known else None
    address = _mapped(fd, size) if kept is None else kept[0]
    faults = None if kept is None or fd < 0 else _faults()
    if known:
        _start_dropping()
    else:
        _known[place] = None
        if len(_known) > _REMEMBERED:
            with contextlib.suppress(KeyError):  # another thread's turn
                _known.popitem(last=False)
    array = array_type.from_address(address)
    # At exit the arrays may outlive the finalizer's turn: the kernel unmaps then.
    finalizer = weakref.finalize(array, _released, place if known else None, address, size, faults)
    finalizer.atexit = False
    return memoryview(array).cast("B")


def _mapped(fd: int, size: int) -> int:
    fresh = fd < 0  # neighbours of these are one map for the kernel
    if not fresh and len(_maps) >= _most_maps():
        for place in list(_kept):
            _drop(place)
        _undo_leaving()
        if len(_maps) >= _most_maps():
            raise OSError(errno.ENOMEM, f"{len(_maps)} objects are mapped already: see vm.max_map_count")
    libc = _libc()
    flags = mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if fresh else 0)
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno() or errno.ENOMEM
        raise OSError(number, f"cannot map {size} bytes: {os.strerror(number)}")
    if fresh:
        libc.madvise(address, size, _HUGE)  # 100 MB: 19 ms to fill instead of 54; not every kernel can
    else:
        _maps.add(address)
    return int(address)


def _released(place: Place | None, address: int, size: int, faults: Faults | None) -> None:
    """Nobody has a map any more. May run in the middle of anything.

    Args:
        place: of the map; None where it was the first.
        address: of the map.
        size: of the map, bytes.
        faults: before anybody had it; None where that is not known.
    """
    if place is None or not _dropping or not _is_worth_keeping(place, address, size, faults):
        _unmap_soon(address, size)
        return
    if place[0] < 0:
        _drop_fresh()
    mine = address, time.monotonic()
    if _kept.setdefault(place, mine) is not mine:
        _unmap_soon(address, size)
    elif not _dropping:  # it has ended in between, and has not seen this one
        _drop(place)


def _is_worth_keeping(place: Place, address: int, size: int, faults: Faults | None) -> bool:
    if place[0] < 0:
        return size <= _MOST
    return (faults is not None and faults == _faults()) or _is_clean(address, size)


def _faults() -> Faults | None:
    """Page faults of this process until now, with its number; None where they are not counted."""
    if not _counts_faults():
        return None
    usage = _usage()
    return os.getpid(), usage.ru_minflt, usage.ru_majflt


@functools.cache
def _counts_faults() -> bool:
    """Whether the system counts page faults: in some sandboxes there never was one."""
    before = _usage().ru_minflt
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as fresh:
        fresh[0] = 1
    return bool(_usage().ru_minflt > before)


def _usage() -> Any:
    return resource.getrusage(resource.RUSAGE_SELF)


def _drop_fresh() -> None:
    for place in list(_kept):
        if place[0] < 0:
            _drop(place)


def _is_clean(address: int, size: int) -> bool:
    """Whether every page of a map is still the file's."""
    first, last = address // mmap.PAGESIZE, (address + size - 1) // mmap.PAGESIZE
    try:
        # Not kept open: in a forked child it would still tell of the parent.
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entries = os.pread(fd, (last - first + 1) * _ENTRY, first * _ENTRY)
        finally:
            os.close(fd)
    except OSError:
        return False
    whole = len(entries) == (last - first + 1) * _ENTRY
    return whole and not entries[_ENTRY - 1 :: _ENTRY].translate(None, _CLEAN)


def _unmap(address: int, size: int) -> None:
    _maps.discard(address)  # first: once unmapped, the address may be another thread's
    _libc().munmap(address, size)


def _unmap_soon(address: int, size: int) -> None:
    """Undo a map, in the background where that takes long. May run in the middle of anything."""
    if size >= _HEAVY and _undoing and _leaving.qsize() < _WAITING:
        _leaving.put((address, size))
    else:
        _unmap(address, size)


def _start_undoing() -> None:
    global _undoing
    if not _undoing:
        _undoing = True  # two threads at once start two, which share the work
        try:
            threading.Thread(target=_undo, args=(_leaving,), name="proxystore-unmap", daemon=True).start()
        except RuntimeError:  # the interpreter ends, or may have no more threads
            _undoing = False
            _undo_leaving()


def _undo(leaving: SimpleQueue[Leaving]) -> None:
    while True:
        _undo_one(leaving.get())


def _undo_leaving() -> None:
    """Undo now what the thread has not come to."""
    with contextlib.suppress(Empty):
        while True:
            _undo_one(_leaving.get_nowait())


def _undo_one(leaving: Leaving) -> None:
    if isinstance(leaving, tuple):
        _unmap(*leaving)
    else:
        leaving.release()


def let_go() -> None:
    """Give back at once the memory of files that nobody has mapped any more; takes milliseconds."""
    for place in list(_kept):
        if place[0] >= 0:
            _drop(place)
    _undo_leaving()
    if _undoing:
        last = allocate_lock()  # no event: a forked child may come to it, whose locks somebody held
        last.acquire()
        _leaving.put(last)
        last.acquire(timeout=_PATIENCE)  # for what the thread is at


def _drop(place: Place) -> None:
    kept = _kept.pop(place, None)
    if kept is not None:
        _unmap(kept[0], place[-1])


def _start_dropping() -> None:
    global _dropping
    if not _dropping:
        _dropping = True  # two threads at once start two: each ends
        try:
            threading.Thread(target=_drop_unused, name="proxystore-maps", daemon=True).start()
        except RuntimeError:  # the interpreter ends, or may have no more threads
            _dropping = False


def _drop_unused() -> None:
    """Take back what nobody has wanted for a while; until nobody maps anything again."""
    global _dropping
    idle = 0
    while idle < 3:
        time.sleep(_UNUSED / 2)
        idle = 0 if _kept else idle + 1
        now = time.monotonic()
        for place, (_, since) in list(_kept.items()):
            if since < now - _unused(place):
                _drop(place)
    _dropping = False
    for place in list(_kept):
        _drop(place)


def _unused(place: Place) -> float:
    """Seconds that a map is kept."""
    if place[0] >= 0:
        return _UNUSED
    return _UNUSED_MODEST if place[-1] <= _MODEST else _UNUSED_FRESH


@forks.in_child
def _forget() -> None:
    """The child has no thread that takes back what is kept."""
    global _dropping, _leaving, _undoing
    _dropping = _undoing = False
    _undo_leaving()
    _leaving = SimpleQueue()
    for place in list(_kept):
        _drop(place)


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
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
