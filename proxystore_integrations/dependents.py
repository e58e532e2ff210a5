"""Futures whose results may be arguments of other calls: stored ones go on as references."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import FINISHED
from typing import Any

from proxystore_core import register_sizeof
from proxystore_core.reference import loaded_class
from proxystore_integrations.attempts import CallFuture
from proxystore_integrations.calls import Call
from proxystore_integrations.carriers import StoredResult
from proxystore_integrations.transfer import CONTAINERS, DEPTH

__all__ = [
    "LaterFuture",
    "Search",
    "StoreFuture",
    "holds_any",
    "may_hide_futures",
    "may_hold_futures",
    "store_futures",
    "when_done",
]

_MEASURED = 256  # items of a container up to which its size is no estimate
_ITEMS = 1000
"""Items of containers that are looked at, in each argument, in search of futures."""


class StoreFuture(Future[Any]):
    """A call's future, whose result may be an argument of other calls."""

    def __repr__(self) -> str:
        shown = super().__repr__()
        if not shown.endswith(f" returned {StoredResult.__name__}>"):
            return shown
        return shown.replace(StoredResult.__name__, self.carried().reference.describe())

    def result(self, timeout: float | None = None) -> Any:
        """The call's result, always the same object. As `concurrent.futures.Future.result`."""
        result = super().result(timeout)  # the engine's own class may have one
        return result.value if type(result) is StoredResult else result

    def carried(self) -> Any:
        """The result as it came: a stored one as what stands for it. Only when done; raises as `result`."""
        return super().result()


class QuickFuture(StoreFuture):
    """That of a class which leaves `concurrent.futures.Future.result` as it is: no lock where it is done."""

    def result(self, timeout: float | None = None) -> Any:
        """As `StoreFuture.result`."""
        if self._state == FINISHED and self._exception is None:
            result = self._result
            return result.value if type(result) is StoredResult else result
        return super().result(timeout)


class LaterFuture(StoreFuture, CallFuture):
    """The future of a call that may have to wait for others, or to be made again."""

    def begin(self, call: Call) -> None:
        """Submit the call now; raises what the executor raises."""
        self._try(call)

    def wait(self) -> None:
        """Wait until it is done, however it ends."""
        with contextlib.suppress(CancelledError):
            self.exception()


class _StoreFutures(dict[type[Future[Any]], type[Future[Any]]]):
    def __missing__(self, kind: type[Future[Any]]) -> type[Future[Any]]:
        ours = QuickFuture if kind.result is Future.result else StoreFuture
        made = type(f"Store{kind.__name__}", (ours, kind), {"__module__": __name__})
        register_sizeof(made, _endless)
        self[kind] = made
        return made


store_futures = _StoreFutures()
"""By an engine's own class of futures, its `StoreFuture`.

To be put in place of a future's class: a second future costs a small call a tenth of its time.
"""


def _endless(future: object) -> int:
    """A container that holds any is to be looked into, whatever else is in it."""
    return 1 << 64


register_sizeof(LaterFuture, _endless)


def may_hold_futures(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a `Search` could find any; costs a fraction of one."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind in CONTAINERS or issubclass(kind, StoreFuture):
            return True
    return False


def may_hide_futures(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a `Search` could find any where sizes, which are estimates, tell of none."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) not in CONTAINERS:
            continue
        if len(value) > _MEASURED:
            return True
        for item in value.values() if type(value) is dict else value:
            if type(item) in CONTAINERS:
                return True
    return False


def holds_any(kinds: Iterable[str], values: Iterable[Any]) -> bool:
    """Whether there is an object of some classes among values, or anywhere in lists, tuples, sets and dicts.

    Args:
        kinds: classes, each as ``module:name``; where its module is not loaded there is none.
        values: any.
    """
    found = [loaded_class(kind) for kind in kinds]
    wanted = tuple(kind for kind in found if kind is not None)
    seen: dict[int, Any] = {}
    level = list(values)
    while level:
        inner: list[Any] = []
        for value in level:
            kind = type(value)
            if issubclass(kind, wanted):
                return True
            if issubclass(kind, list | tuple | set | dict) and id(value) not in seen:
                seen[id(value)] = value
                inner += dict.values(value) if issubclass(kind, dict) else value
        level = inner
    return False


class Search:
    """Our futures among a call's arguments: themselves, or in lists, tuples and dicts.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.

    Attributes:
        futures: those found among the first thousand items of each argument.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.futures: list[StoreFuture] = []
        self._args = args
        self._kwargs = kwargs
        self._left = 0
        self._holders: set[int] = set()  # containers with futures in them, by id
        self._found: set[int] = set()  # futures, by id
        self._made: dict[int, Any] = {}  # containers with results in them, by the old one's id
        self._begun: set[int] = set()  # those that are not filled yet
        self._circular = self._plain = False
        for given in args, kwargs:
            for value in given.values() if isinstance(given, dict) else given:
                self._left = _ITEMS
                if self._find(value, DEPTH):
                    self._holders.add(id(given))

    def results(self) -> tuple[Any, dict[str, Any]]:
        """The arguments with results in place of futures, as they came: stored ones as references.

        A container that is in several places is one there, too; where one holds itself, results are plain.

        Raises:
            Exception: that of a call which failed.
        """
        filled = self._filled(self._args), self._filled(self._kwargs)
        if self._circular:  # a task's worker fills in none that holds itself
            self._made.clear()
            self._plain = True
            filled = self._filled(self._args), self._filled(self._kwargs)
        return filled

    def _find(self, value: Any, depth: int) -> bool:
        kind = type(value)
        if issubclass(kind, StoreFuture):
            self.futures.append(value)
            self._found.add(id(value))
            return True
        if not depth or kind not in CONTAINERS:
            return False
        found = False
        for item in value.values() if kind is dict else value:
            self._left -= 1
            if self._left < 0:
                break
            found = self._find(item, depth - 1) or found
        if found:
            self._holders.add(id(value))
        return found

    def _filled(self, value: Any) -> Any:
        if isinstance(value, StoreFuture):
            if id(value) not in self._found:
                return value
            return value.result() if self._plain else value.carried()
        if id(value) not in self._holders:
            return value
        if id(value) in self._made:
            self._circular = self._circular or id(value) in self._begun
            return self._made[id(value)]
        kind = type(value)
        if kind is tuple:
            items = tuple(self._filled(item) for item in value)
            return self._made.setdefault(id(value), items)  # it may be in what it holds
        made = self._made[id(value)] = kind()
        self._begun.add(id(value))
        if kind is dict:
            made.update((key, self._filled(item)) for key, item in value.items())
        else:
            made.extend(self._filled(item) for item in value)
        self._begun.remove(id(value))
        return made


def when_done(futures: list[StoreFuture], then: Callable[[BaseException | None], None]) -> None:
    """Call ``then`` once all are done, or one of them failed or was cancelled, with its exception."""
    lock = threading.Lock()
    waiting = len(futures)

    def one_done(future: Future[Any]) -> None:
        nonlocal waiting
        error = CancelledError() if future.cancelled() else future.exception()
        with lock:
            if waiting <= 0:
                return
            waiting = 0 if error is not None else waiting - 1
            last = waiting == 0
        if last:
            then(error)

    for future in futures:
        future.add_done_callback(one_done)
