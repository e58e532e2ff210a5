"""Encryption of stored objects: AES-256-GCM (NIST SP 800-38D) of the `cryptography` library, in parts.

    magic    4 bytes  "PXSE"
    version  u8       1
    suite    u8       1: AES-256-GCM
    reserved 2 bytes  0
    secret   8 bytes  which one, see `Secret.reading`
    salt     32 bytes random; the object's key is BLAKE2b of it, keyed with the secret
    size     u64      bytes of the object
    part     u32      bytes of every part but the last
    count    u32      number of parts, at least 1
    parts    each followed by its tag of 16 bytes

Numbers are little-endian. A part's nonce is its index, which no other part under the object's key has. Its
associated data are the header (with version and count), its index and the object's *name*: 128 random bits
that are chosen before the object is stored, and end its key in a `Store`. So a part is accepted only in its
place, in its object, under the key that was asked for. Where a connector keeps the object, the first half of
the key, is the connector's choice and is not bound.

Nothing is joined or copied: what is written is the output of the cipher, and so is what is read.
"""

from __future__ import annotations

import re
import secrets
import struct
from collections.abc import Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

from proxystore_core.buffers import blank_buffer, byte_views, split
from proxystore_core.connectors.base import USER_SESSION, Buffer, Connector, Key
from proxystore_core.errors import CorruptError, MissingExtraError, RefusedError
from proxystore_core.secret import Secret

__all__ = ["PART", "Encrypted", "decrypt", "encrypt", "is_encrypted", "name_of"]

PART = 4 << 20
"""Bytes of a part: one starts a cipher anew (5 us), and no thread waits longer than for one."""

_MAGIC = b"PXSE"
_VERSION, _SUITE = 1, 1
_HEADER = struct.Struct("<4sBB2x8s32sQII")
_INDEX = struct.Struct("<I8x")  # a nonce: 96 bits
_TAG = 16
_LARGEST = 1 << 30  # bytes of a part that is read: a cipher takes less than 2 GiB at a time
_NAME = 16  # random bytes of a name
_KEY = re.compile(r"(.*)~([A-Za-z0-9_-]{22})", re.DOTALL)


def encrypt(data: Sequence[Buffer], secret: Secret, name: str) -> list[Buffer]:
    """Encrypt the concatenation of some buffers.

    Args:
        data: the buffers.
        secret: its first one is used.
        name: of the object.

    Returns:
        What a connector is to store.

    Raises:
        RefusedError: this process has no secret.
        MissingExtraError: `cryptography` is not installed.
    """
    views = byte_views(data)
    size = sum([view.nbytes for view in views])
    count = _count(size, PART)
    salt = secrets.token_bytes(32)
    number, key = secret.writing(salt)
    header = _HEADER.pack(_MAGIC, _VERSION, _SUITE, number, salt, size, PART, count)
    cipher = _Cipher(key, header, name)
    # Also the room of one tag too many that the cipher wants to see behind what it writes.
    buffer = memoryview(blank_buffer(len(header) + size + count * _TAG))
    buffer[: len(header)] = header
    end = len(header)
    for index, pieces in enumerate(split(views, PART)):
        context = cipher.encryptor(index)
        for piece in pieces:
            end += context.update_into(piece, buffer[end:])
        context.finalize()
        buffer[end : end + _TAG] = context.tag
        end += _TAG
    return [buffer]


def decrypt(data: Buffer, secret: Secret, name: str) -> memoryview:
    """The inverse of `encrypt`: all is verified before anything is returned.

    Args:
        data: what a connector returned.
        secret: any of its secrets is accepted.
        name: of the object that was asked for.

    Returns:
        The bytes, in writable memory of their own.

    Raises:
        RefusedError: the object is not encrypted, or with a secret that this process does not have.
        CorruptError: it is not what was stored under this name.
        MissingExtraError: `cryptography` is not installed.
    """
    view = memoryview(data).cast("B")
    if not is_encrypted(view):
        raise RefusedError(
            f"the object is not encrypted, and this process takes no such objects: it has {secret!r}",
            remedy="Let whoever stored it have the same secret (docs/security.md), or store it again.",
        )
    if view.nbytes < _HEADER.size + _TAG:
        raise CorruptError(f"truncated: {view.nbytes} bytes cannot hold an encrypted object")
    _, version, suite, number, salt, size, part, count = _HEADER.unpack_from(view)
    if (version, suite) != (_VERSION, _SUITE):
        raise CorruptError(f"unknown encryption {suite} of version {version}")
    if (
        not 0 < part <= _LARGEST
        or count != _count(size, part)
        or view.nbytes != _HEADER.size + size + count * _TAG
    ):
        raise CorruptError(
            f"truncated or wrong lengths: {view.nbytes} bytes are there of {size} in {count} parts"
        )
    cipher = _Cipher(secret.reading(number, salt), bytes(view[: _HEADER.size]), name)
    target = memoryview(blank_buffer(size + _TAG))
    begin = _HEADER.size
    done = 0
    for index in range(count):
        end = begin + min(part, size - done)
        context = cipher.decryptor(index, view[end : end + _TAG])
        done += context.update_into(view[begin:end], target[done:])
        cipher.finish(context)
        begin = end + _TAG
    return target[:size]


def is_encrypted(data: Buffer) -> bool:
    """Whether some stored bytes begin as `encrypt` begins."""
    return bytes(memoryview(data)[: len(_MAGIC)]) == _MAGIC


