"""Several stores as one: what goes where, and where it goes when one of them is down.

A key is the name of a part and that part's own key. So a get asks the one store that has the object, in any
process that knows the URL, and nobody guesses.
"""

from __future__ import annotations

import re
import secrets
import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from proxystore_core.connectors.base import (
    USER_SESSION,
    Buffer,
    ByURL,
    Connector,
    Held,
    Key,
    Leased,
    check_lease,
    check_session,
    deferred,
    extend_lease,
    is_far,
    leased,
    listed,
    new_session,
    place_of,
    surveyed,
    waiting,
)
from proxystore_core.connectors.multi_policy import Policy, host
from proxystore_core.connectors.survey import tally
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.flight import Flights
from proxystore_core.recipe import connector_class, open_connector
from proxystore_core.urls import StoreURL
from proxystore_core.warned import warn

__all__ = ["MultiConnector", "Policy", "multi_url"]

R = TypeVar("R")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,16}")
_REST = 5.0  # seconds for which a part that was down is asked last
_DOWN = (UnreachableError, DeadlineError)

_said: set[tuple[str, str, str]] = set()


class _Part:
    """One of the stores. It is opened when the whole is, or later if that could not be done."""

    def __init__(self, name: Any, source: str | Connector, policy: Policy) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _misnamed(name)
        self.name = name
        self.policy = policy
        self.down_until = 0.0
        self._connector: Connector | None = None
        self._openings = Flights()
        if not isinstance(source, str):
            self._connector = source
            self.url: str = source.url
            self.kind: Any = type(source)
            return
        self.url = source
        self.kind = _checked(name, source)
        try:
            self.url = self.connector.url
        except _DOWN as error:
            self.rest()
            _say_once(name, source, error)

    @property
    def connector(self) -> Connector:
        """Raises `StoreError` if it cannot be opened."""
        return self._connector or self._openings.run(self.url, self._open)

    def _open(self) -> Connector:
        if self._connector is None:  # a flight may have landed since it was looked at
            self._connector = open_connector(self.url)
        return self._connector

    @property
    def is_up(self) -> bool:
        return time.monotonic() >= self.down_until

    def rest(self) -> None:
        self.down_until = time.monotonic() + _REST


