"""Hazards of shared memory: little of it, bounds on maps and descriptors, forks, and segments in stock."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import mount_tmpfs, own_mounts

from proxystore_core import maps
from proxystore_core.buffers import MAP_FROM
from proxystore_core.connectors import segments
from proxystore_core.connectors.segments import SegmentStock
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import ConfigurationError, FullError, RefusedError, UnreachableError
from proxystore_core.testing import in_fork, in_new_process, until

NOBODY = 65534
MB = 1_000_000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def connector() -> Iterator[ShmConnector]:
    connector = ShmConnector(secrets.token_hex(4))
    yield connector
    for session in ["user", *connector.sessions()]:
        connector.end(session)
    connector.close(clear=True)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Little shared memory.


def fill_small_shm(spill: str, small_spill: bool) -> None:
    mount_tmpfs("/dev/shm", "size=16m")
    if small_spill:
        mount_tmpfs(spill, "size=12m,mode=700")
    connector = ShmConnector("small", spill=spill)
    data = [bytes([number]) * 4 * MB for number in range(6)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if small_spill:
            kept = [connector.put([item], session="s") for item in data[:5]]
            with pytest.raises(FullError, match="No space left"):
                connector.put([b"x" * 12 * MB], session="s")
            assert [connector.get(key) for key in kept] == data[:5]
            assert connector.end("s") == 5
            return
        keys = [connector.put([item], session="s") for item in data]
        keys.append(connector.put([b"tiny"]))
    assert [str(warning.category.__name__) for warning in caught] == ["RuntimeWarning"]
    assert "--shm-size" in str(caught[0].message)
    spilled = [key for key in keys if key.endswith(".disk")]
    assert 0 < len(spilled) < 6
    room = os.statvfs("/dev/shm")
    assert room.f_bavail >= 0.1 * room.f_blocks
    assert in_new_process(read_all, connector.url, keys) == [*data, b"tiny"]
    mapped = [connector.get(key) for key in keys]
    connector.evict(spilled[0])
    assert not connector.exists(spilled[0])
    assert connector.get(spilled[0]) is None
    assert connector.end("s") == 5
    assert mapped == [*data, b"tiny"]
    connector.close(clear=True)
    assert os.listdir("/dev/shm") == []
    assert not Path(spill).exists()


def read_all(url: str, keys: list[str]) -> list[bytes]:
    connector = ShmConnector.from_url(url)
    return [bytes(connector.get(key) or b"") for key in keys]


@pytest.mark.parametrize("small_spill", [False, True])
def test_small_shm(tmp_path: Path, small_spill: bool) -> None:
    spill = tmp_path / "spill"
    spill.mkdir(mode=0o700)
    in_new_process(fill_small_shm, str(spill), small_spill, command=own_mounts())


def spill_with_names(spill: str) -> None:
    mount_tmpfs("/dev/shm", "size=4m")
    connector = ShmConnector("named", spill=spill)
    connector._unnamed = False
    with pytest.warns(RuntimeWarning, match="is full"):
        key = connector.put([b"x" * MB] * 8, session="s")
    assert connector.get(key) == b"x" * 8 * MB
    assert os.listdir("/dev/shm/proxystore-0-named/s") == [".lease"]
    connector.end("s")


def test_small_shm_where_files_have_names_from_the_start(tmp_path: Path) -> None:
    in_new_process(spill_with_names, str(tmp_path / "spill"), command=own_mounts())


def reuse_small_shm(turns: int) -> None:
    mount_tmpfs("/dev/shm", "size=16m")
    connector = ShmConnector("reused")
    unmap = maps._unmap

    def unmap_late(address: int, size: int) -> None:
        time.sleep(0.02)  # as on a loaded machine
        unmap(address, size)

    maps._unmap = unmap_late  # nothing else runs in this process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turn in range(turns):
            key = connector.put([bytes([turn]) * 5 * MB])
            assert connector.get(key) == bytes([turn]) * 5 * MB
            connector.evict(key)
        assert connector.get(connector.put([b"x" * 13 * MB])) == b"x" * 13 * MB
    connector.close(clear=True)


def test_the_stock_never_takes_the_room_of_objects() -> None:
    in_new_process(reuse_small_shm, 20, command=own_mounts())


def use_unbounded_shm() -> None:
    mount_tmpfs("/dev/shm", "size=0")
    connector = ShmConnector("unbounded")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not connector.put([b"x" * MB]).endswith(".disk")


def test_shm_without_a_bound() -> None:
    in_new_process(use_unbounded_shm, command=own_mounts())


@as_root
def test_another_users_spill_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its name in the temporary directory can be guessed: whoever makes it must not stop us from ending.
    (tmp_path / "spill" / "s").mkdir(parents=True)
    os.chown(tmp_path / "spill", NOBODY, NOBODY)
    connector = ShmConnector(secrets.token_hex(4), spill=tmp_path / "spill")
    connector.renew("s", 600)
    key = connector.put([b"data"], session="s")
    assert connector.get(f"{key}.disk") is None
    assert connector.end("s") == 1
    assert connector.sessions() == {}
    monkeypatch.setattr("proxystore_core.connectors.shm._LEFT_TO_OTHERS", 1.0)
    with pytest.raises(RefusedError, match="another user"):
        connector.put([b"data"])
    connector.close(clear=True)


def test_looking_for_spilled_objects_makes_no_directory(connector: ShmConnector, tmp_path: Path) -> None:
    other = ShmConnector(connector.name, spill=tmp_path / "spill")
    key = f"{other.node}.user.{'0' * 20}.disk"
    assert other.get(key) is None
    assert not other.exists(key)
    other.evict(key)
    other.end("s")
    assert not (tmp_path / "spill").exists()
    with pytest.raises(RefusedError):
        other.get(".disk")


# Bounds of the system.


def hold_many(name: str, count: int) -> int:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    connector = ShmConnector(name)
    keys = [connector.put([bytes([number]) * MAP_FROM]) for number in range(8)]
    held = [connector.get(keys[number % 8]) for number in range(count)]
    assert descriptors() < 100
    for number, got in enumerate(held):
        assert got is not None
        assert got[0] == got[MAP_FROM - 1] == number % 8
    connector.close(clear=True)
    return len(held)


def test_more_arrays_than_descriptors() -> None:
    assert in_new_process(hold_many, secrets.token_hex(4), 3000) == 3000


def exhaust_maps(name: str) -> None:
    connector = ShmConnector(name)
    key = connector.put([b"x" * MAP_FROM])
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    held = []
    for _ in range(min(most, 100_000)):
        got = connector.get(key)
        assert got is not None
        held.append(got)
        if len(held) > most // 2:
            break
    copies = [connector.get(key) for _ in range(10)]
    assert all(copy == b"x" * MAP_FROM for copy in copies)
    with open("/proc/self/maps", "rb") as maps:
        assert sum(1 for _ in maps) < most * 3 // 4
    # The rest of the process still gets memory.
    assert len(bytearray(50 * MB)) == 50 * MB
    held.clear()
    with open("/proc/self/maps", "rb") as maps:
        assert sum(1 for _ in maps) < most // 4
    connector.close(clear=True)


def test_more_arrays_than_maps() -> None:
    if int(Path("/proc/sys/vm/max_map_count").read_text()) > 200_000:
        pytest.skip("this system allows so many maps that the test would take long")
    in_new_process(exhaust_maps, secrets.token_hex(4))


def test_small_objects_are_not_mapped(connector: ShmConnector) -> None:
    small = connector.get(connector.put([b"x" * (MAP_FROM - 1)]))
    assert isinstance(small, bytearray)
    before = descriptors()
    big = connector.get(connector.put([b"x" * MAP_FROM]))
    assert isinstance(big, memoryview)
    assert not big.readonly
    assert descriptors() - before <= 1  # a segment in stock, none for the map


# Segments in stock.


def held_by(stock: SegmentStock) -> list[int]:
    return [fd for _, fd in stock._ready]


def test_the_stock_serves_the_next_put(connector: ShmConnector) -> None:
    keys = []
    for turn in range(5):
        if turn:
            until(lambda: connector._stock.nbytes)
        inodes = {os.fstat(fd).st_ino for fd in held_by(connector._stock)}
        keys.append(connector.put([bytes([turn]) * 2 * MB]))
        path = Path(connector.store_dir, *keys[-1].split(".")[-2:])
        assert turn == 0 or path.stat().st_ino in inodes
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_size == 2 * MB
    assert [bytes((connector.get(key) or b"")[:1]) for key in keys] == [bytes([turn]) for turn in range(5)]


def test_a_bigger_segment_is_cut(connector: ShmConnector) -> None:
    connector.put([b"x" * 2_400_000])
    until(lambda: connector._stock.nbytes == 2_400_000)
    assert connector.get(connector.put([b"y" * 2_000_000])) == b"y" * 2_000_000


def test_segments_are_never_reused(connector: ShmConnector) -> None:
    held = []
    for turn in range(12):
        key = connector.put([bytes([turn]) * 3 * MB])
        got = connector.get(key)
        assert got is not None
        held.append(got)
        connector.evict(key)
    for turn, got in enumerate(held):
        assert got == bytes([turn]) * 3 * MB


def test_an_evicted_objects_map_stays(connector: ShmConnector) -> None:
    key = connector.put([b"x" * 8 * MB])
    got = connector.get(key)
    assert got is not None
    connector.evict(key)
    connector.put([b"y" * 8 * MB])
    assert got == b"x" * 8 * MB
    memoryview(got)[:1] = b"z"
    assert got[:2] == b"zx"


def test_the_stock_is_bounded() -> None:
    stock = SegmentStock(10 * MB)
    for number in range(30):
        fd = stock.take("/dev/shm", (1 + number % 4) * 2 * MB)
        if fd is not None:
            os.close(fd)
        assert stock.nbytes <= 10 * MB
        assert len(held_by(stock)) <= 4
    assert stock.take("/dev/shm", 11 * MB) is None
    assert stock.take("/dev/shm", MAP_FROM - 1) is None
    until(lambda: stock.nbytes and not stock._wanted and not stock._wake.is_set())
    assert 0 < stock.nbytes <= 10 * MB
    stock.drop()
    assert stock.nbytes == 0


def test_an_idle_stock_is_given_back(connector: ShmConnector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_IDLE", 0.2)
    connector.put([b"x" * 2 * MB])
    until(lambda: connector._stock.nbytes)
    until(lambda: not connector._stock.nbytes)
    until(lambda: connector._stock._thread is None)
    # And it starts again.
    connector.put([b"x" * 2 * MB])
    until(lambda: connector._stock.nbytes)


def test_closing_gives_the_stock_back() -> None:
    connector = ShmConnector(secrets.token_hex(4))
    connector.put([b"x" * 2 * MB])
    until(lambda: connector._stock.nbytes)
    segment = held_by(connector._stock)[0]
    inode = os.fstat(segment).st_ino
    connector.close(clear=True)
    assert connector._stock.nbytes == 0
    with contextlib.suppress(OSError):
        assert os.fstat(segment).st_ino != inode


def test_no_stock() -> None:
    connector = ShmConnector(secrets.token_hex(4), stock=0)
    connector.put([b"x" * 2 * MB])
    assert connector._stock._thread is None
    connector.close(clear=True)


def test_a_fork_shares_no_segment(connector: ShmConnector) -> None:
    connector.put([b"x" * 2 * MB])
    until(lambda: connector._stock.nbytes)
    segments_of_parent = {os.fstat(fd).st_ino for fd in held_by(connector._stock)}

    def child() -> tuple[int, list[int], str]:
        assert connector._stock.nbytes == 0
        inodes = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                inodes.append(os.fstat(int(name)).st_ino)
        keys = [connector.put([b"c" * 2 * MB]) for _ in range(3)]
        return connector._stock.limit, inodes, keys[-1]

    _, inodes, theirs = in_fork(child)
    assert not segments_of_parent & set(inodes)
    mine = connector.put([b"p" * 2 * MB])
    assert connector.get(theirs) == b"c" * 2 * MB
    assert connector.get(mine) == b"p" * 2 * MB


def test_forks_beside_puts(connector: ShmConnector) -> None:
    over = threading.Event()
    wrong: list[str] = []

    def work(mark: bytes) -> None:
        while not over.is_set():
            key = connector.put([mark * 2 * MB])
            if connector.get(key) != mark * 2 * MB:
                wrong.append(key)
            connector.evict(key)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (b"a", b"b")]
    for thread in threads:
        thread.start()

    def child() -> bool:
        keys = [connector.put([b"c" * 2 * MB]) for _ in range(3)]
        good = all(connector.get(key) == b"c" * 2 * MB for key in keys)
        for key in keys:
            connector.evict(key)
        return good

    try:
        assert all(in_fork(child) for _ in range(6))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong


# Who and where.


def test_key_of_another_node(connector: ShmConnector) -> None:
    key = connector.put([b"data"])
    elsewhere = key.replace(connector.node, "node17-0badcafe")
    for method in (connector.get, connector.exists, connector.evict):
        with pytest.raises(UnreachableError) as caught:
            method(elsewhere)
        assert "node17-0badcafe" in str(caught.value)
        assert connector.node in str(caught.value)
        assert "redis://" in str(caught.value)


@as_root
def test_another_users_directory() -> None:
    name = secrets.token_hex(4)
    directory = Path("/dev/shm", f"proxystore-{os.geteuid()}-{name}")
    directory.mkdir()
    try:
        os.chown(directory, NOBODY, NOBODY)
        with pytest.raises(RefusedError, match=f"another user .uid {NOBODY}"):
            ShmConnector(name)
    finally:
        directory.rmdir()


def test_planted_link(tmp_path: Path) -> None:
    name = secrets.token_hex(4)
    link = Path("/dev/shm", f"proxystore-{os.geteuid()}-{name}")
    link.symlink_to(tmp_path)
    try:
        with pytest.raises(RefusedError, match="link"):
            ShmConnector(name)
    finally:
        link.unlink()
    assert list(tmp_path.iterdir()) == []


def test_users_have_stores_of_their_own(connector: ShmConnector) -> None:
    assert Path(connector.store_dir).name == f"proxystore-{os.geteuid()}-{connector.name}"
    assert stat.S_IMODE(Path(connector.store_dir).stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "x" * 65, "ü"])
def test_wrong_names(name: str) -> None:
    with pytest.raises(ConfigurationError, match="shared memory"):
        ShmConnector(name)


@pytest.mark.parametrize(
    "url", ["shm://a/b", "shm://:80", "shm://u@a", "shm://a?stock=much", "shm://..", "shm://a?x=1"]
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(ConfigurationError):
        ShmConnector.from_url(url)


def test_nothing_is_left_in_shared_memory(tmp_path: Path) -> None:
    connector = ShmConnector(secrets.token_hex(4), spill=tmp_path / "spill")
    connector.renew("s", 60)
    connector.put([b"x" * 2 * MB])
    connector.put([b"x" * 2 * MB], session="s")
    connector.close()
    assert connector.end("s") == 1
    assert Path(connector.store_dir).is_dir()
    connector.close(clear=True)
    assert not Path(connector.store_dir).exists()
    assert not (tmp_path / "spill").exists()
    # It can still be used: the directory is made again.
    key = connector.put([b"again"])
    assert connector.get(key) == b"again"
    connector.evict(key)
    connector.close(clear=True)
    assert not Path(connector.store_dir).exists()


def test_late_objects_in_the_spill_directory_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = ShmConnector(secrets.token_hex(4), spill=tmp_path / "spill")
    connector.renew("live", 600)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("proxystore_core.connectors.shm._LEFT_TO_OTHERS", 1.0)
        patch.setattr("proxystore_core.connectors.file.UNRENEWED", -1.0)
        late, kept = connector.put([b"late"], session="over"), connector.put([b"kept"], session="live")
    assert connector.sweep() == ["over"]
    assert connector.get(late) is None
    assert connector.get(kept) == b"kept"
    assert connector.end("live") == 1
    connector.close(clear=True)
    assert not (tmp_path / "spill").exists()


def test_import_is_light() -> None:
    program = "import sys, proxystore_core.connectors.shm; assert not {'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
