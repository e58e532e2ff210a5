"""What a store needs of a backend: the `Connector` protocol and its optional abilities.

A connector moves bytes and knows nothing of objects. A new backend is one file with one class
that satisfies `Connector` (plus the abilities it has) and one subclass of
`proxystore_core.testing.ConnectorContract`.
"""

from __future__ import annotations

import numbers
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeAlias, cast, runtime_checkable

from proxystore_core.errors import ConfigurationError, GoneError, RefusedError

__all__ = [
    "LONGEST_LEASE",
    "USER_SESSION",
    "Awaited",
    "Batched",
    "Buffer",
    "ByURL",
    "Connector",
    "Deferred",
    "Held",
    "Key",
    "Leased",
    "Listed",
    "Routed",
    "Surveyed",
    "Waiting",
    "awaited",
    "batched",
    "check_lease",
    "check_session",
    "deferred",
    "extend_lease",
    "holder_of",
    "is_far",
    "lapse_of",
    "leased",
    "listed",
    "new_session",
    "place_of",
    "routed",
    "session_until",
    "surveyed",
    "waiting",
]

Key: TypeAlias = str
"""Names one object in one connector. Opaque to everyone else; always printable ASCII without spaces."""

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes (a memoryview has format ``B`` and one dimension)."""

USER_SESSION = "user"
"""The session of objects that belong to nobody's run: they stay until evicted by hand."""

LONGEST_LEASE = 1e9
"""Seconds, thirty years: clocks, threads, files and wires overflow later."""

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNTIL = re.compile(r"[a-z]+-until-([0-9a-f]{1,12})")


def check_session(session: str, store: str, *, leased: bool = False) -> None:
    """Check a session's name before it becomes part of keys and paths.

    Args:
        session: the name.
        store: the connector's URL, for the message.
        leased: whether it is to get a lease, which the user session never has.

    Raises:
        RefusedError: it is not a session's name.
    """
    given: object = session
    if not isinstance(given, str) or not _SESSION.fullmatch(given):
        problem, remedy = f"{session!r} is not a session's name", "Use at most 64 letters, digits, - and _."
    elif leased and session == USER_SESSION:
        problem, remedy = "what the user stored himself has no lease", "Name the session otherwise."
    else:
        return
    raise RefusedError(problem, store=store, remedy=remedy)


def check_lease(session: str, seconds: float, store: str) -> None:
    """Check what a connector is told to renew.

    Args:
        session: as for `check_session`.
        seconds: from now until the lease lapses.
        store: the connector's URL, for the message.

    Raises:
        RefusedError: as `check_session`, and for the user session.
        ConfigurationError: it is no number of seconds, or none that a lease can have.
    """
    check_session(session, store, leased=True)
    is_number = isinstance(seconds, numbers.Real) and type(seconds) is not bool
    if not is_number or not 0 < seconds <= LONGEST_LEASE:
        raise ConfigurationError(
            f"a session cannot be renewed for {seconds!r} s",
            store=store,
            remedy=f"Expected seconds, more than 0 and at most {LONGEST_LEASE:.0e} (thirty years).",
        )


