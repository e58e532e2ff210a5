"""What clients, endpoints and peers say to each other: small binary requests and answers, never a pickle.

    request  "PQ" operation:u8 number:u32 offset:u64 length:u32 seconds:f64 key:u16 session:u16
             key, session, data
    answer   "PA" status:u8 number:u32 size:u64 offset:u64
             data

All numbers are big-endian. On a data channel one is one message; on a stream each follows its length.
What is received is untrusted: the `decode` methods raise `WireError`, or what they return is sound.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from typing import ClassVar

from proxystore_core.connectors.base import LONGEST_LEASE
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    FullError,
    GoneError,
    RefusedError,
    StoreError,
    UnreachableError,
)

__all__ = [
    "CHUNK",
    "IF_KNOWN",
    "LONGEST_WAIT",
    "MOST",
    "Answer",
    "Operation",
    "Request",
    "Status",
    "WireError",
    "error_of",
]

CHUNK = 64 << 10
"""Bytes of an object that one answer carries at most."""

MOST = CHUNK + 1024
"""Bytes of a request or an answer at most."""

IF_KNOWN = b"if known"
"""With `Operation.RENEW`: a session that has ended does not begin anew."""

LONGEST_WAIT = 5.0
"""Seconds; whoever waits longer asks again, so that nobody waits for those who are gone."""

_LARGEST = 1 << 44  # bytes of an object: what is said to be larger is a lie
_KEY = 200
_SESSION = 64


class WireError(ValueError):
    """These bytes are no request or answer: who sent them is broken, or hostile."""


class Operation(enum.IntEnum):
    """What is asked."""

    HELLO = 1  # of a client: the token
    INFO = 2
    PUT = 3  # the object's bytes follow; offset is their number
    GET = 4  # of a client: the whole object, in several answers
    READ = 5  # of a peer: length bytes from offset
    EXISTS = 6
    EVICT = 7
    RENEW = 8  # with `IF_KNOWN` as data only a session that is there
    END = 9
    SESSIONS = 10
    SWEEP = 11
    PING = 12
    KEYS = 13
    RESERVE = 14
    SET = 15  # of a client, as PUT
    WRITE = 16  # of a peer: some bytes, from offset, of an object to be set (data: upload, size, bytes)
    WAIT = 17
    GETS = 18  # of a client: the first chunks of several objects
    EVICTS = 19
    HELD = 20


class Status(enum.IntEnum):
    """What came of it; from `FAILED` on the data are words."""

    OK = 0
    MISSING = 1
    FAILED = 16
    REFUSED = 17
    UNREACHABLE = 18
    DEADLINE = 19
    FULL = 20
    CORRUPT = 21
    MISCONFIGURED = 22
    GONE = 23


_ERRORS: dict[Status, type[StoreError]] = {
    Status.FAILED: StoreError,
    Status.REFUSED: RefusedError,
    Status.UNREACHABLE: UnreachableError,
    Status.DEADLINE: DeadlineError,
    Status.FULL: FullError,
    Status.CORRUPT: CorruptError,
    Status.MISCONFIGURED: ConfigurationError,
    Status.GONE: GoneError,
}


@dataclasses.dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        operation: what is asked.
        number: of the answer to it.
        key: of the object concerned.
        session: the session concerned.
        offset: where to read from, or the size of what follows; in bytes.
        length: bytes to read.
        seconds: a lease, or how long the asker waits.
        data: whatever else.
    """

    operation: Operation
    number: int = 0
    key: str = ""
    session: str = ""
    offset: int = 0
    length: int = 0
    seconds: float = 0.0
    data: bytes = b""

    HEAD: ClassVar[struct.Struct] = struct.Struct("!2sBIQIdHH")

    def encode(self) -> bytes:
        """The request as bytes."""
        key, session = self.key.encode("ascii"), self.session.encode("ascii")
        head = self.HEAD.pack(
            b"PQ",
            self.operation,
            self.number,
            self.offset,
            self.length,
            self.seconds,
            len(key),
            len(session),
        )
        return b"".join((head, key, session, self.data))

    @classmethod
    def decode(cls, message: bytes) -> Request:
        """The inverse of `encode`.

        Raises:
            WireError: this is no request.
        """
        if len(message) > MOST:
            raise WireError(f"a request of {len(message)} bytes: {MOST} at most")
        try:
            mark, operation, number, offset, length, seconds, key, session = cls.HEAD.unpack_from(message)
        except struct.error as error:
            raise WireError(f"no request: {error}") from None
        start = cls.HEAD.size + key + session
        if mark != b"PQ" or key > _KEY or session > _SESSION or start > len(message):
            raise WireError("no request: wrong mark, or names longer than the message or than they may be")
        if (
            offset > _LARGEST
            or length > CHUNK
            or not (math.isfinite(seconds) and 0 <= seconds <= LONGEST_LEASE)
        ):
            raise WireError(f"a request for {length} bytes from {offset} within {seconds} s")
        try:
            return cls(
                Operation(operation),
                number,
                message[cls.HEAD.size : cls.HEAD.size + key].decode("ascii"),
                message[cls.HEAD.size + key : start].decode("ascii"),
                offset,
                length,
                seconds,
                message[start:],
            )
        except ValueError as error:
            raise WireError(f"no request: {error}") from None


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        status: what came of the request.
        number: the request's.
        size: of the whole object, in bytes; or a count.
        offset: where ``data`` begin in the object.
        data: bytes of the object, words about an error, or what the operation says.
    """

    status: Status
    number: int = 0
    size: int = 0
    offset: int = 0
    data: bytes = b""

    HEAD: ClassVar[struct.Struct] = struct.Struct("!2sBIQQ")

    def encode(self) -> bytes:
        """The answer as bytes."""
        return self.HEAD.pack(b"PA", self.status, self.number, self.size, self.offset) + self.data

    @classmethod
    def decode(cls, message: bytes) -> Answer:
        """The inverse of `encode`.

        Raises:
            WireError: this is no answer.
        """
        if len(message) > MOST:
            raise WireError(f"an answer of {len(message)} bytes: {MOST} at most")
        try:
            mark, status, number, size, offset = cls.HEAD.unpack_from(message)
            known = Status(status)
        except (struct.error, ValueError) as error:
            raise WireError(f"no answer: {error}") from None
        data = message[cls.HEAD.size :]
        if mark != b"PA" or size > _LARGEST or offset > _LARGEST:
            raise WireError("no answer: wrong mark or an impossible size")
        return cls(known, number, size, offset, data)

    @classmethod
    def of_error(cls, error: BaseException, number: int) -> Answer:
        """What to answer when something went wrong."""
        status = next((status for status, kind in _ERRORS.items() if type(error) is kind), Status.FAILED)
        problem = error.problem if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
        remedy = error.remedy if isinstance(error, StoreError) else None
        words = f"{problem}\n{remedy or ''}".encode("utf-8", "replace")[:1000]
        return cls(status, number, data=words)


def error_of(answer: Answer, store: str, key: str | None = None) -> StoreError | None:
    """The error that an answer tells of, or None."""
    kind = _ERRORS.get(answer.status)
    if kind is None:
        return None
    problem, _, remedy = answer.data.decode("utf-8", "replace").partition("\n")
    return kind(problem[:1000], store=store, key=key, remedy=remedy[:1000] or None)
