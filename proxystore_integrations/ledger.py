"""What a run sends through its stores and what not, for the report of ``proxystore run``.

Off unless asked for: then `book` is None, and who has something to note does not. Each process appends
lines to a file of its own in the directory that ``PROXYSTORE_RUN`` names, so that a killed worker's are
not lost. A line costs about 5 us, and is written for large values only; small ones are counted.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
import threading
import time
from typing import Any

import msgspec

from proxystore_core import forks
from proxystore_core.sizeof import sizeof
from proxystore_integrations.functions import users_function

__all__ = ["RUN", "Ledger", "book", "counting"]

RUN = "PROXYSTORE_RUN"
"""The environment variable that names the directory of a run's ledgers."""

_LINES = 50_000  # of one process; then it counts on without details
_EVERY = 0.5  # seconds between two lines of counts
_FRAMES = 60
_NUMBERS = frozenset({int, float, bool, complex, type(None)})
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


class Ledger:
    """The notes of one process.

    Args:
        directory: where its file goes; None to count only.

    Attributes:
        totals: counters by name and labels, for `metrics`.
    """

    def __init__(self, directory: str | None) -> None:
        self.directory = directory
        self._reset()

    def _reset(self) -> None:
        self._fd: int | None = None
        self._lines = 0
        self._keys: set[str] = set()
        self._counts: dict[tuple[str, str, int], list[int]] = {}
        self.totals: dict[tuple[str, tuple[str, ...]], float] = {}
        self._due = 0.0
        self._lock = threading.Lock()

    def put(
        self,
        what: str,
        engine: str,
        task: str,
        reference: Any,
        seconds: float,
        source: str = "",
    ) -> None:
        """A value is in the store, stored now or found there.

        Args:
            what: ``"argument"``, ``"result"`` or ``"gathered"``.
            engine: whose call it belongs to.
            task: name of the call's function.
            reference: names the value.
            seconds: that it took.
            source: file and line.
        """
        self._add("put", (engine, what), objects=1, bytes=reference.size, seconds=seconds)
        shared = reference.key in self._keys
        self._keys.add(reference.key)
        self._note(
            {
                "e": "put",
                "what": what,
                "engine": engine,
                "task": task,
                "source": source,
                "kind": reference.kind,
                "size": reference.size,
                "seconds": seconds,
                "shared": shared,
            }
        )

    def get(self, count: int, size: int, seconds: float, cached: int = 0) -> None:
        """Values were loaded.

        Args:
            count: how many.
            size: of all, bytes.
            seconds: that it took.
            cached: how many of them this process had kept.
        """
        self._add("get", (), objects=count, bytes=size, seconds=seconds, cached=cached)
        self._note({"e": "get", "count": count, "size": size, "seconds": seconds, "cached": cached})

    def by_value(self, engine: str, why: str, size: int) -> None:
        """A value went the engine's own way.

        Args:
            engine: whose.
            why: ``"small"``, or a reason to tell.
            size: bytes, about.
        """
        self._add("by_value", (engine, why), objects=1, bytes=size)
        counts = self._counts.get(place := (engine, why, size.bit_length()))
        if counts is None:
            counts = self._counts.setdefault(place, [0, 0])
        counts[0] += 1
        counts[1] += size
        if time.monotonic() > self._due:
            self.flush()

    def small(self, engine: str, value: Any, threshold: int) -> None:
        """A value under the threshold went the engine's own way. Plain numbers are not worth a note.

        Args:
            engine: whose.
            value: as it was given.
            threshold: bytes.
        """
        if type(value) not in _NUMBERS:
            self.by_value(engine, "small", sizeof(value, limit=threshold))

    def session(self, engine: str, session: str, recipe: str, threshold: int) -> None:
        """A client opened a store."""
        self._note(
            {
                "e": "session",
                "engine": engine,
                "session": session,
                "recipe": recipe,
                "threshold": threshold,
            }
        )

    def trouble(self, problem: str) -> None:
        """Something that the user was warned of."""
        self._note({"e": "trouble", "problem": problem})

    def flush(self) -> None:
        """Write what is only counted so far."""
        with self._lock:
            counts, self._counts = self._counts, {}
            self._due = time.monotonic() + _EVERY
        for (engine, why, _), (count, size) in counts.items():
            self._write({"e": "value", "engine": engine, "why": why, "count": count, "size": size})

    def _add(self, name: str, labels: tuple[str, ...], **values: float) -> None:
        totals = self.totals
        for unit, value in values.items():
            counter = f"{name}.{unit}", labels
            totals[counter] = totals.get(counter, 0) + value

    def _note(self, event: dict[str, Any]) -> None:
        if self._lines < _LINES:
            self._write(event)

    def _write(self, event: dict[str, Any]) -> None:
        if self.directory is None:
            return
        try:
            if self._fd is None:
                with self._lock:
                    if self._fd is None:
                        self._open()
            assert self._fd is not None
            os.write(self._fd, msgspec.json.encode(event) + b"\n")
            self._lines += 1
        except OSError:  # the directory is on another machine, or the report has been made
            self._lines = _LINES

    def _open(self) -> None:
        assert self.directory is not None
        path = os.path.join(self.directory, f"{os.getpid()}-{secrets.token_hex(4)}.jsonl")
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # multiprocessing ends its children in its own way, past atexit.
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.Finalize(self, self.flush, exitpriority=0)

    @staticmethod
    def caller() -> str:
        """File and line of the user's code that led here; empty where there is none."""
        frame: Any = sys._getframe(1)
        for _ in range(_FRAMES):
            if frame is None:
                break
            name = frame.f_code.co_filename
            if not name.startswith((_HERE, _STDLIB, "<")) and "site-packages" not in name:
                return f"{name}:{frame.f_lineno}"
            frame = frame.f_back
        return ""

    @staticmethod
    def home(function: Any) -> str:
        """File and line of a function; empty for one that is not Python's own."""
        code = getattr(users_function(function), "__code__", None)
        return "" if code is None else f"{code.co_filename}:{code.co_firstlineno}"


book: Ledger | None = Ledger(os.environ[RUN]) if os.environ.get(RUN) else None
"""This process's; None where nobody asked for a report."""


def counting() -> Ledger:
    """This process's ledger; one that counts only, from now on, where there was none."""
    global book
    if book is None:
        book = Ledger(None)
    return book


def _leave() -> None:
    if book is not None:
        book.flush()


@forks.in_child
def _after_fork() -> None:
    if book is not None:
        book._reset()


if book is not None:
    atexit.register(_leave)
