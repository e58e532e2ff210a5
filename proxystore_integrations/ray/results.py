"""What a value that Ray pickles is: a task's result, one that a generator yields, or one that is put."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from proxystore_integrations.ray.engine import raylet, worker_module

__all__ = ["putting", "watch_generators", "yielded"]

_executing = threading.local()
_put_object: Any = worker_module.Worker.put_object.__code__


@functools.cache
def watch_generators() -> None:
    """Let `yielded` know: Ray asks of what each task returned whether it is a generator."""
    asking = types.ModuleType(inspect.__name__)
    asking.__dict__.update(inspect.__dict__)
    asking.isgenerator = _asked(inspect.isgenerator)  # type: ignore[attr-defined]
    asking.isasyncgen = _asked(inspect.isasyncgen)  # type: ignore[attr-defined]
    raylet.inspect = asking


def _asked(ask: Callable[[object], bool]) -> Callable[[object], bool]:
    def asked(returned: object) -> bool:
        _executing.yields = inspect.isgenerator(returned) or inspect.isasyncgen(returned)
        return ask(returned)

    return asked


def yielded() -> bool:
    """Whether the value that the caller's caller pickles is one that a generator yielded.

    Ray does not keep what references in such a value refer to: as soon as the generator goes on they dangle.
    To be asked after `watch_generators`. An async generator's values are pickled in a thread of which
    nothing is known.
    """
    frame: Any = sys._getframe(1).f_back
    return (frame is None or frame.f_code is not _put_object) and getattr(_executing, "yields", True)


def putting() -> str | None:
    """Name of the module that puts the value which the caller's caller pickles; None when nobody puts it."""
    frame: Any = sys._getframe(1).f_back
    if frame is None or frame.f_code is not _put_object:
        return None
    while frame is not None and frame.f_globals.get("__name__", "").startswith("ray._private."):
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))
