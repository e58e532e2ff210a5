"""A progress line for what takes long: large values on their way into and out of a store.

Only in a program's first process, at a terminal, with rich installed, and never for what is quick. Set
``PROXYSTORE_PROGRESS=off`` to have none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from proxystore_core import forks
from proxystore_core.moving import listening
from proxystore_integrations.units import format_size

__all__ = ["LONG", "PATIENCE", "VARIABLE", "shown"]

LONG = 100_000_000
"""Bytes below which nothing takes long."""

PATIENCE = 1.0
"""Seconds that something takes before it is shown."""

VARIABLE = "PROXYSTORE_PROGRESS"

_EVERY = 0.1  # seconds between two looks at a line


@contextlib.contextmanager
def shown(doing: str, size: int) -> Iterator[None]:
    """Show, while the block runs, how far it is and when it will be done; once it has taken a second.

    Args:
        doing: ``"storing"``, ``"loading"``.
        size: bytes.
    """
    if size < LONG or not _wanted():
        yield
        return
    line = _Line(doing, size)
    timer = threading.Timer(PATIENCE, line.start)
    timer.daemon = True
    timer.start()
    try:
        with listening(line.moved):
            yield
    finally:
        timer.cancel()
        line.stop()


def _wanted() -> bool:
    multiprocessing = sys.modules.get("multiprocessing.process")
    return (
        sys.stderr is not None
        and sys.stderr.isatty()
        and os.environ.get(VARIABLE, "").lower() not in ("off", "0", "no", "false")
        and (multiprocessing is None or multiprocessing.parent_process() is None)
    )


class _Line:
    """One line at the bottom of the terminal, gone when it is done. Several lie one below the other."""

    def __init__(self, doing: str, size: int) -> None:
        self._usual = self._doing = doing
        self._size = size
        self._done = 0
        self._began = time.monotonic()
        self._shown = 0.0
        self._stopped = False
        self._task: Any = None

    def start(self) -> None:
        """Show it, unless it has been stopped or rich is not there."""
        with contextlib.suppress(ImportError), _lock:
            if not self._stopped:
                self._task = _display.add()
                self._show()

    def moved(self, nbytes: int, doing: str) -> None:
        """So many bytes more, told by the connector, from whichever of its threads."""
        now = time.monotonic()
        with _lock:
            if (doing or self._usual) != self._doing:
                self._doing, self._done, self._began = doing or self._usual, 0, now
            # What is sent twice, because an answer was lost, is not more than all of it.
            self._done = min(self._done + nbytes, self._size)
            if self._task is not None and now - self._shown >= _EVERY:
                self._shown = now
                self._show()

    def stop(self) -> None:
        """Take it away."""
        with _lock:
            self._stopped = True
            task, self._task = self._task, None  # a thread may tell of more yet
            if task is not None:
                _display.remove(task)

    def _show(self) -> None:
        text = f"{self._doing} {format_size(self._size)}"
        if not self._done:  # there are connectors that tell nothing
            _display.update(self._task, description=text, total=None, far="")
            return
        taken = time.monotonic() - self._began
        left = taken / self._done * (self._size - self._done)
        far = f"{self._done / self._size:4.0%}, {left:.0f} s left"
        _display.update(self._task, description=text, total=self._size, completed=self._done, far=far)


class _Display:
    """All lines of this process: a terminal has one bottom."""

    def __init__(self) -> None:
        self._progress: Any = None

    def add(self) -> Any:
        """A new line. Raises ImportError where there is no rich."""
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(20, pulse_style="cyan"),
                TextColumn("{task.fields[far]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            with contextlib.suppress(Exception):
                self._progress.start()  # rich refreshes in a thread of its own
        return self._progress.add_task("", total=None, far="")

    def update(self, task: Any, **fields: Any) -> None:
        self._progress.update(task, **fields)

    def remove(self, task: Any) -> None:
        self._progress.remove_task(task)
        if not self._progress.tasks:
            with contextlib.suppress(Exception):
                self._progress.stop()
            self._progress = None


_lock = forks.lock()
_display = _Display()


@forks.in_child
def _fresh() -> None:
    global _display
    _display = _Display()
