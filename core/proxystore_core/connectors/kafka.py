"""Objects in topics of Kafka: each is one or more records, known by their place in the log.

<topic>                the user's own objects
<topic>.s.<session>    a session's objects; the topic goes with it
    partitions but the first, one for each object
        key    <id, 8 bytes><number of the part, 4 bytes>
        value  the part's bytes; nothing (a tombstone) once the object is evicted
    the first partition: what there is
        key    /<the object's key>
        value  1; nothing once the object is evicted
<topic>.leases         the first partition
        key    <session>
        value  when its lease lapses, in seconds since the epoch; nothing once it is over
        key    +<session>
        value  the same, if it has a lease at this place of the log

A key is ``<session>.<partition>.<first offset>.<last - first>.<bytes>.<id>``, numbers in hexadecimal.
Records of others may lie between those of an object; nobody has the key before the brokers confirmed all
parts. What there is, is for those who look: it is written without waiting for it.
"""

from __future__ import annotations

import re
import secrets
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from proxystore_core.buffers import byte_views, fresh_buffer, split
from proxystore_core.connectors.arguments import check_text
from proxystore_core.connectors.base import USER_SESSION, Buffer, ByURL, Held, Key, check_lease, check_session
from proxystore_core.connectors.kafka_clients import Clients
from proxystore_core.connectors.kafka_login import Options, client_settings
from proxystore_core.connectors.lapsed import UNRENEWED, end_lapsed
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.connectors.survey import tally
from proxystore_core.errors import ConfigurationError, CorruptError, RefusedError
from proxystore_core.moving import moved
from proxystore_core.urls import StoreURL, flag

__all__ = ["KafkaConnector", "KafkaTopicConnector"]

_SLOWEST = 4e6  # bytes a second that a network moves at least: big objects get so much more time
_KEY = re.compile(
    r"([A-Za-z0-9_-]{1,64})\."
    r"([0-9a-f]{1,8})\.([0-9a-f]{1,16})\.([0-9a-f]{1,8})\.([0-9a-f]{1,10})\.([0-9a-f]{16})"
)
_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,180}")
_REMEMBERED = 100_000  # evicted objects: brokers go on giving them until they clean up
_WORTHWHILE = 4 << 20  # bytes at the beginning of a log that brokers are asked to drop
_LONGER = "+"  # begins the keys of leases that are extended, see above
_TIME = re.compile(rb"\d{1,12}\.\d{1,6}")
_evicted: dict[bytes, None] = {}  # names, by this process


class Place(NamedTuple):
    """Where an object is."""

    session: str
    partition: int
    first: int
    span: int
    size: int
    name: bytes

    def __str__(self) -> str:
        numbers = (self.partition, self.first, self.span, self.size)
        return f"{self.session}.{'.'.join(f'{number:x}' for number in numbers)}.{self.name.hex()}"


