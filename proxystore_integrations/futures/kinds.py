"""What is known of executors: whether anything crosses a process, and how."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import NamedTuple

from proxystore_core.pickling import DEFAULT, Pickling

__all__ = ["Kind", "kind_of"]


class Kind(NamedTuple):
    """How an executor hands its tasks over.

    Attributes:
        is_local: to threads of this process, as they are.
        main_by_value: workers do not share this process's ``__main__``, so that its functions and classes
            are pickled by value.
        engine: what to call it.
        options: keyword arguments of ``submit`` that are its own and not the call's.
        shows_names: what it shows of a task is the name of its function.
        multiprocessing: `multiprocessing` pickles for it.
        reducers: types that it was given reducers of its own for: in calls, and in results.
        maps: it passes an array that is a map of a file by the file's name.
    """

    is_local: bool
    main_by_value: bool
    engine: str = "concurrent.futures"
    options: tuple[str, ...] = ()
    shows_names: bool = False
    multiprocessing: bool = False
    reducers: tuple[tuple[type, ...], tuple[type, ...]] = ((), ())
    maps: bool = False

    @property
    def pickling(self) -> Pickling:
        """As it does."""
        writable = self.multiprocessing and DEFAULT.writable
        return Pickling(self.main_by_value, writable, self.multiprocessing, mapped=self.maps)


_KINDS = {
    "concurrent.futures.thread.ThreadPoolExecutor": Kind(True, False),
    "concurrent.futures.process.ProcessPoolExecutor": Kind(False, False, multiprocessing=True),
    "mpi4py.futures.pool.ThreadPoolExecutor": Kind(True, False, "mpi4py"),
    "mpi4py.futures.pool.MPIPoolExecutor": Kind(False, False, "mpi4py"),
    "executorlib.executor.base.BaseExecutor": Kind(False, True, "executorlib", ("resource_dict",)),
    "loky.process_executor.ProcessPoolExecutor": Kind(False, True, "loky"),
    "joblib.externals.loky.process_executor.ProcessPoolExecutor": Kind(False, True, "joblib", maps=True),
    "distributed.cfexecutor.ClientExecutor": Kind(False, True, "dask", shows_names=True),
}


def kind_of(executor: Executor) -> Kind:
    """How an executor hands its tasks over; unknown ones as most do: by cloudpickle, to other processes."""
    client = getattr(executor, "_client", None)  # Dask's, of a cluster that may be threads of this process
    if str(getattr(getattr(client, "scheduler", None), "address", "")).startswith("inproc://"):
        return Kind(True, True, "dask")
    for ancestor in type(executor).__mro__:
        kind = _KINDS.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if kind is not None:
            return kind._replace(reducers=_reducers(executor)) if kind.engine == "loky" else kind
    return Kind(False, True, type(executor).__module__.partition(".")[0], shows_names=True)


def _reducers(executor: Executor) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """The types that loky's ``job_reducers`` and ``result_reducers`` are for."""
    queues = [getattr(executor, name, None) for name in ("_call_queue", "_result_queue")]
    calls, results = [tuple(getattr(queue, "_reducers", None) or ()) for queue in queues]
    return calls, results
