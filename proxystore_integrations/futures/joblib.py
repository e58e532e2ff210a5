"""joblib with a store: importing this module registers the parallel backend ``"proxystore"``.

import proxystore_integrations.futures.joblib

with joblib.parallel_config("proxystore", n_jobs=4, threshold="1 MB"):
    joblib.Parallel()(joblib.delayed(f)(x) for x in items)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from proxystore_core import MissingExtraError, register_sizeof
from proxystore_integrations.futures.executor import StoreExecutor
from proxystore_integrations.settings import NAMES, check_spelling

try:
    from joblib import register_parallel_backend
    from joblib._parallel_backends import LokyBackend
except ImportError as error:
    raise MissingExtraError(
        f"the joblib backend did not load: {error}",
        remedy='Run: pip install --upgrade "proxystore-integrations[joblib]".',
    ) from error

__all__ = ["StoreBackend"]

_SETTINGS = frozenset(NAMES)


class StoreBackend(LokyBackend):  # type: ignore[misc]
    """joblib's loky backend, whose large arguments and results go through a store.

    Args:
        **options: settings as for `StoreExecutor`; all else is joblib's.
    """

    def __init__(self, **options: Any) -> None:
        self._settings = {name: options.pop(name) for name in _SETTINGS & options.keys()}
        check_spelling(options)  # joblib takes any
        self._executor: StoreExecutor | None = None
        super().__init__(**options)

    def configure(self, *args: Any, **options: Any) -> Any:
        for name in _SETTINGS & options.keys():
            self._settings[name] = options.pop(name)
        jobs = super().configure(*args, **options)
        if getattr(self, "_workers", None) is not None:
            self._executor = StoreExecutor(self._workers, main_by_value=True, **self._settings)
        return jobs

    def submit(self, func: Any, callback: Callable[[Future[Any]], None] | None = None) -> Future[Any]:
        """Submit one batch of calls; their arguments are looked at one by one."""
        if self._executor is None:
            return super().submit(func, callback)  # type: ignore[no-any-return]
        items = getattr(func, "items", None)
        if items is None:
            future = self._executor.submit(func)
        else:
            name = str(getattr(items[0][0], "__name__", "batch")) if items else "batch"
            shell = _Shell(func, name, getattr(func, "_reducer_callback", None))
            future = self._executor.submit(shell, [tuple(item) for item in items])
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def terminate(self) -> None:
        self._leave()
        super().terminate()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self._leave()
        super().abort_everything(ensure_ready=ensure_ready)

    def _leave(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.release()  # joblib keeps its workers for the next time


class _Shell:
    """A batch without its calls, which travel beside it. Called by the name of the first one's function."""

    def __init__(self, batch: Any, name: str, about_to_pickle: Callable[[], None] | None = None) -> None:
        self.kind = type(batch)
        self.context = (batch._backend, batch._n_jobs)
        self.__name__ = name
        self._about_to_pickle = about_to_pickle

    def __reduce__(self) -> tuple[Any, ...]:
        # joblib is told whose batch it is before arrays are: it drops the files that it maps them from when
        # that `Parallel` is done.
        if self._about_to_pickle is not None:
            self._about_to_pickle()
        return _Shell, (self.kind([], self.context), self.__name__)

    def __call__(self, items: list[Any]) -> Any:
        return self.kind(items, self.context)()


register_sizeof(_Shell, lambda shell: 0)  # what tells joblib knows all of it

register_parallel_backend("proxystore", StoreBackend)
