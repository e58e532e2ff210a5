"""Coroutines that get from an S3 server some way off, beside threads that get for them, and obstore."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks.contenders import OURS
from benchmarks.objects_work import OBSTORE
from benchmarks.rows import Plan, Row
from benchmarks.tasks import fresh
from benchmarks.timing import Figures, interleave

__all__ = ["WORKS"]

COROUTINES = 50
AWAY = 0.02  # seconds from here to the server, and from there to here
SIZES = 1_000, 100_000
THREADS = f"{OURS}, in threads"


def coroutines(plan: Plan, server: Any) -> Iterator[Row]:
    """Fifty coroutines of one event loop get an object each: here beside the server, and 20 ms from it."""
    from proxystore_core.store import Store

    port = int(server.endpoint.rpartition(":")[2])
    reading, writing = multiprocessing.Pipe(duplex=False)
    relay = multiprocessing.get_context("spawn").Process(target=_far, args=(port, writing), daemon=True)
    relay.start()
    try:
        far = f"http://127.0.0.1:{reading.recv()}"
        for place, endpoint in (("beside it", server.endpoint), (f"{2000 * AWAY:.0f} ms away and back", far)):
            url = f"s3://bucket/coroutines?endpoint={endpoint}"
            with Store.from_url(url, near=False, cache_size=0) as store:
                raw: Any = store.connector._client()  # type: ignore[attr-defined]
                for size in SIZES:
                    keys = [store.put(fresh(size)) for _ in range(COROUTINES)]
                    samples = {
                        OURS: partial(_sample, store.get_async, keys),
                        THREADS: partial(_sample, partial(_in_thread, store), keys),
                        OBSTORE: partial(_sample, partial(_raw, *raw), keys),
                    }
                    outcomes = interleave(samples, plan.rounds(size), budget=20)
                    row = Row(
                        f"S3 server {place}: {COROUTINES} coroutines get", "s", outcomes.of("seconds"), size
                    )
                    if endpoint is far:
                        row.at_most_times(OURS, THREADS, 0.5)
                    yield row
                    for key in keys:
                        store.evict(key)
    finally:
        relay.terminate()
        relay.join()


async def _in_thread(store: Any, key: str) -> Any:
    return await asyncio.to_thread(store.get, key)


async def _raw(obs: Any, client: Any, key: str) -> Any:
    found = await obs.get_async(client, f"{key.replace('.', '/', 1)}.0")
    return await found.bytes_async()


def _sample(get: Callable[[str], Awaitable[Any]], keys: list[str]) -> Figures:
    async def main() -> float:
        begin = time.perf_counter()
        found = await asyncio.gather(*map(get, keys))
        seconds = time.perf_counter() - begin
        assert all(map(len, found))
        return seconds

    return {"seconds": asyncio.run(main())}


def _far(target: int, ready: Any) -> None:
    """Passes connections on to a port of this host, as if it were some way off."""

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read(1 << 16):
            loop.call_later(AWAY, sink.write, data)
        loop.call_later(AWAY, sink.close)

    async def connected(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pass_on(source, ours), pass_on(theirs, sink), return_exceptions=True)

    async def main() -> None:
        listening = await asyncio.start_server(connected, "127.0.0.1", 0)
        ready.send(listening.sockets[0].getsockname()[1])
        await listening.serve_forever()

    asyncio.run(main())


WORKS: Mapping[str, Callable[[Plan, Any], Iterator[Row]]] = {"objects-coroutines": coroutines}
