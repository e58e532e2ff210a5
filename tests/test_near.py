"""Near copies: each host fetches a far object once, whoever is killed meanwhile, and nothing is left."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis_servers import Server
from waiting import resolve_together

from proxystore_core.connectors.base import is_far
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import CorruptError, GoneError
from proxystore_core.near import NEAR_FROM, NearCopies
from proxystore_core.reference import Reference
from proxystore_core.store import Store
from proxystore_core.testing import in_fork

MB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")
HOLDER = """
import sys, time
from proxystore_core.near import NearCopies
near = NearCopies(sys.argv[1])
def fetch():
    print("fetching", flush=True)
    time.sleep(float(sys.argv[2]))
    return b"x" * (1 << 20)
near.get("store", "key", 1 << 20, fetch)
print("have", flush=True)
time.sleep(60)
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory in shared memory; it is empty again when the test is over."""
    root = SHARED_MEMORY / f"proxystore-{os.getuid()}-test-{os.getpid()}"
    root.mkdir(0o700)
    yield root
    root.rmdir()


@pytest.fixture
def store(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store[RedisConnector]]:
    """A store whose copies nobody else uses."""
    monkeypatch.setattr("proxystore_core.near._SHM", str(root))
    with Store("near", RedisConnector("127.0.0.1", server.port)) as store:
        yield store


class Far:
    """What is fetched, and how often."""

    def __init__(self, data: bytes = b"d" * MB, seconds: float = 0.0) -> None:
        self.data = data
        self.seconds = seconds
        self.count = 0

    def __call__(self) -> bytearray:
        self.count += 1
        time.sleep(self.seconds)
        return bytearray(self.data)


def copies(near: NearCopies) -> list[Path]:
    """This host's copies, the one used least lately first."""
    found = [path for path in Path(near.directory).glob("*") if re.fullmatch("[0-9a-f]{32}", path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def sent(server: Server) -> int:
    """Bytes that the server has sent so far."""
    total: int = server.witness.info("stats")["total_net_output_bytes"]
    return total


def holding(root: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that fetches for so long, and then keeps using the directory."""
    command = [sys.executable, "-c", HOLDER, str(root), str(seconds)]
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


def said(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


# The copies.


def test_fetched_once_and_private(root: Path) -> None:
    near, far = NearCopies(str(root)), Far()
    first, second = near.get("store", "key", MB, far), near.get("store", "key", MB, far)
    assert far.count == 1
    assert first is not None
    assert second is not None
    memoryview(first)[0] = 1
    assert bytes(second) == far.data
    assert bytes(near.get("store", "key", MB, far) or b"") == far.data
    near.close()


def test_stores_and_keys_are_told_apart(root: Path) -> None:
    near = NearCopies(str(root))
    names = [("a", "b"), ("b", "a"), ("a", "a"), ("ab", "")]
    for number, (recipe, key) in enumerate(names):
        near.get(recipe, key, MB, Far(bytes([number]) * MB))
    for number, (recipe, key) in enumerate(names):
        found = near.get(recipe, key, MB, Far())
        assert found is not None
        assert found[0] == number
    near.close()


def test_what_is_not_there_leaves_nothing(root: Path) -> None:
    near = NearCopies(str(root))
    assert near.get("store", "key", MB, lambda: None) is None
    assert os.listdir(near.directory) == ["live"]
    near.close()


def test_a_failed_fetch_is_tried_by_the_next(root: Path) -> None:
    near = NearCopies(str(root))

    def fail() -> bytes:
        raise CorruptError("broken")

    with pytest.raises(CorruptError):
        near.get("store", "key", MB, fail)
    assert near.get("store", "key", MB, Far()) is not None
    near.close()


def test_threads_fetch_once(root: Path) -> None:
    near, far = NearCopies(str(root)), Far(seconds=0.2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: bytes(near.get("store", "key", MB, far) or b""), range(8)))
    assert found == [far.data] * 8
    assert far.count == 1
    near.close()


def test_evict_keeps_maps(root: Path) -> None:
    near, far = NearCopies(str(root)), Far()
    kept = near.get("store", "key", MB, far)
    assert near.evict("store", "key")
    assert not near.evict("store", "key")
    assert copies(near) == []
    assert kept is not None
    assert bytes(kept) == far.data
    near.get("store", "key", MB, far)
    assert far.count == 2
    near.close()


def test_bounded_the_least_used_goes_first(root: Path) -> None:
    near = NearCopies(str(root), limit=3 * MB)
    for key in "abc":
        near.get("store", key, MB, Far())
        time.sleep(0.02)  # file times are as coarse as the kernel's tick
    near.get("store", "a", MB, Far())
    time.sleep(0.02)
    near.get("store", "d", MB, Far())
    again = {key: Far() for key in "acd"}
    for key, far in again.items():
        near.get("store", key, MB, far)
    assert [far.count for far in again.values()] == [0, 0, 0]
    assert len(copies(near)) == 3
    big = Far(b"d" * (3 * MB + 1))
    assert len(near.get("store", "big", len(big.data), big) or b"") == len(big.data)
    assert len(copies(near)) == 3, "what cannot be kept drives nothing out"
    near.close()


def test_unused_copies_are_swept_when_anyone_publishes(root: Path) -> None:
    near = NearCopies(str(root), lease=100)
    for key in "ab":
        near.get("store", key, MB, Far())
    old, kept = copies(near)
    stale = time.time() - 101
    os.utime(old, (stale, stale))
    (old.parent / "f00.lock").touch()
    os.utime(old.parent / "f00.lock", (stale, stale))
    near.get("store", "c", MB, Far())
    assert not old.exists()
    assert not (old.parent / "f00.lock").exists()
    assert kept.exists()
    assert len(copies(near)) == 2
    near.close()


# Who uses them.


def test_the_last_one_removes_the_directory(root: Path) -> None:
    first, second = NearCopies(str(root)), NearCopies(str(root))
    first.get("store", "key", MB, Far())
    far = Far()
    second.get("store", "key", MB, far)
    first.close()
    assert second.get("store", "key", MB, far) is not None
    assert far.count == 0
    second.close()
    assert os.listdir(root) == []
    second.close()
    assert first.get("store", "key", MB, far) is not None, "closing is no end"
    first.close()


def test_a_dropped_one_leaves_nothing(root: Path) -> None:
    near = NearCopies(str(root))
    near.get("store", "key", MB, Far())
    del near
    assert os.listdir(root) == []


def test_a_killed_fetcher_blocks_nobody(root: Path) -> None:
    holder = holding(root, 60)
    said(holder, "fetching")
    near, far = NearCopies(str(root)), Far()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(near.get("store", "key", MB, far)))
    thread.start()
    time.sleep(0.2)
    assert not found, "one fetches for all"
    killed(holder)
    thread.join(20)
    assert bytes(found[0]) == far.data
    assert len(copies(near)) == 1
    near.close()


def test_a_stopped_fetcher_is_waited_for_so_long_and_no_longer(root: Path) -> None:
    holder = holding(root, 60)
    said(holder, "fetching")
    holder.send_signal(signal.SIGSTOP)
    near, far = NearCopies(str(root), patience=0.1), Far()
    assert near.get("store", "key", MB, far) is not None
    assert far.count == 1
    killed(holder)
    near.close()


def test_what_killed_users_leave_the_next_one_removes(root: Path) -> None:
    holder = holding(root, 0)
    said(holder, "fetching")
    said(holder, "have")
    near = NearCopies(str(root))
    near.close()
    assert len(copies(near)) == 1, "it is in use"
    killed(holder)
    assert len(copies(near)) == 1
    near.close()
    assert os.listdir(root) == []


def test_a_forked_child_uses_them_and_takes_nothing_away(root: Path) -> None:
    near, far = NearCopies(str(root)), Far()
    near.get("store", "key", MB, far)

    def child() -> int:
        again = Far()
        assert near.get("store", "key", MB, again) is not None
        near.close()
        return again.count

    assert in_fork(child) == 0
    assert near.get("store", "key", MB, far) is not None
    assert far.count == 1
    near.close()


def test_a_child_forked_in_mid_fetch_holds_no_lock(root: Path) -> None:
    near = NearCopies(str(root))
    fetching, go_on = threading.Event(), threading.Event()

    def fetch() -> bytes:
        fetching.set()
        assert go_on.wait(20)
        raise CorruptError("never arrived")

    def failing() -> None:
        with pytest.raises(CorruptError):
            near.get("store", "key", MB, fetch)

    thread = threading.Thread(target=failing)
    thread.start()
    assert fetching.wait(20)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)  # until the parent is through
        os._exit(0)
    os.close(reading)
    go_on.set()
    thread.join()
    far = Far()
    assert near.get("store", "key", MB, far) is not None
    assert len(copies(near)) == 1
    near.close()
    assert os.listdir(root) == []
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0


def _get_and_end(root: str) -> None:
    _kept.append(NearCopies(root))
    _kept[0].get("store", "key", MB, Far())


_kept: list[NearCopies] = []


def test_a_child_of_multiprocessing_cleans_up(root: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_get_and_end, args=(str(root),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert os.listdir(root) == []


def test_many_come_and_go(root: Path) -> None:
    """The directory is made and removed all the time: every get is right all the same."""

    def come_and_go(number: int) -> bool:
        near = NearCopies(str(root))
        for _ in range(40):
            found = near.get("store", "key", MB, Far())
            if found is None or found[-1] != ord("d"):
                return False
            near.close()
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(come_and_go, range(6)))
    assert os.listdir(root) == []


def test_nobody_waits_for_what_has_no_room(root: Path) -> None:
    near = NearCopies(str(root), limit=MB)
    met = threading.Barrier(4)

    def fetch() -> bytes:
        met.wait(20)  # all four are here at the same time
        return b"d" * (2 * MB)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: near.get("store", "key", 2 * MB, fetch), range(4)))
    assert all(len(one or b"") == 2 * MB for one in found)
    assert copies(near) == []
    near.close()


@pytest.mark.parametrize("place", ["missing", "a file", "another's", "too small"])
def test_without_a_place_everything_is_fetched(tmp_path: Path, place: str) -> None:
    near, far = NearCopies(str(tmp_path)), Far()
    directory = Path(near.directory)
    if place == "missing":
        near, far = NearCopies("/proc/nowhere"), Far()
    elif place == "a file":
        directory.touch()
    elif place == "another's":
        directory.mkdir(0o700)
        directory.chmod(0o777)
    else:
        near.limit = 0
    for _ in range(2):
        assert bytes(near.get("store", "key", MB, far) or b"") == far.data
    assert far.count == 2
    assert not near.evict("store", "key")
    assert place != "another's" or os.listdir(directory) == []
    near.close()


def test_a_removed_directory_is_made_again(root: Path) -> None:
    near, far = NearCopies(str(root)), Far()
    near.get("store", "key", MB, far)
    subprocess.run(["rm", "-r", near.directory], check=True)
    for _ in range(3):
        assert near.get("store", "key", MB, far) is not None
    assert far.count <= 3
    assert len(copies(near)) == 1
    near.close()


# The store.


def test_sixteen_processes_fetch_once(server: Server, store: Store[RedisConnector]) -> None:
    array = np.random.default_rng(1).integers(0, 256, 20_000_000, dtype=np.uint8)
    reference = store.reference(array)
    spawn = multiprocessing.get_context("spawn")
    ready, go, sums = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
    processes = [spawn.Process(target=resolve_together, args=(reference, ready, go, sums)) for _ in range(16)]
    with contextlib.closing(NearCopies(str(SHARED_MEMORY))) as near:
        near._enter()  # else the first to end takes the copy away before the last has begun
        for process in processes:
            process.start()
        for _ in processes:
            assert ready.acquire(timeout=60)
        before = sent(server)
        go.set()
        assert [sums.get(timeout=60) for _ in processes] == [int(array.sum())] * 16
        for process in processes:
            process.join()
        assert array.nbytes <= sent(server) - before < 1.1 * array.nbytes
        near.evict(reference.recipe, reference.key)
    store.evict(reference.key)


def test_one_that_comes_later_fetches_nothing(server: Server, store: Store[RedisConnector]) -> None:
    reference = store.reference(np.ones(2 * MB, np.uint8))
    store.load(reference)
    before = sent(server)
    with Store("near", RedisConnector("127.0.0.1", server.port)) as other:
        assert other.recipe == store.recipe
        array = other.load(reference)
        array[:] = 7
        assert other.load_batch([reference, reference])[1].sum() == 2 * MB
    assert sent(server) - before < MB
    store.evict(reference.key)


def test_off_where_asked_for_and_where_nothing_is_far(server: Server, tmp_path: Path) -> None:
    connector = RedisConnector("127.0.0.1", server.port)
    with Store("plain", connector, near=False, cache_size=0) as store:
        assert Store.from_config(store.config()).near is False
        reference = store.reference(bytes(2 * MB))
        before = sent(server)
        for _ in range(2):
            store.load(reference)
        assert sent(server) - before >= 4 * MB
        store.evict(reference.key)
    assert is_far(connector)
    assert not is_far(FileConnector(tmp_path / "f"))
    assert not is_far(ShmConnector())


def test_small_ones_and_those_for_one_reader_are_not_copied(store: Store[RedisConnector]) -> None:
    assert store._near is not None
    store.load(store.reference(bytes(NEAR_FROM // 2)))
    store.load(store.reference(bytes(2 * MB), evict=True))
    reference = store.reference(bytes(2 * MB))
    assert store.load_batch([reference], shared=False) == [bytes(2 * MB)]
    assert copies(store._near) == []
    store.evict(reference.key)


def test_evicted_from_the_store_gone_from_the_host(store: Store[RedisConnector]) -> None:
    assert store._near is not None
    reference = store.reference(bytes(2 * MB))
    store.load(reference)
    assert len(copies(store._near)) == 1
    store.evict(reference.key)
    assert copies(store._near) == []
    with pytest.raises(GoneError):
        store.load(reference)


@pytest.mark.parametrize("load", [Store.load, lambda store, reference: store.load_batch([reference])[0]])
def test_a_spoilt_copy_is_dropped_and_fetched_anew(
    store: Store[RedisConnector], load: Callable[[Store[RedisConnector], Reference], bytes]
) -> None:
    assert store._near is not None
    reference = store.reference(b"s" * 2 * MB)
    store.load(reference)
    (copy,) = copies(store._near)
    with copy.open("r+b") as file:
        file.seek(MB)
        file.write(b"x")
    assert load(store, reference) == b"s" * 2 * MB
    assert copies(store._near) == [], "a spoilt copy is for nobody"
    assert load(store, reference) == b"s" * 2 * MB
    store.evict(reference.key)


def test_spoilt_in_the_store_is_an_error(server: Server, store: Store[RedisConnector]) -> None:
    reference = store.reference(b"s" * 2 * MB)
    whole = store.connector.get(reference.key)
    assert whole is not None
    spoilt = bytearray(whole)
    spoilt[MB] ^= 1
    wrong = Reference(store.connector.put([spoilt]), store.recipe, len(spoilt), "builtins.bytes", False)
    for _ in range(2):
        with pytest.raises(CorruptError):
            store.load(wrong)
    for key in (reference.key, wrong.key):
        store.evict(key)


def test_a_store_that_closes_leaves_nothing(store: Store[RedisConnector], root: Path) -> None:
    store.load(store.reference(bytes(2 * MB)))
    assert len(os.listdir(root)) == 1
    store.close()
    assert os.listdir(root) == []
