"""What goes through a Redis server: put and get, memory, many processes of one host, Dask."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from benchmarks.contenders import BARE, OURS, PEER, REDIS, REDIS_COPYLESS, attempt, store
from benchmarks.dask_work import argument_of, clients, floor, result_of, sampled
from benchmarks.process_work import STEPS, allocation_of
from benchmarks.redis_server import RedisServer
from benchmarks.rows import Plan, Row
from benchmarks.tasks import Array, fresh, touch
from benchmarks.timing import Absent, Figures, Sample, interleave

__all__ = ["WORKS"]

KILOBYTE = 1_000
TEN_MB = 10_000_000
HUNDRED_MB = 100_000_000
PROCESSES = 16
REPEATS = 200  # of what takes microseconds
PAUSE = 0.15  # seconds before what is expensive: whatever the last contender left to do is done


def put_get(plan: Plan, server: RedisServer) -> Iterator[Row]:
    """Put and get a value of 1 kB and an array of 100 MB, each way to the server."""
    for transport in ("unix socket", "TCP"):
        for size in (KILOBYTE, min(HUNDRED_MB, plan.sizes[-1])):
            with ExitStack() as stack:
                client = stack.enter_context(server.client(transport))
                samples: dict[str, Sample | Absent] = {REDIS: _plain(client, size)}
                if size > KILOBYTE:
                    samples[REDIS_COPYLESS] = _copyless(client, size)
                for name in (PEER, OURS):
                    opened = attempt(partial(store, name, server, stack, transport))
                    samples[name] = opened if isinstance(opened, Absent) else _stored(opened, size)
                outcomes = interleave(samples, min(5, plan.repeat) if size > KILOBYTE else 3 * plan.repeat)
                client.delete("raw")
            where = f"Store on Redis, {transport}"
            for figure in ("put", "get", "put + get"):
                row = Row(f"{where}: {figure}", "s", outcomes.of(figure), size)
                if figure == "put + get" and size == KILOBYTE:
                    row.at_most_times(OURS, REDIS, 1.5)
                elif figure == "put + get" and transport == "unix socket":
                    row.times_faster(OURS, PEER, 3.0)
                    row.at_most_times(OURS, REDIS_COPYLESS, 1.2)
                yield row


def _sample(
    size: int,
    put: Callable[[Any], Any],
    get: Callable[[], Any],
    evict: Callable[[], Any] = lambda: None,
) -> Sample:
    count = REPEATS if size <= KILOBYTE else 1

    def sample() -> Figures:
        values = [_value(size) for _ in range(count)]
        time.sleep(PAUSE if size > KILOBYTE else 0.01)
        putting = getting = 0.0
        for value in values:
            begin = time.perf_counter()
            put(value)
            stored = time.perf_counter()
            got = get()
            getting += time.perf_counter() - stored
            putting += stored - begin
            assert bytes(got[:16]) == bytes(value[:16]), "other bytes"
            assert len(got) == len(value), "other bytes"
            del got
            evict()
        return {
            "put": putting / count,
            "get": getting / count,
            "put + get": (putting + getting) / count,
        }

    return sample


def _value(size: int) -> bytes | Array:
    array = fresh(size)
    return array.tobytes() if size <= KILOBYTE else array


def _stored(opened: Any, size: int) -> Sample:
    keys: list[Any] = []
    return _sample(
        size,
        lambda obj: keys.append(opened.put(obj)),
        lambda: opened.get(keys[-1]),
        lambda: opened.evict(keys.pop()),
    )


def _plain(client: Any, size: int) -> Sample:
    def put(value: Any) -> None:
        client.set("raw", value if isinstance(value, bytes) else value.data)

    return _sample(size, put, lambda: client.get("raw"))


def _copyless(client: Any, size: int) -> Sample:
    """What redis-py's connections allow beneath its commands: arrays are sent and received where they lie."""
    connection = client.connection_pool.get_connection()

    def put(array: Array) -> None:
        start = b"*3\r\n$3\r\nSET\r\n$3\r\nraw\r\n$%d\r\n" % array.nbytes
        connection.send_packed_command([start, array.data, b"\r\n"])
        assert connection.read_response() in (b"OK", True)

    def get() -> Array:
        connection.send_packed_command([b"*2\r\n$3\r\nGET\r\n$3\r\nraw\r\n"])
        wire = connection._sock
        head = b""
        while not head.endswith(b"\r\n"):
            head += wire.recv(1)
        whole = np.empty(int(head[1:]) + 2, np.uint8)
        view = whole.data
        while view:
            view = view[wire.recv_into(view) :]
        return whole[:-2]

    return _sample(size, put, get)


