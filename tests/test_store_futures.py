"""Futures of a store: set in one process, waited for in others."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import pickle
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import until

from proxystore_core import Future, Proxy, Store, extract, futures, get_key, is_resolved, resolve
from proxystore_core.connectors import redis_later, watch
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.errors import ConfigurationError, DeadlineError, GoneError, RefusedError
from proxystore_core.futures import RemoteError
from proxystore_core.testing import in_fork, in_new_process


@pytest.fixture(params=["shm", "file", "redis", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Store[Any]]:
    url = {
        "shm": f"shm://{secrets.token_hex(4)}",
        "file": f"file://{tmp_path}/store",
        "redis": redis_url,
        "memory": f"memory://{secrets.token_hex(4)}",
    }[request.param]
    with Store.from_url(url, name=secrets.token_hex(4)) as store:
        yield store
        store.close(clear=True)


@pytest.fixture
def shared(store: Store[Any]) -> Store[Any]:
    """A store that other processes reach."""
    if isinstance(store.connector, MemoryConnector):
        pytest.skip("no other process reaches it")
    return store


def test_a_result(store: Store[Any]) -> None:
    future: Future[Any] = store.future()
    proxies = [future.proxy() for _ in range(3)]
    assert not future.done()
    assert not future.cancelled()
    assert "future" in repr(future)
    assert "future" in repr(proxies[0])
    hash(proxies[0])
    assert not any(map(is_resolved, proxies))
    future.set_result([1, 2])
    assert future.done()
    assert future.exception() is None
    assert [extract(proxy) for proxy in proxies] == [[1, 2]] * 3
    extract(proxies[0]).append(3)
    assert future.result() == [1, 2]
    assert store.get(future.key) == [1, 2]
    assert get_key(proxies[0]) == future.key
    with pytest.raises(RefusedError, match="set already"):
        future.set_result([2])
    assert future.result() == [1, 2]


@pytest.mark.parametrize("value", [None, True, 0, "text", b"bytes", np.arange(300_000)])
def test_any_object_is_a_result(store: Store[Any], value: Any) -> None:
    future = store.future()
    future.set_result(value)
    np.testing.assert_array_equal(future.result(), value)
    assert type(extract(future.proxy())) is type(value)


def test_a_proxy_waits(store: Store[Any]) -> None:
    future = store.future()
    with ThreadPoolExecutor(3) as executor:
        waits = [executor.submit(lambda: extract(future.proxy()) + 1), executor.submit(future.result)]
        waits.append(executor.submit(future.exception))
        time.sleep(0.05)
        assert not any(wait.done() for wait in waits)
        future.set_result(41)
        assert [wait.result(20) for wait in waits] == [42, 41, None]


def test_a_waiter_is_woken_and_does_not_look_again(
    store: Store[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LOOK_ALL_THE_SAME", 600.0)
    monkeypatch.setattr(redis_later, "_LOOK", 600.0)
    for module in (futures, redis_later):
        monkeypatch.setattr(module, "_PAUSES" if module is futures else "_POLL", None)  # looking would fail
    future = store.future()
    with ThreadPoolExecutor(1) as executor:
        wait = executor.submit(future.result)
        time.sleep(0.1)
        future.set_result("woken")
        assert wait.result(60) == "woken"


def test_an_exception(store: Store[Any]) -> None:
    future = store.future()

    def produce() -> None:
        try:
            raise ValueError("no data", 7)
        except ValueError as error:
            future.set_exception(error)

    produce()
    assert future.done()
    for _ in range(2):
        with pytest.raises(ValueError, match="no data") as raised:
            future.result()
        assert raised.value.args == ("no data", 7)
        assert "in produce" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match="no data"):
        resolve(future.proxy())
    error = future.exception()
    assert type(error) is ValueError
    assert not future.cancelled()
    with pytest.raises(TypeError, match="an exception is needed"):
        future.set_exception("text")  # type: ignore[arg-type]


def test_an_exception_that_cannot_be_pickled(store: Store[Any]) -> None:
    future, error = store.future(), ValueError("the reason", threading.Lock())
    future.set_exception(error)
    with pytest.raises(RemoteError, match="the reason"):
        future.result()


class ComposedError(Exception):
    """Pickles well, and cannot be unpickled: as many people's exceptions."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} in {where}")


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_exception_that_cannot_be_unpickled(store: Store[Any], wrapped: bool) -> None:
    future: Future[Any] = store.future()
    error = ComposedError("fire", "kitchen")
    future.set_exception(ExceptionGroup("several", [error]) if wrapped else error)
    for ask in (future.result, lambda: extract(future.proxy())):
        with pytest.raises(RemoteError, match="several" if wrapped else "ComposedError: fire in kitchen"):
            ask()


