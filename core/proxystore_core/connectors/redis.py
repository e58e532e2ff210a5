"""Objects on a Redis (or Valkey) server, or on a cluster of them.

<prefix>:{<session>:<bucket>}       a hash; its expiry is the session's lease, kept by the server itself
    <object>.<size>.<part> -> bytes objects of up to 1 MiB are one part
    <object>.- -> ...               one that is set later, see `proxystore_core.connectors.redis_later`
    lease -> ""                     holds the expiry: an empty hash would vanish, with it (and does, where the
                                    session's name says when it lapses)

The sixteen buckets of a session are in sixteen slots, which a cluster spreads over its servers.
An object's key says how many bytes it has, hence in which fields they are: it needs no record of
its own, and nobody has the key before all parts are there.
"""

from __future__ import annotations

import collections
import os
import re
import secrets
import time
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import redis

from proxystore_core.buffers import byte_views, fresh_buffer, split
from proxystore_core.connectors.base import (
    USER_SESSION,
    Buffer,
    ByURL,
    Held,
    Key,
    check_lease,
    check_session,
    lapse_of,
    never_comes,
    no_reservation,
)
from proxystore_core.connectors.lapsed import UNRENEWED
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.connectors.redis_errors import Diagnosis, diagnosis
from proxystore_core.connectors.redis_later import GIVE_UP, LATER, SET, WAKE, channel_of, wait_for
from proxystore_core.connectors.redis_login import Login, Options, TLSConnection, database
from proxystore_core.connectors.redis_replies import Part
from proxystore_core.connectors.redis_requests import Command, Requests
from proxystore_core.connectors.survey import tally
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.moving import moved
from proxystore_core.urls import StoreURL

__all__ = ["RedisConnector", "RedisTLSConnector", "RedisUnixConnector"]

_PART = 1 << 20  # bytes; part of the layout: another number cannot read what this one has written
# Bytes that move at a time, and are copied at most: over a network fewer trips are worth more memory.
_GIVEN_UP = 1000  # keys of puts that failed that are remembered
_WINDOW, _LOCAL_WINDOW = 8 << 20, 2 << 20
_SMALL = 32 << 10  # bytes up to which a copy is cheaper than another system call
LOCAL = ("localhost", "127.0.0.1", "::1")
_BUCKETS = 16
_RESERVED = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9a-f]{20})\.-")
_KEY = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9a-f]{20}\.(0|[1-9a-f][0-9a-f]{0,9}))")

# With the bytes, in one transaction or before and after: no death of a client and no expiry in between
# leaves them for ever.
_FRESH = (
    "if redis.call('TTL',KEYS[1])<0 then redis.call('HSET',KEYS[1],'lease','') "
    "return redis.call('EXPIRE',KEYS[1],ARGV[1]) end"
)
# The expiry first: a server that is full extends a lease all the same.
_RENEW = (
    "redis.call('PEXPIRE',KEYS[1],ARGV[1]) if redis.call('HEXISTS',KEYS[1],'lease')==0 then "
    "redis.call('HSET',KEYS[1],'lease','') redis.call('PEXPIRE',KEYS[1],ARGV[1]) end"
)


