"""What runs in other processes for the works of patterns: waiters, steps of a chain, producers, mappers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from proxystore_core import Store
from proxystore_core.stream import StreamProducer

__all__ = ["mapped", "owned", "produce", "produce_bare", "step", "stored", "touched", "woken"]


def woken(proxy: Any) -> float:
    """When a waiter has the value, on the clock that all processes of a host share."""
    len(proxy)
    return time.monotonic()


def step(value: Any, result: Any, setup: float, work: float) -> Any:
    """One task of a chain: its own setting up, then work on the value; where to put the result, or None."""
    time.sleep(setup)
    total = np.asarray(value) + 1
    time.sleep(work)
    if result is None:
        return total
    result.set_result(total)
    return None


def touched(item: Any) -> int:
    """What a worker of a stream does: read one byte of every page."""
    return int(np.frombuffer(bytes(item) if isinstance(item, bytes) else item.data, np.uint8)[::4096].sum())


def produce(publisher: Any, url: str, topic: str, count: int, size: int) -> None:
    """Send a stream's items: events by the broker, objects by the store."""
    kind, args, _ = publisher
    with Store.from_url(url) as store, StreamProducer[Any](kind(*args), store, max_pending=64) as producer:
        for number in range(count):
            producer.send(topic, np.full(size, number % 256, np.uint8))


def produce_bare(publisher: Any, topic: str, count: int, size: int) -> None:
    """Send the items themselves through the broker."""
    kind, args, options = publisher
    sender = kind(*args, **options)
    for number in range(count):
        sender.send(topic, np.full(size, number % 256, np.uint8).tobytes())
    sender.close()


def mapped(value: Any, number: int) -> Any:
    """A mapper: as much out as in."""
    time.sleep(0.02)
    return np.asarray(value) + number


def stored(store: Any, value: Any, number: int) -> Any:
    """A mapper whose result goes into the store, for whoever may want it."""
    return store.proxy(mapped(value, number), populate_target=False)


def owned(store: Any, value: Any, number: int) -> Any:
    """A mapper whose result is owned by who gets it."""
    return store.owned_proxy(mapped(value, number), populate_target=False)
