"""Large values on their way into Dask's task graphs."""

from __future__ import annotations

import copy
import functools
import io
import itertools
from collections.abc import Iterable
from typing import Any

import cloudpickle

from proxystore_core import Reference
from proxystore_integrations import ledger
from proxystore_integrations.dask._task_spec import StoredFunction, StoredValue
from proxystore_integrations.dask.engine import (
    DataNode,
    GraphNode,
    LLGExpr,
    MapExpr,
    MaterializedLayer,
    NestedContainer,
    Serialized,
    Task,
    TaskRef,
    containers,
    convert_legacy_graph,
    graph_expr,
    serialize_graph,
)
from proxystore_integrations.functions import carries_large
from proxystore_integrations.policy import Policy
from proxystore_integrations.transfer import Outgoing

__all__ = ["DaskOutgoing", "StoredValue", "substitute_graph"]


class DaskOutgoing(Outgoing):
    """Values on their way into a Dask graph.

    Args:
        lazy: give tasks lazy proxies instead of values (``inputs = "proxy"``).
    """

    rebuilds_once = False

    def __init__(self, *args: Any, lazy: bool = False) -> None:
        super().__init__(*args)
        self.lazy = lazy
        self.unites = not lazy

    def carrier(self, reference: Reference, item: int | None = None) -> StoredValue:
        return StoredValue(None, reference, self.lazy, item)

    def inside(self, value: Any) -> Iterable[Any] | None:
        if not isinstance(value, GraphNode):
            return None
        if isinstance(value, Task):
            inner = value.args[0].values() if value.has_subgraph() else ()
            return value.func, *inner, *value.args[len(inner) and 1 :], *value.kwargs.values()
        return (value.value,) if type(value) is DataNode else ()

    def node(self, node: Any) -> Any:
        """A whole node of a graph with its large values replaced, or itself."""
        return self.together((node,), lambda: self.substitute(node))

    def rebuilt(self, container: Any, items: Any) -> Any:
        # Dask evaluates its own container nodes; a plain container it hands over as it is.
        if type(items) is dict and any(isinstance(key, TaskRef) for key in items):
            # A key that is a future stays one, and the task does not wait for it.
            return Task(None, functools.partial(_dict, tuple(items)), containers[list](list(items.values())))
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
        """The task with its large function and arguments replaced, or itself."""
        func = self.function(task.func)
        inner: Any = ()
        if task.has_subgraph():  # fused tasks: a plain dict of nodes
            inner = ({key: self.substitute(node) for key, node in task.args[0].items()},)
            if all(inner[0][key] is node for key, node in task.args[0].items()):
                inner = task.args[:1]
        args = (*inner, *self.substitute_all(task.args[len(inner) :]))
        kwargs = {name: self.substitute(value) for name, value in task.kwargs.items()}
        if (
            func is task.func
            and all(new is old for new, old in zip(args, task.args, strict=True))
            and all(kwargs[name] is value for name, value in task.kwargs.items())
        ):
            return task
        task = copy.copy(task)
        task.func, task.args, task.kwargs, task._repr = func, args, kwargs, None
        return task

    def function(self, function: Any) -> Any:
        """The function itself, or what stands for it when it carries large values."""
        if (one := self._united.get(id(function))) is not None:
            stored = one[1]
            return (
                StoredFunction.of(function, stored.reference, stored.item)
                if stored is not function
                else function
            )
        if not carries_large(function, self.policy):
            return function
        reference = self.reference(function)
        if reference is None:
            return function
        self._made.append(reference)
        return StoredFunction.of(function, reference)


def _dict(keys: tuple[Any, ...], values: list[Any]) -> dict[Any, Any]:
    return dict(zip(keys, values, strict=True))


def _identity(value: Any) -> Any:
    return value


