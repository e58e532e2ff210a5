"""Objects on a Redis (or Valkey) server, or on a cluster of them.

<prefix>:{<session>:<bucket>}       a hash; its expiry is the session's lease, kept by the server itself
    <object>.<size>.<part> -> bytes objects of up to 1 MiB are one part
    lease -> ""                     from the first renewal on: an empty hash would vanish, with its expiry

The sixteen buckets of a session are in sixteen slots, which a cluster spreads over its servers.
An object's key says how many bytes it has, hence in which fields they are: it needs no record of
its own, and nobody has the key before all parts are there.
"""

from __future__ import annotations

import os
import re
import secrets
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from proxystore_core.buffers import fresh_buffer
from proxystore_core.connectors.base import USER_SESSION, Buffer, Key, check_session
from proxystore_core.connectors.redis_client import Client
from proxystore_core.connectors.redis_login import (
    Options,
    database,
    login_for,
    warn_once_if_keys_may_be_dropped,
)
from proxystore_core.connectors.redis_nodes import Nodes, Single, hash_slot
from proxystore_core.connectors.resp import Address, Reply, Request, command
from proxystore_core.errors import ConfigurationError, CorruptError, FullError, RefusedError, StoreError
from proxystore_core.urls import StoreURL

__all__ = ["RedisConnector", "RedisTLSConnector", "RedisUnixConnector"]

_PART = 1 << 20  # bytes; part of the layout: another number cannot read what this one has written
# Bytes asked for at a time. The server copies all of them before it sends the first, and sends a single
# value in bigger pieces than several: on this host that costs more than a round trip.
_WINDOW, _LOCAL_WINDOW = 8 << 20, 1 << 20
_LOCAL = ("localhost", "127.0.0.1", "::1")
_BUCKETS = 16
_UNRENEWED = 600  # seconds for a session that got objects before, or after, anyone renewed it
_KEY = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9a-f]{20}\.(0|[1-9a-f][0-9a-f]{0,9}))")
_HSET = b"*4\r\n$4\r\nHSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n"
_MULTI = command(b"MULTI")
_EXEC = command(b"EXEC")

# One transaction with the bytes: no death of a client and no expiry in between leaves them for ever.
_LEASE_FRESH = b"if redis.call('TTL',KEYS[1])<0 then return redis.call('EXPIRE',KEYS[1],ARGV[1]) end"
# The expiry first: a server that is full extends a lease all the same.
_RENEW = (
    b"redis.call('PEXPIRE',KEYS[1],ARGV[1]) if redis.call('HEXISTS',KEYS[1],'lease')==0 then "
    b"redis.call('HSET',KEYS[1],'lease','') redis.call('PEXPIRE',KEYS[1],ARGV[1]) end"
)


