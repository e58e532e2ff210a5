"""The stored format: a header, a stream and out-of-band buffers, packed without joining them.

    magic    4 bytes  "PXSO"
    version  u8       1
    kind     u8       how the stream is to be read
    codec    u8       what compressed frames are compressed with, 0 for nothing
    flags    u8       1: a checksum is present
    count    u64      number of buffers
    checksum u64      xxh3_64 of all other bytes, or 0
    table    (u64 stored length, u64 raw length, u64 flags) for the stream and for each buffer;
             flags 1: read-only, 2: compressed
    stream   right after the table
    buffers  each at a multiple of 64 bytes

All numbers are little-endian. Bytes from a store are untrusted: every length is checked against
what is really there before it is used, and a checksum before anything but magic and version.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import xxhash

from proxystore_core.compression import Codec, codec_named, codec_numbered, compress, decompress
from proxystore_core.connectors.base import Buffer
from proxystore_core.errors import CorruptError

__all__ = [
    "ALIGNMENT",
    "KIND_CUSTOM",
    "KIND_PICKLE",
    "KIND_PLAIN",
    "VERSION",
    "Unpacked",
    "nbytes",
    "pack",
    "unpack",
]

VERSION: Final = 1
"""Version of the format that `pack` writes and the only one that `unpack` reads."""

ALIGNMENT: Final = 64
"""Every buffer starts at a multiple of this many bytes."""

KIND_PICKLE: Final = 1
"""The stream is a pickle of protocol 5 whose out-of-band buffers follow."""

KIND_CUSTOM: Final = 2
"""The stream is what the user's own serializer returned."""

KIND_PLAIN: Final = 3
"""The stream is of `proxystore_core.plain`."""

_MAGIC = b"PXSO"
_HEADER = struct.Struct("<4sBBBBQQ")
_COVERED = 16  # bytes of the header before the checksum
_CHECKSUM = struct.Struct("<Q")
_ENTRY = struct.Struct("<QQQ")
_SUMMED = 1
_READONLY, _COMPRESSED = 1, 2
_ZEROS = memoryview(bytes(ALIGNMENT))
_UNREADABLE = "Store the object again with this version, or read it with the one that stored it."


class Unpacked(NamedTuple):
    """What `unpack` found."""

    kind: int
    """`KIND_PICKLE`, `KIND_CUSTOM` or `KIND_PLAIN`."""

    stream: memoryview
    """The stream, as one piece."""

    buffers: list[memoryview]
    """The out-of-band buffers, read-only where they were when they were packed and writable elsewhere."""

    checksum: bool
    """Whether a checksum was present and right."""


def nbytes(frames: Iterable[Buffer]) -> int:
    """Size of frames in bytes, as a store will hold them."""
    return sum(map(len, frames))


def pack(
    stream: Sequence[Buffer],
    buffers: Sequence[Buffer] = (),
    *,
    readonly: Sequence[bool] | None = None,
    kind: int = KIND_PICKLE,
    codec: str | None = None,
    checksum: bool = False,
) -> list[Buffer]:
    """Put a header before a stream and its buffers, which are aliased and not copied.

    Args:
        stream: chunks of the stream, in order.
        buffers: out-of-band buffers.
        readonly: for each buffer, whether it is to come back read-only; by default as it is now.
        kind: `KIND_PICKLE`, `KIND_CUSTOM` or `KIND_PLAIN`.
        codec: name of the codec for the frames that shrink, see `proxystore_core.compression`.
        checksum: whether to add a checksum over everything.

    Returns:
        Buffers whose concatenation is the stored object.

    Raises:
        ConfigurationError: there is no such codec, or its library is missing.
    """
    squeeze = codec_named(codec)
    if readonly is None:
        readonly = [memoryview(buffer).readonly for buffer in buffers]
    frames: list[Buffer] = []
    table = bytearray(_entry(stream, True, squeeze, frames))
    position = _HEADER.size + _ENTRY.size * (1 + len(buffers)) + nbytes(frames)
    for buffer, fixed in zip(buffers, readonly, strict=True):
        if padding := -position % ALIGNMENT:
            frames.append(_ZEROS[:padding])
        before = len(frames)
        table += _entry((buffer,), fixed, squeeze, frames)
        position += padding + sum(map(len, frames[before:]))

    number = squeeze.number if squeeze else 0
    header = _HEADER.pack(_MAGIC, VERSION, kind, number, _SUMMED if checksum else 0, len(buffers), 0)
    if checksum:
        header = header[:_COVERED] + _CHECKSUM.pack(_digest((header[:_COVERED], table, *frames)))
    return [header + table, *frames]