class MultiConnector(ByURL):
    """Puts each object into one of several stores.

    An object goes to the first part whose policy takes it, by priority and then in the order given. When
    that one is down or full it goes to the next that takes it, and the process says so once.

    Args:
        parts: the stores by name: each a connector, a pair of a connector and a `Policy`, or a mapping with
            ``url`` and the attributes of its policy.

    Raises:
        ConfigurationError: there is no part, or a name, a URL or a policy is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("multi",)
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False
    far: ClassVar[bool] = True
    routes: ClassVar[bool] = True

    def __init__(self, parts: Mapping[str, Any]) -> None:
        if not isinstance(parts, Mapping):
            raise ConfigurationError(f"{parts!r} are no stores: expected a dict of connectors by name")
        self._parts = {name: _part(name, given) for name, given in parts.items()}
        if not self._parts:
            raise ConfigurationError(
                "a store of several stores needs at least one: expected multi://a,b?a=shm://&b=file:///path"
            )
        self._order = sorted(self._parts.values(), key=lambda part: -part.policy.priority)
        kinds = [part.kind for part in self._order]
        # The class's are those of the most demanding parts; these are of the parts that there are.
        self.__dict__["checksum"] = any(kind.checksum for kind in kinds)
        self.__dict__["cheap_get"] = all(kind.cheap_get for kind in kinds)
        self.__dict__["far"] = any(is_far(kind) for kind in kinds)

    def __repr__(self) -> str:
        return f"MultiConnector({', '.join(f'{name}: {part.url}' for name, part in self._parts.items())})"

    @property
    def url(self) -> str:
        return multi_url(self.config()["parts"])

    @property
    def place(self) -> str:
        """Where a process has to be to reach all that this process may put."""
        own = [part for part in self._order if part.policy.is_here]
        return next((place for part in own if part.is_up and (place := place_of(part.connector))), "")

    def config(self) -> dict[str, Any]:
        return {
            "parts": {name: {"url": part.url, **part.policy.given()} for name, part in self._parts.items()}
        }

    @classmethod
    def from_url(cls, url: str) -> MultiConnector:
        parsed = StoreURL.parse(url)
        names = [name for name in parsed.host.split(",") if name]
        if parsed.path.strip("/") or parsed.username or parsed.port:
            raise ConfigurationError(f"{parsed.url!r} is no list of stores: expected multi://a,b?a=...&b=...")
        parts: dict[str, dict[str, str]] = {name: {} for name in names}
        for parameter, value in parsed.query.items():
            name, _, option = parameter.partition(".")
            if name not in parts:
                raise ConfigurationError(
                    f"unknown parameter {parameter!r} of multi://; known: each name of {names} with its "
                    "URL, and name.priority, name.max_size and so on"
                )
            parts[name][option or "url"] = value
        return cls(parts)

    @staticmethod
    def check(parts: Mapping[str, Mapping[str, Any]]) -> None:
        """Check what a configuration says of its parts, without opening any.

        Raises:
            ConfigurationError: a name, a URL or a policy is wrong.
        """
        for name, options in parts.items():
            url, policy = _split(name, options)
            if not _NAME.fullmatch(name):
                raise _misnamed(name)
            _checked(name, url)
            Policy.of(policy, name)

    def put(
        self,
        data: Sequence[Buffer],
        *,
        session: str = USER_SESSION,
        kind: str = "",
        tags: Collection[str] = (),
    ) -> Key:
        check_session(session, self.url)
        size = sum([memoryview(buffer).nbytes for buffer in data])
        chosen = [part for part in self._order if part.policy.takes(size, kind, tags)]
        if not chosen:
            what = f"{size} bytes of {kind or 'any class'} with tags {sorted(tags)} on {host()}"
            raise ConfigurationError(
                f"no part takes {what}", store=self.url, remedy="Add one without a policy, or widen one."
            )
        return self._first(chosen, lambda connector: connector.put(data, session=session))

    def _first(self, chosen: Sequence[_Part], make: Callable[[Any], Key]) -> Key:
        """The key that the first part makes; the next one's if it is down or full."""
        first: StoreError | None = None
        for part in sorted(chosen, key=lambda part: not part.is_up):
            try:
                return f"{part.name}.{make(part.connector)}"
            except (*_DOWN, FullError) as error:
                if not isinstance(error, FullError):
                    part.rest()
                first = first or error
                if len(chosen) > 1:
                    _say_once(part.name, part.url, error)
        assert first is not None
        raise first

    def get(self, key: Key) -> Buffer | None:
        part, inner = self._whose(key)
        return part.connector.get(inner)

    def exists(self, key: Key) -> bool:
        part, inner = self._whose(key)
        return part.connector.exists(inner)

    def evict(self, key: Key) -> None:
        part, inner = self._whose(key)
        part.connector.evict(inner)

    def new_session(self) -> str:
        """A name that suits all parts that are particular about names."""
        name = ""
        for part in self._order:
            if hasattr(part.kind, "new_session") and part.is_up:
                try:
                    name = new_session(part.connector, name)
                except _DOWN:
                    part.rest()
        return name or secrets.token_hex(6)

    def reserve(self, *, session: str = USER_SESSION) -> Key:
        """As `Deferred.reserve`, by the first part that can; nobody knows the size, class or tags yet."""
        check_session(session, self.url)
        able = [part for part in self._order if part.policy.is_here and hasattr(part.kind, "reserve")]
        if not able:
            raise self._unable("sets objects later")
        return self._first(able, lambda connector: connector.reserve(session=session))

    def set(self, key: Key, data: Sequence[Buffer]) -> None:
        part, inner = self._whose(key)
        setter = deferred(part.connector)
        if setter is None:
            raise self._unable("sets objects later")
        setter.set(inner, data)

    def wait(self, key: Key, timeout: float | None = None) -> bool:
        part, inner = self._whose(key)
        waiter = waiting(part.connector)
        if waiter is None:
            raise self._unable("waits for objects")
        return waiter.wait(inner, timeout)

    def _unable(self, what: str) -> ConfigurationError:
        remedy = "Add one that does, for example shm:// or redis://."
        return ConfigurationError(f"none of these stores {what}", store=self.url, remedy=remedy)

    def keys(self, session: str) -> list[Key]:
        check_session(session, self.url)
        parts = [(part.name, listed(part.connector)) for part in self._order]
        return [f"{name}.{key}" for name, part in parts if part is not None for key in part.keys(session)]

    def holder(self, key: Key) -> tuple[Connector, Key]:
        """The part that the object is in, and its key there."""
        part, inner = self._whose(key)
        return part.connector, inner

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        self._each(lambda keeper: keeper.renew(session, seconds))

    def extend(self, session: str, seconds: float) -> bool:
        """As `extend_lease`: at the parts where the session is."""
        check_lease(session, seconds, self.url)
        return any(self._each(lambda keeper: extend_lease(keeper, session, seconds)))

    def end(self, session: str) -> int:
        check_session(session, self.url)
        return sum(self._each(lambda keeper: keeper.end(session), all_of_them=True))

    def sessions(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for those in self._each(lambda keeper: keeper.sessions()):
            for session, left in those.items():
                found[session] = max(left, found.get(session, left))
        return found

    def held(self) -> dict[str, Held]:
        found: dict[str, Held] = {}
        for part in self._order:
            survey = surveyed(part.connector)
            for session, more in ({} if survey is None else survey.held()).items():
                tally(found, session, *more)
        return found

    def room(self) -> int | None:
        surveys = [surveyed(part.connector) for part in self._order]
        rooms = [None if survey is None else survey.room() for survey in surveys]
        known = [room for room in rooms if room is not None]
        return sum(known) if len(known) == len(rooms) else None

    def sweep(self) -> list[str]:
        return sorted({session for swept in self._each(lambda keeper: keeper.sweep()) for session in swept})

    def close(self, *, clear: bool = False) -> None:
        first: StoreError | None = None
        for part in self._order:
            if part._connector is not None:
                try:
                    part._connector.close(clear=clear)
                except StoreError as error:  # it is down: the others are closed, and cleared, all the same
                    first = first or error
                    part._connector.close()
        if first is not None:
            raise first

    def _whose(self, key: Key) -> tuple[_Part, Key]:
        name, _, inner = key.partition(".")
        part = self._parts.get(name)
        if part is None or not inner:
            raise RefusedError("not a key of one of these stores", store=self.url, key=key[:200])
        return part, inner

    def _each(self, do: Callable[[Leased], R], *, all_of_them: bool = False) -> list[R]:
        """What each part that keeps leases says; one that is down is passed over.

        Args:
            do: asked of each part.
            all_of_them: raise if one is down, once the others were asked.

        Raises:
            StoreError: nobody could be asked, or one refuses.
        """
        answers, asked = [], 0
        first: StoreError | None = None
        for part in self._order:
            if not hasattr(part.kind, "renew"):
                continue
            asked += 1
            try:
                keeper = leased(part.connector)
                assert keeper is not None
                answers.append(do(keeper))
            except (*_DOWN, FullError) as error:
                first = first or error
                part.rest()
            except StoreError as error:  # it refuses, say: what is the others' is done all the same
                if not all_of_them:
                    raise
                first = first or error
        if first is not None and (all_of_them or not answers):
            raise first
        return answers


def multi_url(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The URL of several stores as one.

    Args:
        parts: by name, each with ``url`` and the attributes of its `Policy`.
    """

    def text(value: Any) -> str:
        joined = (
            value if isinstance(value, str) else ",".join(value) if isinstance(value, list | tuple) else value
        )
        return urllib.parse.quote(str(joined), safe="/:?@,*[]")

    query = "&".join(
        f"{name}{'' if option == 'url' else f'.{option}'}={text(value)}"
        for name, options in parts.items()
        for option, value in options.items()
    )
    return f"multi://{','.join(parts)}?{query}"


def _misnamed(name: object) -> ConfigurationError:
    return ConfigurationError(f"{name!r} is no name of a store: use at most 16 letters, digits, - and _")


def _split(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """URL and policy of a part."""
    policy = dict(options)
    url = policy.pop("url", None)
    if not isinstance(url, str):
        raise ConfigurationError(f"the store {name!r} has no URL: expected {name}=shm://, say")
    return url, policy


def _checked(name: str, url: str) -> Any:
    """The class of the connector that a part's URL describes."""
    parts = StoreURL.parse(url)
    if parts.password:
        raise ConfigurationError(
            f"the URL of the store {name!r} has a password in it",
            remedy="It would travel: put it into the environment, for example PROXYSTORE_REDIS_PASSWORD.",
        )
    return connector_class(parts.scheme)


def _part(name: str, given: Any) -> _Part:
    if isinstance(given, Mapping):
        url, options = _split(name, given)
        return _Part(name, url, Policy.of(options, name))
    connector, policy = given if isinstance(given, tuple) and len(given) == 2 else (given, Policy())
    if not hasattr(connector, "config") or isinstance(connector, type) or not isinstance(policy, Policy):
        raise ConfigurationError(
            f"the store {name!r} is {given!r}: expected a connector, or one and a Policy"
        )
    return _Part(name, connector, policy)


def _say_once(name: str, url: str, error: StoreError) -> None:
    """Warn of a store that fails: once for each kind of error, which may say it in other words each time."""
    kind = type(error).__name__
    if (name, url, kind) in _said:
        return
    _said.add((name, url, kind))
    warn(f"the store {name!r} ({url}) takes nothing now, objects go to the next: {kind}: {error}")
