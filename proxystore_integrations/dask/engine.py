"""What this integration takes from inside Dask, in one place, checked against the version.

These names are not public: an update of Dask may move them, and then this file changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxystore_core import MissingExtraError
from proxystore_integrations.releases import Releases

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
        TaskRef,
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

RELEASES = Releases("Dask", "dask", (2026, 8), (2026, 8))

_METHODS = {
    distributed.Client: (
        "_close _gather _gather_remote _graph_to_futures _register_scheduler_plugin _release_key _scatter "
        "_send_to_scheduler _start"
    ),
    distributed.Scheduler: "broadcast client_releases_keys gather register_worker_plugin update_graph",
    distributed.Worker: "_get_client _initialized_clients get_data update_data",
    Task: "args func has_subgraph is_coro kwargs substitute",
}

__all__ = [
    "RELEASES",
    "DataNode",
    "GraphNode",
    "LLGExpr",
    "MapExpr",
    "MaterializedLayer",
    "NestedContainer",
    "Serialized",
    "Task",
    "TaskRef",
    "check_release",
    "containers",
    "convert_legacy_graph",
    "graph_expr",
    "iscoroutinefunction",
    "serialize_graph",
    "to_serialize",
    "version",
]

version: str = distributed.__version__


def check_release(release: str) -> None:
    """Check Dask's release and the names that are used of its inside.

    Args:
        release: Dask's version.

    Raises:
        MissingExtraError: it is too old, or a name is not there any more; says which.
    """
    RELEASES.check(release, _METHODS)


check_release(version)

containers: dict[type, Callable[[Any], Any]] = {
    list: lambda items: List(*items),
    tuple: lambda items: Tuple(*items),
    dict: Dict,
}
"""Dask's container nodes, which it evaluates, by the plain container they become."""


class _AnnotatedGraph(LLGExpr):
    _parameters = ["dsk", "annotations"]  # noqa: RUF012  Dask's own

    def __dask_annotations__(self) -> Any:
        return self.operand("annotations")  # type: ignore[no-untyped-call]


def graph_expr(graph: dict[Any, Any], annotations: dict[str, Any] | None = None) -> Any:
    """A finished graph as the expression that Dask's client sends.

    Args:
        graph: nodes by key.
        annotations: by name, for each key.
    """
    kind: Any = _AnnotatedGraph
    return kind(graph, annotations) if annotations else LLGExpr(graph)


def serialize_graph(expr: Any) -> Serialized:
    """A graph as Dask itself serializes it for the scheduler."""
    return Serialized(*serialize(to_serialize(expr), on_error="raise"))