class RedisConnector:
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
        self._open(place, [(hostname, port)], username, password, db, options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        return self._url

    def config(self) -> dict[str, Any]:
        return dict(self._given)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RedisConnector:
        return cls(**config)

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
    _parameters: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _place(cls, parts: StoreURL) -> dict[str, Any]:
        """Keyword arguments for what a URL says before its parameters."""
        if "," in parts.host:
            raise ConfigurationError(f"{parts.url!r} names several servers: expected redis+cluster://")
        place: dict[str, Any] = {"hostname": parts.host or "localhost", "port": parts.port or 6379}
        return place | {"db": database(parts.path.strip("/") or "0")}

    def _nodes(self, addresses: Sequence[Address]) -> Nodes:
        return Single(addresses[0])

    # The rest is the same for all.

    def _open(
        self,
        place: str,
        addresses: Sequence[Address],
        username: str | None,
        password: str | None,
        db: int,
        given: dict[str, Any],
    ) -> None:
        options = Options(**given)
        self._given |= {"username": username, **options.given()}
        self._prefix = options.prefix
        query = {"db": db} if db and "db" in self._parameters else {}
        text = urllib.parse.urlencode(query | options.given(), safe="/:")
        user = f"{urllib.parse.quote(username, safe='')}@" if username else ""
        self._url = f"{self.schemes[0]}://{user}{place}{'?' if text else ''}{text}"
        self._client = Client(
            self._url,
            self._nodes(addresses),
            login_for(self._url, username, password, database(str(db)), options, self._tls),
            deadline=options.deadline,
            connect_timeout=options.connect_timeout,
        )
        local = all(isinstance(address, str) or address[0] in _LOCAL for address in addresses)
        self._window = _LOCAL_WINDOW if local else _WINDOW
        self._own: set[tuple[int, Key]] = set()  # with the process that put it: a fork owns nothing

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        return self.put_batch([data], session=session)[0]

    def put_batch(self, items: Sequence[Sequence[Buffer]], *, session: str = USER_SESSION) -> list[Key]:
        check_session(session, self.url)
        keys, requests, moved = [], [], 0
        for data in items:
            views = [memoryview(buffer) for buffer in data]
            views = [view.cast("B") for view in views if view.nbytes]
            size = sum([view.nbytes for view in views])
            name = f"{secrets.token_hex(10)}.{size:x}"
            keys.append(f"{session}.{name}")
            for part, frames in enumerate(_split(views, size)):
                requests.append(self._write(session, name, part, min(size - part * _PART, _PART), frames))
            moved += size
        self._run_warned(requests, moved, keys)
        if session == USER_SESSION:
            self._own.update([(os.getpid(), key) for key in keys])
        return keys

    def get(self, key: Key) -> Buffer | None:
        return self.get_batch([key])[0]

    def get_batch(self, keys: Sequence[Key]) -> list[Buffer | None]:
        found: list[Buffer | None] = []
        requests: list[Request] = []
        places: list[int] = []
        asked = 0

        def fetch() -> None:
            nonlocal asked
            replies = self._client.run(requests, asked)
            for place, request, reply in zip(places, requests, replies, strict=True):
                if reply is None:
                    found[place] = None
                elif request.into is None:
                    found[place] = reply
                elif reply is not request.into:
                    raise CorruptError(
                        "a part has another length than was stored", store=self.url, key=keys[place]
                    )
            requests.clear()
            places.clear()
            asked = 0

        for place, key in enumerate(keys):
            session, name, size = self._parse(key)
            whole = fresh_buffer(size) if size > _PART else None
            found.append(whole)
            for part in range(_parts(size)):
                if asked >= self._window:
                    fetch()
                into = memoryview(whole)[part * _PART : (part + 1) * _PART] if whole is not None else None
                requests.append(self._ask(b"HGET", session, name, part, into))
                places.append(place)
                asked += min(size, _PART)
        fetch()
        return found

    def exists(self, key: Key) -> bool:
        return all(self._client.run(self._each_part(b"HEXISTS", key)))

    def evict(self, key: Key) -> None:
        self.evict_batch([key])

    def evict_batch(self, keys: Sequence[Key]) -> None:
        self._client.run([request for key in keys for request in self._each_part(b"HDEL", key)])
        self._own.difference_update([(os.getpid(), key) for key in keys])

    def renew(self, session: str, seconds: float) -> None:
        check_session(session, self.url, leased=True)
        milliseconds = b"%d" % max(1, round(seconds * 1000))
        self._run_warned(
            [
                Request([command(b"EVAL", _RENEW, b"1", place, milliseconds)], hash_slot(place))
                for place in self._hashes(session)
            ]
        )

    def end(self, session: str) -> int:
        check_session(session, self.url)
        requests = [
            Request([command(verb, place)], hash_slot(place))
            for place in self._hashes(session)
            for verb in (b"HKEYS", b"UNLINK")
        ]
        replies = self._client.run(requests)
        return sum(bytes(field).endswith(b".0") for fields in replies[::2] for field in fields)

    def sessions(self) -> dict[str, float]:
        places = list(self._all_hashes())
        replies = self._client.run([Request([command(b"PTTL", place)], hash_slot(place)) for place in places])
        found: dict[str, float] = {}
        for place, left in zip(places, replies, strict=True):
            session = place.decode().partition("{")[2].partition(":")[0]
            if session != USER_SESSION and left >= 0:
                found[session] = max(found.get(session, 0.0), left / 1000)
        return found

    def sweep(self) -> list[str]:
        return []  # the server has done it: what has lapsed is gone

    def close(self, *, clear: bool = False) -> None:
        if clear:
            self.evict_batch([key for process, key in list(self._own) if process == os.getpid()])
        self._client.close()

    def _parse(self, key: Key) -> tuple[str, str, int]:
        match = _KEY.fullmatch(key)
        if match is None:
            raise RefusedError("not a key of a Redis store", store=self.url, key=key[:200])
        return match[1], match[2], int(match[3], 16)

    def _hash(self, session: str, bucket: int) -> bytes:
        return f"{self._prefix}:{{{session}:{bucket:x}}}".encode()

    def _hashes(self, session: str) -> list[bytes]:
        return [self._hash(session, bucket) for bucket in range(_BUCKETS)]

    def _all_hashes(self) -> Iterator[bytes]:
        """Every hash of this store, on all servers: a walk over all keys of the database."""
        pattern = f"{self._prefix}:{{*:?}}".encode()

        def look(cursor: bytes) -> Request:
            return Request([command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"1000")])

        seen: set[bytes] = set()
        for address, (cursor, found) in self._client.run_everywhere(look(b"0")):
            seen.update(map(bytes, found))
            while cursor != b"0":
                cursor, found = self._client.run_at(address, look(bytes(cursor)))  # noqa: PLW2901
                seen.update(map(bytes, found))
        yield from sorted(seen)

    def _field(self, session: str, name: str, part: int) -> tuple[bytes, bytes]:
        return self._hash(session, (int(name[0], 16) + part) % _BUCKETS), f"{name}.{part}".encode()

    def _ask(
        self, verb: bytes, session: str, name: str, part: int, into: memoryview | None = None
    ) -> Request:
        place, field = self._field(session, name, part)
        return Request([command(verb, place, field)], hash_slot(place), 1, into)

    def _each_part(self, verb: bytes, key: Key) -> list[Request]:
        session, name, size = self._parse(key)
        return [self._ask(verb, session, name, part) for part in range(_parts(size))]

    def _write(self, session: str, name: str, part: int, size: int, frames: Sequence[Buffer]) -> Request:
        place, field = self._field(session, name, part)
        start = b"*4\r\n$4\r\nHSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n" % (
            len(place),
            place,
            len(field),
            field,
            size,
        )
        if session == USER_SESSION:
            return Request([start, *frames, b"\r\n"], hash_slot(place))
        lease = command(b"EVAL", _LEASE_FRESH, b"1", place, b"%d" % _UNRENEWED)
        return Request([_MULTI + start, *frames, b"\r\n" + lease + _EXEC], hash_slot(place), 4)

    def _run_warned(
        self, requests: Sequence[Request], moved: int = 0, keys: Sequence[Key] = ()
    ) -> list[Reply]:
        warn_once_if_keys_may_be_dropped(self._client)
        try:
            return self._client.run(requests, moved)
        except FullError:
            try:
                self.evict_batch(keys)  # nobody will know these keys
            except StoreError:
                pass  # they go with their session
            raise


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
        self._open(urllib.parse.quote(path), [path], username, password, db, options)

    @classmethod
    def _place(cls, parts: StoreURL) -> dict[str, Any]:
        if parts.host or not parts.path:
            raise ConfigurationError(f"{parts.url!r} names no socket: expected unix:///path/of/the.sock")
        return {"path": parts.path}


def _parts(size: int) -> int:
    return max(1, -(-size // _PART))


def _split(views: Sequence[memoryview], size: int) -> Iterator[list[memoryview]]:
    """The buffers of each part, cut where a part ends; nothing is copied."""
    if size <= _PART:
        yield list(views)
        return
    part, room = [], _PART
    for view in views:
        start = 0
        while view.nbytes - start >= room:
            part.append(view[start : start + room])
            yield part
            start += room
            part, room = [], _PART
        if start < view.nbytes:
            part.append(view[start:])
            room -= view.nbytes - start
    if part:
        yield part
