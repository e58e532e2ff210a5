"""What `Client.scatter` sends: Dask's keys, and the large values in the store."""

from __future__ import annotations

import uuid
from typing import Any

from dask.tokenize import tokenize

from proxystore_integrations.dask.graph import DaskOutgoing
from proxystore_integrations.dask.results import StoredResult

__all__ = ["carried", "named"]


def carried(values: dict[Any, Any], outgoing: DaskOutgoing) -> dict[Any, Any]:
    """The values, the large ones in the store."""
    references = {key: outgoing.whole(value) for key, value in values.items()}
    return {
        key: value
        if (reference := references[key]) is None
        else StoredResult(reference, outgoing.sharing.session)
        for key, value in values.items()
    }


def named(data: Any, hash: bool) -> tuple[dict[Any, Any], Any]:
    """What is scattered under Dask's key for each value, and how the futures are handed back."""
    kind = type(data)
    if kind is dict:
        return data, lambda futures: futures
    several = (
        list(data) if kind in (list, tuple, set, frozenset, range) or hasattr(kind, "__next__") else None
    )
    is_namedtuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    if is_namedtuple:
        several = list(data)
    values = [data] if several is None else several
    keys = [f"{type(value).__name__}-{tokenize(value) if hash else uuid.uuid4().hex}" for value in values]

    def rebuild(futures: dict[Any, Any]) -> Any:
        ordered = [futures[key] for key in keys]
        if several is None:
            return ordered[0]
        if is_namedtuple:
            return kind(*ordered)
        return kind(ordered) if kind in (tuple, set, frozenset) else ordered

    return dict(zip(keys, values, strict=True)), rebuild
