"""What a process of a Ray job knows of the job's store: a driver's session, or a worker's part in it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from proxystore_core import Session, Sharing, StoreError, forks, store_for
from proxystore_core.connectors.base import leased, listed, place_of
from proxystore_integrations import __version__
from proxystore_integrations.carriers import check_version
from proxystore_integrations.link import Evictions
from proxystore_integrations.ray import joining, owners
from proxystore_integrations.ray.cluster import ClusterLink
from proxystore_integrations.ray.engine import core
from proxystore_integrations.ray.orphans import Orphan, Orphans
from proxystore_integrations.ray.results import watch_generators
from proxystore_integrations.settings import Settings

__all__ = [
    "Guard",
    "RayLink",
    "Terms",
    "called_by_others",
    "called_for",
    "caller",
    "current",
    "joined",
    "leave",
    "pause",
    "suspended",
    "use",
]


class Terms(NamedTuple):
    """What a worker is told of its driver's session.

    Attributes:
        recipe: opens the store.
        session: that everything stored for the job belongs to.
        place: where the store is (see `connectors.base.place_of`).
        threshold: size from which a value is stored, bytes.
        inputs: as in the settings.
        results: as in the settings.
        on_store_error: as in the settings.
        lease: seconds.
        marker: key of a tiny object of the session: where it is missing, the session is over.
        job: whose session it is, as `joining.job` names it; empty for that of any who has these terms.
        node: that the process is on which has written these terms, as `joining.node` names it; empty where it
            was on none yet.
    """

    recipe: str
    session: str
    place: str
    threshold: int
    inputs: Any
    results: Any
    on_store_error: Any
    lease: float
    marker: str
    job: str = ""
    node: str = ""

    def written(self) -> str:
        """As text, for `read`."""
        return json.dumps([__version__, *self])

    @classmethod
    def read(cls, text: str) -> Terms:
        """The inverse of `written`.

        Raises:
            VersionError: another version of this package has written it.
        """
        version, *given = json.loads(text)
        check_version(version)
        return cls(*given)


class _Part:
    """A worker's part in its driver's session: it neither renews nor ends it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._owner = os.getpid()

    @property
    def owned(self) -> bool:
        """Whether this is the worker's process and not a fork of it."""
        return self._owner == os.getpid()

    def release(self) -> None:
        pass

    def end(self) -> int:
        return 0


class Guard:
    """Keeps objects in the store as long as Ray knows a reference to its tiny object.

    Attributes:
        reference: ObjectRef of an empty object that this process owns.
        keys: of the objects that go with it.
    """

    __slots__ = ("keys", "reference")

    def __init__(self, reference: Any, keys: tuple[str, ...]) -> None:
        self.reference = reference
        self.keys = keys


