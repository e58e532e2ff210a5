"""joblib, executorlib, mpi4py and Dask's executor, each for real."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import futures_tasks as tasks
import joblib
import loky
import numpy as np
import pytest
from waiting import until

import proxystore_integrations.futures.joblib  # noqa: F401  registers the backend
from proxystore_core.errors import ConfigurationError
from proxystore_core.testing import in_new_process
from proxystore_integrations.futures import StoreExecutor

WAIT = 60


@pytest.fixture(scope="module", autouse=True)
def threshold() -> Iterator[None]:
    """As everywhere else in the tests, so that arrays need not be large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXYSTORE_THRESHOLD", "100 kB")
        yield


def left(name: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"proxystore-*{name}/*/[0-9a-f]*"))


def test_joblib() -> None:
    shared = tasks.big()
    with joblib.parallel_config("proxystore", n_jobs=2, store="shm://joblib-test"):
        found = joblib.Parallel()(joblib.delayed(tasks.add)(shared, by) for by in range(10))
        totals = joblib.Parallel(batch_size=4)(joblib.delayed(tasks.total)(shared, array) for array in found)
        lazily = joblib.Parallel(return_as="generator")(joblib.delayed(tasks.add)(shared) for _ in range(3))
        assert [array[0] for array in lazily] == [2, 2, 2]
        with pytest.raises(ValueError, match="what"):
            joblib.Parallel()(joblib.delayed(tasks.fail)(shared) for _ in range(2))
    assert [array[0] for array in found] == list(range(1, 11))
    assert totals == [tasks.BIG * (2 + by) for by in range(10)]
    del found, lazily
    gc.collect()
    until(lambda: not left("joblib-test"))


def maps_and_drops(folder: Path) -> list[str]:
    importlib.import_module("proxystore_integrations.futures.joblib")  # registers the backend

    small = tasks.big()[:5000]
    with joblib.parallel_config("proxystore", n_jobs=2, store="shm://joblib-test"):
        parallel = joblib.Parallel(max_nbytes=1000, temp_folder=str(folder))
        kinds: list[str] = parallel(joblib.delayed(tasks.kind)(small) for _ in range(4))
        until(lambda: not list(folder.glob("*/*.pkl")))
    return kinds


def test_joblib_drops_the_files_of_what_it_maps_itself(tmp_path: Path) -> None:
    # Where loky is imported after joblib, which has another one inside, joblib's workers do not find the
    # process that counts who has such a file: bare joblib drops none then.
    assert in_new_process(maps_and_drops, tmp_path) == ["memmap"] * 4


@pytest.mark.parametrize("backend", ["loky", "proxystore"])
def test_joblib_tasks_write_into_maps_of_files(backend: str, tmp_path: Path) -> None:
    """As joblib's own documentation has them do it."""
    ways: list[Any] = [lambda array: array, np.asarray, tasks.Parcel, lambda array: tasks.Parcel(array[:])]
    with joblib.parallel_config(backend, n_jobs=2):
        for number, way in enumerate(ways):
            array = np.memmap(tmp_path / str(number), dtype="f8", shape=tasks.BIG, mode="w+")
            joblib.Parallel()(joblib.delayed(tasks.write_into)(way(array), place) for place in range(4))
            assert list(array[:4]) == [0, 1, 2, 3]
        array = np.memmap(tmp_path / "results", dtype="f8", shape=tasks.BIG, mode="w+")
        given = joblib.Parallel()(joblib.delayed(tasks.same)(array) for _ in range(2))
        array[0] = 5
        assert [each[0] for each in given] == [5, 5]
        read_only = np.memmap(tmp_path / "results", dtype="f8", mode="r")
        assert joblib.Parallel()(joblib.delayed(tasks.writable)(read_only) for _ in range(2)) == [False] * 2


def test_joblib_with_a_misspelt_setting() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'threshold'"):
        joblib.parallel_config("proxystore", n_jobs=2, thresholds=3)


def test_joblib_within_joblib() -> None:
    shared = tasks.big()
    with joblib.parallel_config("proxystore", n_jobs=2, store="shm://joblib-test"):
        outer = joblib.Parallel()(joblib.delayed(tasks.parallel)(shared, by) for by in range(3))
        assert outer == [3 * tasks.BIG * (1 + by) for by in range(3)]
        some = joblib.Parallel(return_as="generator_unordered")(
            joblib.delayed(tasks.add)(shared) for _ in range(4)
        )
        assert [array[0] for array in some] == [2] * 4
    until(lambda: not left("joblib-test"))


