"""Node servers: another node over loopback beside the bare libraries, the same node beside shared memory."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import node_raw
from benchmarks.contenders import PEER, attempt
from benchmarks.rows import Plan, Row
from benchmarks.tasks import fresh
from benchmarks.timing import Absent, Figures, Sample, interleave
from proxystore_core.connectors.base import Key
from proxystore_core.connectors.node_place import Place

__all__ = ["WORKS"]

KILOBYTE = 1_000
HUNDRED_MB = 100_000_000
TWENTY_MB = 20_000_000
CLIENTS = 16
REPEATS = 200  # of what takes microseconds
PAUSE = 0.15  # seconds before what is expensive
ZMQ, CURVE, UCX, SHM = "zmq://", "zmq://, CURVE", "ucx://", "shm://"
RAW = {ZMQ: "pyzmq", CURVE: "pyzmq, CURVE", UCX: "ucxx"}


class _Elsewhere:
    """Makes a connector get its own node's objects as another node would: through the server."""

    def _look_here(self, place: Place, session: str, name: str) -> tuple[bool, Key | None]:
        return False, None

    def holds(self, key: Key) -> bool:
        return False


def _connector(kind: str, elsewhere: bool, name: str) -> Any:
    if kind == SHM:
        from proxystore_core.connectors.shm import ShmConnector

        return ShmConnector(name)
    options: dict[str, Any] = {"name": name}
    if kind == UCX:
        from proxystore_core.connectors.ucx import UCXConnector as Connector
    else:
        from proxystore_core.connectors.zmq import ZeroMQConnector

        Connector = ZeroMQConnector  # type: ignore[assignment,misc]  # noqa: N806
        options["curve"] = kind == CURVE
    return (type("Elsewhere", (_Elsewhere, Connector), {}) if elsewhere else Connector)(**options)


def far(plan: Plan) -> Iterator[Row]:
    """Put and get of another node over loopback, beside one bare socket that carries the same bytes twice.

    A transport at a time: a bare endpoint of ucxx keeps a core busy while it waits, and whoever is measured
    beside it finds the other one awake.
    """
    for size in (KILOBYTE, min(HUNDRED_MB, plan.sizes[-1])):
        for kinds in ((ZMQ,) if size > KILOBYTE else (ZMQ, CURVE), (UCX,)):
            with ExitStack() as stack:
                samples: dict[str, Sample | Absent] = {}
                for kind in kinds:
                    samples[RAW[kind]] = attempt(partial(_raw, kind, size, stack))
                    samples[kind] = attempt(partial(_ours, kind, size, stack, elsewhere=True))
                if ZMQ in kinds:
                    samples[PEER] = attempt(partial(_peer, size, stack))
                outcomes = interleave(samples, plan.rounds(size))
            for figure in ("put", "get", "put + get"):
                title = f"{kinds[0]} Another node over loopback: {figure}"
                row = Row(title, "s", outcomes.of(figure), size)
                if figure == "put + get":
                    row.at_most_times(kinds[0], RAW[kinds[0]], 1.5 if size == KILOBYTE else 1.3)
                yield row


def near(plan: Plan) -> Iterator[Row]:
    """Put and get on the same node, beside shared memory alone."""
    for size in (KILOBYTE, min(HUNDRED_MB, plan.sizes[-1])):
        with ExitStack() as stack:
            samples: dict[str, Sample | Absent] = {
                kind: attempt(partial(_ours, kind, size, stack, elsewhere=False)) for kind in (SHM, ZMQ, UCX)
            }
            outcomes = interleave(samples, 3 * plan.rounds(size))
        row = Row("The same node: put + get", "s", outcomes.of("put + get"), size)
        if size > KILOBYTE:
            for kind in (ZMQ, UCX):
                row.at_most_times(kind, SHM, 1.1)
        yield row


def _ours(kind: str, size: int, stack: ExitStack, *, elsewhere: bool) -> Sample:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    near, reader = _connector(kind, False, name), _connector(kind, elsewhere, name)
    for connector in (reader, near):
        stack.callback(connector.close, clear=True)
    keys: list[Key] = []
    return _sample(
        size,
        lambda data: keys.append(near.put([data])),
        lambda: reader.get(keys[-1]),
        lambda: near.evict(keys.pop()),
    )


def _raw(kind: str, size: int, stack: ExitStack) -> Sample:
    port = stack.enter_context(node_raw.serving({ZMQ: "zmq", CURVE: "curve", UCX: "ucx"}[kind], size))
    client: Any = node_raw.RawUCX(port, size) if kind == UCX else node_raw.RawZeroMQ(port, kind == CURVE)
    stack.callback(client.close)
    return _sample(size, client.put, client.get)


def _peer(size: int, stack: ExitStack) -> Sample:
    import socket

    from proxystore.ex.connectors.dim.zmq import ZeroMQConnector

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    connector = ZeroMQConnector(port, address="127.0.0.1", timeout=5)
    stack.callback(connector.close)
    keys: list[Any] = []
    return _sample(
        size,
        lambda data: keys.append(connector.put(bytes(data))),
        lambda: connector.get(keys[-1]),
        lambda: connector.evict(keys.pop()),
    )


