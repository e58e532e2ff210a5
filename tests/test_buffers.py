"""Memory to read into, and writing without joining."""

from __future__ import annotations

import array
import os
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core.buffers import MAP_FROM, fresh_buffer, read_file, write_file
from proxystore_core.connectors.base import Buffer
from proxystore_core.testing import in_fork


@pytest.mark.parametrize("size", [0, 1, MAP_FROM - 1, MAP_FROM, MAP_FROM + 1, 5_000_000])
def test_fresh_buffer(size: int) -> None:
    buffer = fresh_buffer(size)
    assert len(buffer) == size
    memoryview(buffer)[:] = b"x" * size
    assert bytes(buffer) == b"x" * size


@pytest.mark.parametrize("size", [1000, MAP_FROM])
def test_fresh_buffer_is_not_shared_with_a_fork(size: int) -> None:
    buffer = fresh_buffer(size)
    buffer[0] = 2

    def child() -> None:
        buffer[0] = 1

    in_fork(child)
    assert buffer[0] == 2


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
