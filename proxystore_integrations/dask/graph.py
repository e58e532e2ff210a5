"""Stored values inside Dask's task graphs."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import io
from collections.abc import Awaitable, Iterator
from typing import Any

import cloudpickle
from dask.tokenize import tokenize

from proxystore_core import Proxy, Reference, StoreError, store_for
from proxystore_integrations.dask.engine import (
    DataNode,
    GraphNode,
    LLGExpr,
    MapExpr,
    NestedContainer,
    Serialized,
    Task,
    containers,
    serialize_graph,
)
from proxystore_integrations.policy import Policy
from proxystore_integrations.transfer import Outgoing, load

__all__ = ["DaskOutgoing", "StoreTask", "StoredResult", "StoredValue", "stored_values", "substitute_graph"]

_loaded: contextvars.ContextVar[dict[Reference, Any]] = contextvars.ContextVar("proxystore_loaded")
_no_dependencies: frozenset[Any] = frozenset()


class StoredValue(GraphNode):
    """A leaf of a graph whose value is in the store: inert on the scheduler, loaded where the task runs.

    Args:
        key: Dask's key when the leaf is a task of its own, else None.
        reference: names the stored value.
        lazy: give the task a lazy proxy instead of the value.
    """

    __slots__ = ("lazy", "reference")

    def __init__(self, key: Any, reference: Reference, lazy: bool = False) -> None:
        self.key = key
        self._dependencies = _no_dependencies
        self.reference = reference
        self.lazy = lazy

    def __call__(self, values: Any = ()) -> Any:
        if self.lazy:
            return Proxy(self.reference)
        loaded = _loaded.get({})
        return loaded[self.reference] if self.reference in loaded else self.reference()

    def __reduce__(self) -> tuple[type[StoredValue], tuple[Any, ...]]:
        return StoredValue, (self.key, self.reference, self.lazy)

    def __repr__(self) -> str:
        return f"<stored {self.reference.describe()}>"

    def __sizeof__(self) -> int:
        return 200

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return type(self).__name__, self.reference.recipe, self.reference.key

    def copy(self) -> StoredValue:
        return StoredValue(self.key, self.reference, self.lazy)

    def substitute(self, subs: Any, key: Any = None) -> StoredValue:
        return self if key is None or key == self.key else StoredValue(key, self.reference, self.lazy)


class StoredResult:
    """A value that is in the store: what a worker keeps in its memory, or is sent, in its place.

    Args:
        reference: names the value.
        session: the session that it belongs to.
    """

    __slots__ = ("reference", "session")

    def __init__(self, reference: Reference, session: str) -> None:
        self.reference = reference
        self.session = session

    def __reduce__(self) -> tuple[type[StoredResult], tuple[Reference, str]]:
        return StoredResult, (self.reference, self.session)

    def __repr__(self) -> str:
        return f"<stored {self.reference.describe()}>"

    def __sizeof__(self) -> int:
        return 200


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
        stored = {key: value.reference for key, value in dict(values).items() if type(value) is StoredResult}
        wanted = (*self.references, *stored.values())
        loaded = dict(zip(wanted, load(wanted), strict=True)) if wanted else {}
        if stored:
            values = {**values, **{key: loaded[reference] for key, reference in stored.items()}}
        token = _loaded.set(loaded)
        try:
            result = self.inner(values)
        finally:
            _loaded.reset(token)
        if self.results is None:
            return result
        return self._awaited(result) if self.inner.is_coro else self._outgoing(result)

    async def _awaited(self, result: Awaitable[Any]) -> Any:
        return self._outgoing(await result)

    def _outgoing(self, result: Any) -> Any:
        assert self.results is not None
        recipe, session, threshold = self.results
        if type(result) is Proxy or not Policy(threshold).over(result):
            return result
        # A store that fails leaves the result where it is: in the worker's memory, as without us.
        with contextlib.suppress(StoreError):
            return StoredResult(store_for(recipe).reference(result, session=session), session)
        return result

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


def stored_values(node: Any) -> Iterator[StoredValue]:
    """The stored values among a task's arguments."""
    if type(node) is StoredValue:
        yield node
    elif type(node) is StoreTask:
        yield from stored_values(node.inner)
    elif isinstance(node, Task):
        for part in (*node.args, *node.kwargs.values()):
            if isinstance(part, (GraphNode, dict)):
                yield from stored_values(part)
    elif type(node) is dict:  # the inner graph of fused tasks
        for part in node.values():
            if isinstance(part, GraphNode):
                yield from stored_values(part)


