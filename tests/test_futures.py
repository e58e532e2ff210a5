"""`StoreExecutor`: what executors promise, chains of futures, ends of all kinds."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import types
import warnings
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from typing import Any

import cloudpickle
import futures_tasks as tasks
import numpy as np
import pytest
from waiting import until

from proxystore_core import ConfigurationError, Store
from proxystore_core.insides import goes_by_name
from proxystore_integrations.dependents import Search
from proxystore_integrations.futures import StoreExecutor, StoreFuture
from proxystore_integrations.testing.tasks import wait_for
from proxystore_integrations.tuned import POOLS

WAIT = 60


@pytest.fixture(scope="module", autouse=True)
def threshold() -> Iterator[None]:
    """As everywhere else in the tests, so that arrays need not be large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXYSTORE_THRESHOLD", "100 kB")
        yield


def pool(workers: int = 2, **options: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver"), **options)


def stored(executor: StoreExecutor) -> list[str]:
    link = executor._link
    if not link.is_open:
        return []
    directory = Path(link._store.connector.store_dir) / link.session
    return [path.name for path in directory.glob("[0-9a-f]*")]


@pytest.fixture(scope="module")
def executor(threshold: None) -> Iterator[StoreExecutor]:
    with StoreExecutor(pool()) as executor:
        yield executor


@pytest.fixture(autouse=True)
def empty(executor: StoreExecutor) -> Iterator[None]:
    yield
    executor.submit(tasks.kind, 1).result(WAIT)
    gc.collect()
    until(lambda: not stored(executor))


# What executors promise.


def test_wait_and_as_completed(executor: StoreExecutor) -> None:
    futures = [executor.submit(tasks.add, tasks.big(), by) for by in range(5)]
    futures.append(executor.submit(tasks.kind, 1))
    assert wait(futures, WAIT, FIRST_COMPLETED).done
    assert {type(future.result()).__name__ for future in as_completed(futures, WAIT)} == {"ndarray", "str"}
    assert all(isinstance(future, Future) for future in futures)


def test_map_is_in_order_and_by_item(executor: StoreExecutor) -> None:
    arrays = [tasks.big(value) for value in range(7)]
    for chunksize in (1, 3):
        results = list(executor.map(tasks.add, arrays, range(7), chunksize=chunksize))
        assert [result[0] for result in results] == [2 * value for value in range(7)]
    assert list(executor.map(tasks.total, [tasks.big()], [tasks.big(2), tasks.big()])) == [3 * tasks.BIG]
    assert list(executor.map(tasks.total, [])) == []
    with pytest.raises(ValueError, match="what"):
        list(executor.map(tasks.fail, arrays))
    with pytest.raises(TimeoutError):
        list(executor.map(tasks.slow, arrays[:1], [2.0], timeout=0.1))
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(tasks.total, arrays, chunksize=0)


def test_map_stores_what_its_items_share_once(executor: StoreExecutor) -> None:
    shared = tasks.big()
    results = executor.map(tasks.slow, [shared] * 6)
    assert len(stored(executor)) == 1
    assert list(results) == [tasks.BIG] * 6


def test_cancelled_futures(executor: StoreExecutor) -> None:
    running = [executor.submit(tasks.slow, tasks.big(), 1.0) for _ in range(6)]
    late = running[-1]
    assert late.cancel()
    assert late.cancelled()
    assert late in wait([late], WAIT).done
    with pytest.raises(CancelledError):
        late.result()
    assert [future.result(WAIT) for future in running[:-1]] == [tasks.BIG] * 5


def test_initializers_and_callbacks() -> None:
    seen: list[Any] = []
    with StoreExecutor(pool(initializer=tasks.prepare, initargs=(tasks.big(2),))) as executor:
        future = executor.submit(tasks.add, tasks.big())
        future.add_done_callback(lambda future: seen.append(future.result()[0]))
        assert future.result(WAIT)[0] == 2
        assert executor.submit(tasks.prepared, tasks.big()).result(WAIT) == 3 * tasks.BIG
    assert seen == [2]
    with StoreExecutor(pool(initializer=tasks.prepare)) as executor:  # it fails
        assert type(executor.submit(tasks.total, tasks.big()).exception(WAIT)) is BrokenProcessPool
        until(lambda: not stored(executor))


def test_a_broken_pool(executor: StoreExecutor) -> None:
    with StoreExecutor(pool()) as broken:
        first = broken.submit(tasks.big, 3.0)
        assert first.result(WAIT)[0] == 3
        assert type(broken.submit(tasks.die, tasks.big()).exception(WAIT)) is BrokenProcessPool
        with pytest.raises(BrokenProcessPool):
            broken.submit(tasks.total, tasks.big())
        assert first.result()[0] == 3
        until(lambda: len(stored(broken)) == 1)


def test_maps_of_generators_that_nobody_reads_to_the_end(executor: StoreExecutor) -> None:
    made = (tasks.big(value) for value in range(8))
    results = executor.map(tasks.slow, made, [0.05] * 8)
    assert next(results) == 0
    results.close()  # cancels those that have not begun
    with pytest.raises(TimeoutError):
        executor.submit(tasks.slow, tasks.big(), 0.5).result(0.01)
    late = executor.map(tasks.slow, [tasks.big()] * 2, [0.0, 2.0], timeout=0.3, chunksize=1)
    assert next(late) == tasks.BIG
    with pytest.raises(TimeoutError):
        next(late)


def test_an_exception_with_data_is_ones_own(executor: StoreExecutor) -> None:
    array = tasks.big()
    error = executor.submit(tasks.fail_with, array).exception(WAIT)
    assert isinstance(error, ValueError)
    error.args[1][0] = 5
    assert array[0] == 1
    with pytest.raises(ValueError, match="what"):
        executor.submit(tasks.total, executor.submit(tasks.fail_with, array)).result(WAIT)


def test_what_libraries_look_for(executor: StoreExecutor) -> None:
    import dask

    assert executor._max_workers == 2
    assert not hasattr(executor, "no_such_thing")
    assert not hasattr(executor, "_client")
    assert copy.copy(executor).executor is executor.executor
    added = dask.delayed(tasks.add)(tasks.big(), 1)
    assert dask.delayed(tasks.total)(added, added).compute(scheduler=executor) == 4 * tasks.BIG


def test_coroutines(executor: StoreExecutor) -> None:
    async def asks() -> float:
        loop = asyncio.get_running_loop()
        added = await loop.run_in_executor(executor, tasks.add, tasks.big())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(executor, tasks.slow, tasks.big(), 1.0), 0.05)
        both = asyncio.wrap_future(executor.submit(tasks.add, added))
        return float((await both)[0])

    assert asyncio.run(asks()) == 3


