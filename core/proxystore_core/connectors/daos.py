"""Objects in a DAOS container, through ``pydaos``.

<prefix>.<bucket>                   sixteen dictionaries (DAOS key-value objects), a session is in one of them
    <session>.<object>.<size>.<part>    bytes; what is over 1 MiB has several parts
<prefix>.leases                     a dictionary
    <session>                           when its lease lapses, in seconds since the epoch

An object's key says how many bytes it has, hence which parts: it needs no record of its own, and nobody
has the key before all parts are there. Dictionaries are never destroyed: a process that has one open
would go on writing where nobody looks.

No object is set later here: pydaos has no conditional put, and what it does exclusively, to make a named
dictionary, carries no value. Who is killed between the two would leave a key that nobody may set, or two may.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
import urllib.parse
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pydaos

from proxystore_core.buffers import byte_views, fresh_buffer, split
from proxystore_core.connectors.base import USER_SESSION, Buffer, ByURL, Held, Key, check_lease, check_session
from proxystore_core.connectors.lapsed import UNRENEWED, end_lapsed
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.connectors.survey import tally
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.moving import moved
from proxystore_core.urls import StoreURL

__all__ = ["DAOSConnector"]

_PART = 1 << 20  # bytes: what pydaos fetches in one trip (its value_size); part of the layout
_IN_FLIGHT = 16  # operations that pydaos has under way at a time
_NOTHING = b"\0"  # stored for no bytes: an empty value is a deletion to DAOS
_BUCKETS = 16
_TRUSTED = 60.0  # seconds for which a lease that was seen is not looked for again
_KEY = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9a-f]{20}\.(0|[1-9a-f][0-9a-f]{0,9}))")
_LABEL = re.compile(r"[A-Za-z0-9_.:-]{1,127}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MEANT = {
    ("DER_NOSPACE", "-1007"): (FullError, "Evict objects, or give the pool more room."),
    ("DER_NOMEM", "-1009"): (FullError, "The client's or the server's memory is used up."),
    ("DER_NO_PERM", "-1001"): (RefusedError, "Check the pool's and the container's access control lists."),
    ("DER_NONEXIST", "-1005"): (
        ConfigurationError,
        "Check the labels: daos pool list; daos container list.",
    ),
    ("DER_TIMEDOUT", "-1011"): (DeadlineError, "See the log of the DAOS agent on this host."),
}


class DAOSConnector(ByURL):
    """Keeps objects in a container; ``daos://pool/container``.

    Nothing is opened before the first operation. pydaos holds Python's global lock while it waits, and has
    no deadlines but those of DAOS itself.

    Args:
        pool: label or UUID of the pool.
        container: label or UUID of the container; it must be there, of type PYTHON.
        prefix: start of the names of all dictionaries: stores with different ones share nothing.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("daos",)
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False
    far: ClassVar[bool] = True

    def __init__(self, pool: str, container: str, *, prefix: str = "proxystore") -> None:
        for name, label in (("pool", pool), ("container", container)):
            if not _LABEL.fullmatch(label):
                raise ConfigurationError(
                    f"{name} is {label!r}: expected daos://pool/container, by label or UUID"
                )
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"{prefix!r} is no prefix of names: use at most 32 letters, digits, - and _"
            )
        self.pool = pool
        self.container = container
        self.prefix = prefix
        self._opened: dict[int, _Opened] = {}  # by process: a child cannot use its parent's handles
        self._leased: dict[tuple[int, str], float] = {}  # until when a session's lease need not be looked for
        self._own = OwnKeys()

    @property
    def url(self) -> str:
        place = "/".join(urllib.parse.quote(label, safe="") for label in (self.pool, self.container))
        return f"daos://{place}" + (f"?prefix={self.prefix}" if self.prefix != "proxystore" else "")

    def config(self) -> dict[str, Any]:
        return {"pool": self.pool, "container": self.container, "prefix": self.prefix}

    @classmethod
    def from_url(cls, url: str) -> DAOSConnector:
        parts = StoreURL.parse(url)
        parts.expect(host=True, path=True)
        return cls(parts.host, parts.path.strip("/"), **parts.options({"prefix": str}))

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        return self.put_batch([data], session=session)[0]

    def put_batch(self, items: Sequence[Sequence[Buffer]], *, session: str = USER_SESSION) -> list[Key]:
        check_session(session, self.url)
        with self._translated():
            self._see_to_lease(session)
            bucket = self._bucket(session)
            keys: list[Key] = []
            window: dict[str, bytes | None] = {}
            held = 0
            try:
                for data in items:
                    views = byte_views(data)
                    size = sum([view.nbytes for view in views])
                    keys.append(f"{session}.{secrets.token_hex(10)}.{size:x}")
                    for number, part in enumerate(_parts_of(views)):
                        window[f"{keys[-1]}.{number}"] = part
                        held += len(part)  # they are copies: pydaos takes only bytes
                        if held >= _IN_FLIGHT * _PART or len(window) >= 64 * _IN_FLIGHT:
                            bucket.bput(window)
                            moved(held)
                            window, held = {}, 0
                if window:
                    bucket.bput(window)
                    moved(held)
            except BaseException:
                with contextlib.suppress(pydaos.PyDError):
                    self._delete(bucket, keys)
                raise
        if session == USER_SESSION:
            self._own.note(keys, self._keys_of_users)
        return keys

    def get(self, key: Key) -> Buffer | None:
        return self.get_batch([key])[0]

    def get_batch(self, keys: Sequence[Key]) -> list[Buffer | None]:
        sizes = [self._size(key) for key in keys]
        found: dict[int, Buffer | None] = {}
        for bucket, places in self._by_bucket(keys):
            asked: list[tuple[int, int]] = []
            for place in places:
                for part in range(_count(sizes[place])):
                    if found.get(place, b"") is None:
                        break  # it has gone: nobody asks for the rest
                    asked.append((place, part))
                    if len(asked) >= _IN_FLIGHT:
                        self._fetch(bucket, keys, sizes, asked, found)
                        asked = []
            if asked:
                self._fetch(bucket, keys, sizes, asked, found)
        return [found[place] for place in range(len(keys))]

    def exists(self, key: Key) -> bool:
        size = self._size(key)
        with self._translated(key):
            # The last part is written last and deleted last, the first is deleted first.
            fields = dict.fromkeys([f"{key}.0", f"{key}.{_count(size) - 1}"])
            self._bucket(key.partition(".")[0]).bget(fields, _PART)
            return None not in fields.values()

    def evict(self, key: Key) -> None:
        self.evict_batch([key])

    def evict_batch(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._size(key)
        for bucket, places in self._by_bucket(keys):
            with self._translated():
                self._delete(bucket, [keys[place] for place in places])
        self._own.discard(keys)

    def keys(self, session: str) -> list[Key]:
        check_session(session, self.url)
        with self._translated():
            fields = [field for field in self._bucket(session) if field.startswith(f"{session}.")]
        return list({field.rpartition(".")[0] for field in fields})

    def _keys_of_users(self) -> list[Key]:
        return self.keys(USER_SESSION)

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        with self._translated():
            self._leases.put(session, repr(time.time() + seconds))
        self._leased[os.getpid(), session] = time.monotonic() + min(seconds, _TRUSTED)

    def end(self, session: str) -> int:
        check_session(session, self.url)
        self._leased.pop((os.getpid(), session), None)
        with self._translated():
            bucket = self._bucket(session)
            fields = [field for field in bucket if field.startswith(f"{session}.")]
            _delete_fields(bucket, fields)
            # The lease goes last: a crash in between leaves a session that lapses, not one without.
            self._leases.put(session, None)
        return sum(field.endswith(".0") for field in fields)

    def sessions(self) -> dict[str, float]:
        now = time.time()
        with self._translated():
            return {session: float(expiry) - now for session, expiry in self._leases.dump().items() if expiry}

    def sweep(self) -> list[str]:
        """End every session whose lease has lapsed; returns their names.

        A session that got an object after another process had ended it has no lease: it gets one.
        """
        leases = self.sessions()
        ended = end_lapsed(leases, self.end, self._lapse)
        with self._translated():
            stray = {
                field.partition(".")[0] for bucket in range(_BUCKETS) for field in self._named(str(bucket))
            }
        for session in stray - leases.keys() - {USER_SESSION}:
            with contextlib.suppress(RefusedError):
                self.renew(session, UNRENEWED)
        return ended

    def _lapse(self, session: str) -> float | None:
        found: dict[str, Any] = {session: None}
        with self._translated():
            self._leases.bget(found)
        return float(found[session]) if found[session] else None

    def held(self) -> dict[str, Held]:
        found: dict[str, Held] = {}
        with self._translated():
            for bucket in range(_BUCKETS):
                for field in self._named(str(bucket)):
                    key, _, part = field.rpartition(".")
                    if part == "0":
                        tally(found, key.partition(".")[0], 1, self._size(key))
        return found

    def room(self) -> int | None:
        return None  # pydaos does not tell

    def close(self, *, clear: bool = False) -> None:
        if clear:
            self.evict_batch(self._own.mine())
        self._opened.pop(os.getpid(), None)

    def _fetch(
        self,
        bucket: Any,
        keys: Sequence[Key],
        sizes: Sequence[int],
        asked: Sequence[tuple[int, int]],
        found: dict[int, Buffer | None],
    ) -> None:
        fields: dict[str, bytes | None] = {f"{keys[place]}.{part}": None for place, part in asked}
        with self._translated(keys[asked[0][0]]):
            bucket.bget(fields, _PART)
        for place, part in asked:
            data, size = fields[f"{keys[place]}.{part}"], sizes[place]
            if data is None:
                found[place] = None
            elif len(data) != (min(size - part * _PART, _PART) or len(_NOTHING)):
                raise CorruptError(
                    "a part has another length than was stored", store=self.url, key=keys[place]
                )
            elif place not in found:  # memory comes with the first part: a key may tell of any size
                found[place] = fresh_buffer(size)
            whole = found[place]
            if data is not None and whole is not None and size:
                memoryview(whole)[part * _PART : part * _PART + len(data)] = data
                moved(len(data))

    def _delete(self, bucket: Any, keys: Sequence[Key]) -> None:
        _delete_fields(bucket, [f"{key}.{part}" for key in keys for part in range(_count(self._size(key)))])

    def _see_to_lease(self, session: str) -> None:
        """Make sure that what comes now has a lease; asks only once a minute."""
        if session == USER_SESSION or self._leased.get((os.getpid(), session), 0.0) > time.monotonic():
            return
        found = {session: None}
        self._leases.bget(found)
        if found[session] is None:
            self._leases.put(session, repr(time.time() + UNRENEWED))
        self._leased[os.getpid(), session] = time.monotonic() + _TRUSTED

    def _size(self, key: Key) -> int:
        match = _KEY.fullmatch(key)
        if match is None:
            raise RefusedError("not a key of a DAOS store", store=self.url, key=key[:200])
        return int(match[3], 16)

    def _by_bucket(self, keys: Sequence[Key]) -> Iterator[tuple[Any, list[int]]]:
        """Each dictionary with the places, among ``keys``, of those that it has."""
        places: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(_hash(key.partition(".")[0]), []).append(place)
        for bucket, those in places.items():
            with self._translated():
                dictionary = self._named(str(bucket))
            yield dictionary, those

    def _bucket(self, session: str) -> Any:
        return self._named(str(_hash(session)))

    @property
    def _leases(self) -> Any:
        return self._named("leases")

    def _named(self, name: str) -> Any:
        """One of our dictionaries, made when it is missing."""
        opened = self._opened.get(os.getpid())
        if opened is None:
            opened = self._opened.setdefault(os.getpid(), _Opened(self.pool, self.container))
        return opened.dictionary(f"{self.prefix}.{name}")

    @contextlib.contextmanager
    def _translated(self, key: Key | None = None) -> Iterator[None]:
        try:
            yield
        except pydaos.PyDError as error:
            kind: type[StoreError] = UnreachableError
            remedy = "Check that the DAOS agent runs on this host and its servers are up."
            for words, meant in _MEANT.items():
                if any(word in str(error) for word in words):
                    kind, remedy = meant
            raise kind(f"DAOS says: {error}", store=self.url, key=key, remedy=remedy) from error


class _Opened:
    """A container, with its dictionaries, as one process has it open."""

    def __init__(self, pool: str, container: str) -> None:
        self._container = pydaos.DCont(pool, container)
        self._dictionaries: dict[str, Any] = {}

    def dictionary(self, name: str) -> Any:
        found = self._dictionaries.get(name)
        if found is not None:
            return found
        try:
            found = self._container.get(name)
        except pydaos.DObjNotFound:
            try:
                found = self._container.dict(name)
            except pydaos.PyDError:  # somebody has made it in between
                try:
                    found = self._container.get(name)
                except pydaos.DObjNotFound:
                    pass
                if found is None:
                    raise
        return self._dictionaries.setdefault(name, found)


def _hash(session: str) -> int:
    return zlib.crc32(session.encode()) % _BUCKETS


def _count(size: int) -> int:
    return max(1, -(-size // _PART))


def _delete_fields(bucket: Any, fields: Sequence[str]) -> None:
    for start in range(0, len(fields), 64 * _IN_FLIGHT):
        bucket.bput(dict.fromkeys(fields[start : start + 64 * _IN_FLIGHT]))


def _parts_of(views: Sequence[memoryview]) -> Iterator[bytes]:
    return map(_bytes, split(views, _PART))


def _bytes(part: Sequence[memoryview]) -> bytes:
    """The bytes of one part; a buffer that is exactly one is not copied."""
    if not part:
        return _NOTHING
    (first, *others) = part
    if not others and type(first.obj) is bytes and first.nbytes == len(first.obj):
        return first.obj
    return b"".join(part)