class KafkaTopicConnector(ByURL):
    """Keeps the objects of all sessions in one topic; ``kafka://host:9092/topic?leases=false``.

    For brokers that let nobody make topics. What nobody evicts goes when the topic's retention ends: that,
    not a lease, is what remains of a dead session.

    Args:
        hosts: some of the brokers, each ``host:port``.
        topic: where objects are; made if missing.
        username: with SASL.
        password: used here, and never part of the URL. By default the one in ``PROXYSTORE_STORE`` if
            that names the same brokers and user, else ``PROXYSTORE_KAFKA_PASSWORD``.
        options: see `Options`.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("kafka",)
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False
    far: ClassVar[bool] = True
    _marks: ClassVar[dict[str, Any]] = {"leases": False}

    def __init__(
        self,
        hosts: Sequence[str],
        topic: str = "proxystore",
        *,
        username: str | None = None,
        password: str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(hosts, Sequence):
            raise ConfigurationError(f"hosts is {hosts!r}: expected host:port, or several in a list")
        hosts = hosts.split(",") if isinstance(hosts, str) else list(hosts)
        check_text("topic", topic)
        for what, given in {"username": username, "password": password}.items():
            if given is not None:
                check_text(what, given, shown=False)
        for host in hosts:
            check_text("a broker of hosts", host)
        if not _TOPIC.fullmatch(topic):
            raise ConfigurationError(f"{topic!r} is no topic: use at most 180 letters, digits, - _ and .")
        self._options = Options(**options)
        self._topic = topic
        own = self._options.given()
        self._config = {"hosts": hosts, "topic": topic, "username": username, **own, **self._marks}
        user = f"{urllib.parse.quote(username, safe='')}@" if username else ""
        marks = {name: str(value).lower() for name, value in self._marks.items()}
        query = urllib.parse.urlencode({**own, **marks}, safe="/:")
        self._url = f"kafka://{user}{','.join(hosts)}/{topic}{'?' if query else ''}{query}"
        self._settings = client_settings(self._url, hosts, username, password, self._options)
        self._clients = Clients(self._url, self._settings, self._options)
        self._own = OwnKeys()
        self._dead: dict[tuple[str, int], _Dead] = {}

    @property
    def url(self) -> str:
        return self._url

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> KafkaTopicConnector:
        options = dict(config)
        kind = KafkaConnector if options.pop("leases", True) else KafkaTopicConnector
        return kind(**options)

    @classmethod
    def from_url(cls, url: str) -> KafkaTopicConnector:
        parts = StoreURL.parse(url)
        options = parts.options({**Options.PARAMETERS, "leases": flag})
        hosts = parts.hosts or ["localhost"]
        topic = parts.path.strip("/") or "proxystore"
        login = {"username": parts.username or None, "password": parts.password or None}
        return cls.from_config({"hosts": hosts, "topic": topic, **login, **options})

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        check_session(session, self._url)
        views = byte_views(data)
        size = sum(view.nbytes for view in views)
        name = secrets.token_bytes(8)

        def parts() -> Iterator[tuple[bytes, bytes]]:
            for number, frames in enumerate(split(views, self._options.part)):
                yield _record(name, number), b"".join(frames)  # librdkafka takes bytes alone, and copies them

        topic = self._topic_of(session)
        partition, offsets = self._clients.write(topic, None, parts, self._until(size))
        key = str(Place(session, partition, offsets[0], offsets[-1] - offsets[0], size, name))
        self._clients.note(topic, _entry(key), b"1")
        if session == USER_SESSION:
            self._own.note([key], self._keys_of_users)
        return key

    def get(self, key: Key) -> Buffer | None:
        place = self._parse(key)
        if place.name in _evicted:
            return None
        whole: Buffer = b""
        done = found = 0
        for data in self._parts(place):
            if len(data) != min(place.size - done, self._options.part):
                raise CorruptError("a part has another length than was stored", store=self._url, key=key)
            whole = whole or fresh_buffer(place.size)  # not for a key that somebody made up
            memoryview(whole)[done : done + len(data)] = data
            moved(len(data))
            done += len(data)
            found += 1
        return whole if found == self._count(place) else None

    def exists(self, key: Key) -> bool:
        place = self._parse(key)
        return place.name not in _evicted and any(True for _ in self._parts(place))

    def evict(self, key: Key) -> None:
        place = self._parse(key)
        if place.name not in _evicted:
            count = self._count(place)
            topic = self._topic_of(place.session)
            if self._clients.knows(topic) or self._is_there(topic):
                tombstones = [(_record(place.name, number), None) for number in range(count)]
                _, offsets = self._clients.write(topic, place.partition, lambda: tombstones, self._until())
                self._clients.note(topic, _entry(key), None)
                self._drop(topic, place, offsets)
            while len(_evicted) >= _REMEMBERED:
                _evicted.pop(next(iter(_evicted)), None)
            _evicted[place.name] = None
        self._own.discard([key])

    def keys(self, session: str) -> list[Key]:
        check_session(session, self._url)
        return [str(place) for place in self._places(session) if place.session == session]

    def _keys_of_users(self) -> list[Key]:
        return self.keys(USER_SESSION)

    def held(self) -> dict[str, Held]:
        found: dict[str, Held] = {}
        for session in self._all():
            for place in self._places(session):
                tally(found, place.session, 1, place.size)
        return found

    def room(self) -> int | None:
        return None

    def close(self, *, clear: bool = False) -> None:
        if clear:
            for key in self._own.mine():
                self.evict(key)
        self._clients.close()

    # Where things are.

    def _topic_of(self, session: str) -> str:
        return self._topic

    def _is_there(self, topic: str) -> bool:
        """Whether the topic may be there: evicting is no reason to make it."""
        return True

    def _all(self) -> Iterable[str]:
        """Sessions of which each has a topic of its own."""
        return [USER_SESSION]

    def _parse(self, key: Key) -> Place:
        match = _KEY.fullmatch(key)
        if match is not None:
            partition, first, span, size = (int(number, 16) for number in match.groups()[1:5])
            place = Place(match[1], partition, first, span, size, bytes.fromhex(match[6]))
            if str(place) == key and place.span + 1 >= self._count(place) and place.first < 1 << 62:
                return place
        raise RefusedError("not a key of a Kafka store", store=self._url, key=key[:200])

    def _count(self, place: Place) -> int:
        return max(1, -(-place.size // self._options.part))

    def _until(self, size: int = 0) -> float:
        return time.monotonic() + self._options.deadline + size / _SLOWEST

    def _parts(self, place: Place) -> Iterator[bytes]:
        """The parts of an object in order, as far as they are there."""
        topic, last = self._topic_of(place.session), place.first + place.span
        wanted, until = 0, self._until(place.size)
        for record in self._clients.read(topic, place.partition, place.first, last, place.size, until):
            if record.key == _record(place.name, wanted):
                if record.value is None:
                    return
                wanted += 1
                yield record.value

    def _places(self, session: str) -> list[Place]:
        """Of the objects that are in a session's topic."""
        self._clients.flush(self._options.deadline)
        there: dict[bytes, None] = {}
        for record in self._clients.scan(self._topic_of(session), self._until()):
            if record.value is not None:
                there[record.key] = None
            else:
                there.pop(record.key, None)
        places = []
        for entry in there:
            if entry[:1] == b"/" and _KEY.fullmatch(text := entry[1:].decode("ascii", "replace")):
                place = self._parse(text)
                if place.name not in _evicted:
                    places.append(place)
        return places

    def _drop(self, topic: str, place: Place, tombstones: Sequence[int]) -> None:
        """Have the brokers drop the beginning of a log as far as it is known to be of no use any more."""
        dead = self._dead.setdefault((topic, place.partition), _Dead())
        if place.span + 1 == self._count(place):  # else records of others lie between
            dead.add(place.first, place.first + place.span + 1, place.size)
        for offset in tombstones:
            dead.add(offset, offset + 1, 0)
        if dead.nbytes >= _WORTHWHILE:
            self._clients.truncate(topic, place.partition, dead.take())