# Futures as arguments.


def test_chains_do_not_block(executor: StoreExecutor) -> None:
    first = executor.submit(tasks.slow, tasks.big(), 0.5)
    array = executor.submit(tasks.big, 2.0)
    second = executor.submit(tasks.add, array, first)
    third = executor.submit(tasks.total_of, {"a": second, "b": [tasks.big()][0]})
    listed = executor.submit(tasks.total_of, [array, second])
    assert not third.done()
    assert isinstance(second, StoreFuture)
    assert third.result(WAIT) == tasks.BIG * (3 + tasks.BIG)
    assert listed.result(WAIT) == tasks.BIG * (4 + tasks.BIG)
    assert [Future.result(one)._value for one in (array, second)] == [None] * 2  # they were never here
    assert second.result(WAIT)[0] == 2 + tasks.BIG


def test_the_search_for_futures_has_an_end(executor: StoreExecutor) -> None:
    rows = [[0.0] * 1000 for _ in range(1000)]
    search = Search((rows,), {})
    assert search.futures == []
    assert search._left < 0
    first = executor.submit(tasks.big, 2.0)
    deep = {"a": [1, (first, {"b": first})], "c": [2]}
    search = Search((deep, 3), {"d": [first]})
    assert search.futures == [first] * 3
    first.exception(WAIT)
    (filled, three), named = search.results()
    assert three == 3
    assert filled["c"] is deep["c"]
    assert filled["a"][1][0] is filled["a"][1][1]["b"] is named["d"][0] is Future.result(first)


