"""Task pipelining: consumers that start before their producers have finished.

    python examples/futures_pipeline.py

Each task spends a second half on setting up and half on its work. With futures the setting up of each
overlaps with the work of the one before it.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from proxystore_core import Future, Store

STEPS = 4
SETUP = WORK = 0.25  # seconds


def step(value: Any, result: Future[Any] | None = None) -> Any:
    """Set up, then work on the value."""
    time.sleep(SETUP)
    total = np.asarray(value) + 1  # a proxy is waited for here
    time.sleep(WORK)
    if result is None:
        return total
    result.set_result(total)
    return None


def main() -> None:
    """Run the chain both ways."""
    start = np.zeros(1_000_000)
    with ProcessPoolExecutor(STEPS) as pool, Store.from_url("shm://", name="pipeline") as store:
        list(pool.map(abs, range(STEPS)))  # processes are there
        begin = time.perf_counter()
        value: Any = start
        for _ in range(STEPS):
            value = pool.submit(step, value).result()
        one_by_one = time.perf_counter() - begin

        begin = time.perf_counter()
        argument: Any = start
        futures: list[Future[Any]] = []
        for _ in range(STEPS):
            futures.append(store.future())
            pool.submit(step, argument, futures[-1])
            argument = futures[-1].proxy()
        last = futures[-1].result()
        overlapped = time.perf_counter() - begin

        assert np.array_equal(value, last)
        for future in futures:
            store.evict(future.key)
    print(f"one by one {one_by_one:.2f} s, overlapped {overlapped:.2f} s, same answer")


if __name__ == "__main__":
    main()