class RayLink(ClusterLink):
    """A driver's link to its store; `joined` is for workers.

    Attributes:
        terms: of the session, once there is one.
        is_part: whether this process is a worker, and the session its driver's.
    """

    def __init__(self, settings: Settings, store: Any = None) -> None:
        super().__init__(settings, store)
        self.terms: Terms | None = None
        self.is_part = False
        self._latest: Guard | None = None
        self._adopted: set[str] = set()
        self._orphans = Orphans()

    def open(self) -> Session:
        session = super().open()
        settings = self.settings
        assert self._store is not None
        try:
            self.marker = self._store.put(b"", session=session.name)
        except StoreError:
            self.close()
            raise
        self.terms = Terms(
            self.recipe,
            session.name,
            self.place,
            settings.threshold,
            settings.inputs,
            settings.results,
            settings.on_store_error,
            settings.lease,
            self.marker,
        )
        if settings.results == "always":
            owners.watch_lending()
        return session

    def join(self, terms: Terms) -> None:
        """Take part in a driver's session.

        Raises:
            StoreError: the store cannot be opened here.
        """
        self.is_part = self._tried = True
        self._given = self._store = store = store_for(terms.recipe)
        self._session = _Part(terms.session)  # type: ignore[assignment]
        self._evictions = Evictions(store, self.by_value, weakref.WeakMethod(self.idle))
        self._sharing = Sharing(store, terms.session)
        self.terms = terms
        if terms.results == "always":
            watch_generators()
            owners.watch_lending()
        if place_of(store.connector) != terms.place:
            self.elsewhere[socket.gethostname()] = f"the store is the memory of another host, {terms.place}"

    @property
    def signed(self) -> Terms:
        """The terms, with the job and this node in them, for those who may be others'."""
        terms = self.terms
        assert terms is not None
        if not terms.job or terms.node != joining.node():
            self.terms = terms = terms._replace(job=terms.job or joining.job(), node=joining.node())
        return terms

    def is_over(self, *, by_trip: bool = True) -> bool:
        """Whether the driver has ended the session in which this worker is about to store, or has stored.

        A worker may run on for a moment, and what it puts then begins the session anew. What it had put
        before the end the driver has removed.

        Args:
            by_trip: ask a store over a network, too.
        """
        store, terms = self._store, self.terms
        if store is None or terms is None:
            return True
        if not self.is_part or not (by_trip or store.connector.cheap_get):
            return False
        try:
            return not store.exists(terms.marker)
        except StoreError:
            return False

    def clear(self, keys: Iterable[str]) -> None:
        """Store no more; evict what was stored for a session that is over, and it if nothing is in it.

        If its lease lapsed while its driver was suspended, there are that driver's new objects.

        Args:
            keys: of what was stored.
        """
        store, terms = self._store, self.terms
        self.close()
        if store is None or terms is None:
            return
        with contextlib.suppress(StoreError):
            for key in keys:
                store.evict(key)
            lister, keeper = listed(store.connector), leased(store.connector)
            if lister is not None and keeper is not None and not lister.keys(terms.session):
                keeper.end(terms.session)

    def close(self, *, keep: bool = False) -> None:
        with self._lock:
            self._latest = None
        super().close(keep=keep)

    # Lifetimes.

    def guard(self, keys: Iterable[str]) -> Guard:
        """A guard of objects that have a pin each for it; they lose it when Ray lets go of the guard.

        Calls that use the same objects one after another share one: it costs Ray a small put.
        """
        wanted = tuple(keys)
        with self._lock:
            latest = self._latest
        if latest is not None and latest.keys == wanted:
            self.withdraw(wanted)
            return latest
        try:
            guard = Guard(owners.empty_object(), wanted)
            # The callback knows the keys, not the guard.
            watched = owners.watch(guard.reference, lambda: self._gone(wanted))
            assert watched, "Ray does not watch its own object"
        except BaseException:
            self.withdraw(wanted)
            raise
        with self._lock:
            self._latest = guard
        if self._evictions is not None:
            self._evictions.wake()
        return guard

    def keep(self, actor: Any, keys: Iterable[str]) -> None:
        """Let objects, which have a pin each for it, stay as long as an actor that this process has made.

        Ray itself lets go of the constructor's arguments when the actor is there: a restart fails.
        """
        wanted = tuple(keys)
        if wanted:
            owners.watch_actor(actor, lambda: self._gone(wanted))

    def _gone(self, keys: tuple[str, ...]) -> None:
        # In Ray's thread: eviction is another's.
        self.withdraw(keys)

    def idle(self) -> None:
        with self._lock:
            self._latest = None
        store, evictions = self._store, self._evictions
        if not self._orphans or store is None or evictions is None:
            return
        with contextlib.suppress(Exception):  # the store does not answer, or Ray is about to disconnect
            self.evict_later(self._orphans.over(store))
        if self._orphans:
            evictions.wake()

    def pause(self) -> None:
        """Carry out what is ordered, and ask no more who needs what: asked too late, Ray ends the process."""
        if self._evictions is not None:
            self._evictions.close()

    def adopt(self, key: str, guard: Any) -> None:
        """See to an object that another process stored with the Ray object that is being unpickled.

        That process evicts it, unless it is gone then: an actor that nobody has a handle of, a worker that
        was idle. Nothing happens where this one does not own the Ray object.

        Args:
            key: of the object.
            guard: ObjectRef of its guard.
        """
        outer = owners.outer()
        if outer is None or key in self._adopted:
            return
        producer = owners.owner_of(guard)
        orphan = Orphan(key, guard.hex(), producer, outer.binary())
        if producer and owners.watch(outer, lambda: self._abandon(orphan)):
            self._adopted.add(key)

    def _abandon(self, orphan: Orphan) -> None:
        # In Ray's thread.
        self._adopted.discard(orphan.key)
        self._orphans.add(orphan)
        if self._evictions is not None:
            self._evictions.wake()


