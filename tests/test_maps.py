"""Private maps of files, and those that are used again."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from waiting import until

from proxystore_core import Store, maps
from proxystore_core.maps import map_fresh, map_private
from proxystore_core.testing import in_fork

SIZE = 2_000_000


@pytest.fixture
def mapped_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 2_000_000)
    return path


def test_map_is_private_and_writable(mapped_file: Path) -> None:
    fd = os.open(mapped_file, os.O_RDONLY)
    one, two = map_private(fd, os.fstat(fd)), map_private(fd, os.fstat(fd))
    os.close(fd)
    assert (one.format, one.ndim, one.readonly, one.nbytes) == ("B", 1, False, 2_000_000)
    one[:5] = b"hello"
    assert two == b"a" * 2_000_000
    assert mapped_file.read_bytes() == b"a" * 2_000_000
    mapped_file.unlink()
    assert bytes(one[:6]) == b"helloa"


def test_map_lives_as_long_as_any_view(mapped_file: Path) -> None:
    fd = os.open(mapped_file, os.O_RDONLY)
    view = map_private(fd, os.fstat(fd))
    os.close(fd)
    part = view[1_000_000:1_000_010]
    assert len(maps._maps) >= 1
    count = len(maps._maps)
    del view
    gc.collect()
    assert len(maps._maps) == count
    assert bytes(part) == b"a" * 10
    del part
    gc.collect()
    assert len(maps._maps) == count - 1
    assert str(mapped_file) not in Path("/proc/self/maps").read_text()


def test_map_under_numpy(mapped_file: Path) -> None:
    np = pytest.importorskip("numpy")
    fd = os.open(mapped_file, os.O_RDONLY)
    numbers = np.frombuffer(map_private(fd, os.fstat(fd)), dtype="u1")
    os.close(fd)
    gc.collect()
    numbers += 1
    assert numbers.sum() == 98 * 2_000_000
    assert mapped_file.read_bytes() == b"a" * 2_000_000


def test_map_that_cannot_be(mapped_file: Path) -> None:
    fd = os.open(mapped_file, os.O_WRONLY)
    with pytest.raises(PermissionError, match="cannot map 2000000 bytes"):
        map_private(fd, os.fstat(fd))
    os.close(fd)


def test_maps_at_exit_are_no_crash(mapped_file: Path) -> None:
    program = (
        "import os, sys; from proxystore_core.maps import map_fresh, map_private\n"
        f"fd = os.open({str(mapped_file)!r}, os.O_RDONLY)\n"
        "held = [map_private(fd, os.fstat(fd)) for _ in range(5)]\n"
        "class Late:\n"
        "    def __del__(self): assert held[0][0] == 97\n"
        "late = Late(); held.append(late)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def known_file(mapped_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that was mapped before."""
    monkeypatch.setattr(maps, "_UNUSED", 0.2)
    monkeypatch.setattr(maps, "_UNUSED_MODEST", 0.2)
    wait_for(lambda: not maps._dropping)
    mapped(mapped_file).release()
    gc.collect()
    yield mapped_file
    wait_for(lambda: not maps._kept)


def mapped(path: Path) -> memoryview:
    fd = os.open(path, os.O_RDONLY)
    try:
        return map_private(fd, os.fstat(fd))
    finally:
        os.close(fd)


def place_of(view: memoryview) -> int:
    np = pytest.importorskip("numpy")
    return int(np.frombuffer(view, dtype="u1").ctypes.data)


def wait_for(what: object) -> None:
    until = time.monotonic() + 30
    while not what():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.05)


