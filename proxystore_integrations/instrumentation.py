"""Equips engines that a program uses, when it imports them, with no line of the program changed.

An engine's folder has a module with two functions, ``instrument(engine)`` and ``uninstrument(engine)``,
which are given the engine's module once it is loaded. They change as little as lets them notice that the
engine is really used; only then is the integration loaded.
"""

from __future__ import annotations

import importlib
import os
import sys

# Every process that follows loads this file: typing alone takes as long as the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

__all__ = ["ENGINES", "equipped", "follow", "instrument", "uninstrument"]

ENGINES: dict[str, tuple[str, str]] = {
    "concurrent.futures": ("concurrent.futures.process", "futures.instrumentation"),
    "dask": ("distributed", "dask.instrumentation"),
    "executorlib": ("executorlib.executor.base", "futures.instrumentation"),
    "globus-compute": ("globus_compute_sdk", "globus_compute.instrumentation"),
    "joblib": ("joblib", "futures.joblib_instrumentation"),
    "loky": ("loky.process_executor", "futures.instrumentation"),
    "mpi4py": ("mpi4py.futures.pool", "futures.instrumentation"),
    "parsl": ("parsl", "parsl.instrumentation"),
    "ray": ("ray", "ray.instrumentation"),
}
"""By name: the engine's module which, once loaded, is given to ``instrument`` of ours."""


def instrument(**settings: Any) -> None:
    """Equip every engine that this program imports, or has imported, with a store.

    Clients, executors and kernels made from now on have one; those there already stay as they are, and so
    do those that get a store in a way of their own.

    Args:
        **settings: ``threshold``, ``store``, ``inputs``, ``results``, ``on_store_error``, ``lease``; they
            go into the environment, where processes that follow find them, too. What is not given
            comes from there, ``proxystore.toml`` or the defaults.

    Raises:
        ConfigurationError: a setting is unknown or wrong.
        MissingExtraError: the store's library is not installed.
    """
    from proxystore_integrations.settings import Settings

    Settings.load(**settings)
    for name, value in settings.items():
        variable = f"PROXYSTORE_{name.upper()}"
        if value is not None:
            _before.setdefault(variable, os.environ.get(variable))
            os.environ[variable] = str(value)
    follow()


def uninstrument() -> None:
    """Make engines what they were; clients, executors and kernels that have a store keep it."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name in list(_equipped):
        _equipped.discard(name)
        _instrumentation(name).uninstrument(sys.modules[ENGINES[name][0]])
    for variable, value in _before.items():
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value
    _before.clear()


def equipped() -> frozenset[str]:
    """Names of the engines that this process has loaded and equipped."""
    return frozenset(_equipped)


def follow() -> None:
    """`instrument` with what the environment says: costs a millisecond and loads nothing."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for name, (engine, _) in ENGINES.items():
        module = sys.modules.get(engine)
        spec = getattr(module, "__spec__", None)
        if module is not None and not getattr(spec, "_initializing", False):
            _equip(name, module)


_equipped: set[str] = set()
_before: dict[str, str | None] = {}


def _instrumentation(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{ENGINES[name][1]}")


def _equip(name: str, module: ModuleType) -> None:
    if name in _equipped:
        return
    _equipped.add(name)
    try:
        _instrumentation(name).instrument(module)
    except Exception as error:  # the program works without us
        import warnings

        _equipped.discard(name)
        warnings.warn(
            f"proxystore: {name} works without a store: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


class _Finder:
    """Finds engines where the others do, and equips them when they have been loaded."""

    def __init__(self) -> None:
        self._names = {engine: name for name, (engine, _) in ENGINES.items()}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        name = self._names.get(fullname)
        if name is None or name in _equipped:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                _call_after(spec, name)
                return spec
        return None


def _call_after(spec: Any, name: str) -> None:
    """Equip an engine after its module's own code has run; the loader stays the object that it is."""
    loader = spec.loader
    execute = getattr(loader, "exec_module", None)
    if execute is None:
        return

    def exec_module(module: ModuleType) -> None:
        if module.__spec__ is spec:
            del loader.exec_module
            execute(module)
            _equip(name, module)
        else:  # one loader of several modules
            execute(module)

    try:
        loader.exec_module = exec_module
    except AttributeError:
        return  # a loader of C code; no engine is


_finder: Any = _Finder()