# The link of this process.

_current: RayLink | None = None
_joining = forks.lock()
_parts: OrderedDict[str, RayLink] = OrderedDict()  # of a worker, by session
_MOST = 8  # jobs whose drivers call an actor by turns


def current() -> RayLink | None:
    """The link of this process, if it is one of a job with a store: for what it puts and passes on."""
    return _current


def use(link: RayLink) -> None:
    """Make a link this process's."""
    global _current
    _current = link


def pause() -> None:
    """Ask Ray for nothing more: this process has left its cluster. A worker's part is over.

    A driver's session is not: workers put what they are about to put, and would begin it again.
    """
    link = _current
    if link is not None and link.is_part:
        leave()
    elif link is not None:
        link.pause()


def leave() -> None:
    """End the session when the workers are gone."""
    global _current
    link, _current = _current, None
    if link is not None:
        link.close()


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Let what this process submits in the block go Ray's own way."""
    global _current
    link, _current = _current, None
    try:
        yield
    finally:
        _current = link


def joined(terms: Terms) -> RayLink | None:
    """This worker's link to a job's session, opened if there is none; None if it cannot be.

    That of its own job is the process's link from now on. A driver has a session of its own or none, and
    joins no other job's.
    """
    link = _current
    if link is not None and link.terms is not None and link.terms.session == terms.session:
        return link
    if not joining.is_worker():
        return None
    own = terms.job in ("", joining.job())
    if not own and joining.actor():
        _calls_of_others.add(joining.actor())
    with _joining:
        link = _parts.pop(terms.session, None) or _part(terms)
        if link is None:
            return None
        _parts[terms.session] = link
        if own:
            use(link)
        others = [session for session, part in _parts.items() if part is not _current]
        over = [_parts.pop(session) for session in others[: max(0, len(_parts) - _MOST)]]
    for one in over:
        one.close()
    return link


# Ray does not tell an actor whose call it runs: the arguments do.

_calls = threading.local()
_calls_of_others: set[str] = set()  # this actor, when it has met another job


def called_for(link: RayLink) -> None:
    """Note that an argument of the call that this thread runs is of a link's session."""
    _calls.latest = core().get_current_task_id(), link


def called_by_others() -> bool:
    """Whether other jobs may call this process: an actor that has a public name, or has met one of them."""
    actor = joining.actor()
    return bool(actor) and (actor in _calls_of_others or joining.has_public_name(actor))


def caller() -> RayLink | None:
    """The link of the job that has called the task of this thread, as far as its arguments tell."""
    task, link = getattr(_calls, "latest", (None, None))
    return link if link is not None and link.is_open and task == core().get_current_task_id() else None


def _part(terms: Terms) -> RayLink | None:
    link = RayLink(
        Settings(
            threshold=terms.threshold,
            store=terms.recipe.partition("#")[0],
            inputs=terms.inputs,
            results=terms.results,
            on_store_error=terms.on_store_error,
            lease=terms.lease,
        )
    )
    try:
        link.join(terms)
    except StoreError as error:
        link.by_value.warn(f"this worker works without a store: {error}")
        return None
    return link