class DaskOutgoing(Outgoing):
    """Values on their way into a Dask graph.

    Args:
        lazy: give tasks lazy proxies instead of values (``inputs = "proxy"``).
    """

    lazy = False

    def carrier(self, reference: Reference) -> StoredValue:
        return StoredValue(None, reference, self.lazy)

    def rebuilt(self, container: Any, items: Any) -> Any:
        # Dask evaluates its own container nodes; a plain container it hands over as it is.
        if type(items) is dict and any(isinstance(value, Task) for value in container.values()):
            return items  # the inner graph of fused tasks
        return containers[type(items)](items if type(items) is dict else list(items))

    def engine_value(self, value: Any) -> Any:
        if not isinstance(value, GraphNode):
            return NotImplemented
        if isinstance(value, Task):
            return self.task(value)
        if type(value) is DataNode:
            carried = self.substitute(value.value)
            if type(carried) is StoredValue:
                return carried.substitute({}, value.key)
            if isinstance(carried, NestedContainer):
                return Task(value.key, _identity, carried)
        return value

    def task(self, task: Task) -> Task:
        """The task with its large arguments replaced, or itself."""
        args = tuple(self.substitute_all(task.args))
        kwargs = {name: self.substitute(value) for name, value in task.kwargs.items()}
        if all(new is old for new, old in zip(args, task.args, strict=True)) and all(
            kwargs[name] is value for name, value in task.kwargs.items()
        ):
            return task
        task = copy.copy(task)
        task.args, task.kwargs, task._repr = args, kwargs, None
        return task


def _identity(value: Any) -> Any:
    return value


def substitute_graph(expr: Any, outgoing: DaskOutgoing) -> Any:
    """Dask's expression with its large values in the store; keys and names stay what they were.

    Dask serializes every graph anyway. Unless a value is large at first sight, that is done first,
    and a graph that turns out small is sent as it is: nothing was looked into for nothing.

    Args:
        expr: what Dask's client is about to send to the scheduler.
        outgoing: collects the references.

    Returns:
        An expression, or its serialized form.
    """
    kind = type(expr)
    if kind is LLGExpr:
        graph = expr.operand("dsk")
        tasks = graph.values() if len(graph) == 1 else ()
        visible = [
            part for task in tasks if type(task) is Task for part in (*task.args, *task.kwargs.values())
        ]
    elif kind is MapExpr:
        expr.keys  # noqa: B018  made from the values, before they are replaced
        visible = [*expr.kwargs.values(), *(items[0] for items in expr.iterables if len(items))]
    else:
        visible = []
    if not any(map(outgoing.plainly_large, visible)):
        serialized = serialize_graph(expr)
        if sum(memoryview(frame).nbytes for frame in serialized.frames) < outgoing.policy.threshold:
            return serialized
    if kind is LLGExpr:
        return LLGExpr(
            {key: outgoing.substitute(node) for key, node in graph.items()}, _determ_token=expr._determ_token
        )
    return _substitute_map(expr, outgoing) if kind is MapExpr else _substitute_pickled(expr, outgoing)


def _substitute_map(expr: Any, outgoing: DaskOutgoing) -> Any:
    iterables = [outgoing.substitute_all(items) for items in expr.iterables]
    kwargs = {name: outgoing.substitute(value) for name, value in expr.kwargs.items()}
    changed = object.__new__(kind := type(expr))
    changed.__dict__.update(expr.__dict__)
    changed.operands = list(expr.operands)
    changed.operands[kind._parameters.index("iterables")] = iterables
    changed.operands[kind._parameters.index("kwargs")] = kwargs
    return changed


def _substitute_pickled(expr: Any, outgoing: DaskOutgoing) -> Serialized:
    """Substitute while pickling: lazy layers stay lazy, and only tasks and leaves are looked into."""
    file = io.BytesIO()
    buffers: list[Any] = []
    _GraphPickler(file, outgoing, buffers.append).dump(expr)
    raw = [buffer.raw() for buffer in buffers]
    return Serialized(
        {"serializer": "pickle", "writeable": tuple(not view.readonly for view in raw)},
        [file.getvalue(), *raw],
    )


class _GraphPickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, outgoing: DaskOutgoing, buffer_callback: Any) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._outgoing = outgoing
        self._kept: list[Any] = []  # the pickler's memo goes by id

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, GraphNode):
            changed = self._outgoing.substitute(obj)
            if changed is not obj:
                self._kept.append(changed)
                return changed.__reduce_ex__(5)
            return NotImplemented
        return super().reducer_override(obj)
