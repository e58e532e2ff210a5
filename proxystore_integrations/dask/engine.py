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
    from dask._task_spec import DataNode, Dict, GraphNode, List, NestedContainer, Task, Tuple
    from distributed.client import _MapExpr as MapExpr
    from distributed.protocol.serialize import Serialized, serialize, to_serialize
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
    "NestedContainer",
    "Serialized",
    "Task",
    "containers",
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


def serialize_graph(expr: Any) -> Serialized:
    """A graph as Dask itself serializes it for the scheduler."""
    return Serialized(*serialize(to_serialize(expr), on_error="raise"))
