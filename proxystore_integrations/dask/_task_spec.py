"""What stands in Dask's task graphs for values that are in the store.

Dask leaves its own frames out of tracebacks by the name of their file, and so ours: hence the name.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from typing import Any

from dask.tokenize import tokenize
from dask.utils import funcname
from distributed import get_worker

from proxystore_core import Proxy, Reference, StoreError
from proxystore_integrations.dask.engine import GraphNode, Task, iscoroutinefunction
from proxystore_integrations.dask.results import StoredResult, put, unclaimed
from proxystore_integrations.policy import Policy
from proxystore_integrations.transfer import load

__all__ = ["StoreTask", "StoredFunction", "StoredValue", "has_own_kind", "stored_values"]

_loaded: contextvars.ContextVar[dict[Reference, Any]] = contextvars.ContextVar("proxystore_loaded")
_no_dependencies: frozenset[Any] = frozenset()


class StoredValue(GraphNode):
    """A leaf of a graph whose value is in the store: inert on the scheduler, loaded where the task runs.

    Args:
        key: Dask's key when the leaf is a task of its own, else None.
        reference: names the stored value.
        lazy: give the task a lazy proxy instead of the value.
        item: place of the value in the list that the reference names; None where it names the value.
    """

    __slots__ = ("item", "lazy", "reference")

    def __init__(self, key: Any, reference: Reference, lazy: bool = False, item: int | None = None) -> None:
        self.item = item
        self.key = key
        self._dependencies = _no_dependencies
        self.reference = reference
        self.lazy = lazy

    def __call__(self, values: Any = ()) -> Any:
        if self.lazy:
            return Proxy(self.reference)
        return _load(self)

    def __reduce__(self) -> tuple[type[StoredValue], tuple[Any, ...]]:
        if self.item is None:
            return StoredValue, (self.key, self.reference, self.lazy)
        return StoredValue, (self.key, self.reference, self.lazy, self.item)

    def __repr__(self) -> str:
        return f"<stored {self.reference.describe()}>"

    def __sizeof__(self) -> int:
        return 200

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return type(self).__name__, self.reference.recipe, self.reference.key, self.item

    def copy(self) -> StoredValue:
        return StoredValue(self.key, self.reference, self.lazy, self.item)

    def substitute(self, subs: Any, key: Any = None) -> StoredValue:
        if key is None or key == self.key:
            return self
        return StoredValue(key, self.reference, self.lazy, self.item)


class StoredFunction:
    """A task's function that is in the store because it carries large values.

    Dask sees what it asks a function for: its name, and whether it is a coroutine function.

    Args:
        reference: names the stored function.
        name: what Dask shows for it.
        is_coroutine: whether it is a coroutine function.
        item: as for `StoredValue`.
    """

    lazy = False

    def __init__(self, reference: Reference, name: str, is_coroutine: bool, item: int | None = None) -> None:
        self.item = item
        self.reference = reference
        self.__name__ = name
        self.__tornado_coroutine__ = is_coroutine  # where `distributed` looks

    @classmethod
    def of(cls, function: Any, reference: Reference, item: int | None = None) -> StoredFunction:
        """What stands for a function that is stored under a reference."""
        return cls(reference, funcname(function), iscoroutinefunction(function), item)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _load(self)(*args, **kwargs)

    def __reduce__(self) -> tuple[type[StoredFunction], tuple[Any, ...]]:
        return StoredFunction, (self.reference, self.__name__, self.__tornado_coroutine__, self.item)

    def __repr__(self) -> str:
        return f"<stored {self.__name__}>"

    def __sizeof__(self) -> int:
        return 200

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return type(self).__name__, self.reference.recipe, self.reference.key, self.item


class StoreTask(GraphNode):
    """A task that takes values from the store, or puts its result there.

    All references of one call are loaded together before the function runs, each once, so that an
    argument that appears twice is one object, as it is without a store.

    Args:
        inner: Dask's own task.
        references: of the values to load before it runs.
        results: recipe, session and threshold (bytes) for storing the result, or None.
    """

    __slots__ = ("inner", "references", "results")

    def __init__(
        self,
        inner: GraphNode,
        references: tuple[Reference, ...] = (),
        results: tuple[str, str, int] | None = None,
    ) -> None:
        self.key = inner.key
        self._dependencies = inner._dependencies
        self.inner = inner
        self.references = references
        self.results = results

    def __call__(self, values: Any = ()) -> Any:
        if self.inner.is_coro:
            return self._soon(values)
        result = self._called(*self._filled(values))
        return result if self.results is None else self._outgoing(result)

    async def _soon(self, values: Any) -> Any:
        # In the worker's event loop, which has other things to do while bytes move.
        result = await self._called(*await asyncio.to_thread(self._filled, values))
        return result if self.results is None else await asyncio.to_thread(self._outgoing, result)

    def _filled(self, values: Any) -> tuple[Any, dict[Reference, Any]]:
        """What the task depends on, as values, and all objects that it takes from the store."""
        stored = {key: value.reference for key, value in dict(values).items() if type(value) is StoredResult}
        wanted = (*self.references, *stored.values())
        loaded = dict(zip(wanted, load(wanted), strict=True)) if wanted else {}
        if stored:
            values = {**values, **{key: loaded[reference] for key, reference in stored.items()}}
        return values, loaded

    def _called(self, values: Any, loaded: dict[Reference, Any]) -> Any:
        token = _loaded.set(loaded)
        try:
            return self.inner(values)
        finally:
            _loaded.reset(token)

    def _outgoing(self, result: Any) -> Any:
        assert self.results is not None
        recipe, session, threshold = self.results
        if not _in_worker() or type(result) is Proxy or not Policy(threshold).over(result):
            return result
        # A store that fails leaves the result where it is: in the worker's memory, as without us.
        try:
            reference = put(result, recipe, session, self.key, "result")
        except StoreError:
            return result
        if reference is None:
            return result
        unclaimed[self.key] = stored = StoredResult(reference, session, type(result))
        return stored

    @property
    def is_coro(self) -> bool:
        return bool(self.inner.is_coro)

    @property
    def data_producer(self) -> bool:
        return bool(self.inner.data_producer)

    @property
    def block_fusion(self) -> bool:
        return bool(self.inner.block_fusion)

    def __reduce__(self) -> tuple[type[StoreTask], tuple[Any, ...]]:
        return StoreTask, (self.inner, self.references, self.results)

    def __repr__(self) -> str:
        return repr(self.inner)

    def __dask_tokenize__(self) -> Any:
        return tokenize(self.inner)

    def copy(self) -> StoreTask:
        return StoreTask(self.inner.copy(), self.references, self.results)

    def substitute(self, subs: Any, key: Any = None) -> StoreTask:
        return StoreTask(self.inner.substitute(subs, key), self.references, self.results)


def _in_worker() -> bool:
    """Whether this is the worker itself: a client runs a task again to look at it, a pool beside it."""
    try:
        get_worker()
    except ValueError:
        return False
    return True


def _load(stored: StoredValue | StoredFunction) -> Any:
    loaded, reference = _loaded.get({}), stored.reference
    value = loaded[reference] if reference in loaded else reference()
    return value if stored.item is None else value[stored.item]


def has_own_kind(node: GraphNode) -> bool:
    """Whether a part of Dask looks for the class of this task (a shuffle's barrier): it stays what it is."""
    return isinstance(node, Task) and type(node).__module__ != Task.__module__


def stored_values(node: Any) -> Iterator[StoredValue | StoredFunction]:
    """The stored values, and functions, of a task."""
    if type(node) is StoredValue:
        yield node
    elif type(node) is StoreTask:
        yield from stored_values(node.inner)
    elif isinstance(node, Task):
        if type(node.func) is StoredFunction:
            yield node.func
        for part in (*node.args, *node.kwargs.values()):
            if isinstance(part, (GraphNode, dict)):
                yield from stored_values(part)
    elif type(node) is dict:  # the inner graph of fused tasks
        for part in node.values():
            if isinstance(part, GraphNode):
                yield from stored_values(part)