def test_lokys_own_reducers() -> None:
    """What it was given reducers for is pickled by it, wherever it is in an argument or a result."""
    calls, results = {tasks.Tagged: tasks.tag_call}, {tasks.Tagged: tasks.tag_result}
    pool = loky.ProcessPoolExecutor(1, job_reducers=calls, result_reducers=results)
    value = tasks.Tagged(tasks.big(), "none")
    with StoreExecutor(pool, store="shm://loky-test") as executor:
        for argument in (value, [value], {"a": (tasks.big(), value)}, tasks.Parcel(value)):
            assert executor.submit(tasks.tags, argument).result(WAIT) == ["call"]
            assert tasks.tags(executor.submit(tasks.same, argument).result(WAIT)) == ["result"]
        assert executor.submit(tasks.add, tasks.big()).result(WAIT)[0] == 2
    assert not left("loky-test")


def test_lokys_reusable_executor() -> None:
    first = loky.get_reusable_executor(2)
    with StoreExecutor(first, store="shm://loky-test") as executor:
        assert executor.kind.engine == "loky"
        assert executor.submit(lambda array: array + 1, tasks.big()).result(WAIT)[0] == 2
        held = executor.submit(tasks.add, tasks.big(2))
    assert held.result()[0] == 3
    again = loky.get_reusable_executor(2)
    assert again is not first
    with StoreExecutor(again, store="shm://loky-test") as executor:
        died = executor.submit(tasks.die, tasks.big())
        assert isinstance(died.exception(WAIT), loky.process_executor.TerminatedWorkerError)
    third = StoreExecutor(loky.get_reusable_executor(2), store="shm://loky-test")
    assert third.submit(tasks.add, held).result(WAIT)[0] == 4
    third.release()  # it is everybody's
    assert loky.get_reusable_executor(2) is third.executor
    assert third.executor.submit(tasks.kind, 1).result(WAIT) == "int"
    third.executor.shutdown()
    assert not left("loky-test")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own business
def test_executorlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    from executorlib import SingleNodeExecutor

    with StoreExecutor(SingleNodeExecutor(max_workers=1), store="shm://executorlib-test") as executor:
        first = executor.submit(tasks.add, tasks.big())
        second = executor.submit(tasks.add, first)
        assert second.result(WAIT)[0] == 3
        cores = {"cores": 1}  # executorlib's own, not the task's
        assert executor.submit(tasks.add, tasks.big(), resource_dict=cores).result(WAIT)[0] == 2
        assert type(executor.submit(tasks.fail, tasks.big()).exception(WAIT)) is ValueError
    assert not left("executorlib-test")


def test_dasks_executor(cluster: Any, bare_client: Any) -> None:
    with StoreExecutor(bare_client.get_executor(pure=False), store="shm://dask-executor-test") as executor:
        first = executor.submit(tasks.add, tasks.big())
        second = executor.submit(tasks.add, first)
        assert second.result(WAIT)[0] == 3
        assert [array[0] for array in executor.map(tasks.add, [tasks.big()], [5])] == [6]
    assert not left("dask-executor-test")


def test_dasks_executor_within_one_process() -> None:
    import distributed

    with distributed.Client(processes=False, dashboard_address=None, set_as_default=False) as client:
        with StoreExecutor(client.get_executor(pure=False)) as executor:
            assert executor.kind.is_local
            assert executor.submit(tasks.add, tasks.big()).result(WAIT)[0] == 2


def test_dasks_own_futures_among_large_arguments(cluster: Any, bare_client: Any) -> None:
    bare = bare_client.get_executor(pure=False)
    with StoreExecutor(bare_client.get_executor(pure=False), store="shm://dask-executor-test") as executor:
        for place in (lambda future: future, lambda future: [{"a": (future,)}], lambda future: {future}):
            given = [place(bare_client.submit(tasks.kind, number, pure=False)) for number in range(2)]
            for one in (bare, executor):
                assert one.submit(tasks.first_two, tasks.big(), given[0]).result(WAIT) == (
                    "ndarray",
                    place("int"),
                )
                found = one.submit(tasks.first_two, second=given[1], first=tasks.big()).result(WAIT)
                assert found == ("ndarray", place("int"))
    assert not left("dask-executor-test")


def test_options_of_dasks_submit(cluster: Any, bare_client: Any) -> None:
    worker = list(bare_client.scheduler_info()["workers"])[:1]
    with StoreExecutor(bare_client.get_executor(), store="shm://dask-executor-test") as executor:
        future = executor.submit(
            *(tasks.first_two, tasks.big()), second=3, pure=False, workers=worker, retries=1, priority=2
        )
        assert future.result(WAIT) == ("ndarray", 3)
        assert executor.submit(tasks.first_two, tasks.big(), key="mine").result(WAIT) == ("ndarray", 2)


def test_coroutine_functions_on_dask(cluster: Any, bare_client: Any) -> None:
    with StoreExecutor(bare_client.get_executor(pure=False), store="shm://dask-executor-test") as executor:
        for array in (tasks.big(), tasks.big()[:3]):
            assert executor.submit(tasks.later, array).result(WAIT) == len(array)
            assert executor.submit(functools.partial(tasks.later, array)).result(WAIT) == len(array)
        assert list(executor.map(tasks.later, [tasks.big()])) == [tasks.BIG]


