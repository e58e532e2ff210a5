"""Hazards of stored objects' lives, one test each; what is tested elsewhere is listed here.

- Bytes are taken at put: test_connectors (`test_bytes_are_taken_at_once`), test_store, test_dask_arguments
  (`test_bytes_are_taken_at_submit`).
- Sharing goes by digest, never by id: test_sharing.
- Little shared memory, its spill and cap: test_shm (`test_small_shm` and what follows).
- Maps, descriptors, vm.max_map_count: test_shm (`test_more_arrays_than_descriptors`, `..._than_maps`).
- Shared memory of another host or container: here, test_shm (`test_key_of_another_node`),
  test_dask_clients (`test_a_worker_that_sees_other_shared_memory`).
- Another user: test_file and test_shm (`test_another_users_directory`, modes, planted objects and links).
- Network file systems: test_file (`test_a_late_file_is_waited_for`); read and never mapped: here.
- Verified data is a private copy: here; truncated and altered objects: here, test_store, test_connectors.
- A reference's class is looked up, never imported: test_reference (`test_target_class_imports_nothing`),
  test_store.
- Leases: killed, suspended and busy owners here; the rest in test_lifetimes and test_lifetime_model.
- `sizeof` of references: test_sizeof, test_dask_lifetimes.
- Waiting on what nobody sets comes with futures, which are not there yet.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_servers import serving

from proxystore_core import CorruptError, GoneError, Reference, Session, Store, UnreachableError
from proxystore_core.connectors.base import Buffer, Key
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.recipe import open_connector
from proxystore_core.testing import in_new_process, until

LEASE = 1.0
BIG = 2_000_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with serving(tmp_path_factory.mktemp("redis")) as server:
        yield "127.0.0.1", server.port


@pytest.fixture(params=["file", "shm", "redis"])
def connector(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    connector: Any
    if request.param == "file":
        connector = FileConnector(tmp_path / "store")
    elif request.param == "shm":
        connector = ShmConnector(secrets.token_hex(4), spill=tmp_path / "spill")
    else:
        connector = RedisConnector(*request.getfixturevalue("address"), prefix=secrets.token_hex(4))
    yield connector
    for session in connector.sessions():
        connector.end(session)
    connector.close(clear=True)


# Leases of real processes.


def own(url: str, directory: str, busy: bool) -> str:
    """Hold an object until the test says so; what became of it."""
    store: Store[Any] = Store("owner", open_connector(url), cache_size=0)
    session = Session(store.connector, lease=LEASE, name="owner")
    reference = store.reference(b"x" * BIG, session=session.name)
    Path(directory, "starting").write_text(f"{os.getpid()} {reference.key}")
    Path(directory, "starting").rename(Path(directory, "started"))
    numbers = list(range(100_000))
    while not Path(directory, "over").exists():
        if busy:  # each of these keeps all other threads from running while it runs
            random.shuffle(numbers)
            numbers.sort()
            re.match(r"(a+)+$", "a" * 18 + "b")
        else:
            time.sleep(0.01)
    try:
        return str(len(store.load(reference)))
    except GoneError as error:
        return str(error)
    finally:
        session.end()


class Owner:
    """The process that runs `own`."""

    def __init__(self, connector: Any, directory: Path, busy: bool = False) -> None:
        self.directory = directory
        self.outcome: list[str] = []

        def run() -> None:
            try:
                self.outcome.append(in_new_process(own, connector.url, str(directory), busy))
            except AssertionError as error:
                self.outcome.append(str(error))

        self.thread = threading.Thread(target=run)
        self.thread.start()
        until((directory / "started").exists)
        pid, self.key = (directory / "started").read_text().split()
        self.pid = int(pid)

    def ends(self) -> str:
        (self.directory / "over").touch()
        self.thread.join()
        return self.outcome[0]


def lapses(connector: Any) -> None:
    """Wait until the owner's lease is over, and do what the next session does."""
    until(lambda: connector.sessions().get("owner", -1.0) < 0)
    connector.sweep()