class _Pickled(Policy, frozen=True):
    """Large is what pickles large; exact, and as costly as pickling."""

    def over(self, value: object) -> bool:
        if super().over(value):
            return True
        buffers: list[Any] = []
        try:
            size = len(cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append))
        except Exception:  # Dask meets the same and says so
            return False
        return bool(size + sum(buffer.raw().nbytes for buffer in buffers) >= self.threshold)


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
        visible = [
            *expr.kwargs.values(),
            *(item for items in expr.iterables for item in itertools.islice(items, 1)),
        ]
    else:
        visible = []
    if not any(map(outgoing.plainly_large, visible)):
        serialized = serialize_graph(expr)
        size = sum(memoryview(frame).nbytes for frame in serialized.frames)
        if size < outgoing.policy.threshold:
            if ledger.book is not None:
                ledger.book.by_value(outgoing.engine, "small", size)
            return serialized
    if kind is LLGExpr:
        graph = convert_legacy_graph(graph)
        nodes = {key: outgoing.node(node) for key, node in graph.items()}
        if len(graph) == 1 and not outgoing.references:
            # The graph is large and nothing in it looks so: it is hidden deep in objects.
            outgoing.policy = _Pickled(outgoing.policy.threshold)
            nodes = {key: outgoing.node(node) for key, node in graph.items()}
        return LLGExpr(nodes, _determ_token=expr._determ_token)
    return _substitute_map(expr, outgoing) if kind is MapExpr else _substitute_pickled(expr, outgoing)


def _substitute_map(expr: Any, outgoing: DaskOutgoing) -> Any:
    changed = object.__new__(kind := type(expr))
    changed.__dict__.update(expr.__dict__)
    operands = dict(zip(kind._parameters, expr.operands, strict=False))

    def substitute() -> dict[str, Any]:
        return {
            "func": outgoing.function(expr.func),
            "iterables": [outgoing.substitute_all(items) for items in expr.iterables],
            "kwargs": {name: outgoing.substitute(value) for name, value in expr.kwargs.items()},
        }

    rows = list(zip(*expr.iterables, strict=False))
    operands |= outgoing.together((expr.func, *expr.kwargs.values()), substitute, rows)
    changed.operands = list(operands.values())
    return changed


def _substitute_pickled(expr: Any, outgoing: DaskOutgoing) -> Any:
    """Substitute while pickling: lazy layers stay lazy, and only tasks and leaves are looked into.

    Where large data is in a layer itself (a frame that is cut into partitions when the graph is made),
    the graph is made here and not by the scheduler.
    """
    file = io.BytesIO()
    buffers: list[Any] = []
    pickler = _GraphPickler(file, outgoing, buffers.append)
    try:
        pickler.dump(expr)
    except _LargeLayer:
        graph = convert_legacy_graph(expr.__dask_graph__())
        return graph_expr(
            {key: outgoing.node(node) for key, node in graph.items()}, expr.__dask_annotations__()
        )
    raw = [buffer.raw() for buffer in buffers]
    return Serialized(
        {"serializer": "pickle", "writeable": tuple(not view.readonly for view in raw)},
        [file.getvalue(), *raw],
    )


class _LargeLayer(Exception):  # noqa: N818
    """Large data was met outside of any task."""


class _GraphPickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, outgoing: DaskOutgoing, buffer_callback: Any) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._outgoing = outgoing
        self._kept: list[Any] = []  # the pickler's memo goes by id

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if isinstance(obj, GraphNode):
            changed = self._outgoing.node(obj)
            if changed is not obj:
                self._kept.append(changed)
                return changed.__reduce_ex__(5)
            return NotImplemented
        if kind is MaterializedLayer:
            if any(self._large(value) for value in obj.mapping.values() if not isinstance(value, GraphNode)):
                raise _LargeLayer
        elif (
            not isinstance(obj, type)
            and not kind.__module__.startswith(("dask.", "distributed."))
            and self._large(obj)
        ):
            raise _LargeLayer
        return super().reducer_override(obj)

    def _large(self, value: Any) -> bool:
        return self._outgoing.policy.over(value)