def test_chunks_that_dask_ignores(cluster: Any, bare_client: Any) -> None:
    array = tasks.big()
    bare = bare_client.get_executor(pure=False)
    with StoreExecutor(bare_client.get_executor(pure=False), store="shm://dask-executor-test") as executor:
        for one in (bare, executor):
            assert list(one.map(tasks.change, [array, array], chunksize=2)) == [2, 2]
            results = one.map(tasks.fail_at, [tasks.big(), tasks.big()], [1, 0], chunksize=2)
            assert next(results) == 1
            with pytest.raises(ValueError, match="what"):
                next(results)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_executorlib_does_with_futures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    import executorlib

    done: Future[Any] = Future()
    done.set_result(7)
    with StoreExecutor(
        executorlib.SingleNodeExecutor(max_workers=1), store="shm://executorlib-test"
    ) as executor:
        assert executor.submit(tasks.first_two, tasks.big(), done).result(WAIT) == ("ndarray", 7)
        assert executor.submit(tasks.first_two, tasks.big(), second=[done]).result(WAIT) == ("ndarray", [7])
        several = executor.submit(tasks.same, [tasks.big(), tasks.big(2)])
        one = executorlib.get_item_from_future(several, 1)
        assert executor.submit(tasks.total, tasks.big(), one).result(WAIT) == 3 * tasks.BIG
        assert list(executor.map(tasks.total, several)) == [tasks.BIG, 2 * tasks.BIG]  # type: ignore[arg-type]
    assert not left("executorlib-test")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_executorlib_asks_a_function_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    from executorlib import SingleNodeExecutor

    array = tasks.big()
    pool = SingleNodeExecutor(max_workers=1, init_function=tasks.preset, block_allocation=True)
    with StoreExecutor(pool, store="shm://executorlib-test") as executor:
        for value in (array, array[:3]):
            assert executor.submit(tasks.first_two, value).result(WAIT) == ("ndarray", 7)
            assert executor.submit(tasks.first_two, value, second=1).result(WAIT) == ("ndarray", 1)
            assert executor.submit(lambda of, second: (array[0], of[0], second), value).result(WAIT) == (
                1,
                1,
                7,
            )
        with pytest.raises(ValueError, match="resource_dict"):
            executor.submit(lambda array, resource_dict=None: None, array)
    assert not left("executorlib-test")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_executorlib_keeps_in_files_is_what_it_was_given(tmp_path: Path) -> None:
    from executorlib import SingleNodeExecutor

    with StoreExecutor(SingleNodeExecutor(max_workers=1, cache_directory=str(tmp_path))) as executor:
        assert executor.kind.is_local  # nothing that is in a store is in the files
        assert not executor._link.is_open


MPI = """
import futures_tasks as tasks
import numpy as np
from mpi4py.futures import MPICommExecutor, MPIPoolExecutor
from proxystore_integrations.futures import StoreExecutor

class Point:
    def __init__(self, data): self.data = data

def same(point): return isinstance(point, Point), point

if __name__ == "__main__":
    with MPICommExecutor() as inner:
        if inner is not None:
            with StoreExecutor(inner, store="shm://mpi-test") as executor:
                seen = []
                call = executor._link.call
                executor._link.call = lambda *args, **how: seen.append(args) or call(*args, **how)
                assert executor.num_workers == 2
                assert not executor.kind.main_by_value and not executor.kind.is_local, executor.kind
                first = executor.submit(tasks.add, tasks.big())
                assert executor.submit(tasks.add, first).result(60)[0] == 3
                there, back = executor.submit(same, Point(np.ones(100_000))).result(60)
                assert there and isinstance(back, Point)
                assert list(executor.map(tasks.total, [tasks.big()] * 3)) == [tasks.BIG] * 3
                args = [(tasks.big(), number) for number in range(3)]
                before = len(seen)
                found = executor.map(tasks.add, *zip(*args), unordered=True, chunksize=2)
                assert sorted(array[0] for array in found) == [1, 2, 3]
                found = executor.starmap(tasks.add, iter(args), buffersize=1)
                assert [array[0] for array in found] == [1, 2, 3]
                assert len(seen) == before + 2 + 3  # through the store
                assert type(executor.submit(tasks.fail, tasks.big()).exception(60)) is ValueError
                print("done", flush=True)
"""


def test_mpi_ranks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(MPI)
    mpiexec = Path(sys.executable).parent / "mpiexec"
    command = [str(mpiexec), "-n", "3", sys.executable, "-m", "mpi4py.futures", str(script)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(mpiexec.parents[1] / "lib"),
            "PYTHONPATH": str(Path(__file__).parent),
        },
    )
    assert done.stdout.endswith("done\n"), done.stderr
    assert done.returncode == 0
    assert not left("mpi-test")
