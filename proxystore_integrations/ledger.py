"""What a run sends through its stores and what not, for the report of ``proxystore run``.

Off unless asked for: then `book` is None, and who has something to note does not. Each process appends
lines to a file of its own in the directory that ``PROXYSTORE_RUN`` names, so that a killed worker's are
not lost. A line is written for large values only; small ones are counted.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
import time
from functools import cache
from typing import Any

import msgspec

from proxystore_core import forks
from proxystore_core.sizeof import sizeof
from proxystore_integrations.functions import users_function
from proxystore_integrations.ledger_file import LineFile

__all__ = ["RUN", "Event", "Got", "Ledger", "Opened", "Put", "Trouble", "Went", "book", "counting"]

RUN = "PROXYSTORE_RUN"
"""The environment variable that names the directory of a run's ledgers."""

_LINES = 50_000  # of one process; then it counts on without details
_EVERY = 0.5  # seconds between two lines of counts
_FRAMES = 60
_NUMBERS = frozenset({int, float, bool, complex, type(None)})
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


class Put(msgspec.Struct, tag=True, array_like=True, gc=False):
    """A value is in the store, stored now or found there.

    Attributes:
        what: ``"argument"``, ``"result"`` or ``"gathered"``.
        engine: whose call it belongs to.
        task: name of the call's function.
        source: file and line.
        kind: its class.
        size: bytes.
        seconds: that it took.
        shared: whether this process has put it before.
    """

    what: str
    engine: str
    task: str
    source: str
    kind: str
    size: int
    seconds: float
    shared: bool


class Got(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Values were loaded.

    Attributes:
        count: how many.
        size: of all, bytes.
        seconds: that it took.
        cached: how many of them this process had kept.
    """

    count: int
    size: int
    seconds: float
    cached: int


class Went(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Values went an engine's own way.

    Attributes:
        engine: whose.
        why: ``"small"``, or a reason to tell.
        count: how many.
        size: of all, bytes, about.
    """

    engine: str
    why: str
    count: int
    size: int


class Opened(msgspec.Struct, tag=True, array_like=True, gc=False):
    """A client opened a store.

    Attributes:
        engine: whose.
        session: its name.
        recipe: of the store.
        threshold: bytes.
    """

    engine: str
    session: str
    recipe: str
    threshold: int


class Trouble(msgspec.Struct, tag=True, array_like=True, gc=False):
    """Something that the user was warned of.

    Attributes:
        problem: what.
    """

    problem: str


Event = Put | Got | Went | Opened | Trouble

_UNITS = {
    "put": ("objects", "bytes", "seconds"),
    "get": ("objects", "bytes", "seconds", "cached"),
    "by_value": ("objects", "bytes"),
}
_encode = msgspec.json.Encoder().encode


class Ledger:
    """The notes of one process.

    Args:
        directory: where its file goes; None to count only.
    """

    def __init__(self, directory: str | None) -> None:
        self.directory = directory
        self._reset()

    def _reset(self) -> None:
        self._file: LineFile | None = None
        self._lines = 0
        self._keys: set[str] = set()
        self._counts: dict[tuple[str, str, int], list[int]] = {}
        self._totals: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        self._due = 0.0
        self._depth = 1
        self._lock = forks.lock()

    @property
    def totals(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Counters by name and labels, for `metrics`."""
        return {
            (f"{name}.{unit}", labels): value
            for (name, labels), values in self._totals.copy().items()
            for unit, value in zip(_UNITS[name], values, strict=True)
        }

    def put(
        self,
        what: str,
        engine: str,
        task: str,
        reference: Any,
        seconds: float,
        source: str = "",
    ) -> None:
        """A value is in the store; ``reference`` names it. For the others see `Put`."""
        size, key = reference.size, reference.key
        self._add(("put", (engine, what)), 1, size, seconds)
        if self._lines < _LINES:
            shared = key in self._keys
            self._keys.add(key)
            self._write(Put(what, engine, task, source, reference.kind, size, seconds, shared))

    def get(self, count: int, size: int, seconds: float, cached: int = 0) -> None:
        """Values were loaded: see `Got`."""
        self._add(("get", ()), count, size, seconds, cached)
        if self._lines < _LINES:
            self._write(Got(count, size, seconds, cached))

    def by_value(self, engine: str, why: str, size: int) -> None:
        """A value went the engine's own way: see `Went`."""
        self._add(("by_value", (engine, why)), 1, size)
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
        """A client opened a store: see `Opened`."""
        self._write(Opened(engine, session, recipe, threshold))

    def trouble(self, problem: str) -> None:
        """Something that the user was warned of."""
        if self._lines < _LINES:
            self._write(Trouble(problem))

    def flush(self) -> None:
        """Write what is only counted so far."""
        with self._lock:
            counts, self._counts = self._counts, {}
            self._due = time.monotonic() + _EVERY
        for (engine, why, _), (count, size) in counts.items():
            self._write(Went(engine, why, count, size))

    def _add(self, counter: tuple[str, tuple[str, ...]], *values: float) -> None:
        total = self._totals.get(counter)
        if total is None:
            total = self._totals.setdefault(counter, [0] * len(values))
        for place, value in enumerate(values):
            total[place] += value

    def _write(self, event: Event) -> None:
        if self.directory is None:
            return
        try:
            file = self._file or self._opened()
            file.add(_encode(event))
            self._lines += 1
        except OSError:  # the directory is on another machine, or full, or the report has been made
            self._lines = _LINES

    def _opened(self) -> LineFile:
        assert self.directory is not None
        path = os.path.join(self.directory, f"{os.getpid()}-{secrets.token_hex(4)}.jsonl")
        made = LineFile(path)
        with self._lock:
            file = self._file = self._file or made
        if file is not made:  # another thread's was first
            made.close()
            return file
        # multiprocessing ends its children in its own way, past atexit.
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.Finalize(self, self.flush, exitpriority=0)
        return made

    def caller(self) -> str:
        """File and line of the user's code that led here; empty where there is none."""
        # The last one's depth, most often: each frame that is looked at is first made an object.
        depth = self._depth
        try:
            frame: Any = sys._getframe(depth)
            found = _is_users(frame.f_code.co_filename) and not _is_users(
                sys._getframe(depth - 1).f_code.co_filename
            )
        except ValueError:  # the stack is not that deep
            found = False
        if not found:
            frame, depth = sys._getframe(1), 1
            while frame is not None and not _is_users(frame.f_code.co_filename):
                frame, depth = frame.f_back, depth + 1
                if depth > _FRAMES:
                    return ""
            if frame is None:
                return ""
            self._depth = depth
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"

    @staticmethod
    def home(function: Any) -> str:
        """File and line of a function; empty for one that is not Python's own."""
        code = getattr(users_function(function), "__code__", None)
        return "" if code is None else f"{code.co_filename}:{code.co_firstlineno}"


@cache
def _is_users(file: str) -> bool:
    """Whether code of a file is the user's own: there are as many as a process has loaded."""
    return not file.startswith((_HERE, _STDLIB, "<")) and "site-packages" not in file


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