def held(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


def test_a_map_that_nobody_wrote_to_is_used_again(known_file: Path) -> None:
    one = mapped(known_file)
    first = place_of(one)
    assert one[::4096] == b"a" * len(one[::4096])
    del one
    two = mapped(known_file)
    assert place_of(two) == first
    assert two == b"a" * SIZE


def test_a_file_that_is_mapped_once_is_unmapped_at_once(mapped_file: Path) -> None:
    view = mapped(mapped_file)
    del view
    assert not held(mapped_file)


@pytest.mark.parametrize("place", [0, 4095, 1_000_000, SIZE - 1])
def test_nobody_sees_what_another_has_written(known_file: Path, place: int) -> None:
    one = mapped(known_file)
    one[place] = 0
    del one
    assert not held(known_file)
    assert mapped(known_file) == b"a" * SIZE


def test_two_at_once_have_a_map_each(known_file: Path) -> None:
    del_me = mapped(known_file)
    del del_me
    one, two = mapped(known_file), mapped(known_file)
    assert place_of(one) != place_of(two)
    one[7] = 0
    assert two[7] == 97
    del one, two
    assert held(known_file) == 1


def test_a_file_of_the_same_name_is_another(known_file: Path) -> None:
    view = mapped(known_file)
    del view
    assert held(known_file)
    known_file.unlink()
    known_file.write_bytes(b"b" * SIZE)
    assert mapped(known_file) == b"b" * SIZE


def test_what_nobody_wants_goes(known_file: Path) -> None:
    view = mapped(known_file)
    del view
    assert held(known_file)
    wait_for(lambda: not held(known_file))


def test_after_a_fork_each_has_its_own(known_file: Path) -> None:
    view = mapped(known_file)
    in_use, inherited = place_of(view), [view]

    def child() -> None:
        inherited[0][3] = 0
        assert mapped(known_file)[3] == 97

    in_fork(child)
    assert (view[3], place_of(view)) == (97, in_use)
    inherited.clear()
    del view
    assert held(known_file) == 1

    def later() -> None:
        assert not held(known_file)  # nobody would take it back here
        again = mapped(known_file)
        again[3] = 0
        del again
        assert not held(known_file)

    in_fork(later)
    assert mapped(known_file)[3] == 97


def test_who_had_a_map_without_a_page_fault_has_not_written_to_it(
    known_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    is_clean = maps._is_clean

    def look(address: int, size: int) -> bool:
        looks.append(address)
        return is_clean(address, size)

    usage = SimpleNamespace(ru_minflt=5, ru_majflt=0)
    monkeypatch.setattr(maps, "_is_clean", look)
    monkeypatch.setattr(maps, "_usage", lambda: usage)
    monkeypatch.setattr(maps, "_counts_faults", lambda: True)
    view = mapped(known_file)
    del view
    assert len(looks) == 1  # the system has just mapped it: whoever has it reads its pages for the first time
    view = mapped(known_file)
    del view
    assert len(looks) == 1
    view = mapped(known_file)
    usage.ru_minflt += 1
    del view
    assert len(looks) == 2
    assert held(known_file)


def test_a_system_that_counts_no_page_faults_is_not_asked(
    known_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "_usage", lambda: SimpleNamespace(ru_minflt=0, ru_majflt=0))
    maps._counts_faults.cache_clear()
    try:
        for _ in range(2):
            view = mapped(known_file)
            del view
        view = mapped(known_file)
        view[3] = 0
        del view
        assert not held(known_file)
        assert mapped(known_file)[3] == 97
    finally:
        maps._counts_faults.cache_clear()


def test_each_page_written_to_a_map_that_was_had_before_counts(known_file: Path) -> None:
    for page in range(0, SIZE, 4096):
        for _ in range(2):  # the next one's pages are there
            view = mapped(known_file)
            assert view[::4096] == b"a" * len(view[::4096])
            del view
        view = mapped(known_file)
        view[page] = 0
        del view
        assert mapped(known_file)[page] == 97


def test_a_fork_that_has_as_many_page_faults_is_another_process() -> None:
    mine, theirs = maps._faults(), in_fork(maps._faults)
    assert mine is not None
    assert theirs is not None
    assert (mine[0], theirs[0] != mine[0]) == (os.getpid(), True)


def test_threads_that_write_and_drop(known_file: Path) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for i in range(100):
            view = mapped(known_file)
            if view[number * 4096] != 97 or view[SIZE - 1] != 97:
                wrong.append(i)
            if i % 3 == number % 3:
                view[number * 4096] = view[SIZE - 1] = number
            del view

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_shared_argument_is_loaded_private_each_time() -> None:
    np = pytest.importorskip("numpy")
    with Store.from_url("shm://") as store:
        reference = store.reference(np.zeros(SIZE, dtype="u1"))
        for turn in range(5):
            array = reference()
            assert not array.any()
            array[turn * 1000] = 1
            untouched = reference()
            assert not untouched.any()
            del array, untouched
        store.evict(reference.key)


# Fresh memory.


@pytest.fixture
def known_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A size that was asked for before."""
    monkeypatch.setattr(maps, "_UNUSED", 0.2)
    monkeypatch.setattr(maps, "_UNUSED_FRESH", 0.2)
    monkeypatch.setattr(maps, "_UNUSED_MODEST", 0.2)
    wait_for(lambda: not maps._dropping)
    map_fresh(SIZE).release()
    gc.collect()
    yield SIZE
    gc.collect()
    wait_for(lambda: not maps._kept)


def kept_sizes() -> list[int]:
    return [place[-1] for place in maps._kept if place[0] < 0]


def test_fresh_memory_that_went_is_the_next_ones_of_its_size(known_size: int) -> None:
    view = map_fresh(known_size)
    where = place_of(view)
    part = view[5:9]
    view[:] = b"a" * known_size
    del view
    gc.collect()
    other = map_fresh(known_size)
    assert place_of(other) != where  # somebody has a part of it yet
    assert bytes(part) == b"aaaa"
    del part, other
    gc.collect()
    assert len(kept_sizes()) == 1
    again = map_fresh(known_size - 100)
    assert len(again) == known_size - 100
    assert not kept_sizes()
    again[:] = b"b" * len(again)


def test_fresh_memory_of_one_size_is_kept_at_a_time(known_size: int) -> None:
    map_fresh(3 * known_size).release()
    gc.collect()
    one, other = map_fresh(known_size), map_fresh(3 * known_size)
    del one
    gc.collect()
    assert len(kept_sizes()) == 1
    del other
    gc.collect()
    (size,) = kept_sizes()
    assert size >= 3 * known_size
    map_fresh(known_size).release()  # what does not fit goes before there is more
    assert len(kept_sizes()) <= 1
    wait_for(lambda: not maps._kept)


@pytest.mark.parametrize("modest", [True, False])
def test_little_fresh_memory_is_kept_for_longer(
    known_size: int, monkeypatch: pytest.MonkeyPatch, modest: bool
) -> None:
    monkeypatch.setattr(maps, "_UNUSED_MODEST", 3600.0)
    monkeypatch.setattr(maps, "_MODEST", 10 * known_size if modest else known_size // 2)
    map_fresh(known_size).release()
    gc.collect()
    assert len(kept_sizes()) == 1
    if not modest:
        wait_for(lambda: not maps._kept)
    else:
        (place,) = maps._kept
        assert maps._unused(place) == 3600.0
        maps._drop_fresh()


def test_fresh_memory_is_not_kept_where_it_is_too_much(
    known_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "_MOST", known_size)
    map_fresh(known_size).release()
    gc.collect()
    assert not kept_sizes()


def test_fresh_memory_is_not_kept_in_a_fork(known_size: int) -> None:
    map_fresh(known_size).release()
    gc.collect()
    assert len(kept_sizes()) == 1
    assert in_fork(kept_sizes) == []


@pytest.mark.parametrize("size", [2**62, 2**64 + 5_000_000])
def test_fresh_memory_that_there_is_not(size: int) -> None:
    with pytest.raises((OSError, OverflowError, ValueError)):
        map_fresh(size)


def test_fresh_memory_is_one_readers_at_a_time(known_size: int) -> None:
    wrong = []

    def use(mark: bytes) -> None:
        for _ in range(200):
            view = map_fresh(known_size)
            view[:4000], view[-4000:] = mark * 4000, mark * 4000
            time.sleep(0)
            if view[:4000] != mark * 4000 or view[-4000:] != mark * 4000:
                wrong.append(mark)
            del view

    threads = [threading.Thread(target=use, args=(bytes([97 + number]),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def heavy_files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"heavy {number}" for number in range(6)]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(maps._HEAVY)
    return paths


def test_a_heavy_map_is_undone_by_a_thread_of_its_own(heavy_files: list[Path]) -> None:
    path = heavy_files[0]
    view = mapped(path)
    assert held(path) == 1
    assert "proxystore-unmap" in {thread.name for thread in threading.enumerate()}
    del view
    until(lambda: not held(path))


def test_not_many_wait_for_that(heavy_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_leaving", SimpleQueue())  # nobody comes to it
    monkeypatch.setattr(maps, "_undoing", True)
    for path in heavy_files:
        mapped(path)
    assert [held(path) for path in heavy_files] == [1, 1, 1, 1, 0, 0]

    def child() -> None:
        assert not any(map(held, heavy_files))
        view = mapped(heavy_files[0])
        assert held(heavy_files[0]) == 1
        del view
        until(lambda: not held(heavy_files[0]))

    in_fork(child)
    assert [held(path) for path in heavy_files] == [1, 1, 1, 1, 0, 0]
    maps._undo_leaving()
    assert not any(map(held, heavy_files))
