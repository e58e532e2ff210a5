"""Proxies that stand for objects kept in a store: pass the reference, load the object where it is used.

Example:
    from proxystore_core import Store

    with Store.from_url("shm://", name="example", register=True) as store:
        proxy = store.proxy(data)
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxystore_core.errors import (
        ConfigurationError as ConfigurationError,
    )
    from proxystore_core.errors import (
        CorruptError as CorruptError,
    )
    from proxystore_core.errors import (
        DeadlineError as DeadlineError,
    )
    from proxystore_core.errors import (
        FullError as FullError,
    )
    from proxystore_core.errors import (
        GoneError as GoneError,
    )
    from proxystore_core.errors import (
        MissingExtraError as MissingExtraError,
    )
    from proxystore_core.errors import (
        RefusedError as RefusedError,
    )
    from proxystore_core.errors import (
        SerializationError as SerializationError,
    )
    from proxystore_core.errors import (
        StoreError as StoreError,
    )
    from proxystore_core.errors import (
        UnreachableError as UnreachableError,
    )
    from proxystore_core.futures import Future as Future
    from proxystore_core.lifetimes import ContextLifetime as ContextLifetime
    from proxystore_core.lifetimes import LeaseLifetime as LeaseLifetime
    from proxystore_core.lifetimes import Session as Session
    from proxystore_core.lifetimes import StaticLifetime as StaticLifetime
    from proxystore_core.ownership import OwnedProxy as OwnedProxy
    from proxystore_core.ownership import RefMutProxy as RefMutProxy
    from proxystore_core.ownership import RefProxy as RefProxy
    from proxystore_core.ownership import borrow as borrow
    from proxystore_core.ownership import clone as clone
    from proxystore_core.ownership import into_owned as into_owned
    from proxystore_core.ownership import mut_borrow as mut_borrow
    from proxystore_core.ownership import update as update
    from proxystore_core.pins import Pins as Pins
    from proxystore_core.proxy import Proxy as Proxy
    from proxystore_core.proxy import ProxyLocker as ProxyLocker
    from proxystore_core.proxy import extract as extract
    from proxystore_core.proxy import get_factory as get_factory
    from proxystore_core.proxy import is_resolved as is_resolved
    from proxystore_core.proxy import resolve as resolve
    from proxystore_core.proxy import resolve_async as resolve_async
    from proxystore_core.recipe import check_url as check_url
    from proxystore_core.recipe import register_connector as register_connector
    from proxystore_core.reference import Reference as Reference
    from proxystore_core.registry import get_key as get_key
    from proxystore_core.registry import get_or_create_store as get_or_create_store
    from proxystore_core.registry import get_store as get_store
    from proxystore_core.registry import register_store as register_store
    from proxystore_core.registry import store_for as store_for
    from proxystore_core.registry import store_registration as store_registration
    from proxystore_core.registry import unregister_store as unregister_store
    from proxystore_core.sharing import Sharing as Sharing
    from proxystore_core.sizeof import register_sizeof as register_sizeof
    from proxystore_core.sizeof import sizeof as sizeof
    from proxystore_core.store import NotProxiableError as NotProxiableError
    from proxystore_core.store import Store as Store

_MODULES = {
    "errors": (
        "ConfigurationError CorruptError DeadlineError FullError GoneError MissingExtraError "
        "RefusedError SerializationError StoreError UnreachableError"
    ),
    "futures": "Future",
    "lifetimes": "ContextLifetime LeaseLifetime Session StaticLifetime",
    "ownership": "OwnedProxy RefMutProxy RefProxy borrow clone into_owned mut_borrow update",
    "pins": "Pins",
    "proxy": "Proxy ProxyLocker extract get_factory is_resolved resolve resolve_async",
    "recipe": "check_url register_connector",
    "reference": "Reference",
    "registry": (
        "get_key get_or_create_store get_store register_store store_for store_registration unregister_store"
    ),
    "sharing": "Sharing",
    "sizeof": "register_sizeof sizeof",
    "store": "NotProxiableError Store",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """Python names each submodule here once it is imported; the function `sizeof` stays what it is."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