def test_chains_that_fail_or_are_cancelled(executor: StoreExecutor, tmp_path: Path) -> None:
    failed = executor.submit(tasks.fail, tasks.big())
    dependent = executor.submit(tasks.add, failed)
    assert type(executor.submit(tasks.total, dependent).exception(WAIT)) is ValueError
    go = tmp_path / "go"
    # Both workers have one, and the pool's queue is full: what comes then may be cancelled.
    blockers = [executor.submit(wait_for, str(go), tasks.big()) for _ in range(6)]
    waiting = executor.submit(tasks.total, blockers[0], tasks.big())
    assert waiting.cancel()
    assert waiting.cancelled()
    last = executor.submit(tasks.slow, tasks.big())
    after = executor.submit(tasks.add, last)
    assert last.cancel()
    with pytest.raises(CancelledError):
        after.result(WAIT)
    go.touch()
    wait(blockers, WAIT)


def test_functions_that_travel_as_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def inner() -> None: ...

    replaced = types.FunctionType(tasks.add.__code__, {}, "add")
    replaced.__module__ = tasks.__name__
    assert goes_by_name(tasks.add, True)
    assert goes_by_name(json.JSONDecoder.decode, True)
    for function in (inner, lambda: 1, replaced, functools.partial(tasks.add), len, tasks):
        assert not goes_by_name(function, True)
    main = types.FunctionType(tasks.add.__code__, {}, "in_main")
    main.__module__, main.__qualname__ = "__main__", "in_main"
    monkeypatch.setattr(sys.modules["__main__"], "in_main", main, raising=False)
    assert goes_by_name(main, False)
    assert not goes_by_name(main, True)
    cloudpickle.register_pickle_by_value(tasks)
    try:
        assert not goes_by_name(tasks.add, True)
    finally:
        cloudpickle.unregister_pickle_by_value(tasks)


