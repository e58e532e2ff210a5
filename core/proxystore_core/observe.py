"""Counters and times of a store, as wrappers around its parts: a store that nobody watches pays nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from proxystore_core import forks
from proxystore_core.connectors.base import USER_SESSION, Buffer, Connector, Key

__all__ = ["Metrics", "Observed", "Operation"]


@dataclasses.dataclass
class Operation:
    """One kind of operation.

    Attributes:
        count: calls that returned.
        errors: calls that raised.
        seconds: time spent in calls that returned.
        slowest: the longest of them, in seconds.
        nbytes: bytes moved by calls that returned.
    """

    count: int = 0
    errors: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    nbytes: int = 0


class Metrics:
    """What a store did, by name of operation: put, get, exists, evict, serialize, deserialize."""

    def __init__(self) -> None:
        self._lock = forks.lock()
        self._operations: dict[str, Operation] = {}

    def __getitem__(self, name: str) -> Operation:
        """A copy of one operation's counters; zeros when it never ran."""
        with self._lock:
            return dataclasses.replace(self._operations.get(name, Operation()))

    def __repr__(self) -> str:
        parts = (
            f"{name} {one.count}x {one.seconds:.3g} s {one.nbytes} B" for name, one in self.as_dict().items()
        )
        return f"<Metrics {', '.join(parts) or 'of nothing yet'}>"

    def as_dict(self) -> dict[str, Operation]:
        """Copies of all counters."""
        with self._lock:
            return {name: dataclasses.replace(one) for name, one in self._operations.items()}

    def timed(
        self, name: str, call: Callable[[], Any], nbytes: Callable[[Any], int] = lambda result: 0
    ) -> Any:
        """Run ``call`` and count it; ``nbytes`` tells from its result how many bytes moved."""
        with self._timing(name, nbytes) as results:
            result = call()
            results.append(result)
        return result

    async def timed_async(
        self, name: str, call: Awaitable[Any], nbytes: Callable[[Any], int] = lambda result: 0
    ) -> Any:
        """As `timed`, of what is awaited."""
        with self._timing(name, nbytes) as results:
            result = await call
            results.append(result)
        return result

    @contextlib.contextmanager
    def _timing(self, name: str, nbytes: Callable[[Any], int]) -> Iterator[list[Any]]:
        start = time.perf_counter()
        results: list[Any] = []
        try:
            yield results
        except BaseException:
            with self._lock:
                self._operations.setdefault(name, Operation()).errors += 1
            raise
        seconds = time.perf_counter() - start
        moved = nbytes(results[0])
        with self._lock:
            one = self._operations.setdefault(name, Operation())
            one.count += 1
            one.seconds += seconds
            one.slowest = max(one.slowest, seconds)
            one.nbytes += moved


class Observed:
    """A connector that counts what another one does; everything not counted passes straight through."""

    def __init__(self, connector: Connector, metrics: Metrics) -> None:
        self.observed = connector
        self.metrics = metrics

    def __repr__(self) -> str:
        return f"Observed({self.observed!r})"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.observed, name)
        own = _ABILITIES.get(name)
        return found if own is None else partial(own, self)

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION, **hints: Any) -> Key:
        size = _total(data)
        key: Key = self.metrics.timed(
            "put", lambda: self.observed.put(data, session=session, **hints), lambda result: size
        )
        return key

    def get(self, key: Key) -> Buffer | None:
        data: Buffer | None = self.metrics.timed("get", lambda: self.observed.get(key), _size)
        return data

    async def _put_async(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        size = _total(data)
        putting = self._other.put_async(data, session=session)
        key: Key = await self.metrics.timed_async("put", putting, lambda result: size)
        return key

    async def _get_async(self, key: Key) -> Buffer | None:
        data: Buffer | None = await self.metrics.timed_async("get", self._other.get_async(key), _size)
        return data

    @property
    def _other(self) -> Any:
        return self.observed

    def exists(self, key: Key) -> bool:
        return bool(self.metrics.timed("exists", lambda: self.observed.exists(key)))

    def evict(self, key: Key) -> None:
        self.metrics.timed("evict", lambda: self.observed.evict(key))


_ABILITIES: dict[str, Any] = {"put_async": Observed._put_async, "get_async": Observed._get_async}
"""What a connector may be able to do that is counted."""


def _size(data: Buffer | None) -> int:
    return 0 if data is None else len(data)


def _total(data: Sequence[Buffer]) -> int:
    return sum(memoryview(buffer).nbytes for buffer in data)
