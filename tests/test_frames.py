"""The stored format: what is packed comes back; anything else is CorruptError."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core.errors import ConfigurationError, CorruptError
from proxystore_core.frames import ALIGNMENT, KIND_CUSTOM, KIND_PICKLE, VERSION, nbytes, pack, unpack

HEADER, ENTRY = 24, 24
chunks = st.lists(st.binary(max_size=200), max_size=5)
codecs = st.sampled_from([None, "none", "lz4", "zstd"])


def joined(*args, **kwargs):
    return bytearray().join(pack(*args, **kwargs))


def sample(checksum, codec=None):
    return joined(
        [b"stream", b"", b"of chunks"],
        [b"fixed" * 5, bytearray(b"free" * 2000), b""],
        codec=codec,
        checksum=checksum,
    )


@given(chunks, chunks, st.data(), codecs, st.booleans(), st.sampled_from([KIND_PICKLE, KIND_CUSTOM]))
def test_round_trip(stream, buffers, data, codec, checksum, kind):
    buffers = [buffer * data.draw(st.sampled_from([1, 100])) for buffer in buffers]
    readonly = [data.draw(st.booleans()) for _ in buffers]
    packed = joined(stream, buffers, readonly=readonly, kind=kind, codec=codec, checksum=checksum)
    for source in (packed, bytes(packed), memoryview(packed)):
        result = unpack(source, checksum=checksum)
        assert (result.kind, result.checksum) == (kind, checksum)
        assert bytes(result.stream) == b"".join(stream)
        assert [bytes(buffer) for buffer in result.buffers] == buffers
        assert [buffer.readonly for buffer in result.buffers] == readonly


@given(st.booleans(), st.sampled_from([None, "zstd"]), st.data())
def test_any_truncation_is_corrupt(checksum, codec, data):
    packed = sample(checksum, codec)
    with pytest.raises(CorruptError):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])


@given(st.sampled_from([None, "lz4", "zstd"]), st.data())
def test_any_flipped_bit_is_corrupt_where_there_is_a_checksum(codec, data):
    packed = sample(checksum=True, codec=codec)
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptError):
        unpack(packed)


def test_every_flipped_bit_of_the_header_is_corrupt_where_there_is_a_checksum():
    packed = sample(checksum=True)
    for bit in range((HEADER + 4 * ENTRY) * 8):
        packed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptError):
            unpack(packed)
        packed[bit // 8] ^= 1 << bit % 8
    assert unpack(packed).checksum


@given(st.sampled_from([None, "lz4", "zstd"]), st.data())
def test_damage_without_a_checksum_is_never_another_error(codec, data):
    packed = sample(checksum=False, codec=codec)
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, HEADER + 4 * ENTRY - 1))] = data.draw(st.integers(0, 255))
    try:
        result = unpack(packed)
    except CorruptError:
        return
    assert nbytes([result.stream]) <= len(packed)


@given(st.binary(max_size=300))
def test_random_bytes_are_corrupt(data):
    with pytest.raises(CorruptError):
        unpack(data)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=200))
def test_random_bytes_after_a_good_header_are_corrupt(count, rest):
    data = struct.pack("<4sBBBBQQ", b"PXSO", VERSION, KIND_PICKLE, 0, 0, count, 0) + rest
    try:
        result = unpack(data)
    except CorruptError:
        return
    assert len(result.buffers) == count


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:10], "truncated"),
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"x", "too long"),
        (lambda data: b"JUNK" + data[4:], "bad magic b'JUNK'"),
        (lambda data: data[:4] + b"\xfe" + data[5:], "unknown format version 254"),
        (lambda data: data[:5] + b"\x09" + data[6:], "unknown kind 9"),
        (lambda data: data[:6] + b"\x09" + data[7:], "unknown codec 9"),
        (lambda data: data[:7] + b"\x08" + data[8:], "unknown flags 0x8"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "cannot hold the lengths of"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "bytes are stated"),
        (lambda data: data[:32] + b"\xff" * 8 + data[40:], "wrong lengths"),
        (lambda data: data[:40] + b"\xff" * 8 + data[48:], "unknown flags"),
    ],
)
def test_the_error_says_what_is_wrong(damage, message):
    with pytest.raises(CorruptError, match=message):
        unpack(damage(bytes(sample(checksum=False))))


def test_a_wrong_checksum_is_found_before_anything_else():
    packed = sample(checksum=True)
    packed[5] = 9  # an unknown kind
    with pytest.raises(CorruptError, match="checksum mismatch"):
        unpack(packed)


def test_a_checksum_can_be_demanded():
    with pytest.raises(CorruptError, match="required"):
        unpack(sample(checksum=False), checksum=True)


def test_large_buffers_are_the_callers_own():
    stream, fixed, free = bytes(1 << 20), bytes(1 << 20), bytearray(1 << 20)
    frames = pack([stream], [fixed, free], checksum=True)
    for one in (stream, fixed, free):
        assert any(frame is one for frame in frames)


def test_views_are_aligned_and_alias_a_writable_buffer():
    packed = sample(checksum=False)
    base = memoryview(packed)
    _, _, (fixed, free, empty), _ = unpack(packed)
    assert [fixed.readonly, free.readonly, len(empty)] == [True, False, 0]
    for view in (fixed, free):
        assert bytes(packed).index(bytes(view)) % ALIGNMENT == 0
    free[:4] = b"FREE"
    assert b"FREEfree" in base.tobytes()


def test_what_was_writable_is_copied_out_of_a_readonly_buffer():
    packed = bytes(sample(checksum=False))
    _, stream, (fixed, free, _), _ = unpack(packed)
    assert stream.obj is fixed.obj is packed
    free[:4] = b"FREE"
    assert b"FREE" not in packed


def test_readonly_is_taken_from_the_buffers_by_default():
    result = unpack(joined([], [b"a", bytearray(b"b"), memoryview(bytearray(b"c")).toreadonly()]))
    assert [buffer.readonly for buffer in result.buffers] == [True, False, True]


def test_nbytes_is_the_stored_size():
    frames = pack([b"stream"], [b"x" * 100, b"y" * 100], checksum=True)
    assert nbytes(frames) == len(b"".join(frames))


def test_compression_shrinks_only_what_shrinks():
    noise = bytes(range(256)) * 4
    plain, packed = joined([], [bytes(100_000), noise]), joined([], [bytes(100_000), noise], codec="zstd")
    assert len(packed) < len(plain) / 10
    assert noise in packed


def test_an_unknown_codec_is_refused():
    with pytest.raises(ConfigurationError, match="'gzip'"):
        pack([b""], codec="gzip")
