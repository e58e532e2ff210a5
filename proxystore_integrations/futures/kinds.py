"""What is known of executors: whether anything crosses a process, and how."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, NamedTuple

from proxystore_core.pickling import DEFAULT, Pickling

__all__ = ["Kind", "kind_of"]


class Kind(NamedTuple):
    """How an executor hands its tasks over.

    Attributes:
        is_local: to threads of this process, as they are; or it keeps them in files, for other runs.
        main_by_value: workers do not share this process's ``__main__``, so that its functions and classes
            are pickled by value.
        engine: what to call it.
        options: keyword arguments of ``submit`` that are its own and not the call's.
        shows_names: what it shows of a task is the name of its function.
        multiprocessing: `multiprocessing` pickles for it.
        reducers: types that it was given reducers of its own for: in calls, and in results.
        maps: it passes an array that is a map of a file by the file's name.
        chunks: its ``map`` sends several calls as one when it is told to.
        futures: classes, as ``module:name``, of futures that it puts results in place of, wherever they are
            in arguments.
        awaits: it awaits what coroutine functions return.
        asks_parameters: it asks a task's function for its parameters' names.
    """

    is_local: bool
    main_by_value: bool
    engine: str = "concurrent.futures"
    options: tuple[str, ...] = ()
    shows_names: bool = False
    multiprocessing: bool = False
    reducers: tuple[tuple[type, ...], tuple[type, ...]] = ((), ())
    maps: bool = False
    chunks: bool = False
    futures: tuple[str, ...] = ()
    awaits: bool = False
    asks_parameters: bool = False

    @property
    def pickling(self) -> Pickling:
        """As it does."""
        writable = self.multiprocessing and DEFAULT.writable
        return Pickling(self.main_by_value, writable, self.multiprocessing, mapped=self.maps)


_ANY_FUTURE = ("concurrent.futures._base:Future",)

# What `Client.submit` takes for itself.
_DASKS_OPTIONS = (
    *("key", "workers", "resources", "retries", "priority", "fifo_timeout"),
    *("allow_other_workers", "actor", "actors", "pure"),
)

_KINDS = {
    "concurrent.futures.thread.ThreadPoolExecutor": Kind(True, False),
    "concurrent.futures.process.ProcessPoolExecutor": Kind(False, False, multiprocessing=True, chunks=True),
    "mpi4py.futures.pool.ThreadPoolExecutor": Kind(True, False, "mpi4py"),
    "mpi4py.futures.pool.MPIPoolExecutor": Kind(False, False, "mpi4py"),
    "executorlib.executor.base.BaseExecutor": Kind(
        False, True, "executorlib", ("resource_dict",), futures=_ANY_FUTURE
    ),
    "loky.process_executor.ProcessPoolExecutor": Kind(False, True, "loky", chunks=True),
    "joblib.externals.loky.process_executor.ProcessPoolExecutor": Kind(
        False, True, "joblib", maps=True, chunks=True
    ),
    "distributed.cfexecutor.ClientExecutor": Kind(
        *(False, True, "dask", _DASKS_OPTIONS),
        shows_names=True,
        futures=("dask._task_spec:TaskRef",),
        awaits=True,
    ),
}


def kind_of(executor: Executor) -> Kind:
    """How an executor hands its tasks over; unknown ones as most do: by cloudpickle, to other processes."""
    client = getattr(executor, "_client", None)  # Dask's, of a cluster that may be threads of this process
    if str(getattr(getattr(client, "scheduler", None), "address", "")).startswith("inproc://"):
        return Kind(True, True, "dask")
    for ancestor in type(executor).__mro__:
        kind = _KINDS.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if kind is None:
            continue
        if kind.engine == "executorlib":
            return _executorlibs(executor, kind)
        return kind._replace(reducers=_reducers(executor)) if kind.engine == "loky" else kind
    name = type(executor).__module__.partition(".")[0]
    chunks = getattr(type(executor), "map", Executor.map) is not Executor.map
    return Kind(False, True, name, shows_names=True, chunks=chunks, futures=_ANY_FUTURE)


def _executorlibs(executor: Any, kind: Kind) -> Kind:
    """One that caches results finds them by what a call is pickled to, and keeps them when we are gone."""
    told = executor.info or {}
    told = {**told.get("executor_kwargs", {}), **told}
    if told.get("cache_directory") is not None:
        return kind._replace(is_local=True)
    return kind._replace(asks_parameters=told.get("init_function") is not None)


def _reducers(executor: Executor) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """The types that loky's ``job_reducers`` and ``result_reducers`` are for."""
    queues = [getattr(executor, name, None) for name in ("_call_queue", "_result_queue")]
    calls, results = [tuple(getattr(queue, "_reducers", None) or ()) for queue in queues]
    return calls, results