@runtime_checkable
class Connector(Protocol):
    """Stores byte strings under keys of its own making.

    Every method is safe in threads and after a fork, and raises the typed errors of
    `proxystore_core.errors` only.
    """

    schemes: ClassVar[tuple[str, ...]]
    """URL schemes this connector answers to; the first one is written into references."""

    checksum: ClassVar[bool]
    """Whether bytes cross a network or a disk here, so that a store adds and verifies a checksum."""

    cheap_get: ClassVar[bool]
    """Whether ``get`` is so cheap (a map, a local copy) that caching its bytes would only cost memory."""

    @property
    def url(self) -> str:
        """URL that opens an equal connector in another process; never contains a credential."""
        ...

    def config(self) -> dict[str, Any]:
        """Keyword arguments that build an equal connector."""
        ...

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Connector:
        """The inverse of `config`."""
        ...

    @classmethod
    def from_url(cls, url: str) -> Connector:
        """Open the connector that a URL describes.

        Raises:
            ConfigurationError: the URL has a part or a parameter that this connector does not know.
        """
        ...

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        """Store the concatenation of ``data`` and return its new key.

        The buffers are written one after another, never joined. The object appears whole or
        not at all. The bytes are taken before this returns.

        Args:
            data: buffers in order; the object's size is the sum of theirs, in bytes.
            session: the session that the object belongs to and is evicted with.

        Raises:
            FullError: no room.
            UnreachableError, DeadlineError, RefusedError: as their names say.
        """
        ...

    def get(self, key: Key) -> Buffer | None:
        """The object's bytes as one buffer that is the caller's own, or None when there is no such object.

        A bytearray or a writable memoryview may be changed by the caller without anyone else seeing it.

        Raises:
            RefusedError: the key is not one that this connector could have made.
            UnreachableError, DeadlineError: as their names say.
        """
        ...

    def exists(self, key: Key) -> bool:
        """Whether the object is there now. Raises as `get`."""
        ...

    def evict(self, key: Key) -> None:
        """Remove the object; a missing one is success. Raises as `get`."""
        ...

    def close(self, *, clear: bool = False) -> None:
        """Let go of descriptors, threads and connections. May be called twice.

        Args:
            clear: also evict what this connector instance put into the user session.
        """
        ...


class ByURL:
    """A connector that is shown, and pickled, as its URL, and made of its configuration: each of ours is one.

    Whoever unpickles it opens an equal one, with the credentials and settings of his own process.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({cast(Connector, self).url!r})"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """As `Connector.from_config`."""
        made: Self = cast(Any, cls)(**config)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        from proxystore_core.recipe import opener  # which imports this module

        mine = cast(Connector, self)
        return opener(type(mine)), (mine.url,)


@runtime_checkable
class Leased(Protocol):
    """The ability to group objects by session and to drop a dead session's objects.

    A session is one client process that uses an integration (or one explicit lifetime). Its
    liveness is the age of its lease, never a process id: containers share memory, not ids.
    A session that gets an object without ever having been renewed, or after its end, has ten
    minutes. The user session has no lease and is never swept. A session may say in its name when it lapses
    (`session_until`): whoever reads that needs no record of it, and leaves nothing of it when it is empty.
    """

    def renew(self, session: str, seconds: float) -> None:
        """Create the session's lease, or extend it to ``seconds`` from now: one record a session.

        Raises:
            RefusedError: it is no session's name, or the user session.
            ConfigurationError: as `check_lease`.
        """
        ...

    def end(self, session: str) -> int:
        """Evict every object of the session and its lease; returns how many objects. Idempotent."""
        ...

    def sessions(self) -> dict[str, float]:
        """Every session with the seconds its lease still has (negative: lapsed so long ago)."""
        ...

    def sweep(self) -> list[str]:
        """End every session whose lease has lapsed; returns their names."""
        ...


def leased(connector: Connector) -> Leased | None:
    """The connector as one that keeps leases, or None when it cannot."""
    return cast(Leased, connector) if hasattr(connector, "renew") else None


def extend_lease(keeper: Leased, session: str, seconds: float) -> bool:
    """Extend a lease that is there, and begin no session anew; tells whether it is there.

    A connector does so in one step with a method ``extend(session, seconds)``. Else (DAOS and servers of
    objects without a conditional put; Globus) a session that ends between the two steps begins
    anew: its lease alone, without objects, until that lapses. Raises as `Leased.renew`.
    """
    extend = getattr(keeper, "extend", None)
    if extend is not None:
        return bool(extend(session, seconds))
    if session not in keeper.sessions():
        return False
    keeper.renew(session, seconds)
    return True


@runtime_checkable
class Listed(Protocol):
    """The ability to tell what there is."""

    def keys(self, session: str) -> list[Key]:
        """The keys of a session's objects, in no order. Raises as `Connector.get`."""
        ...


def listed(connector: Connector) -> Listed | None:
    """The connector as one that tells what there is, or None when it cannot."""
    return cast(Listed, connector) if hasattr(connector, "keys") else None


