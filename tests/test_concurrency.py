"""One store used by many: threads, forks in their midst, event loops, interpreters that exit in any order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import futures_tasks as tasks
import numpy as np
import pytest
import redis_servers

from proxystore_core import Session, Store
from proxystore_core.connectors.base import leased, listed
from proxystore_core.recipe import open_connector
from proxystore_integrations.futures import StoreExecutor

THREADS, PROCESSES = 64, 16
WAIT = 60
PYTHONS_RACE = "in _python_exit\n    thread_wakeup.wakeup()\n"
"""Of a process pool that ends by itself while the interpreter ends: what is closed meanwhile is woken."""


@pytest.fixture(scope="module", params=["shm", "redis", "zmq"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "redis":
        with redis_servers.serving(tmp_path_factory.mktemp("redis")) as server:
            yield f"redis://{server.address}"
    else:
        yield f"{request.param}://c{secrets.token_hex(4)}"


def left(url: str, session: str) -> list[str]:
    """What a session has in a store."""
    connector = open_connector(url)
    try:
        lister, keeper = listed(connector), leased(connector)
        assert lister is not None
        assert keeper is not None
        return [*lister.keys(session), *(name for name in keeper.sessions() if name == session)]
    finally:
        connector.close()


# Threads, and forks in their midst.


def use(store: Store[Any], session: str, shared: dict[str, bytes], choose: random.Random) -> None:
    """Put, get and evict an object of one's own, and get one that everybody gets."""
    data = choose.randbytes(choose.choice([10, 5_000, 300_000]))
    reference = store.reference(data, session=session)
    assert store.load(reference) == data
    key = choose.choice(list(shared))
    assert store.get(key) == shared[key]
    store.evict(reference.key)
    assert not store.exists(reference.key)


def test_threads_and_processes(url: str) -> None:
    with Store("many", open_connector(url), cache_size=0) as store:
        session = Session(store.connector)
        shared = {
            store.reference(data, session=session.name).key: data for data in map(os.urandom, (10, 10**6))
        }
        over = threading.Event()
        ready = threading.Barrier(THREADS + 1, timeout=WAIT)

        def work(number: int) -> int:
            choose = random.Random(number)
            for rounds in itertools.count(1):
                use(store, session.name, shared, choose)
                if rounds == 1:
                    ready.wait()
                if over.is_set():
                    return rounds
            raise AssertionError

        children = []
        with ThreadPoolExecutor(THREADS) as pool:
            working = [pool.submit(work, number) for number in range(THREADS)]
            ready.wait()
            try:
                for number in range(PROCESSES):
                    child = os.fork()
                    if not child:
                        signal.alarm(WAIT)  # a child that hangs dies of it
                        code = 1
                        try:
                            for seed in range(3):
                                use(store, session.name, shared, random.Random(f"{number} {seed}"))
                            code = 0
                        except BaseException:
                            traceback.print_exc()
                        finally:
                            os._exit(code)
                    children.append(child)
                codes = [os.waitpid(child, 0)[1] for child in children]
            finally:
                over.set()
            assert min(future.result(WAIT) for future in working) >= 1
        assert codes == [0] * PROCESSES
        # A fork ends nothing.
        assert {key: store.get(key) for key in shared} == shared
        session.end()
    assert left(url, session.name) == []


# Event loops.


def test_event_loops(url: str) -> None:
    """Coroutines await calls of an executor, and use its store beside them; some stop waiting."""

    async def one(executor: Any, number: int) -> float:
        array = np.full(tasks.BIG, float(number))
        added = asyncio.wrap_future(executor.submit(tasks.add, array, 1.0))
        if number % 5 == 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(added), 0.001)
        result = await added
        return float(await asyncio.get_running_loop().run_in_executor(executor, tasks.total, result))

    async def all_of_them(executor: Any) -> list[float]:
        return await asyncio.gather(*(one(executor, number) for number in range(30)))

    pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    with StoreExecutor(pool, url, threshold="100 kB") as executor:
        session = executor._link.session
        assert asyncio.run(all_of_them(executor)) == [(number + 1.0) * tasks.BIG for number in range(30)]
        assert asyncio.run(all_of_them(executor))[0] == tasks.BIG  # another loop
    assert left(url, session) == []


# Ends.

EXIT = """
import sys
from concurrent.futures import ProcessPoolExecutor
import numpy as np
from futures_tasks import add
from proxystore_core import Store
from proxystore_core.lifetimes import StaticLifetime
from proxystore_core.recipe import open_connector
from proxystore_integrations.futures import StoreExecutor

url, how, order = sys.argv[1:]
store = Store("exit", open_connector(url), register=True)
lifetime = StaticLifetime()
proxy = store.proxy(np.ones(100_000), lifetime=lifetime)
executor = StoreExecutor(ProcessPoolExecutor(1), url, threshold="100 kB")
future = executor.submit(add, np.ones(100_000), 1.0)
assert future.result()[0] == 2
waiting = executor.submit(add, np.ones(100_000), 1.0)
print(executor._link.session, lifetime.session_in(store), flush=True)
ends = {"e": executor.shutdown, "l": lifetime.close, "s": store.close}
for letter in order:
    ends[letter]()
if how == "error":
    raise SystemExit(3)
"""


def test_interpreters_exit_in_any_order(url: str) -> None:
    orders = ["".join(order) for count in range(4) for order in itertools.permutations("els", count)]

    def run(order: str, how: str) -> tuple[str, int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", EXIT, url, how, order],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        return order, done.returncode, done.stdout, done.stderr

    with ThreadPoolExecutor(3) as pool:
        ran = [
            pool.submit(run, order, "error" if number % 4 == 3 else "end")
            for number, order in enumerate(orders)
        ]
        for number, future in enumerate(ran):
            order, code, out, errors = future.result()
            if PYTHONS_RACE in errors:  # with a bare pool, too, whose last result comes just then
                errors = ""
            assert (code, errors) == (3 if number % 4 == 3 else 0, ""), order
            assert [left(url, session) for session in out.split()] == [[], []], order