def test_a_killed_owner_s_objects_go_with_its_lease(connector: Any, tmp_path: Path) -> None:
    owner = Owner(connector, tmp_path)
    mine, other = connector.put([b"mine"]), connector.put([b"other's"], session="other")
    os.kill(owner.pid, signal.SIGKILL)
    assert "died" in owner.ends()
    lapses(connector)
    assert not connector.exists(owner.key)
    assert list(connector.sessions()) == ["other"]
    assert (connector.get(mine), connector.get(other)) == (b"mine", b"other's")
    connector.evict(mine)


def test_an_owner_suspended_for_longer_than_its_lease_is_told_so(connector: Any, tmp_path: Path) -> None:
    owner = Owner(connector, tmp_path)
    os.kill(owner.pid, signal.SIGSTOP)
    try:
        lapses(connector)
        assert not connector.exists(owner.key)
    finally:
        os.kill(owner.pid, signal.SIGCONT)
    told = owner.ends()
    assert "is gone" in told
    assert "lease setting" in told
    assert "owner" not in connector.sessions()


def test_a_busy_interpreter_renews_its_lease(connector: Any, tmp_path: Path) -> None:
    owner = Owner(connector, tmp_path, busy=True)
    enough = time.monotonic() + 3 * LEASE
    while time.monotonic() < enough:
        assert connector.sweep() == []
        assert connector.exists(owner.key)
        time.sleep(0.05)
    assert owner.ends() == str(BIG)


# Bytes that change under a reader.


class Meddled(FileConnector):
    """Somebody changes the file as soon as it has been read."""

    meddle: Callable[[Path], object] = Path.unlink

    def get(self, key: Key) -> Buffer | None:
        data = super().get(key)
        if data is not None:
            type(self).meddle(Path(self.store_dir, *key.split(".")))
        return data


@pytest.mark.parametrize("size", [1000, BIG])
@pytest.mark.parametrize(
    "meddle",
    [
        Path.unlink,
        lambda path: os.truncate(path, 10),
        lambda path: path.write_bytes(b"?" * path.stat().st_size),
    ],
    ids=["removed", "truncated", "altered"],
)
def test_what_is_verified_is_a_copy_that_nobody_changes(
    tmp_path: Path, size: int, meddle: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meddled, "meddle", staticmethod(meddle))
    with Store("meddled", Meddled(tmp_path / "store"), cache_size=0) as store:
        data = os.urandom(size)
        key = store.put(data)
        assert store.get(key) == data
        # The next reader meets what is there now.
        if meddle is Path.unlink:
            assert store.get(key, "gone") == "gone"
        else:
            with pytest.raises(CorruptError):
                store.get(key)
        store.connector.close(clear=True)


@pytest.mark.parametrize("left", [0, 1, 20, 50_000, BIG - 1])
def test_truncated_objects_are_corrupt(tmp_path: Path, left: int) -> None:
    connector = FileConnector(tmp_path / "store")
    with Store("truncated", connector) as store:
        key = store.put(b"x" * BIG)
        os.truncate(Path(connector.store_dir, *key.split(".")), left)
        with pytest.raises(CorruptError, match="truncated"):
            store.get(key)
        connector.close(clear=True)


# Shared memory that is another one.


def load_elsewhere(text: str, key: str) -> str:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", "/dev/shm"], check=True)
    try:
        Reference(key, text, 0, "")()
    except UnreachableError as error:
        return str(error)
    return "loaded"


def test_a_reference_in_a_container_with_shared_memory_of_its_own(tmp_path: Path) -> None:
    command = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not allowed here")
    connector = ShmConnector(secrets.token_hex(4), spill=tmp_path / "spill")
    with Store("here", connector) as store:
        reference = store.reference(b"x" * 1000)
        told = in_new_process(load_elsewhere, reference.recipe, reference.key, command=command)
        assert connector.node in told
        assert "proxystore.toml" in told
        assert store.load(reference) == b"x" * 1000
        connector.close(clear=True)