def test_a_function_whose_name_has_been_given_to_another(
    executor: StoreExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tasks.same
    assert executor.submit(first, 5).result(WAIT) == 5
    monkeypatch.setattr(tasks, "same", tasks.total)
    for submit in executor.executor.submit, executor.submit:
        with pytest.raises(pickle.PicklingError, match="not the same object"):
            submit(first, 5).result(WAIT)


def test_futures_show_what_was_returned_and_load_nothing(executor: StoreExecutor) -> None:
    large, small = executor.submit(tasks.big), executor.submit(tasks.same, 5)
    later = executor.submit(tasks.add, large)
    wait([large, small, later], WAIT)
    for future in large, later:
        assert "state=finished returned numpy.ndarray, " in repr(future)
        assert Future.result(future)._value is None
    assert repr(small).endswith("state=finished returned int>")
    failed = executor.submit(tasks.fail, 1)
    wait([failed], WAIT)
    assert repr(failed).endswith("raised ValueError>")


def test_a_function_of_a_class(executor: StoreExecutor) -> None:
    for number in Fraction(22, 7), Fraction(355, 113):
        future = executor.submit(Fraction.limit_denominator, number, 10)
        assert future.result(WAIT) == number.limit_denominator(10)


def test_into_a_thread_pool(executor: StoreExecutor) -> None:
    with StoreExecutor(ThreadPoolExecutor(2)) as threads:
        array = tasks.big()
        there = executor.submit(tasks.add, array)
        here = threads.submit(tasks.add, there)
        assert here.result(WAIT)[0] == 3
        assert threads.submit(id, array).result(WAIT) == id(array)
        back = executor.submit(tasks.add, here)
        assert back.result(WAIT)[0] == 4


def test_into_another_pool_that_outlives_this_one(executor: StoreExecutor, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with StoreExecutor(pool(1)) as first, StoreExecutor(pool(1), "shm://another-one") as elsewhere:
        made = first.submit(tasks.big, 2.0)
        far = elsewhere.submit(tasks.add, made)  # of another store: by value
        blockers = [executor.submit(wait_for, str(go), tasks.big()) for _ in range(2)]
        waiting = executor.submit(tasks.add, made)
        assert far.result(WAIT)[0] == 3
        assert Future.result(made)._value is not None
    assert stored(first)  # a call of the other pool's needs it
    go.touch()
    assert waiting.result(WAIT)[0] == 3
    wait(blockers, WAIT)
    until(lambda: not stored(first))
    again = executor.submit(tasks.total_of, [made, waiting, far])
    assert again.result(WAIT) == 8 * tasks.BIG
    with StoreExecutor(pool(1), threshold="100 MB") as large:
        assert large.submit(tasks.total_of, [made]).result(WAIT) == 2 * tasks.BIG


# Ends.


def test_nothing_is_submitted_after_the_end_though_calls_still_wait() -> None:
    executor = StoreExecutor(pool())
    assert executor.submit(tasks.same, 1).result(WAIT) == 1
    first = executor.submit(tasks.slow, np.ones(1), 1.0)
    later = executor.submit(tasks.add, first)
    executor.shutdown(wait=False)
    for argument in (1, np.ones(tasks.BIG)):
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(tasks.same, argument)
    assert later.result(WAIT) == first.result(WAIT) + 1


def test_results_can_be_read_after_the_end() -> None:
    with StoreExecutor(pool()) as executor:
        link = executor._link
        directory = Path(link._store.connector.store_dir) / link.session
        read, unread = executor.submit(tasks.big, 1.0), executor.submit(tasks.big, 2.0)
        chained = executor.submit(tasks.add, unread)
        assert read.result(WAIT)[0] == 1
    assert not directory.exists()
    assert [future.result()[0] for future in (read, unread, chained)] == [1, 2, 3]
    for arguments in ((), (unread,), ([chained],)):
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(tasks.total, *arguments)


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_without_waiting(cancel: bool) -> None:
    executor = StoreExecutor(pool())
    link = executor._link
    directory = Path(link._store.connector.store_dir) / link.session
    futures = [executor.submit(tasks.slow, tasks.big(), 0.4) for _ in range(6)]
    chained = executor.submit(tasks.total, tasks.big(), [futures[-1]][0:0] or tasks.big())
    executor.shutdown(wait=False, cancel_futures=cancel)
    done = wait([*futures, chained], WAIT)
    assert not done.not_done
    assert any(future.cancelled() for future in futures) is cancel
    until(lambda: not directory.exists())


def test_an_executor_that_is_dropped() -> None:
    executor = StoreExecutor(pool())
    link = executor._link
    directory = Path(link._store.connector.store_dir) / link.session
    assert executor.submit(tasks.add, tasks.big()).result(WAIT)[0] == 2
    executor.executor.shutdown()
    del executor, link
    gc.collect()
    until(lambda: not directory.exists())


SCRIPT = """
    import os, signal, sys
    from concurrent.futures import ProcessPoolExecutor
    import numpy as np
    from proxystore_integrations.futures import StoreExecutor

    class Point:
        def __init__(self, data): self.data = data

    def same(point): return isinstance(point, Point), point

    if __name__ == "__main__":
        executor = StoreExecutor(ProcessPoolExecutor(1), store="shm://" + sys.argv[1], lease=sys.argv[3])
        there, back = executor.submit(same, Point(np.ones(100_000))).result()
        assert there and isinstance(back, Point)
        held = executor.submit(np.ones, 100_000)
        held.result()
        print("ready", flush=True)
        if sys.argv[2] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["exits", "killed"])
def test_a_client_that_exits_or_is_killed(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    name = f"futures-{how}-{os.getpid()}"
    client = subprocess.Popen(
        [sys.executable, str(script), name, how, "1 s"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    assert (client.wait(WAIT) == 0) is (how == "exits")
    client.stdout.close()
    if how == "killed":
        os.killpg(client.pid, signal.SIGKILL)  # a pool's workers do not notice
    with Store.from_url(f"shm://{name}") as store:
        directory = Path(store.connector.store_dir)
        if how == "exits":
            assert not list(directory.glob("*/[0-9a-f]*"))
        until(lambda: store.connector.sweep() or not store.connector.sessions())
        assert not list(directory.glob("*/[0-9a-f]*"))


# Settings.


def test_settings_are_those_of_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROXYSTORE_THRESHOLD")
    with StoreExecutor(pool(1)) as executor:
        assert executor._link.settings.threshold == POOLS
    monkeypatch.setenv("PROXYSTORE_THRESHOLD", "1 MB")
    with StoreExecutor(pool(1)) as executor:
        assert executor._link.settings.threshold == 1_000_000
        assert "threshold=1 MB" in repr(executor)
    with pytest.raises(ConfigurationError, match="limit"):
        StoreExecutor(pool(1), limit=3)
    with pytest.raises(
        ConfigurationError, match=r"ProcessPoolExecutor'> is no executor.*such as ProcessPoolExecutor\(\)"
    ):
        StoreExecutor(ProcessPoolExecutor)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="no executor"):
        StoreExecutor("pool")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="already"):
        StoreExecutor(StoreExecutor(ThreadPoolExecutor(1)))


def test_lazy_inputs_and_results_by_value() -> None:
    with StoreExecutor(pool(1), inputs="proxy", results="never") as executor:
        assert executor.submit(tasks.kind, tasks.big()).result(WAIT) == "Proxy"
        assert executor.submit(tasks.add, tasks.big()).result(WAIT)[0] == 2
        until(lambda: not stored(executor))


def test_a_users_store_and_choice() -> None:
    with Store.from_url("shm://", name="mine") as store:
        with StoreExecutor(pool(1), store, should_proxy=tasks.is_bytes) as executor:
            assert executor._link._store is store
            array = executor.submit(tasks.slow, tasks.big(), 0.5)
            assert stored(executor) == []
            text = executor.submit(tasks.kind, bytes(200_000))
            assert len(stored(executor)) == 1
            assert array.result(WAIT) == tasks.BIG
            assert text.result(WAIT) == "bytes"
            result = executor.submit(tasks.add, tasks.big())
            assert result.result(WAIT)[0] == 2
            assert type(Future.result(result)) is np.ndarray
        key = store.put(b"still open")
        store.evict(key)


def test_a_store_that_is_down() -> None:
    url = "redis://127.0.0.1:1?deadline=0.5"
    with pytest.warns(RuntimeWarning, match="cannot work through the store"):
        executor = StoreExecutor(pool(1), url)
    with executor:
        assert executor.submit(tasks.add, tasks.big()).result(WAIT)[0] == 2
    with pytest.raises(Exception, match="redis"):
        StoreExecutor(pool(1), url, on_store_error="raise")


def test_a_worker_that_does_not_reach_the_store() -> None:
    with StoreExecutor(pool(1), "memory://") as executor:
        with pytest.warns(RuntimeWarning, match=r"cannot have the arguments of add\(\)"):
            result = executor.submit(tasks.add, tasks.big()).result(WAIT)
        assert result[0] == 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert executor.submit(tasks.add, tasks.big()).result(WAIT)[0] == 2
    with StoreExecutor(pool(1), "memory://", on_store_error="raise") as executor:
        error = executor.submit(tasks.add, tasks.big()).exception(WAIT)
        assert "another process" in str(error)
        assert "shm://" in str(error)