def _sample(
    size: int,
    put: Callable[[Any], Any],
    get: Callable[[], Any],
    evict: Callable[[], Any] = lambda: None,
) -> Sample:
    count = REPEATS if size <= KILOBYTE else 1

    def sample() -> Figures:
        values = [fresh(size).data.cast("B") for _ in range(count)]
        time.sleep(PAUSE if size > KILOBYTE else 0.01)
        putting = getting = 0.0
        for value in values:
            begin = time.perf_counter()
            put(value)
            stored = time.perf_counter()
            got = get()
            getting += time.perf_counter() - stored
            putting += stored - begin
            assert len(got) == size, "other bytes"
            assert bytes(got[-16:]) == bytes(value[-16:]), "other bytes"
            del got
            evict()
        return {
            "put": putting / count,
            "get": getting / count,
            "put + get": (putting + getting) / count,
        }

    return sample


def memory(plan: Plan) -> Iterator[Row]:
    """Memory gained by a process that gets an object of another node, and by the node's server meanwhile."""
    size = min(HUNDRED_MB, plan.sizes[-1])

    def peaks(kind: str) -> Sample:
        def sample() -> Figures:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", __name__, kind, str(size)],
                check=True,
                capture_output=True,
                text=True,
                timeout=120,
            )
            figures: Figures = json.loads(done.stdout.splitlines()[-1])
            return figures

        return sample

    outcomes = interleave({kind: peaks(kind) for kind in (ZMQ, UCX)}, 3, warm=0)
    for figure in ("the reader", "the server"):
        title = f"Memory, another node: gained at the peak by {figure}"
        row = Row(title, "B", outcomes.of(figure), size)
        for kind in (ZMQ, UCX):
            row.at_most(kind, size * 1.2)
        yield row


def _peaks(kind: str, size: int) -> dict[str, float]:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    near, reader = _connector(kind, False, name), _connector(kind, True, name)
    reader.get(near.put([bytes(2_000_000)]))
    key = near.put([bytes(size)])
    server = _server_of(near)
    for process in ("self", server):
        Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = {process: _resident(process, "VmRSS") for process in ("self", server)}
    # What the server maps of shared memory is the object itself, and not its own.
    shared = _resident(server, "RssShmem")
    data = reader.get(key)
    assert len(data) == size
    gained = {process: _resident(process, "VmHWM") - before[process] for process in ("self", server)}
    mapped = _resident(server, "RssShmem") - shared
    near.end("user")
    for connector in (near, reader):
        connector.close()
    return {"the reader": gained["self"], "the server": max(0, gained[server] - max(0, mapped))}


def _resident(process: str, field: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _server_of(connector: Any) -> str:
    lock = Path(connector._node.process.directory, "server").stat()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{lock.st_ino}"):
            return fields[4]
    raise RuntimeError("no server")


def many(plan: Plan) -> Iterator[Row]:
    """Sixteen processes fetch the objects that one process fetches alone: the same bytes from one server."""
    spawn = multiprocessing.get_context("spawn")
    for kind in (ZMQ, UCX):
        name = f"bench-{uuid.uuid4().hex[:8]}"
        near = _connector(kind, False, name)
        keys = [near.put([fresh(TWENTY_MB).data]) for _ in range(CLIENTS)]
        with spawn.Pool(CLIENTS) as pool, spawn.Pool(1) as single:
            samples: dict[str, Sample | Absent] = {
                "one process": _fetching(single, kind, name, keys, 1),
                f"{CLIENTS} processes": _fetching(pool, kind, name, keys, CLIENTS),
            }
            outcomes = interleave(samples, plan.repeat, warm=2)
        near.end("user")
        near.close()
        row = Row(f"{kind} {CLIENTS} objects of 20 MB, fetched by", "s", outcomes.of(), None)
        row.at_most_times(f"{CLIENTS} processes", "one process", 1.0)
        yield row


def _fetching(pool: Any, kind: str, name: str, keys: list[Key], processes: int) -> Sample:
    def sample() -> Figures:
        time.sleep(PAUSE)
        begin = time.perf_counter()
        sizes = pool.starmap(_fetch, [(kind, name, key) for key in keys], chunksize=len(keys) // processes)
        elapsed = time.perf_counter() - begin
        assert sizes == [TWENTY_MB] * len(keys), "other bytes"
        return {"": elapsed}

    return sample


_open: dict[tuple[str, str], Any] = {}


def _fetch(kind: str, name: str, key: Key) -> int:
    place = kind, name
    if place not in _open:
        _open[place] = _connector(kind, True, name)
    return len(_open[place].get(key))


def wake(plan: Plan) -> Iterator[Row]:
    """From setting an object to the waking of one who waits for it on another node."""
    with ExitStack() as stack:
        samples: dict[str, Sample | Absent] = {
            kind: attempt(partial(_waking, kind, stack)) for kind in (ZMQ, UCX)
        }
        outcomes = interleave(samples, 3 * plan.repeat)
    row = Row("A waiter on another node wakes after", "s", outcomes.of(), None)
    for kind in (ZMQ, UCX):
        row.at_most(kind, 0.005)
    yield row


def _waking(kind: str, stack: ExitStack) -> Sample:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    near, waiter = _connector(kind, False, name), _connector(kind, True, name)
    for connector in (waiter, near):
        stack.callback(connector.close, clear=True)

    def sample() -> Figures:
        key = near.reserve()
        woken: list[float] = []

        def wait() -> None:
            waiter.wait(key, 10)
            woken.append(time.perf_counter())

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        begin = time.perf_counter()
        near.set(key, [b"data"])
        thread.join()
        near.evict(key)
        return {"": woken[0] - begin}

    return sample


WORKS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {
    "node-far": far,
    "node-near": near,
    "node-memory": memory,
    "node-many": many,
    "node-wake": wake,
}

if __name__ == "__main__":
    print(json.dumps(_peaks(sys.argv[1], int(sys.argv[2]))))
