"""Memory to read into, private maps, and writing without joining."""

from __future__ import annotations

import array
import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core import buffers
from proxystore_core.buffers import MAP_FROM, fresh_buffer, map_private, read_file, write_file
from proxystore_core.connectors.base import Buffer
from proxystore_core.testing import in_fork


@pytest.mark.parametrize("size", [0, 1, MAP_FROM - 1, MAP_FROM, MAP_FROM + 1, 5_000_000])
def test_fresh_buffer(size: int) -> None:
    buffer = fresh_buffer(size)
    assert len(buffer) == size
    assert not any(buffer[:: max(1, size // 100)])
    memoryview(buffer)[:] = b"x" * size
    assert bytes(buffer) == b"x" * size


@pytest.mark.parametrize("size", [1000, MAP_FROM])
def test_fresh_buffer_is_not_shared_with_a_fork(size: int) -> None:
    buffer = fresh_buffer(size)

    def child() -> None:
        buffer[0] = 1

    in_fork(child)
    assert buffer[0] == 0


@given(st.lists(st.binary(max_size=50), max_size=60))
def test_written_is_read(parts: list[bytes]) -> None:
    fd = os.memfd_create("test")
    try:
        write_file(
            fd, [(bytes, bytearray, memoryview)[number % 3](part) for number, part in enumerate(parts)]
        )
        data = b"".join(parts)
        assert os.fstat(fd).st_size == len(data)
        assert bytes(read_file(fd, len(data))) == data
        assert bytes(read_file(fd, len(data) + 10)) == data
        assert bytes(read_file(fd, len(data) // 2)) == data[: len(data) // 2]
    finally:
        os.close(fd)


def test_more_buffers_than_one_call_takes(tmp_path: Path) -> None:
    parts = [bytes([number % 256]) * (number % 5) for number in range(5000)]
    with open(tmp_path / "file", "wb+", buffering=0) as file:
        write_file(file.fileno(), parts)
        assert (tmp_path / "file").read_bytes() == b"".join(parts)


def test_nothing_to_write(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb+", buffering=0) as file:
        write_file(file.fileno(), [])
        write_file(file.fileno(), [b"", bytearray()])
        assert bytes(read_file(file.fileno(), 0)) == b""
    assert (tmp_path / "file").stat().st_size == 0


def test_interrupted_writes_go_on_at_the_right_byte() -> None:
    # A signal cuts a write into a pipe short in the midst of a buffer, and here of an element.
    numbers = array.array("d", range(100_000))
    parts: list[Buffer] = [b"x" * 33_333, memoryview(numbers), bytearray(b"y" * 77_777)] * 3
    reading, writing = os.pipe()
    got = bytearray()
    tick = threading.Event()

    def read() -> None:
        while data := os.read(reading, 5_001):
            got.extend(data)
            tick.wait(0.0005)

    before = signal.signal(signal.SIGALRM, lambda *_: None)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        write_file(writing, parts)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.close(writing)
        reader.join()
        os.close(reading)
    assert got == b"".join(bytes(memoryview(part).cast("B")) for part in parts)


@pytest.fixture
def mapped_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 2_000_000)
    return path


def test_map_is_private_and_writable(mapped_file: Path) -> None:
    fd = os.open(mapped_file, os.O_RDONLY)
    one, two = map_private(fd, 2_000_000), map_private(fd, 2_000_000)
    os.close(fd)
    assert (one.format, one.ndim, one.readonly, one.nbytes) == ("B", 1, False, 2_000_000)
    one[:5] = b"hello"
    assert two == b"a" * 2_000_000
    assert mapped_file.read_bytes() == b"a" * 2_000_000
    mapped_file.unlink()
    assert bytes(one[:6]) == b"helloa"


def test_map_lives_as_long_as_any_view(mapped_file: Path) -> None:
    fd = os.open(mapped_file, os.O_RDONLY)
    view = map_private(fd, 2_000_000)
    os.close(fd)
    part = view[1_000_000:1_000_010]
    assert len(buffers._maps) >= 1
    count = len(buffers._maps)
    del view
    gc.collect()
    assert len(buffers._maps) == count
    assert bytes(part) == b"a" * 10
    del part
    gc.collect()
    assert len(buffers._maps) == count - 1
    with open("/proc/self/maps") as maps:
        assert str(mapped_file) not in maps.read()


def test_map_under_numpy(mapped_file: Path) -> None:
    np = pytest.importorskip("numpy")
    fd = os.open(mapped_file, os.O_RDONLY)
    numbers = np.frombuffer(map_private(fd, 2_000_000), dtype="u1")
    os.close(fd)
    gc.collect()
    numbers += 1
    assert numbers.sum() == 98 * 2_000_000
    assert mapped_file.read_bytes() == b"a" * 2_000_000


def test_map_that_cannot_be(mapped_file: Path) -> None:
    fd = os.open(mapped_file, os.O_WRONLY)
    with pytest.raises(PermissionError, match="cannot map 100 bytes"):
        map_private(fd, 100)
    os.close(fd)


def test_maps_at_exit_are_no_crash(mapped_file: Path) -> None:
    program = (
        "import os, sys; from proxystore_core.buffers import map_private\n"
        f"fd = os.open({str(mapped_file)!r}, os.O_RDONLY)\n"
        "held = [map_private(fd, 2_000_000) for _ in range(5)]\n"
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
