"""Two picklers, Ray's and the store's: what both know, and what is for Ray's alone."""

from __future__ import annotations

import contextlib
import copyreg
import threading
from collections.abc import Callable, Iterator
from typing import Any

from proxystore_core import SerializationError
from proxystore_integrations.ray.engine import OWN, CloudPickler, our_pickle, rays_pickle

__all__ = ["refusing", "share_pickle_state"]

_storing = threading.local()
_refused: set[type] = set()
_known: set[type] = set()  # that need no other look


def share_pickle_state() -> None:
    """Let cloudpickle and Ray's copy of it know the same classes.

    What ``__main__`` defines travels by value. With two memories, a worker would make two classes of one:
    one for the function that names it, by Ray, and one for an argument of that class, by us. Idempotent.
    """
    if our_pickle._DYNAMIC_CLASS_TRACKER_BY_ID is rays_pickle._DYNAMIC_CLASS_TRACKER_BY_ID:
        return
    for name in ("_DYNAMIC_CLASS_TRACKER_BY_CLASS", "_DYNAMIC_CLASS_TRACKER_BY_ID"):
        table = getattr(rays_pickle, name)
        for key, value in getattr(our_pickle, name).items():
            table.setdefault(key, value)
        setattr(our_pickle, name, table)
    our_pickle._DYNAMIC_CLASS_TRACKER_LOCK = rays_pickle._DYNAMIC_CLASS_TRACKER_LOCK
    rays_pickle._PICKLE_BY_VALUE_MODULES |= our_pickle._PICKLE_BY_VALUE_MODULES
    our_pickle._PICKLE_BY_VALUE_MODULES = rays_pickle._PICKLE_BY_VALUE_MODULES


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """While a value is pickled for the store: refuse what only Ray's pickler can pickle.

    That is Ray's own objects, and classes that have a serializer by `ray.util.register_serializer`.
    """
    kinds = CloudPickler.dispatch.maps[0]
    if not kinds.keys() <= _known:
        for kind in [*OWN, *(kind for kind in kinds if kind not in our_pickle.Pickler._dispatch_table)]:
            if kind not in _refused:
                _refused.add(kind)
                copyreg.pickle(kind, _refuser(kind))
        _known.update(kinds)
    before, _storing.active = getattr(_storing, "active", False), True
    try:
        yield
    finally:
        _storing.active = before


def _refuser(kind: type) -> Callable[[Any], Any]:
    others = copyreg.dispatch_table.get(kind)

    def reduce(value: Any) -> Any:
        if getattr(_storing, "active", False) and (kind in OWN or kind in CloudPickler.dispatch.maps[0]):
            raise SerializationError(f"{kind.__name__} is for Ray's pickler only")
        # Whoever pickles by an older protocol, multiprocessing for example, takes nothing of a newer one.
        return others(value) if others is not None else value.__reduce_ex__(4)

    return reduce
