"""The stores of this process, by name and by configuration."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from proxystore_core import forks
from proxystore_core.connectors.base import Key
from proxystore_core.errors import ConfigurationError
from proxystore_core.flight import Flights
from proxystore_core.operators import PROXIES
from proxystore_core.proxy import Proxy, get_factory
from proxystore_core.recipe import Recipe, open_connector
from proxystore_core.reference import Reference

if TYPE_CHECKING:
    from proxystore_core.store import Store

__all__ = [
    "get_key",
    "get_or_create_store",
    "get_store",
    "known_store",
    "note_store",
    "register_store",
    "store_for",
    "store_registration",
    "unregister_store",
]

_by_name: dict[str, Store[Any]] = {}
_by_recipe: dict[str, Store[Any]] = {}
_open_stores: dict[str, list[weakref.ref[Store[Any]]]] = {}
_lock = forks.rlock()
_openings = Flights()


def note_store(store: Store[Any]) -> None:
    """Let the proxies of an open store find it while it lives, registered or not.

    Otherwise they would open another one, which may lack what a reference never carries (a password).
    """
    with _lock:
        alive = [ref for ref in _open_stores.get(store.recipe, ()) if ref() is not None]
        _open_stores[store.recipe] = [*alive, weakref.ref(store)]


def _noted(recipe: str) -> Store[Any] | None:
    """The first of the open stores of a recipe."""
    return next((store for ref in _open_stores.get(recipe, ()) if (store := ref()) is not None), None)


def register_store(store: Store[Any], exist_ok: bool = False) -> None:
    """Let proxies and `get_store` find a store in this process.

    Stores that differ in configuration are told apart even when their names are equal, so a proxy
    always reaches the store it came from.

    Args:
        store: the store.
        exist_ok: replace a store that is registered under the same name.

    Raises:
        ConfigurationError: the name is taken and ``exist_ok`` is false.
    """
    with _lock:
        taken = _by_name.get(store.name)
        if taken is not None and taken is not store and not exist_ok:
            raise ConfigurationError(
                f"a store named {store.name!r} is registered already ({taken!r})",
                remedy="Choose another name, close the other store, or pass exist_ok=True.",
            )
        _by_name[store.name] = store
        _by_recipe[store.recipe] = store


def unregister_store(store: Store[Any] | str) -> None:
    """Forget a store, given itself or its name; an unknown one is success."""
    with _lock:
        known = _by_name.get(store) if isinstance(store, str) else store
        for table in (_by_name, _by_recipe):
            for key in [key for key, value in table.items() if value is known]:
                del table[key]
        if known is not None:
            others = [ref for ref in _open_stores.pop(known.recipe, ()) if ref() not in (None, known)]
            if others:
                _open_stores[known.recipe] = others


def get_store(name: str | Proxy[Any]) -> Store[Any] | None:
    """The registered store of that name, or the store that a proxy's object is in.

    Returns:
        None when this process has no store of that name.

    Raises:
        ConfigurationError: the proxy does not come from a store.
    """
    if type(name) in PROXIES:
        return store_for(_reference(name).recipe)  # type: ignore[arg-type]
    with _lock:
        known = _by_name.get(str(name))
        # A store that was opened because a proxy came by is known by its name, too.
        return known or next((store for store in _by_recipe.values() if store.name == name), None)


def get_key(proxy: Proxy[Any]) -> Key:
    """The key of a proxy's object in its store. Never loads.

    Raises:
        ConfigurationError: the proxy does not come from a store.
        TypeError: not a proxy.
    """
    return _reference(proxy).key


def _reference(proxy: Proxy[Any]) -> Reference:
    factory = get_factory(proxy)
    if not isinstance(factory, Reference):
        raise ConfigurationError(
            f"this proxy does not come from a store: its factory is {factory!r}",
            remedy="Make it with Store.proxy().",
        )
    return factory


def get_or_create_store(config: Mapping[str, Any], register: bool = True) -> Store[Any]:
    """The registered store of an equal configuration, or a new one.

    Args:
        config: what `Store.config` returned.
        register: register the store if it is new.
    """
    from proxystore_core.store import Store

    store = Store.from_config(config)
    with _lock:
        known = _by_recipe.get(store.recipe)
        if known is None and register:
            register_store(store, exist_ok=True)
    if known is not None:
        store.close()
        return known
    return store


def known_store(recipe: str) -> Store[Any] | None:
    """The store of a recipe if it is open here."""
    return _by_recipe.get(recipe) or _noted(recipe)


def store_for(recipe: str) -> Store[Any]:
    """The store of a recipe: an open one, else opened now and kept for this process's life.

    Raises:
        StoreError: it cannot be opened.
    """
    known = _by_recipe.get(recipe)
    return _openings.run(recipe, lambda: _open(recipe)) if known is None else known


def _open(recipe: str) -> Store[Any]:
    from proxystore_core.store import Store, closing_if_it_fails

    parsed = Recipe.parse(recipe)
    with _lock:
        known = _by_recipe.get(recipe) or _noted(recipe)
    if known is not None:
        return known
    connector = open_connector(parsed.url)
    with closing_if_it_fails(connector):
        store = Store.from_recipe(parsed, connector)
    with _lock:
        first = _by_recipe.setdefault(recipe, store)
    if first is not store:
        store.close()
    return first


@contextlib.contextmanager
def store_registration(*stores: Store[Any], exist_ok: bool = False) -> Iterator[None]:
    """Register stores for the length of a with-block."""
    try:
        for store in stores:
            register_store(store, exist_ok=exist_ok)
        yield
    finally:
        for store in stores:
            unregister_store(store)