class RedisConnector(ByURL):
    """Keeps objects on one server; ``redis://user@host:6379/0``.

    Nothing is connected before the first operation.

    Args:
        hostname: the server's host.
        port: its TCP port.
        username: user of the server's access control list; the default user if None.
        password: used here, and never part of the URL. By default the one in ``PROXYSTORE_STORE`` if
            that names the same server and user, else ``PROXYSTORE_REDIS_PASSWORD``.
        db: number of the database.
        options: see `Options`.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("redis",)
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False
    far: ClassVar[bool] = True

    def __init__(
        self,
        hostname: str = "localhost",
        port: int = 6379,
        *,
        username: str | None = None,
        password: str | None = None,
        db: int = 0,
        **options: Any,
    ) -> None:
        self._given: dict[str, Any] = {"hostname": hostname, "port": port, "db": db}
        place = f"[{hostname}]" if ":" in hostname else hostname
        place += f":{port}" + (f"/{db}" if db else "")
        self._open(place, hostname in LOCAL, username, password, options)

    @property
    def url(self) -> str:
        return self._url

    def config(self) -> dict[str, Any]:
        return dict(self._given)

    @classmethod
    def from_url(cls, url: str) -> RedisConnector:
        parts = StoreURL.parse(url)
        if parts.scheme not in cls.schemes:
            raise ConfigurationError(f"{parts.url!r} is none of {cls.__name__}: expected {cls.schemes[0]}://")
        options = parts.options({**(Options.TLS if cls._tls else Options.PLAIN), **cls._parameters})
        user, password = parts.username or None, parts.password or None
        return cls(**cls._place(parts), username=user, password=password, **options)

    # What a connector to other servers changes.

    _tls: ClassVar[bool] = False
    _transactions: ClassVar[bool] = True
    _parameters: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _place(cls, parts: StoreURL) -> dict[str, Any]:
        """Keyword arguments for what a URL says before its parameters."""
        if "," in parts.host:
            raise ConfigurationError(f"{parts.url!r} names several servers: expected redis+cluster://")
        place: dict[str, Any] = {"hostname": parts.host or "localhost", "port": parts.port or 6379}
        return place | {"db": database(parts.path.strip("/") or "0")}

    def _connect(self, login: Login) -> Any:
        """A client of redis-py, which connects when it is used."""
        kind = TLSConnection if self._tls else redis.Connection
        place = {"host": self._given["hostname"], "port": self._given["port"], "db": self._given["db"]}
        return redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, **place, **login.pool()))

    def _diagnosis(self, error: BaseException, client: Any) -> Diagnosis:
        return diagnosis(error, self._tls)

    # The rest is the same for all.

    def _open(
        self, place: str, local: bool, username: str | None, password: str | None, given: dict[str, Any]
    ) -> None:
        self._options = options = Options(**given)
        self._given |= {"username": username, **options.given()}
        db = database(str(self._given.get("db", 0)))
        query = {"db": db} if db and "db" in self._parameters else {}
        text = urllib.parse.urlencode(query | options.given(), safe="/:")
        user = f"{urllib.parse.quote(username, safe='')}@" if username else ""
        self._url = f"{self.schemes[0]}://{user}{place}{'?' if text else ''}{text}"
        login = Login(self._url, username, password, options, self._tls)
        self._requests = Requests(self._url, login, options, self._connect, self._diagnosis)
        self._window = _LOCAL_WINDOW if local else _WINDOW
        self._own = OwnKeys()
        self._given_up: collections.deque[Key] = collections.deque(maxlen=_GIVEN_UP)  # of puts that failed

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        return self.put_batch([data], session=session)[0]

    def put_batch(self, items: Sequence[Sequence[Buffer]], *, session: str = USER_SESSION) -> list[Key]:
        check_session(session, self.url)
        self._requests.warn_once_if_keys_may_be_dropped()
        keys = self._put(session, items)
        if session == USER_SESSION:
            self._own.note(keys, self._keys_of_users)
        return keys

    def _put(self, session: str, items: Sequence[Sequence[Buffer]]) -> list[Key]:
        objects = [byte_views(data) for data in items]
        sizes = [sum([view.nbytes for view in views]) for views in objects]
        until = self._requests.until(sum(sizes))
        while True:
            keys = self._put_once(session, objects, sizes, until)
            if self._given_up:
                given_up, self._given_up = self._given_up, collections.deque(maxlen=_GIVEN_UP)
                self._forget(given_up)
            at_once = sum(sizes) < self._window and not self._requests.may_drop
            if at_once or all(self._requests.run(self._parts_of("HEXISTS", keys), until)):
                return keys
            self._forget(keys)  # the server lost a part, or started again, while others were on their way
            if self._requests.may_drop:
                problem = "the server drops what is stored, as it is full: its maxmemory-policy says so"
                remedy = "CONFIG SET maxmemory-policy noeviction, and evict objects or give it more memory."
                raise FullError(problem, store=self.url, remedy=remedy)
            if time.monotonic() > until:
                raise UnreachableError("the server loses what is stored: it restarts", store=self.url)

    def _put_once(
        self, session: str, objects: Sequence[list[memoryview]], sizes: Sequence[int], until: float
    ) -> list[Key]:
        names = [f"{secrets.token_hex(10)}.{size:x}" for size in sizes]
        keys = [f"{session}.{name}" for name in names]
        commands: list[Command] = []
        held = 0
        try:
            for name, views in zip(names, objects, strict=True):
                for part, frames in enumerate(split(views, _PART)):
                    commands += self._write(session, name, part, frames)
                    held += sum([frame.nbytes for frame in frames])
                    if held >= self._window:
                        self._requests.run(commands, until)
                        moved(held)
                        commands, held = [], 0
            self._requests.run(commands, until)
            moved(held)
        except BaseException as error:
            # Where the server does not answer the next put does so: asking once more takes as long again.
            if isinstance(error, FullError) or not isinstance(error, StoreError):
                self._forget(keys)
            else:
                self._given_up.extend(keys)
            raise
        return keys

    def reserve(self, *, session: str = USER_SESSION) -> Key:
        check_session(session, self.url)
        self._requests.warn_once_if_keys_may_be_dropped()
        key = f"{session}.{secrets.token_hex(10)}{LATER}"
        self._requests.run(self._with_lease(session, ("HSET", *self._reservation(key), b"")))
        if session == USER_SESSION:
            self._own.note([key], self._keys_of_users)
        return key

    def set(self, key: Key, data: Sequence[Buffer]) -> None:
        if not key.endswith(LATER):
            self._parse(key)
            raise no_reservation(self.url, key)
        place, field = self._reservation(key)
        if self._requests.run([("HGET", place, field)]) != [b""]:
            raise no_reservation(self.url, key)
        session = key.partition(".")[0]
        (stored,) = self._put(session, [data])
        name = stored.partition(".")[2]
        channel = channel_of(self._prefix, key)
        if self._requests.run([("EVAL", SET, 1, place, field, name, channel)]) != [1]:
            self._forget([stored])
            raise no_reservation(self.url, key)

    def wait(self, key: Key, timeout: float | None = None) -> bool:
        if not key.endswith(LATER):
            if self.exists(key):
                return True
            raise never_comes(self.url, key)
        place, field = self._reservation(key)

        def settled(client: Any) -> bool:
            record = client.execute_command("HGET", place, field)
            if record is None:
                raise never_comes(self.url, key)
            return bool(record)

        return wait_for(self._requests, channel_of(self._prefix, key), settled, timeout)

    def get(self, key: Key) -> Buffer | None:
        return self.get_batch([key])[0]

    def get_batch(self, keys: Sequence[Key]) -> list[Buffer | None]:
        if any(key.endswith(LATER) for key in keys):
            names = self._set_names(keys)
            set_ones = iter(self.get_batch([name for name in names if name]))
            return [next(set_ones) if name else None for name in names]
        parsed = [self._parse(key) for key in keys]
        until = self._requests.until(sum(size for _, _, size in parsed))
        wholes = [self._room(key, *each) for key, each in zip(keys, parsed, strict=True)]
        parts: list[Part] = []
        places: list[int] = []  # of each part: which object it is of
        for place, (session, name, size) in enumerate(parsed):
            room = wholes[place]
            if room is None:
                continue
            whole = memoryview(room)
            for part in range(_parts(size)):
                view = whole[part * _PART : (part + 1) * _PART]
                parts.append(Part(keys[place], ("HGET", *self._field(session, name, part)), view))
                places.append(place)
        found: list[Buffer | None] = [*wholes]
        for place, there in zip(places, self._requests.read(parts, until, self._window), strict=True):
            if not there:
                found[place] = None
        return found

    def _room(self, key: Key, session: str, name: str, size: int) -> Buffer | None:
        """Memory for an object; None where there is none for one that is not there: a forged key's."""
        try:
            return fresh_buffer(size)
        except (MemoryError, OSError) as error:
            if not all(self._requests.run([("HEXISTS", *self._field(session, name, 0))])):
                return None
            raise FullError(f"no memory here for {size} bytes", store=self.url, key=key) from error

    def exists(self, key: Key) -> bool:
        (name,) = self._set_names([key])
        return name is not None and all(self._requests.run(self._each_part("HEXISTS", name)))

    def evict(self, key: Key) -> None:
        self.evict_batch([key])

    def evict_batch(self, keys: Sequence[Key]) -> None:
        later = [key for key in keys if key.endswith(LATER)]
        given_up: list[Command] = [
            ("EVAL", GIVE_UP, 1, *self._reservation(key), channel_of(self._prefix, key)) for key in later
        ]
        names = [key for key in keys if not key.endswith(LATER)]
        records: list[Command] = []
        for key, record in zip(later, self._requests.run(given_up), strict=True):
            if record:
                names.append(self._name_in(key, record))
                records.append(("HDEL", *self._reservation(key)))
        # What leads to the parts goes after them: who is killed in between, or asks again, still finds them.
        parts = self._parts_of("HDEL", names)
        if self._transactions:
            self._requests.run(parts + records)
        else:  # they may be on several servers
            self._requests.run(parts)
            self._requests.run(records)
        self._own.discard(keys)

    def keys(self, session: str, *, reserved: bool = False) -> list[Key]:
        check_session(session, self.url)
        found = self._requests.run([("HKEYS", place) for place in self._hashes(session)])
        fields = [field.decode() for those in found for field in those]
        kinds = (".0", LATER) if reserved else ".0"
        return [f"{session}.{field.removesuffix('.0')}" for field in fields if field.endswith(kinds)]

    def _keys_of_users(self) -> list[Key]:
        return self.keys(USER_SESSION, reserved=True)

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        if self._transactions and lapse_of(session) is not None:
            return
        self._requests.warn_once_if_keys_may_be_dropped()
        milliseconds = max(1, round(seconds * 1000))
        self._requests.run([("EVAL", _RENEW, 1, place, milliseconds) for place in self._hashes(session)])

    def extend(self, session: str, seconds: float) -> bool:
        """As `extend_lease`."""
        check_lease(session, seconds, self.url)
        if self._transactions and lapse_of(session) is not None:
            return any(self._requests.run([("EXISTS", place) for place in self._hashes(session)]))
        milliseconds = max(1, round(seconds * 1000))
        return any(self._requests.run([("PEXPIRE", place, milliseconds) for place in self._hashes(session)]))

    def end(self, session: str) -> int:
        check_session(session, self.url)
        places = self._hashes(session)
        replies = self._requests.run([(verb, place) for place in places for verb in ("HKEYS", "UNLINK")])
        found = [
            (place, field.decode())
            for place, fields in zip(places, replies[::2], strict=True)
            for field in fields
        ]
        waited: list[Command] = [
            ("EVAL", WAKE, 1, place, channel_of(self._prefix, f"{session}.{field}"))
            for place, field in found
            if field.endswith(LATER)
        ]
        if waited:
            self._requests.run(waited)
        return sum(field.endswith(".0") for _, field in found)

    def _places(self) -> list[bytes]:
        """The hashes of all sessions: a walk over all keys of the database, on all servers."""
        pattern = f"{self._prefix}:{{*:?}}"
        return sorted(self._requests.persist(lambda client: set(client.scan_iter(match=pattern, count=1000))))

    def held(self) -> dict[str, Held]:
        places = self._places()
        asked = [(*verb, place) for place in places for verb in (("HLEN",), ("MEMORY", "USAGE"))]
        leases = self._requests.run([("HEXISTS", place, "lease") for place in places])
        replies = self._requests.run(asked)
        found: dict[str, Held] = {}
        for place, lease, count, nbytes in zip(places, leases, replies[::2], replies[1::2], strict=True):
            tally(found, _session_of(place), (count or 0) - lease, nbytes or 0)
        return found

    def room(self) -> int | None:
        try:
            memory = self._requests.persist(lambda client: client.info("memory"))
        except RefusedError:  # not every user may ask
            return None
        limit = memory.get("maxmemory") if isinstance(memory.get("maxmemory"), int) else 0
        return max(0, limit - memory.get("used_memory", 0)) if limit else None

    def sessions(self) -> dict[str, float]:
        places = self._places()
        replies = self._requests.run([("PTTL", place) for place in places])
        found: dict[str, float] = {}
        for place, left in zip(places, replies, strict=True):
            session = _session_of(place)
            if session != USER_SESSION and left >= 0:
                found[session] = max(found.get(session, 0.0), left / 1000)
        return found

    def sweep(self) -> list[str]:
        return []  # the server has done it: what has lapsed is gone

    def close(self, *, clear: bool = False) -> None:
        if clear:
            self.evict_batch(self._own.mine())
        self._requests.close()

    def _parse(self, key: Key) -> tuple[str, str, int]:
        match = _KEY.fullmatch(key)
        if match is None:
            raise RefusedError("not a key of a Redis store", store=self.url, key=key[:200])
        return match[1], match[2], int(match[3], 16)

    def _reservation(self, key: Key) -> tuple[str, str]:
        """The hash and the field that tell what has become of a reserved key."""
        match = _RESERVED.fullmatch(key)
        if match is None:
            raise RefusedError("not a key of a Redis store", store=self.url, key=key[:200])
        return self._hash(match[1], int(match[2][0], 16)), f"{match[2]}{LATER}"

    def _set_names(self, keys: Sequence[Key]) -> list[Key | None]:
        """The keys under which objects are stored: other ones where they were set later; None if not yet."""
        later = [key for key in keys if key.endswith(LATER)]
        records = self._requests.run([("HGET", *self._reservation(key)) for key in later])
        names = {
            key: self._name_in(key, record) if record else None
            for key, record in zip(later, records, strict=True)
        }
        return [names.get(key, key) for key in keys]

    def _name_in(self, key: Key, record: bytes) -> Key:
        name = f"{key.partition('.')[0]}.{record.decode('ascii', 'replace')}"
        if _KEY.fullmatch(name) is None:
            raise CorruptError("a reserved key leads to no object", store=self.url, key=key)
        return name

    @property
    def _prefix(self) -> str:
        return self._options.prefix

    def _hash(self, session: str, bucket: int) -> str:
        return f"{self._prefix}:{{{session}:{bucket:x}}}"

    def _hashes(self, session: str) -> list[str]:
        return [self._hash(session, bucket) for bucket in range(_BUCKETS)]

    def _field(self, session: str, name: str, part: int) -> tuple[str, str]:
        return self._hash(session, (int(name[0], 16) + part) % _BUCKETS), f"{name}.{part}"

    def _parts_of(self, verb: str, keys: Sequence[Key]) -> list[Command]:
        return [command for key in keys for command in self._each_part(verb, key)]

    def _each_part(self, verb: str, key: Key) -> list[Command]:
        session, name, size = self._parse(key)
        return [(verb, *self._field(session, name, part)) for part in range(_parts(size))]

    def _write(self, session: str, name: str, part: int, frames: Sequence[memoryview]) -> list[Command]:
        whole = len(frames) == 1 and frames[0].nbytes > _SMALL
        place, field = self._field(session, name, part)
        return self._with_lease(session, ("HSET", place, field, frames[0] if whole else b"".join(frames)))

    def _with_lease(self, session: str, write: Command) -> list[Command]:
        """A command that writes to a session's hash, with what makes sure that it has a lease."""
        if session == USER_SESSION:
            return [write]
        lapse = lapse_of(session)
        if lapse is not None and self._transactions:
            return [("MULTI",), write, ("PEXPIREAT", write[1], round(1000 * lapse)), ("EXEC",)]
        fresh = ("EVAL", _FRESH, 1, write[1], round(UNRENEWED))
        # Before redis-py 6.1 a cluster has no transactions.
        return [("MULTI",), write, fresh, ("EXEC",)] if self._transactions else [fresh, write, fresh]

    def _forget(self, keys: Iterable[Key]) -> None:
        """Evict what nobody will know the keys of."""
        try:
            self.evict_batch(list(keys))
        except StoreError:
            self._given_up.extend(keys)


