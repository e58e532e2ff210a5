"""Locks on files: the kernel lets go of them when their holder dies, whatever kills it."""

from __future__ import annotations

import fcntl
import os

__all__ = ["OPEN", "is_at", "locked"]

OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
"""How files that are locked are opened."""


def locked(path: str, how: int) -> int | None:
    """A descriptor of the file, made if missing, that holds the lock; None while others hold it.

    Args:
        path: of the file.
        how: ``fcntl.LOCK_SH`` or ``fcntl.LOCK_EX``.

    Raises:
        OSError: it cannot be opened.
    """
    fd = os.open(path, OPEN | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        if is_at(fd, path):
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def is_at(fd: int, path: str) -> bool:
    """Whether the file still has its name: it may have been removed before the lock was ours."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
