"""One flight per key: callers that want the same thing at the same time share one run."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Coroutine, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from proxystore_core import forks

__all__ = ["Flights", "LoopFlights"]

if TYPE_CHECKING:
    from asyncio import Task

T = TypeVar("T")


class _Flight:
    __slots__ = ("error", "gate", "landed", "leader", "result")

    def __init__(self) -> None:
        self.leader = threading.get_ident()
        self.gate = threading.Lock()
        self.gate.acquire()
        self.landed = False
        self.result: Any = None
        self.error: BaseException | None = None


class Flights:
    """Runs a function once per key at a time, whoever asks.

    No lock is held while a function runs: flights of other keys start and land freely. A flight
    leaves nothing behind: after landing, the next caller of the key runs its function anew.
    A forked child starts with no flight in the air.
    """

    def __init__(self) -> None:
        self._reset()
        _instances.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._air: dict[Hashable, _Flight] = {}

    def __len__(self) -> int:
        """Number of flights in the air."""
        return len(self._air)

    def run(self, key: Hashable, function: Callable[[], T]) -> T:
        """Run ``function``, or wait for the flight of ``key`` that is in the air and share its outcome.

        Args:
            key: what the function fetches. Callers with equal keys share one flight.
            function: called without arguments by the first caller, in its thread.

        Returns:
            What the first caller's function returned: the very same object for every caller.

        Raises:
            RuntimeError: the function asks for its own key, which could never land.
            BaseException: what the first caller's function raised, the very same object for every
                caller. An interrupt (KeyboardInterrupt, SystemExit) is the first caller's alone:
                one of those who waited takes over.
        """
        while True:
            mine = _Flight()
            flight = mine
            try:
                with self._lock:
                    flight = self._air.get(key, mine)
                    if flight.landed or flight is mine:
                        flight = self._air[key] = mine
                if flight is mine:
                    mine.result = function()
                    return mine.result  # type: ignore[no-any-return]
            except BaseException as error:
                mine.error = error
                raise
            finally:
                # An interrupt may strike at any call from here on: landed first, the gate whatever happens.
                mine.landed = True
                if flight is mine:
                    try:
                        self._remove(key, mine)
                    finally:
                        mine.gate.release()
                    del flight  # else its error's traceback, which has this frame, keeps both alive
                del mine
            if flight.leader == threading.get_ident():
                raise RuntimeError(f"{key!r} is wanted by the very function that fetches it")
            with flight.gate:
                pass
            if flight.error is None:
                return flight.result  # type: ignore[no-any-return]
            if isinstance(flight.error, Exception):
                try:
                    raise flight.error
                finally:
                    del flight  # else the error's traceback and this frame keep each other alive

    def _remove(self, key: Hashable, flight: _Flight) -> None:
        with self._lock:
            if self._air.get(key) is flight:  # not so in a child that was forked in mid-flight
                del self._air[key]


_instances: weakref.WeakSet[Flights] = weakref.WeakSet()


@forks.in_child
def _reset_all() -> None:
    for flights in list(_instances):
        flights._reset()


class LoopFlights:
    """As `Flights`, for coroutines: those of one event loop share one flight of a key.

    A flight is cancelled with the last of those who wait for it, not with the first.
    """

    def __init__(self) -> None:
        # Who waits holds the flight: a loop that was closed in mid-flight is not kept by it.
        self._air: weakref.WeakValueDictionary[Hashable, Task[Any]] = weakref.WeakValueDictionary()
        self._waiting: weakref.WeakKeyDictionary[Task[Any], int] = weakref.WeakKeyDictionary()

    async def run(self, key: Hashable, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What ``function`` gives when awaited, or the flight of ``key`` that is in the air in this loop.

        Args:
            key: what the function fetches.
            function: called without arguments by the first of them.

        Raises:
            BaseException: what the flight raised, the very same object for everyone.
        """
        import asyncio  # costs more than all of this package

        loop = asyncio.get_running_loop()
        flight = self._air.get((id(loop), key))
        if flight is None or flight.get_loop() is not loop or flight.done():
            flight = self._air[id(loop), key] = loop.create_task(function())
        self._waiting[flight] = self._waiting.get(flight, 0) + 1
        try:
            return await asyncio.shield(flight)
        finally:
            self._waiting[flight] -= 1
            if not self._waiting[flight] and not flight.done():
                flight.cancel()
                self._air.pop((id(loop), key), None)