@runtime_checkable
class Batched(Protocol):
    """The ability to handle many objects in one round trip, where each trip costs more than a small object.

    Each method does what its namesake of `Connector` does to each item, and raises the same.
    """

    def put_batch(self, items: Sequence[Sequence[Buffer]], *, session: str = USER_SESSION) -> list[Key]:
        """Store several objects, each the concatenation of its buffers; their keys in order."""
        ...

    def get_batch(self, keys: Sequence[Key]) -> list[Buffer | None]:
        """The bytes of several objects in order, each a buffer of its own; None for those not there."""
        ...

    def evict_batch(self, keys: Sequence[Key]) -> None:
        """Remove several objects; missing ones are success."""
        ...


def batched(connector: Connector) -> Batched | None:
    """The connector as one that handles many objects at once, or None when it cannot."""
    return cast(Batched, connector) if hasattr(connector, "put_batch") else None


@runtime_checkable
class Awaited(Protocol):
    """The ability to move bytes from a coroutine: no thread waits meanwhile, and the event loop goes on.

    Each method does what its namesake of `Connector` does and raises the same, in any event loop of any
    thread, and of a forked child. Neither keeps the loop from others for longer than a copy of some MB.
    """

    async def put_async(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        """Store the concatenation of ``data``, which may not change before this returns.

        Whoever is cancelled has stored nothing: what is on its way is waited for, some seconds at most, and
        removed.
        """
        ...

    async def get_async(self, key: Key) -> Buffer | None:
        """The object's bytes, or None when there is no such object."""
        ...


def awaited(connector: Connector) -> Awaited | None:
    """The connector as one that moves bytes from coroutines, or None when it cannot."""
    return cast(Awaited, connector) if hasattr(connector, "get_async") else None


@runtime_checkable
class Deferred(Protocol):
    """The ability to make a key first and to publish its object later, from any process.

    A reserved key is an object of its session that is not there yet: `Connector.get` gives None,
    `Connector.exists` False, `Connector.evict` and the session's end take the reservation back.
    """

    def reserve(self, *, session: str = USER_SESSION) -> Key:
        """A new key with nothing under it yet. Raises as `Connector.put`."""
        ...

    def set(self, key: Key, data: Sequence[Buffer]) -> None:
        """Publish the concatenation of ``data`` under a reserved key: whole, and once.

        When several try at the same time, one succeeds. Who dies before this returns has published the
        object or left the key as it was, to be set by another.

        Raises:
            RefusedError: the key was not reserved here, has been set already, or was evicted.
            FullError, UnreachableError, DeadlineError: as `Connector.put`.
        """
        ...


def deferred(connector: Connector) -> Deferred | None:
    """The connector as one that sets objects later, or None when it cannot."""
    return cast(Deferred, connector) if hasattr(connector, "reserve") else None


@runtime_checkable
class Waiting(Protocol):
    """The ability to wait for an object that is set later: woken by the backend, where it can wake anyone."""

    def wait(self, key: Key, timeout: float | None = None) -> bool:
        """Wait until the object is there.

        Args:
            key: an object's, or a reserved one.
            timeout: seconds to wait at most; None for no end.

        Returns:
            Whether the object is there; False when the time is over.

        Raises:
            GoneError: there is neither an object nor a reservation (any more), so none will come.
            RefusedError, UnreachableError, DeadlineError: as `Connector.get`.
        """
        ...


def waiting(connector: Connector) -> Waiting | None:
    """The connector as one that waits for objects, or None when it cannot."""
    return cast(Waiting, connector) if hasattr(connector, "wait") else None


def no_reservation(store: str, key: Key) -> RefusedError:
    """The error of setting a key that is not reserved."""
    return RefusedError(
        "nothing is reserved under this key",
        store=store,
        key=key[:200],
        remedy="It was set already (an object is set once), evicted, or ended with its session.",
    )


def never_comes(store: str, key: Key) -> GoneError:
    """The error of waiting for what nobody can set."""
    return GoneError(
        "the object will not come: its key is not reserved (any more)",
        store=store,
        key=key[:200],
        remedy="It was evicted, or the session that reserved it is over (see the lease setting).",
    )


class Held(NamedTuple):
    """What one session has in a store.

    Attributes:
        objects: how many; parts of objects, where the backend counts no others.
        nbytes: bytes that they take, about.
    """

    objects: int
    nbytes: int


@runtime_checkable
class Surveyed(Protocol):
    """The ability to tell what is in the store: for people who look, never on a task's way."""

    def held(self) -> dict[str, Held]:
        """What each session has, the user session too. Raises as `Connector.get`."""
        ...

    def room(self) -> int | None:
        """Bytes that still fit in; None where nothing limits them or nobody knows."""
        ...


def surveyed(connector: Connector) -> Surveyed | None:
    """The connector as one that tells what is in it, or None when it cannot."""
    return cast(Surveyed, connector) if hasattr(connector, "held") else None


@runtime_checkable
class Routed(Protocol):
    """The ability to choose among several connectors where an object goes.

    A connector says so with a class attribute ``routes = True``.
    """

    def put(
        self,
        data: Sequence[Buffer],
        *,
        session: str = USER_SESSION,
        kind: str = "",
        tags: Collection[str] = (),
    ) -> Key:
        """As `Connector.put`.

        Args:
            data: as there.
            session: as there.
            kind: ``module:name`` of the object's class; empty when unknown.
            tags: what the user said of the object.
        """
        ...

    def holder(self, key: Key) -> tuple[Connector, Key]:
        """The connector that the object is in, and its key there. Raises as `Connector.get`."""
        ...


def routed(connector: Connector) -> Routed | None:
    """The connector as one that chooses where objects go, or None when it does not."""
    return cast(Routed, connector) if getattr(connector, "routes", False) else None


def holder_of(connector: Connector, key: Key) -> tuple[Connector, Key]:
    """The connector that an object is in (this one, or one behind it) and its key there. Raises as `get`."""
    router = routed(connector)
    return (connector, key) if router is None else holder_of(*router.holder(key))


def is_far(connector: Connector) -> bool:
    """Whether the connector's bytes come over a network, so that a host had better fetch them only once.

    A connector says so with a class attribute ``far = True``.
    """
    return bool(getattr(connector, "far", False))


def is_here(connector: Connector, key: Key) -> bool:
    """Whether getting this object is a look into this host's own memory, whatever others cost.

    A connector that is `is_far` for some of its objects only says so with a method ``holds(key)``.
    """
    holds = getattr(connector, "holds", None)
    return holds is not None and bool(holds(key))


def has_scattered_leases(connector: Connector) -> bool:
    """Whether a session's lease is seen only at the site where it was renewed: it tells nothing about reach.

    A connector says so with a class attribute ``scattered_leases = True``.
    """
    return bool(getattr(connector, "scattered_leases", False))


def session_until(what: str, when: float) -> str:
    """The name of a session that lapses at a time, in seconds since the epoch, whoever renews it.

    Args:
        what: whose it is: small letters.
        when: kept to the millisecond.
    """
    return f"{what}-until-{round(1000 * when):x}"


def lapse_of(session: str) -> float | None:
    """When a session lapses by its very name, in seconds since the epoch; None where that does not say."""
    match = _UNTIL.fullmatch(session)
    return None if match is None else int(match[1], 16) / 1000


def new_session(connector: Connector, name: str = "") -> str:
    """A name for a new session.

    A connector may make names of its own with a method ``new_session(name)``, from the one that another made
    for the same session, where there are several.

    Args:
        connector: one that the session has objects in.
        name: which another connector made.
    """
    make = getattr(connector, "new_session", None)
    if make is None:
        return name or secrets.token_hex(6)
    return str(make(name) if name else make())


def place_of(connector: Connector) -> str:
    """Where a process has to be to reach the connector's objects; empty when anywhere will do.

    A connector says so with an attribute ``place``: equal for those that share objects.
    """
    return str(getattr(connector, "place", ""))