def _count(size: int, part: int) -> int:
    return max(1, -(-size // part))


class _Cipher:
    """The parts of one object."""

    def __init__(self, key: bytes, header: bytes, name: str) -> None:
        library = _library()
        self._cipher = library.Cipher
        self._mode = library.GCM
        self._bad = library.InvalidTag
        self._key = library.AES(key)
        self._bound = header + name.encode()

    def encryptor(self, index: int) -> Any:
        nonce = _INDEX.pack(index)
        return self._begun(self._cipher(self._key, self._mode(nonce)).encryptor(), nonce)

    def decryptor(self, index: int, tag: memoryview) -> Any:
        nonce = _INDEX.pack(index)
        return self._begun(self._cipher(self._key, self._mode(nonce, bytes(tag))).decryptor(), nonce)

    def _begun(self, context: Any, nonce: bytes) -> Any:
        context.authenticate_additional_data(self._bound + nonce)
        return context

    def finish(self, context: Any) -> None:
        try:
            context.finalize()
        except self._bad:
            raise CorruptError(
                "the encrypted object is not what was stored under this key: altered, or another one"
            ) from None


@cache
def _library() -> Any:
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError as error:
        raise MissingExtraError(
            "encryption needs the library cryptography, which is not installed",
            remedy='Run: pip install "proxystore-integrations[encryption]"',
        ) from error
    return SimpleNamespace(Cipher=Cipher, AES=algorithms.AES, GCM=modes.GCM, InvalidTag=InvalidTag)


def name_of(key: Key) -> str:
    """The name that ends a key; empty where none does."""
    match = _KEY.fullmatch(key)
    return "" if match is None else match[2]


def _inner(key: Key) -> Key:
    match = _KEY.fullmatch(key)
    return key if match is None else match[1]


def _new_name() -> str:
    return secrets.token_urlsafe(_NAME)


class Encrypted:
    """A connector that stores what it is given encrypted, under keys that end with names.

    What `get` returns is what is stored: `Store` decrypts it, so that copies of it are encrypted, too.
    Everything else passes straight through; the other connector sees its own keys only.

    Args:
        connector: where the bytes go.
        secret: what they are encrypted with.
    """

    def __init__(self, connector: Connector, secret: Secret) -> None:
        self.encrypted = connector
        self._secret = secret

    def __repr__(self) -> str:
        return f"Encrypted({self.encrypted!r})"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.encrypted, name)  # what the other connector cannot do, this one cannot
        own = _ABILITIES.get(name)
        return found if own is None else partial(own, self)

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION, **hints: Any) -> Key:
        name = _new_name()
        return f"{self.encrypted.put(encrypt(data, self._secret, name), session=session, **hints)}~{name}"

    def get(self, key: Key) -> Buffer | None:
        return self.encrypted.get(_inner(key))

    def exists(self, key: Key) -> bool:
        return self.encrypted.exists(_inner(key))

    def evict(self, key: Key) -> None:
        self.encrypted.evict(_inner(key))

    def _put_batch(self, items: Sequence[Sequence[Buffer]], *, session: str = USER_SESSION) -> list[Key]:
        names = [_new_name() for _ in items]
        sealed = [encrypt(item, self._secret, name) for item, name in zip(items, names, strict=True)]
        keys = self._other.put_batch(sealed, session=session)
        return [f"{key}~{name}" for key, name in zip(keys, names, strict=True)]

    def _get_batch(self, keys: Sequence[Key]) -> list[Buffer | None]:
        found: list[Buffer | None] = self._other.get_batch([_inner(key) for key in keys])
        return found

    def _evict_batch(self, keys: Sequence[Key]) -> None:
        self._other.evict_batch([_inner(key) for key in keys])

    async def _put_async(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        import asyncio

        name = _new_name()
        sealed = await asyncio.to_thread(encrypt, data, self._secret, name)
        return f"{await self._other.put_async(sealed, session=session)}~{name}"

    async def _get_async(self, key: Key) -> Buffer | None:
        found: Buffer | None = await self._other.get_async(_inner(key))
        return found

    def _reserve(self, *, session: str = USER_SESSION) -> Key:
        return f"{self._other.reserve(session=session)}~{_new_name()}"

    def _set(self, key: Key, data: Sequence[Buffer]) -> None:
        self._other.set(_inner(key), encrypt(data, self._secret, name_of(key)))

    def _wait(self, key: Key, timeout: float | None = None) -> bool:
        return bool(self._other.wait(_inner(key), timeout))

    def _holder(self, key: Key) -> tuple[Connector, Key]:
        found: tuple[Connector, Key] = self._other.holder(_inner(key))
        return found

    def _holds(self, key: Key) -> bool:
        return bool(self._other.holds(_inner(key)))

    @property
    def _other(self) -> Any:
        return self.encrypted


_ABILITIES: dict[str, Any] = {
    "put_batch": Encrypted._put_batch,
    "get_batch": Encrypted._get_batch,
    "evict_batch": Encrypted._evict_batch,
    "put_async": Encrypted._put_async,
    "get_async": Encrypted._get_async,
    "reserve": Encrypted._reserve,
    "set": Encrypted._set,
    "wait": Encrypted._wait,
    "holder": Encrypted._holder,
    "holds": Encrypted._holds,
}
"""What a connector may be able to do with keys."""
