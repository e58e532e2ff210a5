"""Compressed frames: they come back, they stay bounded, damage is an error of ours."""

import random
import struct
import sys

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core.compression import (
    BLOCK,
    CODECS,
    MIN_SIZE,
    codec_named,
    codec_numbered,
    compress,
    decompress,
)
from proxystore_core.errors import ConfigurationError, CorruptError, MissingExtraError

NOISE = random.Random(1).randbytes(3 * BLOCK)
names = pytest.mark.parametrize("name", list(CODECS))


def codec(name):
    found = codec_named(name)
    assert found is not None
    return found


def squeezed(chunks, name):
    parts = compress(chunks, codec(name))
    assert parts is not None
    return memoryview(b"".join(parts))


@names
@pytest.mark.parametrize("size", [MIN_SIZE, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_round_trip_at_the_edges_of_blocks(name, size):
    raw = np.arange(size // 8 + 1).tobytes()[:size]
    packed = squeezed([raw[:100], raw[100:]], name)
    assert len(packed) < 0.9 * size
    result = decompress(packed, size, codec(name))
    assert bytes(result) == raw
    assert not result.readonly


@given(st.sampled_from(list(CODECS)), st.lists(st.binary(max_size=200), max_size=20), st.integers(1, 200))
def test_round_trip_of_any_chunks(name, chunks, repeat):
    raw = b"".join(chunks) * repeat
    parts = compress([*chunks] * repeat, codec(name))
    stored = raw if parts is None else decompress(memoryview(b"".join(parts)), len(raw), codec(name))
    assert bytes(stored) == raw
    assert parts is None or sum(map(len, parts)) <= 0.9 * len(raw)


@names
def test_small_frames_and_noise_are_left_alone(name):
    assert compress([bytes(MIN_SIZE - 1)], codec(name)) is None
    assert compress([NOISE], codec(name)) is None
    assert compress([], codec(name)) is None


@names
def test_a_frame_that_shrinks_only_where_it_was_sampled_is_left_alone(name):
    assert compress([bytes(1 << 16) + NOISE], codec(name)) is None


@names
def test_noise_inside_a_frame_that_shrinks_is_stored_as_it_is(name):
    raw = bytes(8 * BLOCK) + NOISE[:BLOCK] + bytes(BLOCK)
    packed = squeezed([raw], name)
    assert BLOCK < len(packed) < 1.2 * BLOCK
    assert bytes(decompress(packed, len(raw), codec(name))) == raw


@names
@pytest.mark.parametrize("change", [-1, 1, 1 << 62])
def test_the_stated_length_must_be_the_real_one(name, change):
    packed = squeezed([bytes(10_000)], name)
    with pytest.raises(CorruptError, match=f"{10_000} bytes where the header states {10_000 + change}"):
        decompress(packed, 10_000 + change, codec(name))


@names
@pytest.mark.parametrize("stated", [9_999, 10_001, BLOCK])
def test_a_block_that_holds_more_or_less_than_it_states_is_corrupt(name, stated):
    packed = bytearray(squeezed([bytes(10_000)], name))
    struct.pack_into("<I", packed, 0, stated)
    with pytest.raises(CorruptError):
        decompress(memoryview(packed), stated, codec(name))


def test_a_zstd_bomb_is_not_unpacked():
    bomb = zstandard.ZstdCompressor().compress(bytes(100 << 20))
    frame = struct.pack("<II", BLOCK, len(bomb)) + bomb
    with pytest.raises(CorruptError, match="holds more"):
        decompress(memoryview(frame), BLOCK, codec("zstd"))


def test_a_zstd_block_cannot_ask_for_a_huge_window():
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    block = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = block.compress(bytes(10_000)) + block.flush()
    frame = struct.pack("<II", 10_000, len(data)) + data
    with pytest.raises(CorruptError, match="zstd block is damaged"):
        decompress(memoryview(frame), 10_000, codec("zstd"))


@given(st.sampled_from(list(CODECS)), st.data())
def test_damage_never_raises_anything_but_corrupt(name, data):
    raw = np.arange(2000).tobytes()
    packed = bytearray(squeezed([raw], name))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.integers(0, len(packed)))
    try:
        result = decompress(memoryview(packed)[:end], len(raw), codec(name))
    except CorruptError:
        return
    assert len(result) == len(raw)  # damage inside a block is for the checksum to find


@names
def test_a_codec_is_found_by_its_number(name):
    assert type(codec_numbered(codec(name).number)) is type(codec(name))


def test_no_compression_has_two_names():
    assert codec_named(None) is codec_named("none") is None


def test_an_unknown_codec_is_named():
    with pytest.raises(ConfigurationError, match=r"'gzip'.*none, lz4, zstd"):
        codec_named("gzip")
    with pytest.raises(CorruptError, match="unknown codec 99"):
        codec_numbered(99)


@pytest.mark.parametrize(
    ("name", "modules"), [("lz4", ["lz4", "lz4.block"]), ("zstd", ["zstandard"])], ids=list(CODECS)
)
def test_a_missing_library_says_what_to_install(name, modules, monkeypatch):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingExtraError, match=rf'pip install "proxystore-integrations\[{name}\]"'
    ) as caught:
        codec_named(name)
    assert isinstance(caught.value.__cause__, ImportError)