def test_an_exception_in_a_store_with_a_serializer_of_its_own(tmp_path: Path) -> None:
    import marshal

    functions: dict[str, Any] = {"serializer": marshal.dumps, "deserializer": marshal.loads}
    with Store.from_url(f"file://{tmp_path}/marshalled", name="marshalled", **functions) as store:
        future: Future[Any] = store.future()
        future.set_exception(KeyError("k"))
        with pytest.raises(KeyError, match="k"):
            future.result()
        dropped: Future[Any] = store.future()
        assert dropped.cancel()
        assert dropped.cancelled()


def test_a_result_that_is_its_own_proxy(store: Store[Any]) -> None:
    future: Future[Any] = store.future(deadline=30)
    for own in (future.proxy(), pickle.loads(pickle.dumps(future.proxy()))):
        with pytest.raises(ConfigurationError, match="its own proxy"):
            future.set_result(own)
    assert not future.done()
    other: Future[Any] = store.future(deadline=30)
    future.set_result(other.proxy())
    other.set_result([1])
    assert future.proxy() == [1]


def test_futures_that_are_each_others_results(store: Store[Any]) -> None:
    ring: list[Future[Any]] = [store.future(deadline=30) for _ in range(3)]
    for future, following in zip(ring, [*ring[1:], ring[0]], strict=True):
        future.set_result(following.proxy())
    for use in (lambda: ring[0].proxy() + 1, lambda: resolve(ring[1].proxy()), lambda: len(ring[2].result())):
        with pytest.raises(ConfigurationError, match="stand for each other"):
            use()
    chain: list[Future[Any]] = [store.future(deadline=30) for _ in range(30)]
    for future, following in itertools.pairwise(chain):
        future.set_result(following.proxy())
    chain[-1].set_result([1])
    assert chain[0].proxy() == [1]


def test_waits_without_an_end(store: Store[Any]) -> None:
    for endless in (math.inf, 1e12):
        future: Future[Any] = store.future(deadline=endless)
        timer = threading.Timer(0.05, future.set_result, [5])
        timer.start()
        assert future.result() == future.result(timeout=endless) == extract(future.proxy()) == 5
        timer.join()
    wrong: Any
    for wrong in ("5", 0, -1, math.nan, [1]):
        with pytest.raises(ConfigurationError, match="seconds"):
            store.future(deadline=wrong)