def allocation(plan: Plan, server: RedisServer) -> Iterator[Row]:
    """Peaks of memory while 100 MB are put and got, in a process that does nothing else."""
    size = min(HUNDRED_MB, plan.sizes[-1])
    samples = {name: allocation_of(name, size, server) for name in (PEER, OURS)}
    outcomes = interleave(samples, 3, warm=0)
    for step, limit in zip(STEPS, (0.2, 1.2, 1.2), strict=True):
        # The array that is put is there before: what counts is what comes on top of it.
        row = Row(
            f"Memory, Redis: resident, gained at the peak of {step}", "B", outcomes.of(f"{step} rss"), size
        )
        row.at_most(OURS, size * limit)
        yield row


def near(plan: Plan, server: RedisServer) -> Iterator[Row]:
    """Sixteen processes of one host resolve a proxy of the same 100 MB at the same time."""
    size = min(HUNDRED_MB, plan.sizes[-1])
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        witness = stack.enter_context(server.client("unix socket"))
        barrier = spawn.Barrier(PROCESSES)
        pool = stack.enter_context(spawn.Pool(PROCESSES, _meet_at, (barrier,)))
        stack.callback(pool.join)
        stack.callback(pool.close)  # first: processes that are told to end clean up
        samples: dict[str, Sample | Absent] = {}
        for name in (PEER, OURS):
            opened = attempt(partial(store, name, server, stack, "TCP"))
            samples[name] = opened
            if not isinstance(opened, Absent):
                _near(opened, pool, witness, TEN_MB // 10)()  # every process imports and opens what it needs
                samples[name] = _near(opened, pool, witness, size)
        outcomes = interleave(samples, min(3, plan.repeat), warm=0)
    title = f"Redis, {PROCESSES} processes resolve one array"
    yield Row(f"{title}: until all have read it", "s", outcomes.of("seconds"), size)
    fetched = Row(f"{title}: times fetched", "count", outcomes.of("fetched"), size)
    fetched.at_most(OURS, 1)
    yield fetched


def _near(opened: Any, pool: Any, witness: Any, size: int) -> Sample:
    def sent() -> int:
        total: int = witness.info("stats")["total_net_output_bytes"]
        return total

    def sample() -> Figures:
        array = fresh(size)
        expected = touch(array)
        proxy = opened.proxy(array)
        time.sleep(PAUSE)
        before = sent()
        begin = time.perf_counter()
        totals = pool.map(_read, [proxy] * PROCESSES, chunksize=1)
        elapsed = time.perf_counter() - begin
        assert totals == [expected] * PROCESSES, "other bytes"
        fetched = round((sent() - before) / size, 1)
        get_key = _peer_key if type(opened).__module__.startswith("proxystore.") else _key
        opened.evict(get_key(proxy))
        return {"seconds": elapsed, "fetched": fetched}

    return sample


def _key(proxy: Any) -> Any:
    from proxystore_core.store import get_key

    return get_key(proxy)


def _peer_key(proxy: Any) -> Any:
    from proxystore.proxy import get_factory

    return get_factory(proxy).key


_barrier: Any = None


def _meet_at(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _read(proxy: Any) -> int:
    _barrier.wait(60)  # one for each process, and all at once
    return touch(proxy)


def dask(plan: Plan, server: RedisServer) -> Iterator[Row]:
    """Arguments and gathered results of Dask with the stores on Redis, over TCP for both."""
    rounds = min(5, plan.repeat)
    where = "Dask on Redis"
    with clients((BARE, PEER, OURS), server) as opened:
        yield from floor(plan, opened, where=where)
        for size in (TEN_MB, HUNDRED_MB):
            if size > plan.sizes[-1]:
                continue
            build = partial(argument_of, size=size, options={"pure": False})
            row = Row(f"{where}: argument", "s", sampled(opened, build, rounds).of(), size)
            row.times_faster(OURS, PEER, 2.0)
            yield row
            outcomes = sampled(opened, partial(result_of, size=size), rounds)
            for figure in ("of a finished task", "with the task"):
                row = Row(f"{where}: gathered result, {figure}", "s", outcomes.of(figure), size)
                # The peer stores each result while its task runs, so only the whole can be compared.
                if figure == "with the task":
                    row.times_faster(OURS, PEER, 2.0)
                yield row


WORKS: Mapping[str, Callable[[Plan, RedisServer], Iterator[Row]]] = {
    "redis-store": put_get,
    "redis-allocation": allocation,
    "redis-near": near,
    "redis-dask": dask,
}
