"""What goes through an S3 server: put and get beside obstore, memory, many clients."""

from __future__ import annotations

import multiprocessing
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.contenders import OURS, attempt
from benchmarks.rows import Plan, Row
from benchmarks.tasks import fresh
from benchmarks.test_servers import peaks_of
from benchmarks.timing import Absent, Figures, Sample, interleave

__all__ = ["WORKS", "sample_of"]

OBSTORE = "obstore"
OBSTORE_WHOLE = "obstore, no multipart"
OURS_MULTIPART = f"{OURS}, multipart"
CLIENTS = 16
ONE, MANY = f"{OURS}, 1 client", f"{OURS}, {CLIENTS} clients"
RAW_ONE, RAW_MANY = f"{OBSTORE}, 1 client", f"{OBSTORE}, {CLIENTS} clients"
KILOBYTE = 1_000
TEN_MB = 10_000_000
HUNDRED_MB = 100_000_000
REPEATS = 100  # of what takes a millisecond


def put_get(plan: Plan, server: Any) -> Iterator[Row]:
    """Put and get 1 kB and 100 MB: a store, and obstore alone, which gets bytes that nobody may change."""
    for size in (KILOBYTE, min(HUNDRED_MB, plan.sizes[-1])):
        with ExitStack() as stack:
            samples: dict[str, Sample | Absent] = {OBSTORE: _plain(server.witness(), size, {})}
            if size > KILOBYTE:
                samples[OBSTORE_WHOLE] = _plain(server.witness(), size, {"use_multipart": False})
            samples[OURS] = _stored(stack, server.url("bench"), size)
            if size > KILOBYTE:
                samples[OURS_MULTIPART] = _stored(stack, server.url("bench") + "&multipart=true", size)
            outcomes = interleave(samples, plan.rounds(size), budget=30)
        for figure in ("put", "get", "put + get"):
            row = Row(f"Store on S3 (SeaweedFS): {figure}", "s", outcomes.of(figure), size)
            if figure == "put + get":
                row.at_most_times(OURS, OBSTORE, 1.5 if size == KILOBYTE else 1.2)
                if size > KILOBYTE:
                    row.at_most_times(OURS_MULTIPART, OBSTORE, 1.2, claim=f"{row.title}, multipart")
            yield row


def sample_of(
    size: int, put: Callable[[Any], Any], get: Callable[[], Any], evict: Callable[[], Any]
) -> Sample:
    """Figures of putting and getting fresh bytes, each checked and then evicted."""
    count = REPEATS if size <= KILOBYTE else 1

    def sample() -> Figures:
        value = fresh(size).tobytes()
        putting = getting = 0.0
        for _ in range(count):
            begin = time.perf_counter()
            put(value)
            stored = time.perf_counter()
            got = get()
            getting += time.perf_counter() - stored
            putting += stored - begin
            assert memoryview(got)[-16:] == memoryview(value)[-16:], "other bytes"
            del got
            evict()
        return {"put": putting / count, "get": getting / count, "put + get": (putting + getting) / count}

    return sample


def _plain(witness: Any, size: int, options: dict[str, Any]) -> Sample:
    return sample_of(
        size,
        lambda value: witness.put("raw", value, **options),
        lambda: witness.get("raw").bytes(),
        lambda: witness.delete("raw"),
    )


def _stored(stack: ExitStack, url: str, size: int) -> Sample:
    from proxystore_core.store import Store

    store = stack.enter_context(Store.from_url(url, near=False, cache_size=0))
    keys: list[Any] = []
    return sample_of(
        size,
        lambda value: keys.append(store.put(value)),
        lambda: store.get(keys[-1]),
        lambda: store.evict(keys.pop()),
    )


def allocation(plan: Plan, server: Any) -> Iterator[Row]:
    """Peaks of memory while 100 MB are put and got, in a process that does nothing else."""
    size = min(HUNDRED_MB, plan.sizes[-1])
    samples = {OURS: partial(peaks_of, server.url("bench"), size)}
    outcomes = interleave(samples, 3, warm=0)
    for step, limit in (("put", 0.2), ("get", 1.2)):
        # The bytes that are put are there before: what counts is what comes on top of them.
        row = Row(f"Memory, S3: resident, gained at the peak of {step}", "B", outcomes.of(step), size)
        row.at_most(OURS, size * limit)
        yield row


def parallel(plan: Plan, server: Any) -> Iterator[Row]:
    """Sixteen processes put and get 10 MB each, and one does all of it. What they put is there before."""
    size = min(TEN_MB, plan.sizes[-1])
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(CLIENTS) as pool:
        samples: dict[str, Sample | Absent] = {}
        for one, many, url in ((ONE, MANY, server.url("bench")), (RAW_ONE, RAW_MANY, server.endpoint)):
            work = partial(_round_trips, url, size)
            pool.map(work, [1] * CLIENTS, chunksize=1)  # each has imported, connected and run once
            samples[one] = partial(_timed, partial(pool.map, work, [CLIENTS], 1))
            samples[many] = partial(_timed, partial(pool.map, work, [1] * CLIENTS, 1))
        # Five times out of six the processor is the server's, whose times vary by a fifth.
        outcomes = interleave(samples, plan.repeat * 2, budget=60)
        pool.close()
        pool.join()
    row = Row(f"S3, {CLIENTS} round trips in all", "s", outcomes.of("seconds"), size)
    row.at_most_times(MANY, ONE, 1.0, claim=f"S3: throughput of {CLIENTS} clients is not below that of one")
    row.at_most_times(MANY, RAW_MANY, 1.2, claim=f"S3: {CLIENTS} clients beside {CLIENTS} of {OBSTORE}")
    yield row


def _timed(work: Callable[[], Any]) -> Figures:
    begin = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - begin}


_open: dict[str, Any] = {}
_values: dict[int, bytes] = {}


def _opened(url: str) -> Any:
    if url.startswith("s3:"):
        from proxystore_core.recipe import open_connector

        return open_connector(url)
    return _Raw(url)


class _Raw:
    """obstore in the shape of a connector."""

    def __init__(self, endpoint: str) -> None:
        import obstore.store

        self.store = obstore.store.S3Store(
            "bucket", config={"endpoint": endpoint}, client_options={"allow_http": True}
        )

    def put(self, data: list[bytes]) -> str:
        name = uuid.uuid4().hex
        self.store.put(name, data[0])
        return name

    def get(self, name: str) -> Any:
        return memoryview(self.store.get(name).bytes())

    def evict(self, name: str) -> None:
        self.store.delete(name)


def _round_trips(url: str, size: int, count: int) -> None:
    connector = _open.get(url) or _open.setdefault(url, _opened(url))
    data = _values.get(size) or _values.setdefault(size, fresh(size).tobytes())
    for _ in range(count):
        key = connector.put([data])
        assert connector.get(key)[-1] == data[-1], "other bytes"
        connector.evict(key)


def served(stack: ExitStack) -> Any:
    """The server of these works, or why there is none."""
    from benchmarks.test_servers import object_server

    return attempt(lambda: object_server(stack))


WORKS: Mapping[str, Callable[[Plan, Any], Iterator[Row]]] = {
    "objects-store": put_get,
    "objects-allocation": allocation,
    "objects-parallel": parallel,
}
