"""The receiving side of a stream."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from proxystore_core.errors import CorruptError, DeadlineError, GoneError, RefusedError
from proxystore_core.proxy import Proxied, Proxy
from proxystore_core.registry import store_for
from proxystore_core.secret import Secret
from proxystore_core.store import Store
from proxystore_core.stream.broker import Message, Subscriber, check_count, check_timeout, is_closed
from proxystore_core.stream.events import End, Event, decode, encode

__all__ = ["Item", "StreamConsumer"]

T = TypeVar("T")

_ENDLESS = 1e9  # seconds: a wait that is longer has no end, and clocks overflow soon after
_PAUSE = 0.02  # seconds before an end that is not all is put back


@dataclasses.dataclass(frozen=True)
class Item(Generic[T]):
    """One item of a stream.

    Attributes:
        topic: its topic.
        proxy: of its object.
        metadata: the producer's.
        event: all that the broker carried.
    """

    topic: str
    proxy: Proxied[T]
    metadata: Mapping[str, Any]
    event: Event


class _Arrived:
    """A message whose items are not all dealt with."""

    def __init__(self, message: Message, count: int) -> None:
        self.message = message
        self.left = count


class _Worker:
    """One thread, which the interpreter's end does not wait for: it may wait for an item without an end."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="proxystore-stream", daemon=True).start()

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._orders.put((future, function))
        return future

    def close(self) -> None:
        self._orders.put(None)

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            future, function = order
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del order, future, function


