"""What this integration takes from inside Dask, in one place, checked against the version.

These names are not public: an update of Dask may move them, and then this file changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxystore_core import MissingExtraError

try:
    import distributed
    from dask._expr import LLGExpr
    from dask._task_spec import (
        DataNode,
        Dict,
        GraphNode,
        List,
        NestedContainer,
        Task,
        Tuple,
        convert_legacy_graph,
    )
    from dask.highlevelgraph import MaterializedLayer
    from distributed.client import _MapExpr as MapExpr
    from distributed.protocol.serialize import Serialized, serialize, to_serialize
    from distributed.utils import iscoroutinefunction
except ImportError as error:
    raise MissingExtraError(
        f"the Dask integration did not load: {error}",
        remedy='Run: pip install --upgrade "proxystore-integrations[dask]".',
    ) from error

__all__ = [
    "DataNode",
    "GraphNode",
    "LLGExpr",
    "MapExpr",
    "MaterializedLayer",
    "NestedContainer",
    "Serialized",
    "Task",
    "containers",
    "convert_legacy_graph",
    "graph_expr",
    "iscoroutinefunction",
    "serialize_graph",
    "version",
]

version: str = distributed.__version__  # type: ignore[attr-defined]

containers: dict[type, Callable[[Any], Any]] = {
    list: lambda items: List(*items),
    tuple: lambda items: Tuple(*items),
    dict: Dict,
}
"""Dask's container nodes, which it evaluates, by the plain container they become."""


class _AnnotatedGraph(LLGExpr):  # type: ignore[misc]
    _parameters = ["dsk", "annotations"]  # noqa: RUF012  Dask's own

    def __dask_annotations__(self) -> Any:
        return self.operand("annotations")


def graph_expr(graph: dict[Any, Any], annotations: dict[str, Any] | None = None) -> Any:
    """A finished graph as the expression that Dask's client sends.

    Args:
        graph: nodes by key.
        annotations: by name, for each key.
    """
    return _AnnotatedGraph(graph, annotations) if annotations else LLGExpr(graph)


def serialize_graph(expr: Any) -> Serialized:
    """A graph as Dask itself serializes it for the scheduler."""
    return Serialized(*serialize(to_serialize(expr), on_error="raise"))
