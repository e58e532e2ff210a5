"""A progress line for what takes long: large values on their way into and out of a store.

Only in a program's first process, at a terminal, with rich installed, and never for what is quick. Set
``PROXYSTORE_PROGRESS=off`` to have none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from proxystore_core import forks
from proxystore_integrations.units import format_size

__all__ = ["LONG", "PATIENCE", "VARIABLE", "shown"]

LONG = 100_000_000
"""Bytes below which nothing takes long."""

PATIENCE = 1.0
"""Seconds that something takes before it is shown."""

VARIABLE = "PROXYSTORE_PROGRESS"


@contextlib.contextmanager
def shown(doing: str, size: int) -> Iterator[None]:
    """Show, while the block runs, what is done, the bytes and the seconds, once it has taken a second.

    Args:
        doing: ``"storing"``, ``"loading"``.
        size: bytes.
    """
    if size < LONG or not _wanted():
        yield
        return
    bar = _Bar(f"{doing} {format_size(size)}")
    timer = threading.Timer(PATIENCE, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        bar.stop()


def _wanted() -> bool:
    multiprocessing = sys.modules.get("multiprocessing.process")
    return (
        sys.stderr is not None
        and sys.stderr.isatty()
        and os.environ.get(VARIABLE, "").lower() not in ("off", "0", "no", "false")
        and (multiprocessing is None or multiprocessing.parent_process() is None)
    )


class _Bar:
    """One line at the bottom of the terminal, gone when it is done."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lock = forks.lock()
        self._stopped = False
        self._progress: Any = None

    def start(self) -> None:
        """Show it, unless it has been stopped or rich is not there."""
        try:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        except ImportError:
            return
        with self._lock:
            if self._stopped:
                return
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(pulse_style="cyan"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.add_task(self._text, total=None)
        # rich refreshes in a thread of its own.
        with contextlib.suppress(Exception):
            self._progress.start()

    def stop(self) -> None:
        """Take it away."""
        with self._lock:
            self._stopped = True
            progress = self._progress
        if progress is not None:
            with contextlib.suppress(Exception):
                progress.stop()
