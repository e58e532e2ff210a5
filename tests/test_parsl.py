"""Parsl: all kinds of apps, dependencies, memoization, retries and deaths, with a store."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import as_completed, wait
from pathlib import Path
from typing import Any

import parsl_tasks as tasks
import pytest
from parsl import File, bash_app, join_app
from parsl.app.errors import AppTimeout
from parsl_runs import StoreRun
from waiting import until

from proxystore_core import Store, get_key
from proxystore_integrations.carriers import StoredResult
from proxystore_integrations.testing.tasks import places

WAIT = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreRun]:
    with StoreRun(tmp_path_factory.mktemp("parsl"), retries=1) as run:
        yield run


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "run" in request.fixturenames:
        run = request.getfixturevalue("run")
        run.app(tasks.text)(1).result(WAIT)  # Parsl's thread keeps the last future until the next
        gc.collect()
        until(lambda: not run.stored())


def is_reference(future: Any) -> bool:
    return type(future._result) is StoredResult


# Dependencies.


def test_results_stay_references_between_tasks(run: StoreRun) -> None:
    add = run.app(tasks.add)
    first = add(tasks.big())
    last = add(add(first), by=5.0)
    assert last.result(WAIT)[0] == 8
    assert is_reference(first)
    assert first._result._value is None  # nobody here has looked at it
    assert last.result() is last.result()


def test_futures_anywhere(run: StoreRun) -> None:
    big, total, total_of = run.app(tasks.big), run.app(tasks.total), run.app(tasks.total_of)
    future = big(2)
    assert total(future, inputs=[future, tasks.big(1)]).result(WAIT) == 5 * tasks.BIG
    assert total_of([future, future]).result(WAIT) == 4 * tasks.BIG
    assert total_of((future, big(1))).result(WAIT) == 3 * tasks.BIG
    assert total_of({"a": future}).result(WAIT) == 2 * tasks.BIG
    assert total_of(arrays=[future]).result(WAIT) == 2 * tasks.BIG
    text = run.app(tasks.text)
    assert run.app(tasks.lengths)({text(200_000), text(300_000)}).result(WAIT) == [200_000, 300_000]


def test_a_stored_result_is_found_anywhere(run: StoreRun) -> None:
    large, kinds = run.app(tasks.big)(1), run.app(tasks.kinds_in)
    deep: Any = large
    for _ in range(12):
        deep = [deep]
    assert kinds(deep).result(WAIT) == ["ndarray"]
    assert kinds([*range(3333), large, *range(2000)]).result(WAIT) == ["int", "ndarray"]
    assert kinds(tasks.Items([1, [large]])).result(WAIT) == ["int", "ndarray"]
    assert kinds({"a": (tasks.Items([large]), 1)}).result(WAIT) == ["int", "ndarray"]


def test_a_result_that_is_named_too_is_two(run: StoreRun) -> None:
    for label in ("htex", "bare"):
        large = run.app(tasks.big, label)(1)
        assert run.app(places, label)(large, [large], again=large).result(WAIT) == [0, 1, 0, 3]


def test_items_and_attributes_of_futures(run: StoreRun) -> None:
    pair = run.app(tasks.pair)(tasks.big(3))
    assert pair[1].result(WAIT) == 3 * tasks.BIG
    assert run.app(tasks.add)(pair[0]).result(WAIT)[0] == 4
    assert pair[0].shape.result(WAIT) == (tasks.BIG,)
    assert run.app(tasks.named)(tasks.big())["array"].result(WAIT)[0] == 1
    with pytest.raises(IndexError):
        pair[7].result(WAIT)


def test_across_executors(run: StoreRun) -> None:
    there = run.app(tasks.add)(tasks.big())
    here = run.app(tasks.add, "threads")(there)
    bare = run.app(tasks.add, "bare")(there)
    again = run.app(tasks.add)(here)
    assert [future.result(WAIT)[0] for future in (there, here, bare, again)] == [2, 3, 3, 4]


def test_join_apps(run: StoreRun) -> None:
    add = run.app(tasks.add)
    one = join_app(lambda array: add(array))(tasks.big())
    several = join_app(lambda array: [add(array), add(array, by=2.0)])(tasks.big())
    assert one.result(WAIT)[0] == 2
    assert is_reference(one)
    assert [array[0] for array in several.result(WAIT)] == [2, 3]
    assert several.result() is several.result()
    assert run.app(tasks.total_of)(several).result(WAIT) == 5 * tasks.BIG


def test_join_apps_within_join_apps(run: StoreRun) -> None:
    big = run.app(tasks.big)
    inner = join_app(lambda: [big(2.0), big(3.0)])
    outer = join_app(lambda: [big(1.0), inner()])()
    one, (two, three) = outer.result(WAIT)
    assert [array[0] for array in (one, two, three)] == [1, 2, 3]
    assert outer.result() is outer.result()
    assert run.app(tasks.total_of)(outer[1]).result(WAIT) == 5 * tasks.BIG


def test_waiting_for_all_tasks_whose_futures_nobody_kept(run: StoreRun) -> None:
    waiting = run.app(tasks.late)(tasks.big(), 1.0)
    for by in range(4):
        run.app(tasks.add)(tasks.big(), by=float(by))
    gc.collect()
    run.flow.wait_for_current_tasks()
    assert waiting.done()


def test_callbacks_and_waiting(run: StoreRun) -> None:
    seen: list[Any] = []
    futures = [run.app(tasks.add)(tasks.big(), by=float(by)) for by in range(3)]
    joined = join_app(lambda array: run.app(tasks.add)(array))(tasks.big())
    for future in (*futures, joined):
        future.add_done_callback(lambda future: seen.append(future.result()[0]))
    assert wait(futures, timeout=WAIT).not_done == set()
    assert sorted(future.result()[0] for future in as_completed(futures)) == [1, 2, 3]
    joined.result(WAIT)
    until(lambda: len(seen) == 4)
    assert sorted(seen) == [1, 2, 2, 3]


# Kinds of apps.


def test_bash_apps(run: StoreRun, tmp_path: Path) -> None:
    count = bash_app(tasks.count, executors=["htex"])
    out = tmp_path / "out"
    assert count("x" * 300_000, stdout=str(out)).result(WAIT) == 0
    assert out.read_text() == "300000\n"
    assert count(run.app(tasks.text)(400_000), stdout=str(out)).result(WAIT) == 0
    assert "400000" in out.read_text()


def test_files(run: StoreRun, tmp_path: Path) -> None:
    written = run.app(tasks.write)(tasks.big(), outputs=[File(f"file://{tmp_path}/data")])
    assert run.app(tasks.read)(written.outputs[0], tasks.big(2)).result(WAIT) == 2 * tasks.BIG


def test_walltime(run: StoreRun) -> None:
    with pytest.raises(AppTimeout):
        run.app(tasks.slow)(tasks.big(), walltime=0.5).result(WAIT)


# Memoization.


def test_memoization_goes_by_content(run: StoreRun, tmp_path: Path) -> None:
    counted = run.app(tasks.counted, cache=True)
    path = tmp_path / "runs"
    first = counted(str(path), tasks.big())
    assert first.result(WAIT)[0] == 2
    assert counted(str(path), tasks.big()).result(WAIT)[0] == 2
    assert counted(str(path), tasks.big(2)).result(WAIT)[0] == 4
    assert counted(str(path), run.app(tasks.big)(2)).result(WAIT)[0] == 4
    assert path.read_text() == "run\n" * 2
    run.flow.memoizer.memo_lookup_table.clear()


# Failures.


def test_a_retry_has_its_arguments(run: StoreRun, tmp_path: Path) -> None:
    array = run.app(tasks.big)(1)
    once = run.app(tasks.fail_once)
    assert once(str(tmp_path / "plain"), tasks.big(2)).result(WAIT) == 2 * tasks.BIG
    assert once(str(tmp_path / "reference"), array).result(WAIT) == tasks.BIG


def test_an_argument_that_raises_where_it_is_unpickled(run: StoreRun) -> None:
    with pytest.warns(RuntimeWarning, match="cannot pass an argument"):
        ours = run.app(tasks.total)(tasks.Unwilling(tasks.big())).exception(WAIT)
    bare = run.app(tasks.total, "bare")(tasks.Unwilling(tasks.big())).exception(WAIT)
    assert (type(ours), str(ours)) == (type(bare), str(bare)) == (ZeroDivisionError, "not here")


def test_a_killed_worker(run: StoreRun, tmp_path: Path) -> None:
    array = run.app(tasks.big)(1)
    assert run.app(tasks.die_once)(str(tmp_path / "died"), array).result(WAIT) == tasks.BIG
    assert run.app(tasks.add)(array).result(WAIT)[0] == 2


# What ProxyStore gets wrong.


def test_a_task_may_return_a_proxy_of_an_array(run: StoreRun) -> None:
    with Store.from_url("shm://", name="parsl-user") as store:
        proxy = store.proxy(tasks.big())
        returned = run.app(tasks.give_back)(proxy).result(WAIT)
        assert returned[0] == 1
        store.evict(get_key(proxy))


def test_caching_with_a_large_list(run: StoreRun, tmp_path: Path) -> None:
    counted = run.app(tasks.counted, cache=True)
    path = tmp_path / "runs"
    values = list(range(50_000))
    assert counted(str(path), values).result(WAIT) == values * 2
    assert counted(str(path), values).result(WAIT) == values * 2
    assert path.read_text() == "run\n"
    run.flow.memoizer.memo_lookup_table.clear()