def test_nobody_has_to_wait_for_who_awaited_and_was_cancelled(tmp_path: Path) -> None:
    program = f"""
import asyncio
from proxystore_core import Store

with Store.from_url("file://{tmp_path}/unset", name="unset") as store:
    future = store.future()

    async def main():
        for unset in (future, future.proxy()):
            try:
                async with asyncio.timeout(0.05):
                    await unset
            except TimeoutError:
                print("cancelled")

    asyncio.run(main())
    store.close(clear=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["cancelled", "cancelled"]


def test_awaiting_keeps_the_deadline(store: Store[Any]) -> None:
    future: Future[Any] = store.future(deadline=0.05)

    async def main() -> None:
        waits: list[Any] = [future, future.proxy()]
        for unset in waits:
            with pytest.raises(DeadlineError, match=r"0\.05 s"):
                await unset

    asyncio.run(main())
    future.cancel()


def test_awaiting_an_exception_that_coroutines_cannot_raise(store: Store[Any]) -> None:
    future: Future[Any] = store.future()
    future.set_exception(StopIteration(3))

    def stop() -> Any:
        raise StopIteration

    async def main() -> None:
        waits: list[Any] = [future, future.proxy(), Proxy(stop)]
        for wait in waits:
            with pytest.raises(RuntimeError, match="StopIteration"):
                await wait

    asyncio.run(main())


def test_cancel(store: Store[Any]) -> None:
    future = store.future()
    with ThreadPoolExecutor(1) as executor:
        wait = executor.submit(resolve, future.proxy())
        assert future.cancel()
        with pytest.raises(CancelledError):
            wait.result(20)
    assert future.cancelled()
    assert future.cancel()
    with pytest.raises(RefusedError):
        future.set_result(1)
    done = store.future()
    done.set_result(1)
    assert not done.cancel()
    assert done.result() == 1


def test_deadlines(store: Store[Any]) -> None:
    future = store.future(deadline=0.05)
    for ask in (future.result, future.exception, lambda: resolve(future.proxy())):
        with pytest.raises(DeadlineError, match=r"nobody set .* within 0.05 s.*deadline="):
            ask()
    with pytest.raises(TimeoutError):
        store.future().result(0.01)
    with pytest.raises(ConfigurationError, match="deadline"):
        store.future(deadline=0)
    future.set_result(1)
    assert extract(future.proxy()) == 1
    store.future(deadline=None).cancel()


def test_what_was_evicted_is_not_waited_for(store: Store[Any]) -> None:
    future, unset = store.future(), store.future()
    future.set_result(1)
    store.evict(future.key)
    with ThreadPoolExecutor(1) as executor:
        wait = executor.submit(unset.result)
        time.sleep(0.02)
        store.evict(unset.key)
        for ask in (future.result, wait.result, lambda: resolve(future.proxy())):
            with pytest.raises(GoneError):
                ask()
    assert not future.done()


def test_evict(store: Store[Any]) -> None:
    future = store.future(evict=True)
    future.set_result([1])
    assert future.result() == [1]
    assert extract(future.proxy()) == [1]
    assert not store.exists(future.key)


def test_session(store: Store[Any]) -> None:
    future = store.future(session="s")
    store.connector.end("s")
    with pytest.raises(RefusedError):
        future.set_result(1)


def test_callbacks(store: Store[Any]) -> None:
    future = store.future()
    called: list[Any] = []
    for number in range(3):
        future.add_done_callback(lambda done, number=number: called.append((number, done.result())))  # type: ignore[misc]
    assert not called
    future.set_result("r")
    until(lambda: len(called) == 3)
    assert called == [(0, "r"), (1, "r"), (2, "r")]
    future.add_done_callback(lambda done: called.append(done))
    until(lambda: called[-1] is future)
    gone = store.future()
    gone.add_done_callback(called.append)
    store.evict(gone.key)
    until(lambda: called[-1] is gone)


def test_a_callback_that_fails(store: Store[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    future = store.future()
    called: list[Any] = []
    shown: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: shown.append(args.exc_type))
    future.add_done_callback(lambda done: 1 / 0)
    future.add_done_callback(called.append)
    future.set_result(1)
    until(lambda: called == [future])
    assert shown == [ZeroDivisionError]


def test_await(store: Store[Any]) -> None:
    async def main() -> list[Any]:
        futures = [store.future() for _ in range(30)]  # more than asyncio has threads

        async def wait(future: Future[Any]) -> Any:
            return await future

        waits = [asyncio.create_task(wait(future)) for future in futures]
        await asyncio.sleep(0)
        for number, future in enumerate(futures):
            await asyncio.to_thread(future.set_result, number)
        results = list(await asyncio.gather(*waits))
        failed = store.future()
        failed.set_exception(KeyError("k"))
        with pytest.raises(KeyError):
            await failed
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait(store.future()), 0.01)
        return results

    assert asyncio.run(main()) == list(range(30))


def test_pickles_as_a_reference(shared: Store[Any]) -> None:
    future: Future[Any] = shared.future()
    assert len(pickle.dumps(future)) < 350
    assert len(pickle.dumps(future.proxy())) < 350
    again = pickle.loads(pickle.dumps(future))
    assert again == future
    assert hash(again) == hash(future)
    again.set_result({"a": 1})
    assert pickle.loads(pickle.dumps(future.proxy())) == {"a": 1}


def _produce(future: Future[Any]) -> None:
    future.set_result(np.arange(1_000_000))


def _consume(proxy: Any) -> tuple[str, float]:
    return ("array" if isinstance(proxy, np.ndarray) else "none", float(proxy.sum()))


def _fail(future: Future[Any]) -> None:
    future.set_exception(ZeroDivisionError("there"))


def test_other_processes(shared: Store[Any]) -> None:
    future, failed = shared.future(), shared.future()
    with ThreadPoolExecutor(2) as executor:
        consumed = executor.submit(in_new_process, _consume, future.proxy())
        executor.submit(in_new_process, _produce, future).result()
        assert consumed.result(60) == ("array", 499999500000.0)
        in_new_process(_fail, failed)
    with pytest.raises(ZeroDivisionError, match="there"):
        failed.result()
    forked = shared.future()
    assert in_fork(lambda: forked.set_result("child's")) is None
    assert forked.result() == "child's"


KILLED = """
import pickle, sys, time
future = pickle.loads(bytes.fromhex(sys.argv[1]))
print("here", flush=True)
future.result()
"""


def test_waiters_that_are_killed_disturb_nobody(shared: Store[Any]) -> None:
    future = shared.future()
    command = [sys.executable, "-c", KILLED, pickle.dumps(future).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"here\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    future.set_result(1)
    assert future.result() == 1


def test_isinstance(store: Store[Any]) -> None:
    known = store.future(kind=np.ndarray)
    assert isinstance(known.proxy(), np.ndarray)  # nothing is set: it does not wait
    unknown = store.future(deadline=20)
    with ThreadPoolExecutor(1) as executor:
        asked = executor.submit(lambda: isinstance(unknown.proxy(), dict))
        unknown.set_result({})
        assert asked.result()
    never = store.future(deadline=0.01).proxy()
    with pytest.raises(DeadlineError):
        isinstance(never, dict)
    import concurrent.futures.thread as engine

    # What an engine asks of every argument is answered at once.
    ask = eval("lambda p: (isinstance(p, dict), hasattr(p, '__dask_graph__'))", vars(engine))
    assert ask(store.future(deadline=600).proxy()) == (False, False)
    assert isinstance(never, Proxy)


def test_a_store_that_sets_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(MemoryConnector, "reserve")
    with Store(secrets.token_hex(4), MemoryConnector()) as store:
        with pytest.raises(ConfigurationError, match="cannot set an object later"):
            store.future()


def test_a_backend_that_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(MemoryConnector, "wait")
    with Store(secrets.token_hex(4), MemoryConnector(secrets.token_hex(4))) as sleepy:
        future = sleepy.future()
        with pytest.raises(DeadlineError):
            future.result(0.02)
        threading.Timer(0.05, future.set_result, (1,)).start()
        assert future.result() == 1


def test_nothing_is_left(store: Store[Any]) -> None:
    """The future itself holds nothing: its result is an object like any other."""
    keys = []
    for value in (1, np.zeros(2_000_000)):
        future = store.future()
        future.set_result(value)
        keys.append(future.key)
        del future
    gc.collect()
    assert all(store.exists(key) for key in keys)
    for key in keys:
        store.evict(key)
