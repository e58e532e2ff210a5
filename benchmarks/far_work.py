"""Stores across sites: endpoints beside bare aiortc, and what Globus, DAOS and a relay are asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import test_servers
from benchmarks.contenders import OURS, attempt
from benchmarks.rows import Plan, Row
from benchmarks.timing import Absent, Figures, Sample, Spread, interleave

__all__ = ["WORKS"]

AIORTC = "aiortc"
MEBIBYTE = 1 << 20
FOUR_MB = 4_000_000
MESSAGE = 64 << 10  # bytes of the bare channel's messages
ENDPOINTS = 200
BATCH = 1000


class Bare:
    """A data channel to another process, which sends as many bytes as it is told to."""

    def __init__(self, stack: ExitStack) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(self._loop.call_soon_threadsafe, self._loop.stop)
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_serve_bare, args=(theirs,), daemon=True
        )
        process.start()
        stack.callback(process.join)
        stack.callback(process.terminate)
        self._run(self._open(ours))
        stack.callback(lambda: self._run(self._connection.close()))

    def get(self, size: int) -> int:
        """Fetch bytes; how many came."""
        count: int = self._run(self._get(size))
        return count

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    async def _open(self, pipe: Any) -> None:
        connection = _connection()
        self._channel = connection.createDataChannel("bare")
        opened = asyncio.Event()
        self._channel.on("open", opened.set)
        self._channel.on("message", self._received)
        await connection.setLocalDescription(await connection.createOffer())
        pipe.send(connection.localDescription.sdp)
        sdp = await asyncio.to_thread(pipe.recv)
        await connection.setRemoteDescription(_description(sdp, "answer"))
        await opened.wait()
        self._connection = connection

    async def _get(self, size: int) -> int:
        self._left, self._done, self._count = size, asyncio.Event(), 0
        self._channel.send(str(size))
        await self._done.wait()
        return self._count

    def _received(self, message: bytes) -> None:
        self._count += len(message)
        if self._count >= self._left:
            self._done.set()


def _connection() -> Any:
    import aioice.ice
    from aiortc import RTCConfiguration, RTCPeerConnection

    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    return RTCPeerConnection(RTCConfiguration(iceServers=[]))


def _description(sdp: str, kind: str) -> Any:
    from aiortc import RTCSessionDescription

    return RTCSessionDescription(sdp, kind)


def _serve_bare(pipe: Any) -> None:
    async def serve() -> None:
        connection = _connection()

        async def send(channel: Any, size: int) -> None:
            data, low = os.urandom(size), asyncio.Event()
            channel.bufferedAmountLowThreshold = 4 * MESSAGE
            channel.on("bufferedamountlow", low.set)
            for start in range(0, size, MESSAGE):
                while channel.bufferedAmount > 16 * MESSAGE:
                    low.clear()
                    await low.wait()
                channel.send(data[start : start + MESSAGE])

        def opened(channel: Any) -> None:
            channel.on("message", lambda size: asyncio.ensure_future(send(channel, int(size))))

        connection.on("datachannel", opened)
        sdp = await asyncio.to_thread(pipe.recv)
        await connection.setRemoteDescription(_description(sdp, "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
        pipe.send(connection.localDescription.sdp)
        await asyncio.Event().wait()

    asyncio.run(serve())


def webrtc(plan: Plan) -> Iterator[Row]:
    """Fetch 4 MB, and 1 kB, of another endpoint, beside a bare data channel between two processes."""
    with ExitStack() as stack:
        sites = attempt(partial(test_servers.endpoints, stack))
        bare = attempt(partial(Bare, stack))
        for size in (1_000, FOUR_MB):
            samples: dict[str, Sample | Absent] = {
                AIORTC: bare if isinstance(bare, Absent) else _bare(bare, size),
                OURS: sites if isinstance(sites, Absent) else _endpoints(sites, size),
            }
            outcomes = interleave(samples, 3 * plan.repeat)
            row = Row("Endpoints, get of another host's object", "s", outcomes.of("get"), size)
            if size == FOUR_MB:
                row.at_most_times(OURS, AIORTC, 1.2)
            yield row


def _bare(bare: Bare, size: int) -> Sample:
    def sample() -> Figures:
        begin = time.perf_counter()
        assert bare.get(size) == size
        return {"get": time.perf_counter() - begin}

    return sample


def _endpoints(sites: Any, size: int) -> Sample:
    here, there = sites

    def sample() -> Figures:
        data = os.urandom(size)
        key = here.put([data])
        begin = time.perf_counter()
        found = there.get(key)
        elapsed = time.perf_counter() - begin
        assert found == data, "other bytes"
        here.evict(key)
        return {"get": elapsed}

    return sample


def globus(plan: Plan) -> Iterator[Row]:
    """A batch of 1000 objects at a fake service of Globus Transfer: how many transfers it becomes."""
    with ExitStack() as stack:
        opened = attempt(partial(test_servers.globus, stack))
        sample: Sample | Absent = opened if isinstance(opened, Absent) else _batch(*opened)
        outcomes = interleave({OURS: sample}, 3)
    title = f"Globus (fake), a batch of {BATCH} objects"
    tasks = Row(f"{title}: transfers", "count", outcomes.of("transfers"))
    tasks.at_most(OURS, 1)
    yield tasks
    yield Row(f"{title}: put", "s", outcomes.of("put"))


def _batch(service: Any, connector: Any) -> Sample:
    def sample() -> Figures:
        before = service.count("POST /v0.10/transfer")
        begin = time.perf_counter()
        keys = connector.put_batch([[b"%d" % number] for number in range(BATCH)])
        elapsed = time.perf_counter() - begin
        connector.evict_batch(keys)
        return {"transfers": service.count("POST /v0.10/transfer") - before, "put": elapsed}

    return sample


def daos(plan: Plan) -> Iterator[Row]:
    """What pydaos (a fake) is called for: an object of 1 MiB, and a batch of small ones."""
    with ExitStack() as stack:
        opened = attempt(partial(test_servers.daos, stack))
        figures: dict[str, Any] = {OURS: opened}
        if not isinstance(opened, Absent):
            figures = _trips(*opened)
    for title, limit in (
        ("put of 1 MiB: calls", 1),
        ("get of 1 MiB: calls", 1),
        ("evict of 1 MiB: calls", 1),
        ("put of 160 x 1 kB: calls for all", 1),
        ("get of 160 x 1 kB: rounds of 16 in flight", 10),
    ):
        outcome = figures[OURS] if OURS in figures else Spread((figures[title],))
        row = Row(f"DAOS (fake), {title}", "count", {OURS: outcome})
        row.at_most(OURS, limit)
        yield row


def _trips(calls: dict[str, int], connector: Any) -> dict[str, float]:
    connector.evict(connector.put([b"opens what it needs"]))

    def counted(names: tuple[str, ...], do: Any) -> tuple[float, Any]:
        before = {name: calls[name] for name in names}
        found = do()
        return sum(calls[name] - before[name] for name in names), found

    every = ("open", "get", "put", "list")
    data = os.urandom(MEBIBYTE)
    put, key = counted(every, lambda: connector.put([data]))
    get, _ = counted(every, lambda: connector.get(key))
    evict, _ = counted(every, lambda: connector.evict(key))
    items = [[os.urandom(1000)] for _ in range(160)]
    puts, keys = counted(every, lambda: connector.put_batch(items))
    gets, _ = counted(("waves",), lambda: connector.get_batch(keys))
    connector.evict_batch(keys)
    return {
        "put of 1 MiB: calls": put,
        "get of 1 MiB: calls": get,
        "evict of 1 MiB: calls": evict,
        "put of 160 x 1 kB: calls for all": puts,
        "get of 160 x 1 kB: rounds of 16 in flight": gets,
    }


def relay(plan: Plan) -> Iterator[Row]:
    """A relay with TLS: memory for each endpoint that is registered, and how long an introduction takes."""
    with ExitStack() as stack:
        served = attempt(partial(test_servers.relay, stack))
        figures: Any = served if isinstance(served, Absent) else attempt(lambda: asyncio.run(_relay(*served)))
    measured = [figures] * 2 if isinstance(figures, Absent) else [Spread(each) for each in figures]
    memory = Row("Relay with TLS: resident memory per endpoint", "B", {OURS: measured[0]})
    memory.at_most(OURS, 400_000)
    yield memory
    title = f"Relay with TLS: an offer and its answer, {ENDPOINTS} endpoints registered"
    introduction = Row(title, "s", {OURS: measured[1]})
    introduction.at_most(OURS, 0.05)
    yield introduction


async def _relay(process: int, url: str, ca: str, token: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from websockets.asyncio.client import connect

    context = ssl.create_default_context(cafile=ca)
    async with contextlib.AsyncExitStack() as stack:

        async def register(number: int) -> Any:
            line = await stack.enter_async_context(connect(url, ssl=context, compression=None, proxy=None))
            await line.send(json.dumps({"type": "register", "id": f"{number:032x}", "token": token}))
            assert json.loads(await line.recv())["type"] == "registered"
            return line

        lines = [await register(number) for number in range(20)]  # what the relay needs only once
        before = _resident(process)
        lines += [await register(number) for number in range(20, 20 + ENDPOINTS)]
        memory = (_resident(process) - before) / ENDPOINTS
        times = []
        sdp = {"ref": "0" * 32, "sdp": "a=candidate " * 200}
        for turn in range(50):
            one, other = lines[turn], lines[-turn - 1]
            begin = time.perf_counter()
            await one.send(json.dumps({"type": "signal", "to": f"{ENDPOINTS + 19 - turn:032x}", "body": sdp}))
            await other.recv()
            await other.send(json.dumps({"type": "signal", "to": f"{turn:032x}", "body": sdp}))
            await one.recv()
            times.append(time.perf_counter() - begin)
    return (memory,), tuple(times)


def _resident(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


WORKS: Mapping[str, Any] = {
    "far-webrtc": webrtc,
    "far-globus": globus,
    "far-daos": daos,
    "far-relay": relay,
}
