"""What a node server is asked and answers: a fixed binary format, authenticated, nothing in it is unpickled.

    request   magic, operation, four lengths, nonce, offset, length, seconds, digest | four texts | MAC | body
    reply     magic, status, nonce, size, count, digest                              | MAC      | data

Numbers are big-endian. The MAC is BLAKE2b (RFC 7693) keyed with the secret that all nodes of a store
share; it covers all that stands before it, and a reply's covers the request's nonce, so that nobody
without the secret can ask or answer. The digest is that of the body or the data, see `Guard`.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
import os
import struct

import xxhash

from proxystore_core.connectors.base import Buffer
from proxystore_core.errors import CorruptError, RefusedError

__all__ = [
    "CHUNK",
    "LONGEST_HEAD",
    "LONGEST_REQUEST",
    "REPLY_HEAD",
    "ForgedError",
    "Guard",
    "MalformedError",
    "Operation",
    "Reply",
    "Request",
    "Status",
    "count_of",
    "digest_of",
    "guard_of",
    "parse_request",
]

CHUNK = 1 << 20
"""Bytes of an object that one request moves at most."""

_MAGIC = b"PSN\x01"
_REQUEST = struct.Struct("!4sBBBBBxxx16sQQdQ")
_REPLY = struct.Struct("!4sBBxx16sQQQ")
_MAC = 16
REPLY_HEAD = _REPLY.size + _MAC
LONGEST_HEAD = _REQUEST.size + 4 * 255 + _MAC
LONGEST_REQUEST = LONGEST_HEAD + CHUNK


class Operation(enum.IntEnum):
    """What is asked of a node."""

    GET = 1  # a chunk of an object
    EXISTS = 2
    EVICT = 3
    RENEW = 4  # a session's lease on that node; with a text only one that is there
    END = 5  # a session on that node
    JOIN = 6  # a session's home is told of another node with objects of it
    WAIT = 7  # until a reserved object is there
    SET = 8  # a chunk of an object to be set; the last one sets it
    GREET = 9  # begins a connection, where a transport needs that
    MEMBERS = 10  # the other nodes with objects of a session, as its home knows them


class Status(enum.IntEnum):
    """How it went."""

    DONE = 1
    MISSING = 2  # no such object, session or reservation
    REFUSED = 3
    FULL = 4
    FAILED = 5
    CONTENT = 6  # yes, or a chunk
    ELSEWHERE = 7  # another node is meant, which listened here before


class Guard(enum.IntEnum):
    """What tells that data were altered on their way; the MAC covers which of them it is."""

    SEAL = 0  # the transport itself
    SUM = 1  # XXH3: nobody is on the way, only faults
    SIGNATURE = 2  # BLAKE2b with the secret, 64 bits; some 1 GB/s


class MalformedError(ValueError):
    """Bytes that are no request."""


class ForgedError(ValueError):
    """A request of somebody without the secret."""


# Looking up costs a third of what calling the enumeration does.
_OPERATIONS: dict[int, Operation] = {int(operation): operation for operation in Operation}
_STATUSES: dict[int, Status] = {int(status): status for status in Status}
_GUARDS: dict[int, Guard] = {int(guard): guard for guard in Guard}


def _nonce() -> bytes:
    return os.urandom(16)


@dataclasses.dataclass(slots=True)  # not frozen: that would double what making one costs
class Request:
    """One request.

    Attributes:
        operation: what is asked.
        space: name of the store's shared memory on the node that is meant; no other node has one of it.
        session: session of the object, or the one meant.
        name: the object's, as the node's own keys end.
        text: whatever else an operation needs.
        offset: first byte of the chunk.
        length: bytes of the chunk asked for; of the whole object to be set.
        seconds: a lease, or how long to wait.
        body: a chunk to be set.
        nonce: tells the reply to this request from all others.
    """

    operation: Operation
    space: str = ""
    session: str = ""
    name: str = ""
    text: str = ""
    offset: int = 0
    length: int = 0
    seconds: float = 0.0
    body: Buffer = b""
    nonce: bytes = dataclasses.field(default_factory=_nonce)

    def pack(self, key: bytes) -> bytes:
        """The request as it travels, without its body.

        Args:
            key: of the MAC, 32 bytes.
        """
        space, session, name, text = self.space, self.session, self.name, self.text
        head = _REQUEST.pack(
            _MAGIC,
            self.operation,
            len(space),
            len(session),
            len(name),
            len(text),
            self.nonce,
            self.offset,
            self.length,
            self.seconds,
            digest_of(self.body, Guard.SIGNATURE, key) if self.body else 0,
        )
        head += f"{space}{session}{name}{text}".encode("ascii")
        return head + _mac(key, head)


def parse_request(message: Buffer, key: bytes) -> Request:
    """The inverse of `Request.pack`, followed by the body.

    Args:
        message: whatever came over the network.
        key: of the MAC.

    Raises:
        MalformedError: it is no request.
        ForgedError: its MAC is not that of this key.
    """
    view = memoryview(message).cast("B")
    if not _REQUEST.size + _MAC <= view.nbytes <= LONGEST_REQUEST:
        raise MalformedError(f"{view.nbytes} bytes are no request")
    magic, operation, a, b, c, d, nonce, offset, length, seconds, digest = _REQUEST.unpack_from(view)
    end = _REQUEST.size + a + b + c + d
    if magic != _MAGIC or end + _MAC > view.nbytes:
        raise MalformedError("these bytes are no request, or one of another version")
    if not hmac.compare_digest(_mac(key, view[:end]), view[end : end + _MAC]):
        raise ForgedError("the request is signed with another secret")
    body = view[end + _MAC :]
    if digest != (digest_of(body, Guard.SIGNATURE, key) if body.nbytes else 0):
        raise MalformedError("the bytes were altered on their way")
    asked = _OPERATIONS.get(operation)
    if asked is None:
        raise MalformedError(f"no such request: {operation} is no operation")
    try:
        texts = str(view[_REQUEST.size : end], "ascii")
    except ValueError as error:
        raise MalformedError(f"no such request: {error}") from None
    b += a
    c += b
    space, session, name, text = texts[:a], texts[a:b], texts[b:c], texts[c:]
    return Request(asked, space, session, name, text, offset, length, seconds, body, nonce)


@dataclasses.dataclass(slots=True)
class Reply:
    """The answer to one request.

    Attributes:
        status: how it went.
        size: bytes of the whole object, or a count.
        count: bytes of data that follow.
        digest: of them.
        guard: which digest.
    """

    status: Status
    size: int
    count: int
    digest: int
    guard: Guard

    @staticmethod
    def pack(key: bytes, nonce: bytes, status: Status, size: int, data: Buffer, guard: Guard) -> bytes:
        """A reply as it travels, without its data."""
        count = len(data)
        digest = digest_of(data, guard, key) if count else 0
        head = _REPLY.pack(_MAGIC, status, guard, nonce, size, count, digest)
        return head + _mac(key, head)

    @classmethod
    def parse(cls, head: Buffer, key: bytes, nonce: bytes) -> Reply:
        """The inverse of `pack`.

        Raises:
            RefusedError: whoever answers has another secret, or is no node server.
        """
        view = memoryview(head).cast("B")
        if view.nbytes == REPLY_HEAD and hmac.compare_digest(
            _mac(key, view[: _REPLY.size]), view[_REPLY.size :]
        ):
            magic, number, which, answered, size, count, digest = _REPLY.unpack_from(view)
            status, guard = _STATUSES.get(number), _GUARDS.get(which)
            if magic == _MAGIC and answered == nonce and status is not None and guard is not None:
                return cls(status, size, count, digest, guard)
        raise RefusedError(
            "whoever answers there has another secret than this process, or is no node server",
            remedy="Give all hosts the same PROXYSTORE_NODE_SECRET or secret file (docs/node.md).",
        )

    def check(self, data: Buffer, key: bytes) -> None:
        """Verify the data that came with this reply.

        Raises:
            CorruptError: they are not what was sent.
        """
        count = len(data)
        if count != self.count or (count and digest_of(data, self.guard, key) != self.digest):
            raise CorruptError("the bytes were altered on their way")


def guard_of(address: str) -> Guard:
    """What data need that go out at an address: on loopback nobody is on the way."""
    return Guard.SUM if address.startswith("127.") else Guard.SIGNATURE


def count_of(head: Buffer) -> tuple[int, bytes]:
    """Bytes of data that a reply's head announces, and the nonce; not verified yet."""
    _, _, _, nonce, _, count, _ = _REPLY.unpack_from(head)
    return count, nonce


def digest_of(data: Buffer, guard: Guard, key: bytes) -> int:
    """The digest of some bytes."""
    if guard is Guard.SEAL:
        return 0
    if guard is Guard.SUM:
        return xxhash.xxh3_64_intdigest(data)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), "big")


def _mac(key: bytes, data: Buffer) -> bytes:
    return hashlib.blake2b(data, digest_size=_MAC, key=key).digest()
