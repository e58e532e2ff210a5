"""Compression of frames: ``lz4`` or ``zstd``, where it pays and never unbounded.

A compressed frame is a row of blocks, each with its own lengths, so that any codec with a
one-shot block function serves, memory beyond source and target stays under one block, and the
size of the result is known from the blocks before a byte of it is allocated.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from proxystore_core.connectors.base import Buffer
from proxystore_core.errors import ConfigurationError, CorruptError, MissingExtraError

__all__ = ["BLOCK", "CODECS", "MIN_SIZE", "Codec", "codec_named", "codec_numbered", "compress", "decompress"]

BLOCK = 1 << 20
"""Most bytes that are compressed at a time."""

MIN_SIZE = 4096
"""Frames smaller than this (bytes) are stored as they are."""

_WORTH = 0.9  # a frame is stored compressed when it shrinks to this share or less
_SAMPLE = 1 << 16
_BLOCK_HEADER = struct.Struct("<II")  # raw and stored length; equal when the block is stored as it is


class Codec(Protocol):
    """Compresses one block at a time. An instance serves one thread."""

    number: int
    """What the header of a stored object names the codec by; 1-255, never reused."""

    def compress(self, block: Buffer) -> bytes:
        """The block, compressed; the result may be longer than the block."""
        ...

    def decompress(self, block: Buffer, target: memoryview) -> None:
        """Fill ``target`` with the block's content, which must be exactly as long.

        Raises:
            CorruptError: the block is damaged, or holds fewer or more bytes than ``target``.
        """
        ...


class _Lz4:
    number = 1

    def __init__(self) -> None:
        try:
            import lz4.block
        except ImportError as error:
            raise _missing("lz4") from error
        self._block = lz4.block

    def compress(self, block: Buffer) -> bytes:
        return bytes(self._block.compress(block, store_size=False))

    def decompress(self, block: Buffer, target: memoryview) -> None:
        # lz4.block has no into-buffer call: one block is copied, never a frame.
        try:
            raw = self._block.decompress(block, uncompressed_size=len(target))
        except self._block.LZ4BlockError as error:
            raise CorruptError("an lz4 block is damaged") from error
        if len(raw) != len(target):
            raise CorruptError(f"an lz4 block holds {len(raw)} bytes where {len(target)} were stated")
        target[:] = raw


class _Zstd:
    number = 2
    _level = 1
    _window = 1 << 23  # bytes of history that a block may ask the decompressor to allocate

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise _missing("zstd") from error
        self._error = zstandard.ZstdError
        self._compressor = zstandard.ZstdCompressor(level=self._level)
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=self._window)

    def compress(self, block: Buffer) -> bytes:
        return self._compressor.compress(block)

    def decompress(self, block: Buffer, target: memoryview) -> None:
        # A stream, because the one-shot call allocates what the block itself claims to hold.
        filled = 0
        try:
            with self._decompressor.stream_reader(block) as reader:
                while filled < len(target) and (step := reader.readinto(target[filled:])):
                    filled += step
                excess = reader.read(1)
        except self._error as error:
            raise CorruptError("a zstd block is damaged") from error
        if filled != len(target) or excess:
            raise CorruptError(
                f"a zstd block holds {'more' if excess else filled} bytes where {len(target)} were stated"
            )


CODECS: dict[str, Callable[[], Codec]] = {"lz4": _Lz4, "zstd": _Zstd}
"""Codecs by the name that settings use; calling one imports its library."""


def codec_named(name: str | None) -> Codec | None:
    """The codec that a setting names; None for ``None`` and ``"none"``.

    Raises:
        ConfigurationError: there is no such codec.
        MissingExtraError: its library is not installed.
    """
    if name is None or name == "none":
        return None
    if (codec := CODECS.get(name)) is None:
        raise ConfigurationError(
            f"there is no compression {name!r}", remedy=f"Use one of: none, {', '.join(CODECS)}."
        )
    return codec()


def codec_numbered(number: int) -> Codec:
    """The codec that a stored object's header names.

    Raises:
        CorruptError: there is no such codec.
        MissingExtraError: its library is not installed.
    """
    for codec in CODECS.values():
        if getattr(codec, "number", None) == number:
            return codec()
    raise CorruptError(f"the header names the unknown codec {number}")


def compress(chunks: Sequence[Buffer], codec: Codec) -> list[bytes] | None:
    """Compress one frame, given in chunks.

    Args:
        chunks: the frame's bytes, in order; never joined.
        codec: what to compress with.

    Returns:
        The compressed frame in parts, or None when it is small or does not shrink to 90 %.
    """
    size = sum(map(len, chunks))
    if size < MIN_SIZE or not _promising(chunks, codec):
        return None
    parts: list[bytes] = []
    budget = int(size * _WORTH)
    for block in _blocks(chunks):
        packed = codec.compress(block)
        if len(packed) >= len(block):
            packed = bytes(block)
        parts += (_BLOCK_HEADER.pack(len(block), len(packed)), packed)
        budget -= _BLOCK_HEADER.size + len(packed)
        if budget < 0:
            return None
    return parts


def decompress(data: memoryview, size: int, codec: Codec) -> memoryview:
    """The inverse of `compress`.

    Args:
        data: the compressed frame.
        size: bytes of the frame before compression; never exceeded.
        codec: the codec that compressed it.

    Returns:
        A writable view of a private buffer.

    Raises:
        CorruptError: ``data`` is damaged or does not hold exactly ``size`` bytes.
    """
    blocks = list(_walk(data))  # all lengths are checked before anything is allocated
    if (stated := sum(raw for _, raw in blocks)) != size:
        raise CorruptError(f"the compressed blocks hold {stated} bytes where the header states {size}")
    target = _allocate(size)
    offset = 0
    for block, raw in blocks:
        room = target[offset : offset + raw]
        if len(block) == raw:
            room[:] = block
        else:
            codec.decompress(block, room)
        offset += raw
    return target


def _walk(data: memoryview) -> Iterator[tuple[memoryview, int]]:
    offset = 0
    while offset < len(data):
        start = offset + _BLOCK_HEADER.size
        if start > len(data):
            raise CorruptError("a compressed frame ends inside a block's header")
        raw, stored = _BLOCK_HEADER.unpack_from(data, offset)
        offset = start + stored
        if not 0 < stored <= raw <= BLOCK or offset > len(data):
            raise CorruptError(f"a compressed block states impossible lengths ({stored} for {raw} bytes)")
        yield data[start:offset], raw


def _blocks(chunks: Sequence[Buffer]) -> Iterator[memoryview]:
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), BLOCK):
            yield view[start : start + BLOCK]


def _promising(chunks: Sequence[Buffer], codec: Codec) -> bool:
    # Three samples of the longest chunk cost 0.2 ms at most; compressing noise costs a second a GB.
    view = memoryview(max(chunks, key=len))
    last = max(0, len(view) - _SAMPLE)
    samples = [view[start : start + _SAMPLE] for start in sorted({0, last // 2, last})]
    return any(len(codec.compress(sample)) <= len(sample) * _WORTH for sample in samples)


def _allocate(size: int) -> memoryview:
    # Untouched pages of a map cost nothing, where a bytearray would be zeroed first. Private, or a
    # forked child would write into its parent's arrays.
    if size >= BLOCK and hasattr(mmap, "MAP_PRIVATE"):
        try:
            return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError as error:
            raise MemoryError(f"no room for a decompressed frame of {size} bytes") from error
    return memoryview(bytearray(size))


def _missing(extra: str) -> MissingExtraError:
    return MissingExtraError(
        f"compression {extra!r} needs a library that is not installed",
        remedy=f'Run: pip install "proxystore-integrations[{extra}]"',
    )
