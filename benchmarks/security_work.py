"""What trust costs: checksums and encryption beside their libraries on the same buffers, leases."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import xxhash

from benchmarks.contenders import OURS
from benchmarks.rows import Plan, Row
from benchmarks.timing import Figures, Sample, interleave

__all__ = ["WORKS"]

LIBRARY = "the library alone"
WARM = "the library alone, into memory used before"
WITHOUT = "without"
_SPEED = 1 / 0.9
_AGAIN = 32 << 20  # bytes that a sample works through at least: a small buffer several times


def _timed(call: Callable[[], object], size: int) -> Sample:
    count = max(1, _AGAIN // size)

    def sample() -> Figures:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        return {"": (time.perf_counter() - begin) / count}

    return sample


def checksums(plan: Plan) -> Iterator[Row]:
    """A stored object without checksum and XXH3 of its buffer, and one with it: made, and verified."""
    from proxystore_core.frames import pack, unpack

    for size, rounds in plan.sized():
        data = bytearray(os.urandom(size))
        whole = bytearray(b"".join(pack([b"s"], [data], checksum=True)))
        plain = bytearray(b"".join(pack([b"s"], [data])))
        ways: Mapping[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "made": (partial(pack, [b"s"], [data]), partial(pack, [b"s"], [data], checksum=True)),
            "verified": (partial(unpack, plain), partial(unpack, whole)),
        }
        for way, (without, ours) in ways.items():

            def beside(without: Callable[[], object] = without, data: bytearray = data) -> None:
                without()
                xxhash.xxh3_64_intdigest(data)

            samples = {LIBRARY: _timed(beside, size), OURS: _timed(ours, size)}
            row = Row(f"Checksum, {way}", "s", interleave(samples, 3 * rounds, warm=2).of(), size)
            if size >= 1_000_000:
                row.at_most_times(OURS, LIBRARY, _SPEED)
            yield row


def encryption(plan: Plan) -> Iterator[Row]:
    """AES-256-GCM of a buffer in one call into fresh memory, and an encrypted object: made, and verified."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from proxystore_core.encryption import decrypt, encrypt
    from proxystore_core.secret import Secret

    secret, name = Secret(os.urandom(32).hex()), "n" * 22
    key, nonce = os.urandom(32), os.urandom(12)
    aead = AESGCM(key)

    for size, rounds in plan.sized():
        data = bytearray(os.urandom(size))
        sealed = aead.encrypt(nonce, data, None)
        ours = bytearray(b"".join(encrypt([data], secret, name)))
        room = bytearray(size + 16)

        def used(decrypts: bool, data: Any = data, sealed: bytes = sealed, room: bytearray = room) -> object:
            mode = modes.GCM(nonce, sealed[-16:]) if decrypts else modes.GCM(nonce)
            cipher: Any = Cipher(algorithms.AES(key), mode)
            context = cipher.decryptor() if decrypts else cipher.encryptor()
            context.update_into(memoryview(sealed)[:-16] if decrypts else data, room)
            return context.finalize()

        ways: Mapping[str, tuple[Callable[[], object], ...]] = {
            "made": (
                partial(aead.encrypt, nonce, data, None),
                partial(used, False),
                partial(encrypt, [data], secret, name),
            ),
            "verified": (
                partial(aead.decrypt, nonce, sealed, None),
                partial(used, True),
                partial(decrypt, ours, secret, name),
            ),
        }
        for way, calls in ways.items():
            samples = {
                who: _timed(call, size) for who, call in zip((LIBRARY, WARM, OURS), calls, strict=True)
            }
            row = Row(f"Encryption, {way}", "s", interleave(samples, 3 * rounds, warm=2).of(), size)
            if size >= 1_000_000:
                row.at_most_times(OURS, LIBRARY, _SPEED)
            yield row


def tasks(plan: Plan) -> Iterator[Row]:
    """A small object stored, loaded and evicted for a session with a lease; a result with a deadline."""
    from proxystore_core import Session, Store

    with Store.from_url(f"shm://bench-{uuid.uuid4().hex[:8]}") as store:
        session = Session(store.connector, lease=1.0)  # renewed four times a second, not once in minutes

        def stored(name: str | None) -> Callable[[], object]:
            def call() -> None:
                key = store.put(b"x" * 2000, session=name)
                store.get(key)
                store.evict(key)

            return call

        future: Any = store.future()
        future.set_result(b"x" * 2000)
        ways: Mapping[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "a lease": (stored(session.name), stored(None)),
            "a deadline": (lambda: future.reference.fetch(60.0), lambda: future.reference.fetch(None)),
        }
        size = _AGAIN // 2000  # so many times
        for what, (ours, without) in ways.items():
            samples = {WITHOUT: _timed(without, size), OURS: _timed(ours, size)}
            row = Row(f"A task's object with {what}", "s", interleave(samples, 8 * plan.repeat, warm=2).of())
            row.at_most_beyond(OURS, WITHOUT, 5e-6)
            yield row
        store.evict(future.key)
        session.end()


WORKS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {
    "security-checksum": checksums,
    "security-encryption": encryption,
    "security-tasks": tasks,
}
