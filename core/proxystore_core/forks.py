"""What a forked child must find otherwise than its parent left it.

A fork copies a lock as it is at that moment: held by a thread that the child does not have, it would never
be released there.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["in_child", "lock", "process", "rlock"]

process = os.getpid()
"""Number of this process: asking the system costs 0.2 us, which is much where every call asks."""

F = TypeVar("F", bound=Callable[[], None])

_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def lock() -> threading.Lock:
    """A lock that is free in a forked child."""
    made = threading.Lock()
    _locks.add(made)
    return made


def rlock() -> threading.RLock:
    """A reentrant lock that is free in a forked child."""
    made = threading.RLock()
    _locks.add(made)
    return made


def in_child(function: F) -> F:
    """Call a function in every child that is forked from now on, when its locks are free; a decorator."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


@in_child
def _free_all() -> None:
    global process
    process = os.getpid()
    for held in list(_locks):
        held._at_fork_reinit()  # as the standard library frees its own
