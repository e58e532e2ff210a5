"""Pools of processes (`concurrent.futures`, loky, mpi4py, executorlib) with a store, no line changed."""

from __future__ import annotations

import functools
import inspect
import weakref
from concurrent.futures import Executor
from types import ModuleType
from typing import Any

from proxystore_core.errors import ConfigurationError
from proxystore_core.flight import Flights
from proxystore_core.warned import warn

__all__ = ["instrument", "uninstrument"]

STORE = "_proxystore"
"""The attribute in which a pool keeps its store; None where somebody else sees to that."""

_CLASSES = {"executorlib.executor.base": "BaseExecutor", "mpi4py.futures.pool": "MPIPoolExecutor"}
"""By module, the class whose ``submit`` others inherit; elsewhere ``ProcessPoolExecutor``."""

_MISSING = object()
_flights = Flights()
_bare: dict[type, tuple[Any, Any]] = {}
_pools: weakref.WeakSet[Any] = weakref.WeakSet()


def instrument(module: ModuleType) -> None:
    """Let the pools of a module get a store with their first call.

    Args:
        module: has a class of executors.
    """
    kind = _class_of(module)
    _bare[kind] = bare_submit, bare_shutdown = kind.submit, kind.shutdown
    signature = inspect.signature(bare_shutdown)

    @functools.wraps(bare_submit)
    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        store = self.__dict__.get(STORE, _MISSING)
        if store is _MISSING:
            _flights.run(id(self), lambda: _equip(self, _Bare(self, bare_submit, bare_shutdown)))
            store = self.__dict__[STORE]
        if store is None:
            return bare_submit(self, fn, *args, **kwargs)
        return store.submit(fn, *args, **kwargs)

    @functools.wraps(bare_shutdown)
    def shutdown(self: Any, *args: Any, **options: Any) -> None:
        store = self.__dict__.get(STORE)
        if store is None:
            bare_shutdown(self, *args, **options)
            return
        given = signature.bind(self, *args, **options).arguments  # raises what the pool's own does
        store.shutdown(**{name: value for name, value in given.items() if name != "self"})

    kind.submit, kind.shutdown = submit, shutdown


def uninstrument(module: ModuleType) -> None:
    """Undo `instrument`; pools that have a store leave it when their last call is done.

    Args:
        module: as it was given to `instrument`.
    """
    kind = _class_of(module)
    kind.submit, kind.shutdown = _bare.pop(kind)
    for pool in list(_pools):
        if isinstance(pool, kind):
            _pools.discard(pool)
            pool.__dict__.pop(STORE).release()


def _class_of(module: ModuleType) -> Any:
    return module.__dict__[_CLASSES.get(module.__name__, "ProcessPoolExecutor")]


class _Bare(Executor):
    """A pool as it is without us; does not keep it alive."""

    def __init__(self, pool: Any, submit: Any, shutdown: Any) -> None:
        self._pool = weakref.ref(pool)
        self._submit = submit
        self._shutdown = shutdown

    def __repr__(self) -> str:
        return repr(self._pool())

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        pool = self._pool()
        if pool is None:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return self._submit(pool, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, **options: Any) -> None:
        pool = self._pool()
        if pool is not None:
            self._shutdown(pool, wait, **options)


def _equip(pool: Any, bare: _Bare) -> None:
    if STORE in pool.__dict__:
        return
    from proxystore_integrations.futures.executor import StoreExecutor
    from proxystore_integrations.futures.kinds import kind_of

    store = None
    try:
        store = StoreExecutor(bare, kind=kind_of(pool))
    except ConfigurationError as error:
        warn(f"this pool works without a store: {error}")
    pool.__dict__[STORE] = store
    if store is not None:
        _pools.add(pool)
