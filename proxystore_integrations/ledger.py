"""What a run sends through its stores and what not, for the report of ``proxystore run``.

Off unless asked for: then `book` is None, and who has something to note does not. Each process counts in a
file of its own in the directory that ``PROXYSTORE_RUN`` names, so that nothing of a killed worker is lost.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import msgspec

from proxystore_core import forks
from proxystore_core.sizeof import sizeof
from proxystore_integrations.counter_file import CounterFile, Place, counters_of
from proxystore_integrations.functions import asked, users_function

__all__ = ["RUN", "Event", "Got", "Ledger", "Opened", "Put", "Trouble", "Went", "book", "counting", "noted"]

RUN = "PROXYSTORE_RUN"
"""The environment variable that names the directory of a run's ledgers."""

_DETAILS = 50_000  # different things that one process counts; then it counts on without their details
_KEYS = 1_000_000  # of objects, of which is remembered that they were put
_FRAMES = 60
_NUMBERS = frozenset({int, float, bool, complex, type(None)})
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


class Put(NamedTuple):
    """Values are in the store, stored now or found there.

    Counted: how many, their bytes, the seconds that it took, and those that this process had put before.

    Attributes:
        what: ``"argument"``, ``"result"`` or ``"gathered"``.
        engine: whose calls they belong to.
        task: name of the calls' function.
        source: file and line.
        kind: their class.
        size: bytes of each.
    """

    what: str
    engine: str
    task: str
    source: str
    kind: str
    size: int


class Got(NamedTuple):
    """Values were loaded.

    Counted: how many, their bytes, the seconds that it took, and those that this process had kept.
    """


class Went(NamedTuple):
    """Values went an engine's own way. Counted: how many, and their bytes, about.

    Attributes:
        engine: whose.
        why: ``"small"``, or a reason to tell.
        length: of their sizes, bits.
    """

    engine: str
    why: str
    length: int


class Opened(NamedTuple):
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


class Trouble(NamedTuple):
    """Something that the user was warned of.

    Attributes:
        problem: what.
    """

    problem: str


Event = Put | Got | Went | Opened | Trouble
"""What is counted. As keys they are tuples: no two kinds have the same length."""

_EVENTS: dict[str, Any] = {kind.__name__: kind for kind in (Put, Got, Went, Opened, Trouble)}


_GOT = Got()


class _Counter:
    __slots__ = ("place", "values")

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self.values = [0.0, 0.0, 0.0, 0.0]


class Ledger:
    """The notes of one process.

    Args:
        directory: where its file goes; None to count for `totals` only.
    """

    def __init__(self, directory: str | None) -> None:
        self.directory = directory
        self._reset()

    def _reset(self) -> None:
        self._file: CounterFile | None = None
        self._keys: set[str] = set()
        self._counters: dict[Event, _Counter] = {}
        self._depth = 1
        self._lock = forks.lock()

    @property
    def totals(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Counters by name and labels, for `metrics`."""
        found: dict[tuple[str, tuple[str, ...]], float] = defaultdict(int)
        for event, counter in self._counters.copy().items():
            objects, size, seconds, cached = counter.values
            labels: tuple[str, ...] = ()
            match event:
                case Put():
                    name, labels = "put", (event.engine, event.what)
                case Got():
                    name = "get"
                    found["get.cached", labels] += int(cached)
                case Went():
                    name, labels = "by_value", (event.engine, event.why)
                case _:
                    continue
            found[f"{name}.objects", labels] += int(objects)
            found[f"{name}.bytes", labels] += int(size)
            if name != "by_value":
                found[f"{name}.seconds", labels] += seconds
        return dict(found)

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
        shared = key in self._keys
        if not shared and len(self._keys) < _KEYS:
            self._keys.add(key)
        event = Put(what, engine, task, source, reference.kind, size)
        if len(self._counters) >= _DETAILS and event not in self._counters:
            event = Put(what, engine, "", "", "", 1 << size.bit_length() - 1 if size else 0)
        self._count(event, 1, size, seconds, shared)

    def get(self, count: int, size: int, seconds: float, cached: int = 0) -> None:
        """Values were loaded: how many, their bytes, the seconds that it took, how many were kept here."""
        self._count(_GOT, count, size, seconds, cached)

    def by_value(self, engine: str, why: str, size: int) -> None:
        """A value went the engine's own way: see `Went`."""
        self._count(Went(engine, why, size.bit_length()), 1, size)

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
        self._count(Opened(engine, session, recipe, threshold), 1)

    def trouble(self, problem: str) -> None:
        """Something that the user was warned of."""
        if len(self._counters) < _DETAILS:
            self._count(Trouble(problem), 1)

    def _count(
        self, event: Event, first: float, second: float = 0, third: float = 0, fourth: float = 0
    ) -> None:
        counter = self._counters.get(event)
        if counter is None:
            counter = self._counters.setdefault(event, _Counter(self._place(event)))
        values = counter.values
        with self._lock:
            values[0] += first
            values[1] += second
            values[2] += third
            values[3] += fourth
            if counter.place is not None:
                CounterFile.set(counter.place, values)

    def _place(self, event: Event) -> Place | None:
        if self.directory is None:
            return None
        try:
            file = self._file or self._opened()
            return file.add(msgspec.json.encode((type(event).__name__, *event)))
        except OSError:  # the directory is on another machine, or full, or the report has been made
            return None

    def _opened(self) -> CounterFile:
        assert self.directory is not None
        path = os.path.join(self.directory, f"{os.getpid()}-{secrets.token_hex(4)}.counters")
        made = CounterFile(path)
        with self._lock:
            file = self._file = self._file or made
        if file is not made:  # another thread's was first
            made.close()
        return file

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
        """File and line of a function; empty for one that is not Python's own.

        Of a function that a library has wrapped (Parsl every app's) it is the one inside.
        """
        function = users_function(function)
        code = getattr(function, "__code__", None)
        while code is not None and not _is_users(code.co_filename):
            function = asked(function, "__wrapped__")
            if function is None:
                break
            code = getattr(function, "__code__", None)
        return "" if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def noted(directory: str) -> Iterator[list[tuple[Event, tuple[float, ...]]]]:
    """What each process of a run has counted.

    Args:
        directory: of its ledgers.
    """
    for name in sorted(os.listdir(directory)):
        if name.endswith(".counters"):
            found = [_read(record) for record in counters_of(os.path.join(directory, name))]
            if found:
                yield found


def _read(record: tuple[bytes, tuple[float, ...]]) -> tuple[Event, tuple[float, ...]]:
    name, *given = msgspec.json.decode(record[0])
    return _EVENTS[name](*given), record[1]


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


@forks.in_child
def _after_fork() -> None:
    if book is not None:
        book._reset()