def unpack(data: Buffer, *, checksum: bool = False) -> Unpacked:
    """Find the stream and the buffers in a stored object; the inverse of `pack`.

    The result's views alias ``data`` and keep all of it alive. What was compressed is decompressed
    and what was writable is copied when ``data`` is read-only; nothing else is copied.

    Args:
        data: the stored object, as one buffer.
        checksum: refuse data that carries no checksum.

    Raises:
        CorruptError: ``data`` is not exactly what `pack` made; the message says in what way.
        MissingExtraError: the library that decompresses it is not installed.
    """
    view = memoryview(data)
    kind, number, count = _read_header(view, checksum)
    start = _HEADER.size + _ENTRY.size * (1 + count)
    if start > len(view):
        raise CorruptError(f"truncated: {len(view)} bytes cannot hold the lengths of {count} buffers")
    codec = codec_numbered(number) if number else None
    spans: list[tuple[memoryview, int, int]] = []
    for stored, raw, flags in _ENTRY.iter_unpack(view[_HEADER.size : start]):
        if spans:
            start += -start % ALIGNMENT
        if start + stored > len(view):
            raise CorruptError(
                f"truncated or wrong lengths: {start + stored} bytes are stated, {len(view)} are there"
            )
        if flags & ~(_READONLY | _COMPRESSED) or (flags & _COMPRESSED and codec is None):
            raise CorruptError(f"a frame has unknown flags {flags:#x}")
        if raw != stored and not flags & _COMPRESSED:
            raise CorruptError(f"wrong lengths: {stored} bytes are stored of a frame of {raw}")
        spans.append((view[start : start + stored], raw, flags))
        start += stored
    if start != len(view):
        raise CorruptError(f"too long: {start} bytes are stated, {len(view)} are there")
    stream, *buffers = [_open(span, raw, flags, codec) for span, raw, flags in spans]
    return Unpacked(kind, stream, buffers, bool(view[7] & _SUMMED))


def _entry(chunks: Sequence[Buffer], readonly: bool, codec: Codec | None, out: list[Buffer]) -> bytes:
    """Append the frame's buffers to ``out``; returns its entry in the table."""
    raw = nbytes(chunks)
    flags = _READONLY if readonly else 0
    if codec is not None and (parts := compress(chunks, codec)) is not None:
        out += parts
        return _ENTRY.pack(nbytes(parts), raw, flags | _COMPRESSED)
    out += filter(len, chunks)
    return _ENTRY.pack(raw, raw, flags)


def _read_header(view: memoryview, required: bool) -> tuple[int, int, int]:
    """Kind, codec and count, after the checksum was verified."""
    if len(view) < _HEADER.size + _ENTRY.size:
        raise CorruptError(f"truncated: {len(view)} bytes cannot hold a header")
    magic, version, kind, number, flags, count, expected = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise CorruptError(f"bad magic {magic!r}: this is not a stored object")
    if version != VERSION:
        raise CorruptError(f"unknown format version {version}", remedy=_UNREADABLE)
    if flags == _SUMMED:
        if _digest((view[:_COVERED], view[_HEADER.size :])) != expected:
            raise CorruptError("checksum mismatch: the bytes were altered after they were stored")
    elif flags or expected:  # also what one flipped bit in the flags leads to
        raise CorruptError(f"unknown flags {flags:#x} in the header")
    elif required:
        raise CorruptError("a checksum is required and there is none")
    if kind not in (KIND_PICKLE, KIND_CUSTOM, KIND_PLAIN):
        raise CorruptError(f"unknown kind {kind} of object", remedy=_UNREADABLE)
    return kind, number, count


def _open(span: memoryview, raw: int, flags: int, codec: Codec | None) -> memoryview:
    if flags & _COMPRESSED and codec is not None:
        span = decompress(span, raw, codec)
    if flags & _READONLY:
        return span.toreadonly()
    return memoryview(bytearray(span)) if span.readonly else span


def _digest(parts: Iterable[Buffer]) -> int:
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.intdigest() or 1  # 0 means that there is none
