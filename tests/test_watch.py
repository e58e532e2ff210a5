"""Waiting for names in directories: told by the kernel, and by looking where it tells nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from waiting import until

from proxystore_core.connectors import watch
from proxystore_core.connectors.watch import watching
from proxystore_core.testing import in_fork


def test_a_change_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LOOK_ALL_THE_SAME", 600.0)  # nobody looks: only the kernel ends the wait
    for happens in (
        lambda: (tmp_path / "name").touch(),
        lambda: (tmp_path / "name").unlink(),
        lambda: (tmp_path / "other").rename(tmp_path / "name"),
        lambda: (tmp_path / "name").rename(tmp_path / "other"),
    ):
        (tmp_path / "other").touch()
        with watching(str(tmp_path), ("name",)) as change:
            assert change.woken
            (tmp_path / "third").touch()  # nobody's business
            threading.Timer(0.02, happens).start()
            change.wait(60)


def test_a_directory_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LOOK_ALL_THE_SAME", 600.0)
    directory = tmp_path / "d"
    directory.mkdir()
    with watching(str(directory), ("name",)) as change:
        threading.Timer(0.02, directory.rmdir).start()
        change.wait(60)
    with watching(str(directory), ("name",)) as change:
        assert not change.woken  # it is not there: the waiter looks again and again


def test_one_instance_for_all_who_wait_and_none_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_IDLE", 0.05)
    until(lambda: watch._inotify._fd < 0)

    def instances() -> int:
        found = 0
        for fd in os.listdir("/proc/self/fd"):
            try:
                found += os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify"
            except FileNotFoundError:
                continue
        return found

    assert instances() == 0
    with watching(str(tmp_path), ("a",)), watching(str(tmp_path), ("b",)), watching("/", ("c",)):
        assert instances() == 1
        assert in_fork(instances) == 0
    until(lambda: instances() == 0)


def test_where_the_kernel_refuses_one_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for told in (False, True):
        monkeypatch.setattr(watch, "_libc", lambda: None)
        with watching(str(tmp_path), ("name",), told=told) as change:
            assert not change.woken
            change.wait(60)  # returns soon, to look
            change.wait(None)
