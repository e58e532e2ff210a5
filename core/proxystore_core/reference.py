"""What a proxy pickles: where its object is, and just enough about it to answer without loading it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

from proxystore_core.connectors.base import Key

__all__ = ["Reference", "class_name", "loaded_class"]

# Classes that are not where they say: "builtins:function".
_UNNAMED = {
    f"builtins:{kind.__name__}": kind for kind in (types.FunctionType, types.MethodType, types.ModuleType)
}


class Reference:
    """Names one stored object; called, it loads it.

    Args:
        key: the object's key.
        recipe: how to open its store (see `proxystore_core.recipe`).
        size: the object's size, in bytes, as estimated when it was stored.
        kind: ``module:name`` of the object's class; empty when unknown.
        evict: whether the object leaves the store once it has been loaded.
    """

    __slots__ = ("__weakref__", "evict", "key", "kind", "recipe", "size")

    def __init__(self, key: Key, recipe: str, size: int = 0, kind: str = "", evict: bool = False) -> None:
        self.key = key
        self.recipe = recipe
        self.size = size
        self.kind = kind
        self.evict = evict

    def __reduce__(self) -> tuple[type[Reference], tuple[object, ...]]:
        short = (self.key, self.recipe, self.size, self.kind)
        return Reference, (*short, True) if self.evict else short

    def __call__(self) -> Any:
        """Load the object.

        Raises:
            GoneError: it was evicted, or its session is over.
            StoreError: its store cannot be opened or read; says why.
        """
        from proxystore_core.registry import store_for

        return store_for(self.recipe).load(self)

    async def fetch_async(self) -> Callable[[], Any] | None:
        """Fetch the object's bytes without keeping the event loop; a function for a thread that loads it.

        None where a call does better: of a store that cannot do that, and of what is more than a reference.
        Raises as a call.
        """
        if type(self) is not Reference:
            return None
        import asyncio

        from proxystore_core.registry import known_store, store_for

        store = known_store(self.recipe)
        if store is None:
            store = await asyncio.to_thread(store_for, self.recipe)
        return await store.fetch_async(self)

    def __eq__(self, other: object) -> bool:
        if type(other) is not Reference:
            return NotImplemented
        return self.key == other.key and self.recipe == other.recipe

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Reference({self.key!r}, {self.recipe!r})"

    @property
    def target_class(self) -> Callable[[], type[Any] | None]:
        """A function that gives the object's class if its module is loaded here, else None.

        It never imports and never loads. A reference of unknown kind does not have it: a proxy
        then asks its object, as it does with any factory that knows nothing.
        """
        if not self.kind:
            raise AttributeError("target_class: the kind of this object is not known")
        return self._loaded_class

    def _loaded_class(self) -> type[Any] | None:
        return loaded_class(self.kind)

    def describe(self) -> str:
        """What and where, for people: ``numpy.ndarray, 100.0 MB, shm://``."""
        kind = self.kind.replace("builtins:", "").replace(":", ".") or "object"
        size = float(self.size)
        for unit in ("B", "kB", "MB", "GB", "TB"):
            if size < 999.5 or unit == "TB":
                break
            size /= 1000
        return f"{kind}, {size:.3g} {unit}, {self.recipe}"


def loaded_class(kind: str) -> type[Any] | None:
    """The class that ``module:name`` names, if its module is loaded here."""
    module, _, path = kind.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else _UNNAMED.get(kind)


def class_name(obj: object) -> str:
    """``module:name`` of an object's class."""
    kind = type(obj)
    return f"{kind.__module__}:{kind.__qualname__}"
