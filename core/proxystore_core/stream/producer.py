"""The sending side of a stream."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

from proxystore_core import forks
from proxystore_core.errors import ConfigurationError, DeadlineError, SerializationError, StoreError
from proxystore_core.reference import Reference
from proxystore_core.store import Store
from proxystore_core.stream.broker import Publisher, check_count
from proxystore_core.stream.events import End, Event, check_metadata, encode, encode_all
from proxystore_core.stream.keeping import WEEK, Keeping

__all__ = ["StreamProducer"]

T = TypeVar("T")

_PAUSES = 0.001, 0.05  # seconds between two looks at what is still unconsumed: first, and longest


class StreamProducer(Generic[T]):
    """Stores objects and tells a stream's consumers of them. Safe in threads.

    Args:
        publisher: to the broker.
        stores: the store of all topics, or a store for each; that of None is for topics not named.
        aggregator: makes one object of the objects of a batch, which are then one item.
        batch_size: items of a topic that are sent as one message; the rest with `flush` or `close`.
        filter_: a function of an item's metadata; items for which it is true are not sent.
        max_pending: items of a topic that may be stored and not yet consumed: `send` waits. None for any
            number. Only items that are evicted when consumed count.
        session: the session that the objects belong to. By default the store's own if it has one; else what
            consumers evict is in sessions of streams (see ``keep``), and the rest is the user's, as with
            `Store.put`.
        keep: seconds that an object stays at least which is to be evicted when consumed, and is not; it is
            gone an eighth later. `math.inf` for no end. By default as long as the publisher keeps
            messages, if it says so (its ``keep``), else a week.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    def __init__(
        self,
        publisher: Publisher,
        stores: Store[Any] | Mapping[str | None, Store[Any]],
        *,
        aggregator: Callable[[list[T]], T] | None = None,
        batch_size: int = 1,
        filter_: Callable[[Mapping[str, Any]], bool] | None = None,
        max_pending: int | None = None,
        session: str | None = None,
        keep: float | None = None,
    ) -> None:
        check_count("batch_size", batch_size)
        if max_pending is not None:
            check_count("max_pending", max_pending, least=batch_size)
        self.publisher = publisher
        self.name = secrets.token_hex(8)
        self._stores: Mapping[str | None, Store[Any]]
        given: Any = {None: stores} if isinstance(stores, Store) else stores
        if not isinstance(given, Mapping) or not all(isinstance(store, Store) for store in given.values()):
            raise ConfigurationError(
                f"stores is {stores!r}: expected a Store, or one for each topic",
                remedy="Store.from_url() opens one.",
            )
        self._stores = dict(given)
        self._aggregator = aggregator
        self._batch_size = batch_size
        self._filter = filter_
        self._max_pending = max_pending
        self._session = session
        if keep is None:
            keep = getattr(publisher, "keep", WEEK) or math.inf
        self._keeping = Keeping(keep)
        self._lock = forks.lock()
        self._topics: dict[str, list[_Kept[T]]] = {}
        self._pending: dict[str, list[tuple[Store[Any], str]]] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"StreamProducer({self.publisher!r}, topics={sorted(self._topics)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(topics=kind is None)

    def send(
        self,
        topic: str,
        obj: T,
        *,
        evict: bool = True,
        metadata: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Send an item, or keep it for the next batch.

        Args:
            topic: where to.
            obj: its object.
            evict: whether the object leaves the store once it is consumed.
            metadata: small things that travel with the event: numbers, texts, lists and dicts.
            timeout: seconds to wait while too many items are unconsumed; None for no end.

        Raises:
            ConfigurationError: the topic has no store, or the metadata cannot be sent.
            DeadlineError: nobody consumed in time. The item is not sent.
            StoreError: the store or the broker failed. The item is kept, for the next call or `flush`: who
                sends it again sends it twice.
        """
        metadata = {} if metadata is None else metadata
        if topic == "" or type(topic) is not str:
            raise ConfigurationError(f"a topic is a name, not {topic!r}")
        size = check_metadata(metadata)  # later it would stand in the way of other items
        if self._filter is not None and self._filter(metadata):
            return
        self._store(topic)
        self._wait(topic, timeout)
        with self._lock:
            if self._closed:
                raise ConfigurationError("this producer is closed")
            batch = self._topics.setdefault(topic, [])
            if self._aggregator is not None and sum(item.size for item in batch) > 0 < size:
                check_metadata(_merged([*(item.metadata for item in batch), metadata]))
            batch.append(_Kept(obj, evict, dict(metadata), size))
            full = len(batch) >= self._batch_size
        if full:
            self.flush(topic)

    def send_batch(self, topic: str, objs: Iterable[T], **options: Any) -> None:
        """`send` for each."""
        for obj in objs:
            self.send(topic, obj, **options)

    def flush(self, topic: str | None = None) -> None:
        """Send what is kept for batches; of all topics by default. Raises as `send`.

        What could not be sent is kept, and its objects are not left in the store. An object that cannot be
        serialized is dropped: it would stand in the way of all that comes after it. A batch with more
        metadata than fit into one message is several.
        """
        for each in list(self._topics) if topic is None else [topic]:
            with self._lock:
                batch, self._topics[each] = self._topics.get(each, []), []
            if not batch:
                continue
            try:
                self._send(each, batch)
            except BaseException as error:
                if isinstance(error, SerializationError) and self._aggregator is None:
                    store = self._store(each)
                    batch = [item for item in batch if _can_be_stored(store, item.obj)]
                with self._lock:
                    self._topics[each] = batch + self._topics[each]
                raise

    def close_topics(self, *topics: str) -> None:
        """Flush topics, and tell their consumers that nothing more comes from this producer.

        Raises:
            StoreError: as `send`.
        """
        for topic in topics:
            self.flush(topic)
            store = self._stores.get(topic) or self._stores.get(None)
            end = End(frozenset([self.name]))
            secret = None if store is None else store.secret
            self.publisher.send_end(topic, encode(end, topic, secret))
            with self._lock:
                self._topics.pop(topic, None)

    def close(self, *, topics: bool = True) -> None:
        """Flush, end all topics that something was sent to, and close the publisher. May be called twice.

        Args:
            topics: whether to end the topics; their consumers wait for another producer otherwise.
        """
        if self._closed:
            return
        try:
            if topics:
                self.close_topics(*list(self._topics))
            else:
                self.flush()
        finally:
            self._closed = True
            self.publisher.close()

    def _store(self, topic: str) -> Store[Any]:
        store = self._stores.get(topic) or self._stores.get(None)
        if store is None:
            raise ConfigurationError(
                f"the topic {topic!r} has no store", remedy="Name one in stores, or one for None: all others."
            )
        return store

    def _send(self, topic: str, batch: list[_Kept[T]]) -> None:
        """Send a batch, from which what is sent is taken."""
        store = self._store(topic)
        items = batch
        if self._aggregator is not None:
            one = self._aggregator([item.obj for item in batch])
            merged = _merged([item.metadata for item in batch])
            items = [_Kept(one, all(item.evict for item in batch), merged, 0)]
        references: list[Reference] = []
        sent = 0
        try:
            for evicted, some in itertools.groupby(items, key=operator.attrgetter("evict")):
                session = self._session
                if session is None and evicted:
                    session = self._keeping.session_in(store)
                references += store.reference_batch([item.obj for item in some], session=session)
            events = [
                Event(each.key, each.recipe, each.size, each.kind, item.evict, item.metadata)
                for each, item in zip(references, items, strict=True)
            ]
            for count, message in encode_all(events, topic, store.secret):
                self.publisher.send(topic, message)
                self._note(topic, store, events[sent : sent + count])
                sent += count
                del batch[: len(batch) if self._aggregator is not None else count]
        except BaseException:
            for reference in references[sent:]:
                with contextlib.suppress(StoreError):
                    store.evict(reference.key)
            raise

    def _note(self, topic: str, store: Store[Any], sent: Sequence[Event]) -> None:
        if self._max_pending is not None:
            with self._lock:
                pending = self._pending.setdefault(topic, [])
                pending += [(store, event.key) for event in sent if event.evict]

    def _wait(self, topic: str, timeout: float | None) -> None:
        if self._max_pending is None:
            return
        until = None if timeout is None else time.monotonic() + timeout
        pause = _PAUSES[0]
        while True:
            with self._lock:
                pending = list(self._pending.get(topic, ()))
            if len(pending) + len(self._topics.get(topic, ())) < self._max_pending:
                return
            consumed = _consumed(pending)
            if consumed:
                with self._lock:
                    self._pending[topic] = [each for each in self._pending[topic] if each not in consumed]
                continue
            if until is not None and time.monotonic() >= until:
                raise DeadlineError(
                    f"{len(pending)} items of topic {topic!r} are stored and nobody consumed one in "
                    f"{timeout:g} s",
                    store=self._store(topic).recipe,
                    remedy="Start more consumers, or let max_pending be greater.",
                )
            time.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])


class _Kept(NamedTuple, Generic[T]):
    """One item that is not sent yet."""

    obj: T
    evict: bool
    metadata: Mapping[str, Any]
    size: int  # bytes of the metadata in a message


def _merged(metadata: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for each in metadata for name, value in each.items()}


def _can_be_stored(store: Store[Any], obj: Any) -> bool:
    try:
        store.encode(obj)
    except SerializationError:
        return False
    return True


def _consumed(pending: Sequence[tuple[Store[Any], str]]) -> list[tuple[Store[Any], str]]:
    """Some of the items that are gone from their stores, if any is: looks for the oldest ones first."""
    consumed = []
    for store, key in pending:
        if not store.exists(key):
            consumed.append((store, key))
        elif consumed:
            break
    return consumed