class StreamConsumer(Generic[T]):
    """Iterates over the items of a stream until all its producers have ended.

    ``for proxy in consumer`` hands items on: an object leaves the store when its proxy is first resolved,
    wherever that is. ``for obj in consumer.iter_objects()`` works on them here: an object leaves the store
    when the next one is asked for, and only then its message is acknowledged, so that nothing is lost
    with a consumer that dies. Both also with ``async for``. For one thread at a time.

    Args:
        subscriber: to the broker.
        filter_: a function of an item's metadata; items for which it is true are dropped.
        producers: how many producers of each topic have to end before the stream does.
        timeout: seconds without an item after which iterating raises; None for no end.
        stores: the stores, open or as their `recipe`, whose objects are taken. By default all: then whoever
            may write to the broker says which store is opened, and what is loaded from it. The secret of
            an open one is the stream's, too; else it is the one that this process is configured with.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        *,
        filter_: Callable[[Mapping[str, Any]], bool] | None = None,
        producers: int = 1,
        timeout: float | None = None,
        stores: Iterable[Store[Any] | str] | None = None,
    ) -> None:
        check_count("producers", producers)
        check_timeout("timeout", timeout)
        self.subscriber = subscriber
        self._transactional = bool(getattr(subscriber, "transactional", False))
        self._filter = filter_
        self._producers = producers
        self._timeout = timeout
        stores = None if stores is None else list(stores)
        secrets = [store.secret for store in stores or () if isinstance(store, Store) and store.secret]
        self._secret = secrets[0] if secrets else Secret.configured()
        self._recipes = (
            None
            if stores is None
            else {store if isinstance(store, str) else store.recipe for store in stores}
        )
        self._open = set(subscriber.topics)
        self._ended: dict[str, set[str]] = {}
        self._ready: deque[tuple[_Arrived, Event]] = deque()
        self._given: list[tuple[_Arrived, Event | None]] = []  # not acknowledged yet; to be evicted first
        self._worker: _Worker | None = None
        self._asked: Future[Any] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"StreamConsumer({self.subscriber!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(acknowledge=kind is None)

    # One item at a time.

    def next(self, timeout: float | None = None) -> Proxied[T]:
        """The next item's proxy. Acknowledges what was given before.

        Args:
            timeout: seconds to wait at most; the consumer's own by default.

        Raises:
            StopIteration: the stream has ended.
            DeadlineError: no item in time.
            CorruptError: a message of the broker is none of a stream.
            StoreError: the broker or a store failed.
        """
        return self.next_item(timeout).proxy

    def next_item(self, timeout: float | None = None) -> Item[T]:
        """As `next`, with the item's topic and metadata."""
        return self._item(*self._next(timeout), evict=True)

    def next_object(self, timeout: float | None = None) -> T:
        """The next item's object, loaded. It leaves the store when the next one is asked for.

        Raises:
            GoneError: the object is not there. An item that had been given to a consumer that died, and whose
                object is gone, was dealt with: it is skipped.
            StopIteration, DeadlineError, CorruptError, StoreError: as `next`.
        """
        return self._object(timeout)[1]

    def next_object_with_metadata(self, timeout: float | None = None) -> tuple[T, Mapping[str, Any]]:
        """As `next_object`, with the item's metadata."""
        event, obj = self._object(timeout)
        return obj, event.metadata

    def acknowledge(self) -> None:
        """Acknowledge all that was given so far, as the next `next` does."""
        self._settle()
        self.subscriber.flush()

    def _settle(self) -> None:
        given, self._given = self._given, []
        for place, (arrived, event) in enumerate(given):
            try:
                last = arrived.left == 1
                # What was sent meanwhile must not be lost with a crash in between: then it goes first.
                if last and self._transactional:
                    self.subscriber.acknowledge(arrived.message)
                if event is not None:
                    store_for(event.recipe).evict(event.key)
                arrived.left -= 1
                if last and not self._transactional:
                    self.subscriber.acknowledge(arrived.message)
            except BaseException:
                self._given = given[place:] + self._given
                raise

    # All items.

    def __iter__(self) -> Iterator[Proxied[T]]:
        return (item.proxy for item in self.items())

    def items(self) -> Iterator[Item[T]]:
        """All items: proxies with topics and metadata."""
        return self._all(self.next_item)

    def iter_objects(self) -> Iterator[T]:
        """All objects, loaded."""
        return self._all(self.next_object)

    def iter_objects_with_metadata(self) -> Iterator[tuple[T, Mapping[str, Any]]]:
        """All objects, loaded, with their metadata."""
        return self._all(self.next_object_with_metadata)

    def __aiter__(self) -> AsyncIterator[Proxied[T]]:
        return self._all_async(self.next)

    def items_async(self) -> AsyncIterator[Item[T]]:
        """As `items`, for ``async for``."""
        return self._all_async(self.next_item)

    def iter_objects_async(self) -> AsyncIterator[T]:
        """As `iter_objects`, for ``async for``."""
        return self._all_async(self.next_object)

    def close(self, *, acknowledge: bool = True) -> None:
        """Close the subscriber. May be called twice.

        Args:
            acknowledge: whether what was given is dealt with.
        """
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._closed = True
        if acknowledge:
            self._settle()
        self._given.clear()
        self.subscriber.close()

    def _all(self, ask: Callable[[], Any]) -> Iterator[Any]:
        while True:
            try:
                found = ask()
            except StopIteration:
                return
            yield found

    async def _all_async(self, ask: Callable[[], Any]) -> AsyncIterator[Any]:
        if self._closed:
            raise is_closed("consumer")
        if self._worker is None:
            self._worker = _Worker()
            weakref.finalize(self, self._worker.close).atexit = False

        def asked() -> tuple[Any, ...]:
            try:
                return (ask(),)
            except StopIteration:  # which no future carries
                return ()

        while True:
            if self._asked is None:
                self._asked = self._worker.submit(asked)
            # An item that came for a task that was cancelled is for the next one.
            try:
                found = await asyncio.shield(asyncio.wrap_future(self._asked))
            except asyncio.CancelledError:
                raise
            except BaseException:
                self._asked = None  # an error is told once
                raise
            self._asked = None
            if not found:
                return
            yield found[0]

    # The way of the messages.

    def _object(self, timeout: float | None) -> tuple[Event, T]:
        while True:
            arrived, event = self._next(timeout)
            self._given.append((arrived, event if event.evict else None))
            try:
                return event, store_for(event.recipe).load(event.reference(evict=False))
            except GoneError:
                if not (arrived.message.again and event.evict):
                    raise

    def _item(self, arrived: _Arrived, event: Event, *, evict: bool) -> Item[T]:
        self._given.append((arrived, None))
        proxy: Proxy[T] = Proxy(event.reference(evict=evict and event.evict))
        return Item(arrived.message.topic, proxy, event.metadata, event)

    def _next(self, timeout: float | None) -> tuple[_Arrived, Event]:
        if self._closed:
            raise is_closed("consumer")
        self._settle()
        limit = self._timeout if timeout is None else timeout
        limit = _ENDLESS if limit is None else limit
        since = time.monotonic()
        while not self._ready:
            if not self._open:
                raise StopIteration
            left = max(0.0, since + limit - time.monotonic())
            message = self.subscriber.receive(left if limit < _ENDLESS else None)
            if message is not None and self._take(message):
                since = time.monotonic()  # of an item that was dropped
            elif self._open and (message is None or not left):
                raise DeadlineError(
                    f"no item came within {limit:g} s",
                    remedy="Does a producer run? Give timeout= more seconds, or None.",
                )
        return self._ready.popleft()

    def _take(self, message: Message) -> bool:
        """Take in a message; whether items came. An end that is not all goes round, and is none."""
        try:
            batch = decode(message.data, message.topic, self._secret)
        except CorruptError:
            self.subscriber.acknowledge(message)  # else everyone who shares it is told, one after the other
            raise
        if isinstance(batch, End):
            self._end(message, batch)
            return False
        for event in batch:
            if self._recipes is not None and event.recipe not in self._recipes:
                raise RefusedError(
                    f"an item of topic {message.topic!r} is in a store that this consumer was not given",
                    store=event.recipe,
                    key=event.key,
                    remedy="Name the store in stores=, if you trust who writes to the broker.",
                )
        wanted: list[Event] = []
        dropped: list[Event] = []
        for event in batch:
            drop = self._filter is not None and self._filter(event.metadata)
            (dropped if drop else wanted).append(event)
        arrived = _Arrived(message, len(wanted))
        for event in dropped:
            if event.evict:
                store_for(event.recipe).evict(event.key)
        if not wanted:
            self.subscriber.acknowledge(message)
        self._ready.extend((arrived, event) for event in wanted)
        return bool(batch)

    def _end(self, message: Message, end: End) -> None:
        topic = message.topic
        known = self._ended.setdefault(topic, set())
        known |= end.producers
        over = len(known) >= self._producers and self.subscriber.drained(topic, self._producers)
        if not over:
            time.sleep(_PAUSE)  # it comes round again until the others have come
        self.subscriber.share(message, encode(End(frozenset(known)), topic, self._secret))
        self.subscriber.acknowledge(message)
        self.subscriber.flush()
        if over:
            self.subscriber.leave(topic)
            self._open.discard(topic)
