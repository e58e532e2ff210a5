"""The store: objects in, references out. Composes a connector, serialization and a cache."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from proxystore_core import registry
from proxystore_core.awaiting import AwaitedBytes
from proxystore_core.compression import codec_named
from proxystore_core.configuration import allows_pickle
from proxystore_core.connectors.base import (
    USER_SESSION,
    Buffer,
    Connector,
    Key,
    check_session,
)
from proxystore_core.encryption import name_of
from proxystore_core.errors import ConfigurationError, GoneError, RefusedError, StoreError
from proxystore_core.frames import nbytes
from proxystore_core.futures import DEADLINE, Future
from proxystore_core.observe import Metrics
from proxystore_core.operators import PROXIES
from proxystore_core.pickling import Pickling
from proxystore_core.proxy import Proxied, Proxy, ProxyLocker
from proxystore_core.recipe import Recipe, connector_class, import_name, imported, named, open_connector
from proxystore_core.reference import Reference, class_name
from proxystore_core.registry import (
    get_key,
    get_or_create_store,
    get_store,
    register_store,
    store_registration,
    unregister_store,
)
from proxystore_core.secret import Secret, lacking
from proxystore_core.stored_bytes import C, Deserializer, Serializer

if TYPE_CHECKING:
    from proxystore_core.lifetimes import Lifetime
    from proxystore_core.ownership import OwnedProxy

__all__ = [
    "NotProxiableError",
    "Store",
    "get_key",
    "get_or_create_store",
    "get_store",
    "register_store",
    "store_registration",
    "unregister_store",
]

T = TypeVar("T")


class NotProxiableError(StoreError, TypeError):
    """None, True and False cannot be proxied: ``p is None`` and ``p is True`` would be false."""


class Store(AwaitedBytes[C]):
    """Keeps objects under keys, and hands out proxies of them.

    Args:
        name: what this process knows the store by; part of every reference, so that other
            processes know it by the same name.
        connector: where the bytes go.
        serializer: own function from object to bytes, found by name in every process.
        deserializer: its inverse.
        cache_size: bytes of fetched objects kept by this process; 0 for none. Not used where
            fetching is as cheap as the cache (shared memory).
        metrics: count and time every operation, in `metrics`.
        populate_target: let the proxies made here know their object from the start.
        register: register the store in this process (see `proxystore_core.registry`).
        compression: ``"lz4"``, ``"zstd"`` or None.
        session: the session that objects belong to unless said otherwise.
        near: keep one copy of each large object that a reference names in this host's shared memory,
            for all processes that resolve it here (only where the bytes come over a network).
        secret: encrypt every object with it, and take no other; by default what this process is configured
            with, if anything (see `proxystore_core.secret`).
        allow_pickle: False to store and take only what needs no pickle (see `proxystore_core.plain`); by
            default as this process is configured, else True.

    Raises:
        ConfigurationError: the name is taken, a serializer cannot be found by other processes,
            or an argument is wrong.
        RefusedError: the session is no session's name.
    """

    def __init__(
        self,
        name: str,
        connector: C,
        *,
        serializer: Serializer | None = None,
        deserializer: Deserializer | None = None,
        cache_size: int = 256 << 20,
        metrics: bool = False,
        populate_target: bool = True,
        register: bool = False,
        compression: str | None = None,
        session: str = USER_SESSION,
        near: bool = True,
        secret: Secret | None = None,
        allow_pickle: bool | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise ConfigurationError(f"a store's name is text, not {name!r}")
        if not hasattr(connector, "config") or isinstance(connector, type):
            raise ConfigurationError(
                f"{connector!r} is not a connector", remedy="Store.from_url() takes the URL of a store."
            )
        if (serializer is None) != (deserializer is None):
            raise ConfigurationError("a store has its own serializer and deserializer, or neither of them")
        if type(cache_size) is not int or cache_size < 0:
            raise ConfigurationError(f"cache_size is {cache_size!r}: expected bytes, 0 for no cache")
        codec_named(compression)
        check_session(session, connector.url)
        self.name = name
        self.populate_target = populate_target
        secret = Secret.configured() if secret is None else secret
        super().__init__(
            connector,
            str(
                Recipe(
                    connector.url,
                    name,
                    compression,
                    serializer and import_name(serializer),
                    deserializer and import_name(deserializer),
                    secret is not None,
                )
            ),
            serializer=serializer,
            deserializer=deserializer,
            cache_size=cache_size,
            metrics=Metrics() if metrics else None,
            compression=compression,
            session=session,
            near=near,
            secret=secret,
            allow_pickle=allows_pickle() if allow_pickle is None else allow_pickle,
        )
        if register:
            registry.register_store(self)
        registry.note_store(self)

    def __repr__(self) -> str:
        return f"Store({self.name!r}, {self.connector!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process the same store is opened, with that process's own cache and credentials.
        return registry.store_for, (self.recipe,)

    def __enter__(self) -> Store[C]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    def from_url(cls, url: str, *, name: str = "", **options: Any) -> Store[Connector]:
        """Open the store that a URL describes.

        Args:
            url: for example ``shm://``, ``file:///scratch/me``, ``memory://``.
            name: the store's name.
            options: keyword arguments of `Store`.

        Raises:
            ConfigurationError: no such scheme, or a part of the URL is wrong.
            StoreError: it cannot be opened.
        """
        if not isinstance(url, str):
            raise ConfigurationError(f"a store's URL is text, for example shm://, not {url!r}")
        connector = open_connector(url)
        with closing_if_it_fails(connector):
            return Store(name, connector, **options)

    @classmethod
    def from_recipe(cls, recipe: Recipe, connector: Connector) -> Store[Connector]:
        """The store that references with this recipe mean.

        Raises:
            ConfigurationError: its serializer's module is not loaded in this process.
        """
        functions: dict[str, Any] = {}
        for field in ("serializer", "deserializer"):
            name = getattr(recipe, field)
            functions[field] = named(name) if name else None
            if name and functions[field] is None:
                raise ConfigurationError(
                    f"the {field} {name!r} of this store is not known here",
                    store=str(recipe),
                    remedy=f"Import {name.partition(':')[0]} in this process first.",
                )
        secret = Secret.of_process(recipe.encrypted)
        return Store(recipe.name, connector, compression=recipe.compression, secret=secret, **functions)

    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build an equal store; plain values only, for TOML or JSON."""
        options = {key: value for key, value in self.connector.config().items() if value is not None}
        config: dict[str, Any] = {
            "name": self.name,
            "connector": {"kind": self.connector.schemes[0], "options": options},
            "cache_size": self.cache_size,
            "populate_target": self.populate_target,
            "metrics": self.metrics is not None,
        }
        if not self.near:
            config["near"] = False
        if self.secret is not None:
            config["encrypted"] = True
        if not self.allow_pickle:
            config["allow_pickle"] = False
        if self.compression:
            config["compression"] = self.compression
        if self.session != USER_SESSION:
            config["session"] = self.session
        if self._serializer and self._deserializer:
            config["serializer"] = import_name(self._serializer)
            config["deserializer"] = import_name(self._deserializer)
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Store[Connector]:
        """The store that `config` described.

        Raises:
            ConfigurationError: a part is missing, unknown or wrong.
        """
        options = dict(config)
        try:
            name = options.pop("name")
            part = options.pop("connector")
            kind = connector_class(part["kind"])
            for field in ("serializer", "deserializer"):
                if field in options:
                    options[field] = imported(options[field])
            options["secret"] = Secret.of_process(options.pop("encrypted", False))
            connector = kind.from_config(part.get("options", {}))
            with closing_if_it_fails(connector):
                return Store(name, connector, **options)
        except KeyError as error:
            raise ConfigurationError(
                f"the store's configuration lacks {error}: expected name and connector.kind"
            ) from None
        except TypeError as error:
            raise ConfigurationError(f"the store's configuration is wrong: {error}") from error

    def close(self, *, clear: bool = False) -> None:
        """Unregister the store and close its connector. May be called twice.

        Args:
            clear: also evict what this store put and nobody's session owns.
        """
        registry.unregister_store(self)
        self._cache.clear()
        if self._near is not None:
            self._near.close()
        self.connector.close(clear=clear)

    # Objects by key.

    def put(
        self,
        obj: Any,
        *,
        session: str | None = None,
        serializer: Serializer | None = None,
        tags: Collection[str] = (),
        lifetime: Lifetime | None = None,
    ) -> Key:
        """Store an object.

        Args:
            obj: anything that pickle or cloudpickle takes.
            session: the session it belongs to; the store's own by default.
            serializer: used instead of the store's; `get` then needs the matching deserializer.
            tags: what a store of several stores (``multi://``) chooses by; of no effect on others.
            lifetime: what the object goes with (see `proxystore_core.lifetimes`), instead of a session.

        Raises:
            SerializationError: the object cannot be turned into bytes.
            StoreError: the connector failed; says why.
        """
        frames = self._encode(obj, serializer or self._serializer)
        with self._living(lifetime, session) as (session, keys):
            key = self.put_frames(frames, session=session, kind=class_name(obj), tags=tags)[0]
            keys.append(key)
        return key

    def put_batch(self, objs: Iterable[Any], *, session: str | None = None) -> list[Key]:
        """Store several objects, or none when one fails; keys in their order."""
        return [reference.key for reference in self.reference_batch(objs, session=session)]

    def get(self, key: Key, default: T | None = None, *, deserializer: Deserializer | None = None) -> Any | T:
        """The object under a key: a private copy that the caller may change.

        Args:
            key: what `put` returned.
            default: returned when there is no such object.
            deserializer: used instead of the store's.

        Raises:
            CorruptError: the bytes are not what was stored.
            StoreError: the connector failed; says why.
        """
        _check_key(key)
        if self.secret is None and name_of(key):
            raise lacking()
        data = self._bytes(key)
        return default if data is None else self._decode(key, data, deserializer)

    def get_batch(self, keys: Iterable[Key], default: T | None = None) -> list[Any | T]:
        """The objects under several keys, in their order, fetched in parallel where that helps."""
        keys = list(keys)
        if self._batched is None:
            return self._map(lambda key: self.get(key, default), keys)
        return [
            default if data is None else self._decode(key, data, None)
            for key, data in zip(keys, self._bytes_batch(keys), strict=True)
        ]

    def exists(self, key: Key) -> bool:
        """Whether there is an object under this key now."""
        _check_key(key)
        return self.connector.exists(key)

    def evict(self, key: Key) -> None:
        """Remove an object; a missing one is success."""
        _check_key(key)
        self.connector.evict(key)
        self._cache.drop(key)
        if self._near is not None:
            self._near.evict(self.recipe, key)

    def is_cached(self, key: Key) -> bool:
        """Whether this process keeps the object's bytes (not those in shared memory, which need no cache)."""
        return key in self._cache

    # Objects by reference.

    def reference(
        self,
        obj: Any,
        *,
        session: str | None = None,
        evict: bool = False,
        pickling: Pickling = Pickling(),  # noqa: B008  unchanging
        tags: Collection[str] = (),
    ) -> Reference:
        """Store an object and return its reference.

        Args:
            obj: as for `put`.
            session: as for `put`.
            evict: let the object leave the store when the reference is first resolved.
            pickling: see `encode`.
            tags: as for `put`.

        Raises:
            StoreError: as `put`.
        """
        frames, kind = self.encode(obj, pickling=pickling), class_name(obj)
        key, size = self.put_frames(frames, session=session, kind=kind, tags=tags)
        return Reference(key, self.recipe, size, kind, evict)

    def reference_batch(
        self, objs: Iterable[Any], *, session: str | None = None, evict: bool = False
    ) -> list[Reference]:
        """Store several objects, side by side where that helps, or none when one fails."""
        if self._batched is not None:
            objs = list(objs)
            items = [self._encode(obj, self._serializer) for obj in objs]
            keys = self._batched.put_batch(items, session=self.session if session is None else session)
            return [
                Reference(key, self.recipe, nbytes(item), class_name(obj), evict)
                for key, item, obj in zip(keys, items, objs, strict=True)
            ]
        stored: list[Reference] = []

        def store(obj: Any) -> Reference:
            reference = self.reference(obj, session=session, evict=evict)
            stored.append(reference)
            return reference

        try:
            return self._map(store, list(objs))
        except BaseException:
            for reference in stored:
                with contextlib.suppress(StoreError):
                    self.evict(reference.key)
            raise

    def load(self, reference: Reference) -> Any:
        """The object that a reference of this store names: a private copy.

        Raises:
            GoneError: it is not there any more.
            StoreError: as `get`.
        """
        return self._load(reference, self._bytes(reference.key, _shared_size(reference)))

    def _load(self, reference: Reference, data: Buffer | None) -> Any:
        obj = self._loaded(reference, data)
        if reference.evict:
            self.evict(reference.key)
        return obj

    def _loaded(self, reference: Reference, data: Buffer | None) -> Any:
        if data is None:
            raise GoneError(
                f"the object ({reference.describe()}) is gone",
                store=self.recipe,
                key=reference.key,
                remedy="It was evicted, or the session that stored it is over (see the lease setting).",
            )
        return self._decode(reference.key, data, None)

    def load_batch(self, references: Sequence[Reference], *, shared: bool = True) -> list[Any]:
        """The objects that several references name, in their order, fetched in parallel where that helps.

        Those that are to leave the store then do so when all are loaded. Raises as `load`.

        Args:
            references: to this store.
            shared: whether other processes of this host may want them, too. If not, no copy is left here
                for them, where the connector fetches several in one trip.
        """
        if self._batched is None:
            objs = self._map(
                lambda reference: self._loaded(
                    reference, self._bytes(reference.key, _shared_size(reference))
                ),
                references,
            )
        else:
            sizes = {reference.key: _shared_size(reference) for reference in references} if shared else {}
            found = self._bytes_batch([reference.key for reference in references], sizes)
            objs = [self._loaded(*pair) for pair in zip(references, found, strict=True)]
        for reference in references:
            if reference.evict:
                self.evict(reference.key)
        return objs

    def proxy(
        self,
        obj: T,
        *,
        evict: bool = False,
        populate_target: bool | None = None,
        session: str | None = None,
        tags: Collection[str] = (),
        lifetime: Lifetime | None = None,
    ) -> Proxied[T]:
        """Store an object and return a proxy of it.

        Args:
            obj: the object. A proxy is returned as it is.
            evict: let the object leave the store when the proxy is first resolved.
            populate_target: let this proxy know its object from the start.
            session: the session that the object belongs to; the store's own by default.
            tags: as for `put`.
            lifetime: as for `put`.

        Raises:
            NotProxiableError: the object is None, True or False.
            StoreError: as `put`.
        """
        if type(obj) in PROXIES:
            return obj  # type: ignore[return-value]
        _check_proxiable(obj)
        with self._living(lifetime, session) as (session, keys):
            reference = self.reference(obj, session=session, evict=evict, tags=tags)
            keys.append(reference.key)
        return self._proxy(reference, obj, populate_target)

    def proxy_batch(
        self,
        objs: Iterable[T],
        *,
        evict: bool = False,
        populate_target: bool | None = None,
        session: str | None = None,
        lifetime: Lifetime | None = None,
    ) -> list[Proxied[T]]:
        """Store several objects, or none when one fails; their proxies in order. Raises as `proxy`."""
        objs = list(objs)
        for obj in objs:
            _check_proxiable(obj)
        plain = [obj for obj in objs if type(obj) not in PROXIES]
        with self._living(lifetime, session) as (session, keys):
            stored = self.reference_batch(plain, session=session, evict=evict)
            keys += [reference.key for reference in stored]
        references = iter(stored)
        return [
            obj if type(obj) in PROXIES else self._proxy(next(references), obj, populate_target)  # type: ignore[misc]
            for obj in objs
        ]

    def proxy_from_key(self, key: Key, *, evict: bool = False) -> Proxy[Any]:
        """A proxy of an object that is in the store already; only that the key is text is checked."""
        _check_key(key)
        return Proxy(Reference(key, self.recipe, 0, "", evict))

    def locked_proxy(
        self,
        obj: T,
        *,
        evict: bool = False,
        session: str | None = None,
        lifetime: Lifetime | None = None,
    ) -> ProxyLocker[T]:
        """As `proxy`, unresolved, in a case that nobody opens by accident."""
        return ProxyLocker(
            self.proxy(obj, evict=evict, populate_target=False, session=session, lifetime=lifetime)
        )

    def owned_proxy(self, obj: T, *, populate_target: bool | None = None) -> OwnedProxy[T]:
        """As `proxy`, but the proxy owns the object, which goes with it (see `proxystore_core.ownership`)."""
        from proxystore_core.ownership import into_owned

        return into_owned(self.proxy(obj, populate_target=populate_target))

    def future(
        self,
        *,
        evict: bool = False,
        deadline: float | None = DEADLINE,
        kind: type[T] | None = None,
        session: str | None = None,
        lifetime: Lifetime | None = None,
    ) -> Future[T]:
        """A future whose result is set later, from any process, and stored here.

        Args:
            evict: let the result leave the store when a proxy of it is first resolved.
            deadline: seconds that a proxy waits at most for the result; None for no end.
            kind: the result's class, if it is known: `isinstance` of a proxy then need not wait.
            session: the session that the result belongs to; the store's own by default.
            lifetime: as for `put`.

        Raises:
            ConfigurationError: the store's connector is not `Deferred`, or an argument is wrong.
            StoreError: as `put`.
        """
        with self._living(lifetime, session) as (session, keys):
            future = Future.reserved(self, evict=evict, deadline=deadline, kind=kind, session=session)
            keys.append(future.key)
        return future

    def _proxy(self, reference: Reference, obj: T, populate_target: bool | None) -> Proxied[T]:
        if self.populate_target if populate_target is None else populate_target:
            return Proxy(reference, target=obj)
        return Proxy(reference)

    @contextlib.contextmanager
    def _living(
        self, lifetime: Lifetime | None, session: str | None
    ) -> Iterator[tuple[str | None, list[Key]]]:
        """The session of a lifetime, which is told of the keys that are stored meanwhile."""
        if lifetime is not None and not hasattr(lifetime, "session_in"):
            raise ConfigurationError(
                f"not a lifetime: {lifetime!r}", remedy="Make one, for example LeaseLifetime(seconds)."
            )
        keys: list[Key] = []
        if lifetime is None:
            yield session, keys
            return
        mine = lifetime.session_in(self)
        try:
            yield mine, keys
        finally:
            lifetime.note(self, mine, keys)


@contextlib.contextmanager
def closing_if_it_fails(connector: Connector) -> Iterator[None]:
    """Close a connector that was opened for a store which then could not be made."""
    try:
        yield
    except BaseException:
        connector.close()
        raise


def _shared_size(reference: Reference) -> int:
    """Bytes of an object that other processes of this host may want, too; 0 when the first takes it away."""
    return 0 if reference.evict else reference.size


def _check_key(key: object) -> None:
    if not issubclass(type(key), str):
        raise RefusedError(
            f"not a key of a store: {key!r}",
            remedy="A key is the text that put() returned; get_key(proxy) gives that of a proxy's object.",
        )


def _check_proxiable(obj: object) -> None:
    if obj is None or obj is True or obj is False:
        raise NotProxiableError(f"{obj!r} cannot be proxied", remedy="Pass it as it is: it is tiny.")