class KafkaConnector(KafkaTopicConnector):
    """Keeps objects in topics; ``kafka://user@host:9092,host:9093/topic``.

    A session has a topic of its own, which is removed with it. Brokers remove what is evicted before when
    they clean their logs, or when they are asked to drop a log's beginning. An evicted object is gone at
    once for the process that evicts it, and for others when the brokers have cleaned up.

    Args:
        hosts: as for `KafkaTopicConnector`.
        topic: as for `KafkaTopicConnector`; the names of sessions' topics begin with it.
        options: as for `KafkaTopicConnector`.
    """

    _marks: ClassVar[dict[str, Any]] = {}

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self._url)
        self._lease(time.time() + seconds, session)

    def extend(self, session: str, seconds: float) -> bool:
        """As `extend_lease`: the order of the log decides whether the session has ended before."""
        check_lease(session, seconds, self.url)
        if session not in self.sessions():
            return False
        self._lease(time.time() + seconds, _LONGER + session)
        there = session in self._leases()
        if not there:
            self._lease(None, _LONGER + session)
        return there

    def end(self, session: str) -> int:
        check_session(session, self._url)
        if session == USER_SESSION:
            places = self._places(session) if self._is_there(self._topic) else []
            for place in places:
                self.evict(str(place))
            return len(places)
        try:
            return self._end(session)
        finally:
            self._clients.let_producer_go()

    def _end(self, session: str) -> int:
        """End a session of an engine, and leave the producer as it is."""
        topic = self._topic_of(session)
        there = self._is_there(topic)
        count = len(self._places(session)) if there else 0
        if there:
            self._clients.remove(topic)
        if session in self._leases():
            # Last: a crash in between leaves a session that lapses.
            self._lease(None, session, _LONGER + session)
        for known in [known for known in self._dead if known[0] == topic]:
            self._dead.pop(known, None)
        return count

    def sessions(self) -> dict[str, float]:
        leases, now = self._leases(), time.time()
        for session in self._all():
            if session != USER_SESSION and session not in leases:
                leases[session] = now + UNRENEWED
                self._lease(leases[session], session)
        return {session: lapses - now for session, lapses in leases.items()}

    def sweep(self) -> list[str]:
        sessions = self.sessions()
        try:
            return end_lapsed(sessions, self._end, lambda session: self._leases().get(session))
        finally:
            if any(left < 0 for left in sessions.values()):
                self._clients.let_producer_go()

    def _topic_of(self, session: str) -> str:
        return self._topic if session == USER_SESSION else f"{self._topic}.s.{session}"

    def _is_there(self, topic: str) -> bool:
        with self._clients.failures():
            return topic in self._clients.topics()

    def _all(self) -> Iterable[str]:
        prefix = f"{self._topic}.s."
        with self._clients.failures():
            topics = self._clients.topics()
        return [USER_SESSION, *(name.removeprefix(prefix) for name in topics if name.startswith(prefix))]

    def _leases(self) -> dict[str, float]:
        """When each session's lease lapses, in seconds since the epoch."""
        found: dict[str, float] = {}
        topic = f"{self._topic}.leases"
        if self._is_there(topic):
            for record in self._clients.scan(topic, self._until()):
                key = record.key.decode("ascii", "replace")
                session = key.removeprefix(_LONGER)
                if key == session:
                    found.pop(session, None)
                elif session not in found:
                    continue  # it had ended
                if record.value is not None and _TIME.fullmatch(record.value):
                    found[session] = float(record.value)
        return found

    def _lease(self, lapses: float | None, *keys: str) -> None:
        value = None if lapses is None else f"{lapses:.6f}".encode()
        records = [(key.encode(), value) for key in keys]
        self._clients.write(f"{self._topic}.leases", 0, lambda: records, self._until())


class _Dead:
    """Records of one log that nobody needs any more."""

    def __init__(self) -> None:
        self.nbytes = 0  # of those that follow each other from the beginning, and were not taken yet
        self._begin = 0
        self._runs: dict[int, tuple[int, int]] = {}  # by first offset: the offset behind it, and bytes

    def add(self, first: int, end: int, nbytes: int) -> None:
        if first >= self._begin and len(self._runs) < _REMEMBERED:
            self._runs[first] = end, nbytes
        while (run := self._runs.pop(self._begin, None)) is not None:
            self._begin = run[0]
            self.nbytes += run[1]

    def take(self) -> int:
        """The offset before which all are of no use."""
        self.nbytes = 0
        return self._begin


def _record(name: bytes, part: int) -> bytes:
    return name + part.to_bytes(4, "big")


def _entry(key: Key) -> bytes:
    return b"/" + key.encode()
