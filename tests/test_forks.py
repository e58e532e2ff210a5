"""Locks and hooks in forked children."""

from __future__ import annotations

import os

import pytest

from proxystore_core import forks
from proxystore_core.testing_processes import in_fork


@pytest.mark.parametrize("make", [forks.lock, forks.rlock])
def test_a_held_lock_is_free_in_a_child(make: type) -> None:
    lock = make()
    with lock:
        assert in_fork(lambda: lock.acquire(timeout=0))
        assert lock.acquire(blocking=False) is (make is forks.rlock)


def test_a_dropped_lock_is_forgotten() -> None:
    before = len(forks._locks)
    lock = forks.lock()
    assert len(forks._locks) == before + 1
    del lock
    assert len(forks._locks) == before


def test_what_is_to_be_done_in_a_child() -> None:
    done: list[int] = []
    lock = forks.lock()

    @forks.in_child
    def note() -> None:
        with lock:
            done.append(os.getpid())

    with lock:
        assert in_fork(lambda: done != [] and done == [os.getpid()])
    assert done == []


def test_each_process_knows_its_number() -> None:
    assert forks.process == os.getpid()
    assert in_fork(lambda: forks.process == os.getpid() != os.getppid())