class RedisTLSConnector(RedisConnector):
    """As `RedisConnector`, encrypted; ``rediss://host:6379/0?ca=/path&cert=/path&key=/path``."""

    schemes: ClassVar[tuple[str, ...]] = ("rediss",)
    _tls: ClassVar[bool] = True


class RedisUnixConnector(RedisConnector):
    """Keeps objects on a server of this host, through its socket; ``unix://user@/path/of/the.sock?db=0``."""

    schemes: ClassVar[tuple[str, ...]] = ("unix",)
    checksum: ClassVar[bool] = False
    _parameters: ClassVar[dict[str, Any]] = {"db": database}

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        username: str | None = None,
        password: str | None = None,
        db: int = 0,
        **options: Any,
    ) -> None:
        path = os.path.abspath(path)
        self._given = {"path": path, "db": db}
        self._open(urllib.parse.quote(path), True, username, password, options)

    @classmethod
    def _place(cls, parts: StoreURL) -> dict[str, Any]:
        if parts.host or not parts.path:
            raise ConfigurationError(f"{parts.url!r} names no socket: expected unix:///path/of/the.sock")
        return {"path": parts.path}

    def _connect(self, login: Login) -> Any:
        kind = redis.UnixDomainSocketConnection
        place = {"path": self._given["path"], "db": self._given["db"]}
        return redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, **place, **login.pool()))


def _session_of(place: bytes) -> str:
    return place.decode().partition("{")[2].partition(":")[0]


def _parts(size: int) -> int:
    return max(1, -(-size // _PART))
