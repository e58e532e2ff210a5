"""Hazards of files: who may write where, full disks, slow servers, ends beside starts."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mounts import mount_tmpfs, own_mounts

from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import ConfigurationError, FullError, RefusedError, UnreachableError
from proxystore_core.testing import in_fork, in_new_process

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.parametrize("umask", [0, 0o22, 0o77])
@pytest.mark.parametrize("unnamed", [True, False])
def test_modes(tmp_path: Path, umask: int, unnamed: bool) -> None:
    before = os.umask(umask)
    try:
        connector = FileConnector(tmp_path / "store")
        connector._unnamed = unnamed
        connector.put([b"data"])
        connector.renew("s", 60)
        connector.put([b"data"], session="s")
    finally:
        os.umask(before)
    paths = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    assert len(paths) == 6
    assert {mode(path) for path in paths if path.is_dir()} == {0o700}
    assert {mode(path) for path in paths if not path.is_dir()} == {0o600}


@pytest.mark.parametrize("bad", [0o777, 0o1777, 0o770, 0o702])
def test_directory_that_others_write_to(tmp_path: Path, bad: int) -> None:
    tmp_path.chmod(bad)
    with pytest.raises(RefusedError, match="written to by others"):
        FileConnector(tmp_path)
    tmp_path.chmod(0o700)
    connector = FileConnector(tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(bad)
    with pytest.raises(RefusedError, match="written to by others"):
        connector.renew("s", 60)


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="link"):
        FileConnector(tmp_path / "link")
    connector = FileConnector(tmp_path / "store")
    key = connector.put([b"data"])
    planted = tmp_path / "store" / "user" / ("0" * 20)
    planted.symlink_to("/etc/passwd")
    with pytest.raises(RefusedError):
        connector.get(f"user.{'0' * 20}")
    (tmp_path / "store" / "s").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="link"):
        connector.renew("s", 60)
    connector.evict(f"user.{'0' * 20}")
    assert Path("/etc/passwd").exists()
    assert not planted.is_symlink()
    assert connector.get(key) == b"data"


@as_root
def test_another_users_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(RefusedError, match=f"another user .uid {NOBODY}"):
        FileConnector(tmp_path)


@as_root
def test_another_user_reads_nothing(tmp_path: Path) -> None:
    connector = FileConnector(tmp_path / "store")
    key = connector.put([b"secret"])
    path = Path(connector.store_dir, *key.split("."))
    for directory in [*tmp_path.parents, tmp_path, path.parent.parent, path.parent]:
        if str(directory).startswith(str(Path(tmp_path.parts[0], *tmp_path.parts[1:3]))):
            directory.chmod(0o755)

    def nobody() -> str:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with pytest.raises(PermissionError):
            path.read_bytes()
        with pytest.raises(RefusedError, match="another user"):
            FileConnector(tmp_path / "store")
        try:
            connector.get(key)
        except RefusedError as error:
            return str(error)
        return "read it"

    assert "Permission denied" in in_fork(nobody)


@as_root
def test_object_planted_by_another_user(tmp_path: Path) -> None:
    # The directory was removed as empty, and another user was the first to make it again.
    connector = FileConnector(tmp_path / "store")
    key = connector.put([b"data"])
    os.chown(Path(connector.store_dir, *key.split(".")), NOBODY, NOBODY)
    with pytest.raises(RefusedError, match="another user"):
        connector.get(key)


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnreachableError):
        FileConnector(tmp_path / "file" / "store")
    with pytest.raises(RefusedError, match="not a directory"):
        FileConnector(tmp_path / "file")


@pytest.mark.parametrize(
    "url", ["file://", "file://host/path", "file:///p?grace=soon", "file:///p?x=1", "file:///p:1?="]
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(ConfigurationError):
        FileConnector.from_url(url)


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b", "a%20b", "größe", "a&b=c+d"])
def test_any_directory_survives_the_url(tmp_path: Path, name: str) -> None:
    connector = FileConnector(tmp_path / name, grace=0.25)
    again = FileConnector.from_url(connector.url)
    assert again.store_dir == str(tmp_path / name)
    assert again.grace == 0.25


def test_a_late_file_is_waited_for(tmp_path: Path) -> None:
    # As on NFS, where another client's fresh file may look missing.
    connector = FileConnector(tmp_path, grace=20)
    key = connector.put([b"late"])
    path = Path(connector.store_dir, *key.split("."))
    path.rename(tmp_path / "hidden")
    threading.Timer(0.2, lambda: (tmp_path / "hidden").rename(path)).start()
    assert connector.get(key) == b"late"
    connector.grace = 0.05
    connector.evict(key)
    assert connector.get(key) is None


def fill(directory: str, unnamed: bool) -> None:
    mount_tmpfs(directory, "size=8m,mode=700")
    connector = FileConnector(directory)
    connector._unnamed = unnamed
    key = connector.put([b"x" * 1_000_000], session="s")
    with pytest.raises(FullError, match="No space left"):
        connector.put([b"y" * 1_000_000] * 20, session="s")
    assert (
        len([path for path in Path(directory).rglob("*") if path.is_file()]) == 2
    )  # the object and its lease
    assert os.statvfs(directory).f_bavail * 4096 > 6_000_000
    assert connector.get(key) == b"x" * 1_000_000
    connector.evict(key)
    assert connector.get(connector.put([b"z" * 4_000_000])) == b"z" * 4_000_000


@pytest.mark.parametrize("unnamed", [True, False])
def test_full_disk(tmp_path: Path, unnamed: bool) -> None:
    in_new_process(fill, str(tmp_path), unnamed, command=own_mounts())


def closed_before_named(directory: str) -> list[bool]:
    """Whether no descriptor of the file was open any more when it got its name."""
    seen: list[bool] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename":
            links = (Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
            seen.append(str(arguments[0]) not in {str(link.readlink()) for link in links if link.exists()})

    sys.addaudithook(watch)
    connector = FileConnector(directory)
    connector._unnamed = False
    connector.put([b"data"])
    return seen


def test_a_named_file_is_complete_before_it_has_its_name(tmp_path: Path) -> None:
    # NFS sends what was written when the file is closed; readers elsewhere must not find it sooner.
    assert in_new_process(closed_before_named, str(tmp_path)) == [True]


def test_foreign_files_are_never_touched(tmp_path: Path) -> None:
    # A user may name a directory that has other things in it.
    (tmp_path / "project" / "src").mkdir(parents=True)
    for path in ("notes.txt", "project/data", "project/.lease-of-mine", "project/src/x.py"):
        (tmp_path / path).write_text("mine")
    connector = FileConnector(tmp_path)
    assert connector.sessions() == {}
    assert connector.sweep() == []
    connector.renew("project", 0.001)
    key = connector.put([b"data"], session="project")
    time.sleep(0.01)
    assert connector.sweep() == ["project"]
    assert connector.get(key) is None
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "project/data", "project/.lease-of-mine", "project/src/x.py"}


def test_a_new_lease_is_never_seen_lapsed(tmp_path: Path) -> None:
    connector, over = FileConnector(tmp_path), threading.Event()
    lowest = [1.0]

    def look() -> None:
        while not over.is_set():
            lowest.extend(left for left in connector.sessions().values() if left < 0)

    looker = threading.Thread(target=look)
    looker.start()
    for number in range(400):
        connector.renew(f"s{number}", 600)
        connector.end(f"s{number}")
    over.set()
    looker.join()
    assert min(lowest) > 0


def test_starts_beside_ends(tmp_path: Path) -> None:
    connector = FileConnector(tmp_path / "store")

    def work(number: int) -> None:
        for turn in range(60):
            session = f"s{turn % 3}"
            connector.put([b"data"], session=session)
            connector.renew(session, 600)
            connector.put([b"data"])
            connector.end(session if number % 2 else "user")

    with ThreadPoolExecutor(6) as executor:
        list(executor.map(work, range(6)))
    leases = connector.sessions()
    for directory in Path(connector.store_dir).iterdir():
        assert directory.name == "user" or directory.name in leases
    for session in [*leases, "user"]:
        connector.end(session)
    assert list(Path(connector.store_dir).iterdir()) == []


def test_a_store_that_others_remove_as_empty_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = FileConnector(tmp_path / "store")
    (tmp_path / "store").rmdir()
    mkdir, late = os.mkdir, [str(tmp_path / "store"), str(tmp_path / "store" / "s")]

    def there_a_moment_ago(path: str, mode: int = 0o777) -> None:
        if path in late:
            late.remove(path)
            raise FileExistsError(path)
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", there_a_moment_ago)
    assert connector.get(connector.put([b"data"], session="s")) == b"data"
    assert not late
    connector.end("s")


def test_a_session_without_a_lease_goes_too(tmp_path: Path) -> None:
    """Who begins a session, or ends one, may be killed when the lease is not there (any more)."""
    connector = FileConnector(tmp_path)
    for name, file in (("begun", f".{'a' * 20}"), ("ended", "b" * 20), ("empty", None)):
        (tmp_path / name).mkdir()
        if file is not None:
            (tmp_path / name / file).write_bytes(b"data")
    assert 590 < connector.sessions()["begun"] <= 600
    assert connector.sweep() == []
    past = time.time() - 700
    for name in ("begun", "ended", "empty"):
        os.utime(tmp_path / name, (past, past))
    assert sorted(connector.sweep()) == ["begun", "ended"]
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # it may be anybody's


@pytest.mark.parametrize("kind", [FileConnector, ShmConnector])
def test_who_renews_beside_a_sweep_keeps_what_is_there(tmp_path: Path, kind: type[FileConnector]) -> None:
    connector = kind(tmp_path) if kind is FileConnector else ShmConnector("beside-a-sweep")
    others = [f"other{number}" for number in range(20)]
    for turn in range(60):
        for name in (*others, "s"):
            connector.renew(name, 0.001)
            connector.put([b"other"], session=name)
        key = connector.put([b"data"], session="s")
        time.sleep(0.002)
        with ThreadPoolExecutor(1) as executor:
            sweeping = executor.submit(connector.sweep)
            time.sleep(turn * 2e-5)
            connector.renew("s", 600)
            late = connector.put([b"data"], session="s")
            swept = sweeping.result()
        # Whoever was too late has begun it anew.
        assert connector.exists(key) == ("s" not in swept)
        assert connector.exists(late)
        assert connector.sessions()["s"] > 590
        connector.end("s")
    for name in others:
        connector.end(name)
    connector.close()


def test_what_killed_writers_left_outside_of_sessions_goes(tmp_path: Path) -> None:
    connector = FileConnector(tmp_path)
    key, reserved = connector.put([b"data"]), connector.reserve()
    parts = [tmp_path / "user" / f".{letter * 20}" for letter in "abc"]
    for part in parts:
        part.write_bytes(b"of a writer that was killed")
    past = time.time() - 2 * 24 * 3600
    for path in tmp_path.joinpath("user").iterdir():
        if path != parts[2]:
            os.utime(path, (past, past))
    assert connector.sweep() == []
    assert [part.exists() for part in parts] == [False, False, True]  # the last one's still writes
    assert connector.get(key) == b"data"
    connector.set(reserved, [b"later"])
    assert connector.get(reserved) == b"later"


def test_end_removes_unfinished_files(tmp_path: Path) -> None:
    connector = FileConnector(tmp_path)
    connector.renew("s", 600)
    (tmp_path / "s" / f".{'a' * 20}").write_bytes(b"of a writer that was killed")
    assert connector.end("s") == 0
    assert list(tmp_path.iterdir()) == []
