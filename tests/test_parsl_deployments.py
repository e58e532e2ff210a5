"""Parsl: blocks that see no store, checkpoints, deaths, other executors: each with a Config of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import sqlite3
import sys
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import parsl
import parsl_tasks as tasks
import psutil
import pytest
from parsl import bash_app, join_app, python_app
from parsl.config import Config
from parsl.dataflow.memoization import BasicMemoizer
from parsl.executors import HighThroughputExecutor, MPIExecutor, ThreadPoolExecutor
from parsl.launchers import SimpleLauncher, SrunLauncher
from parsl.monitoring import MonitoringHub
from parsl.providers import LocalProvider, SlurmProvider
from parsl.usage_tracking.api import get_parsl_usage
from parsl_runs import OwnMemoryLauncher, htex, stored
from waiting import until

from proxystore_core import ConfigurationError, MissingExtraError
from proxystore_integrations.carriers import NotDeliveredError, StoredResult
from proxystore_integrations.parsl import StoreSerializer, wrap
from proxystore_integrations.parsl.engine import check_release
from proxystore_integrations.parsl.mixin import _elsewhere

WAIT = 60


def is_reference(future: Any) -> bool:
    return type(future._result) is StoredResult


def load(tmp_path: Path, *executors: Any, **options: Any) -> Any:
    config = Config(
        executors=list(executors),
        run_dir=str(tmp_path / "runs"),
        strategy="none",
        strategy_period=0.2,
        initialize_logging=False,
        **options,
    )
    return parsl.load(config)


def test_workers_that_do_not_reach_the_store_get_values(tmp_path: Path) -> None:
    executor = wrap(htex("far", launcher=OwnMemoryLauncher()))
    with load(tmp_path, executor):
        with pytest.warns(RuntimeWarning, match=rf"{socket.gethostname()} cannot have the arguments of add"):
            future = python_app(tasks.add)(tasks.big())
            assert future.result(WAIT)[0] == 2
        assert not is_reference(future)
        until(lambda: not stored(executor._link))


def test_or_an_error_that_says_which_host_and_what_to_do(tmp_path: Path) -> None:
    executor = wrap(htex("far", launcher=OwnMemoryLauncher()), on_store_error="raise")
    with load(tmp_path, executor):
        error = python_app(tasks.add)(tasks.big()).exception(WAIT)
    assert isinstance(error, NotDeliveredError)
    for part in (socket.gethostname(), "shared memory", 'store = "redis://host:6379"'):
        assert part in str(error)


def test_nothing_is_left_and_results_can_still_be_read(tmp_path: Path) -> None:
    executor = wrap(htex("htex"))
    with load(tmp_path, executor):
        link = executor._link
        directory = Path(link._store.connector.store_dir) / link.session
        read, unread = (python_app(tasks.add)(tasks.big(), by=float(by)) for by in (1, 2))
        running = python_app(tasks.slow)(tasks.big())
        assert read.result(WAIT)[0] == 2
        wait([unread], timeout=WAIT)
        assert directory.exists()
    assert not directory.exists()
    assert read.result()[0] == 2
    assert unread.result()[0] == 3
    assert not running.done() or running.exception() is not None


def test_a_checkpoint_has_values_and_restarts(tmp_path: Path) -> None:
    path = tmp_path / "runs.txt"
    counted = python_app(tasks.counted, cache=True)
    memoizer = BasicMemoizer(checkpoint_mode="task_exit")
    with load(tmp_path, wrap(htex("htex")), memoizer=memoizer) as flow:
        assert counted(str(path), tasks.big()).result(WAIT)[0] == 2
        directory = Path(flow.run_dir)
    with open(directory / "checkpoint" / "tasks.pkl", "rb") as file:
        assert pickle.load(file)["result"][0] == 2
    memoizer = BasicMemoizer(checkpoint_files=[str(directory / "checkpoint")])
    with load(tmp_path, wrap(htex("htex")), memoizer=memoizer):
        again = counted(str(path), tasks.big())
        assert python_app(tasks.add)(again).result(WAIT)[0] == 3
        assert again.result()[0] == 2
    assert path.read_text() == "run\n"


def test_a_checkpoint_of_a_join_app_has_values(tmp_path: Path) -> None:
    memoizer = BasicMemoizer(checkpoint_mode="task_exit")
    with load(tmp_path, wrap(htex("htex")), memoizer=memoizer) as flow:
        big = python_app(tasks.big)
        inner = join_app(lambda: [big(2)])
        joined = join_app(lambda: [big(1), inner()], cache=True)()
        assert joined.result(WAIT)[1][0][0] == 2
        directory = Path(flow.run_dir)
    with open(directory / "checkpoint" / "tasks.pkl", "rb") as file:
        one, [two] = pickle.load(file)["result"]
    assert (one[0], two[0]) == (1, 2)


def test_records_that_parsl_is_told_to_keep(tmp_path: Path) -> None:
    executor = wrap(htex("htex"))
    with load(tmp_path, executor, garbage_collect=False) as flow:
        for by in (1, 2):
            assert python_app(tasks.add)(tasks.big(), by=float(by)).result(WAIT)[0] == 1 + by
        gc.collect()
        flow.wait_for_current_tasks()
        assert [record["app_fu"].result()[0] for record in flow.tasks.values()] == [2, 3]
    assert [record["app_fu"].result()[0] for record in flow.tasks.values()] == [2, 3]


def test_a_retry_handler_sees_arguments_as_values(tmp_path: Path) -> None:
    seen: list[Any] = []

    def handler(error: Exception, record: Any) -> int:
        seen.append([float(array[0]) for array in (*record["args"], *record["kwargs"].values())])
        return 1

    executor = wrap(htex("htex"))
    with load(tmp_path, executor, retries=1, retry_handler=handler):
        big = python_app(tasks.big)
        first, second = big(1), big(2)
        assert isinstance(
            python_app(tasks.divide_by_zero)(first, other=second).exception(WAIT), ZeroDivisionError
        )
        assert is_reference(first)
    assert seen == [[1, 2], [1, 2]]


def test_a_killed_manager(tmp_path: Path) -> None:
    executor = wrap(htex("htex"))
    with load(tmp_path, executor):
        link = executor._link
        held = python_app(tasks.big)(1)
        assert held.result(WAIT)[0] == 1
        lost = python_app(tasks.slow)(held)
        killed = managers(tmp_path)
        orphans = [child for manager in killed for child in manager.children(recursive=True)]
        for manager in killed:
            manager.send_signal(signal.SIGKILL)
        assert lost.exception(WAIT) is not None
        assert python_app(tasks.add, executors=["_parsl_internal"])(held).result(WAIT)[0] == 2
        del lost
        gc.collect()
        until(lambda: len(stored(link)) == 1)
    for orphan in orphans:  # Parsl leaves some of them, with a store and without
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()


def managers(run_dir: Path) -> list[psutil.Process]:
    """Parsl's processes on this node, of one run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if "process_worker_pool" in command and str(run_dir) in command:
            found.append(process)
    assert found
    return found


def test_a_store_that_is_down(tmp_path: Path) -> None:
    executor = wrap(htex("htex"), store="redis://127.0.0.1:1?deadline=0.5")
    with pytest.warns(RuntimeWarning, match="cannot work through the store"):
        flow = load(tmp_path, executor)
    with flow:
        assert python_app(tasks.add)(tasks.big()).result(WAIT)[0] == 2


# Settings and bad input.


def test_wrapping_leaves_an_executor_what_it_was() -> None:
    bare, ours = htex("same"), wrap(htex("same"))
    assert isinstance(ours, HighThroughputExecutor)
    assert type(ours).__name__ == "HighThroughputExecutor"
    assert repr(ours) == repr(bare)
    config = Config(executors=[ours, ThreadPoolExecutor()])
    assert wrap(config) is config
    assert type(config.executors[1]) is ThreadPoolExecutor
    assert wrap(ours) is ours


def test_a_config_without_executors() -> None:
    config = wrap(Config())
    assert [type(executor) for executor in config.executors] == [ThreadPoolExecutor]


def test_bad_input() -> None:
    with pytest.raises(ConfigurationError, match="already"):
        wrap(wrap(htex("twice")), threshold="1 MB")
    with pytest.raises(ConfigurationError, match="limit"):
        wrap(htex("one"), limit="1 MB")
    with pytest.raises(ConfigurationError, match=r"neither a parsl\.Config nor an executor"):
        wrap("htex")
    with pytest.raises(MissingExtraError, match="too old"):
        check_release("2024.1.1")
    with pytest.warns(RuntimeWarning, match="tested with Parsl up to"):
        check_release("2031.1.1")


@pytest.mark.parametrize(
    ("provider", "why"),
    [
        (LocalProvider(), ""),
        (LocalProvider(launcher=SimpleLauncher()), ""),
        (LocalProvider(launcher=SrunLauncher()), "SrunLauncher"),
        (SlurmProvider("debug"), "SlurmProvider"),
    ],
)
def test_blocks_on_other_machines_and_shared_memory(provider: Any, why: str) -> None:
    executor = wrap(HighThroughputExecutor(label="far", address="127.0.0.1", provider=provider))
    executor._link.open()
    try:
        reason = _elsewhere(executor, executor._link)
        assert why in reason
        assert bool(reason) is bool(why)
        if why:
            assert 'such as "redis://host:6379"' in reason
    finally:
        executor._link.close()


def test_usage_tracking_sees_what_it_saw() -> None:
    bare, ours = (Config(executors=[htex("same")], run_dir="runs") for _ in range(2))
    assert get_parsl_usage(wrap(ours)) == get_parsl_usage(bare)


def test_several_blocks_and_a_retry_on_another(tmp_path: Path) -> None:
    executor = htex("blocks", max_workers_per_node=1)
    executor.provider.init_blocks = executor.provider.max_blocks = 2
    costs: list[str] = []

    def handler(error: Exception, record: Any) -> float:
        costs.append(type(error).__name__)
        return 0.5

    with load(tmp_path, wrap(executor), retries=1, retry_handler=handler):
        arrays = [python_app(tasks.big)(value) for value in range(4)]
        assert python_app(tasks.die_once)(str(tmp_path / "died"), arrays[1]).result(WAIT) == tasks.BIG
        assert python_app(tasks.fail_once)(str(tmp_path / "failed"), arrays[2]).result(WAIT) == 2 * tasks.BIG
        assert [array.result(WAIT)[0] for array in arrays] == [0, 1, 2, 3]
        assert len(executor.connected_managers()) == 2
        assert executor.status_facade
    assert costs == ["WorkerLost", "RuntimeError"]


@pytest.mark.filterwarnings("ignore")  # of its database library, and of its processes
def test_monitoring(tmp_path: Path) -> None:
    database = tmp_path / "monitoring.db"
    hub = MonitoringHub(
        hub_address="127.0.0.1",
        resource_monitoring_interval=1,
        logging_endpoint=f"sqlite:///{database}",
    )
    with load(tmp_path, wrap(htex("htex")), monitoring=hub):
        first = python_app(tasks.add)(tasks.big())
        assert python_app(tasks.add)(first).result(WAIT)[0] == 3
        assert is_reference(first)
    with sqlite3.connect(database) as found:
        names = [name for (name,) in found.execute("select task_func_name from task")]
        resources = found.execute("select count(*) from resource").fetchone()
    assert names == ["add", "add"]
    assert resources[0] >= 2


# Executors of other kinds.


def test_mpi(tmp_path: Path) -> None:
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    nodes = tmp_path / "nodes"
    nodes.write_text("localhost\n")
    executor = MPIExecutor(
        label="mpi",
        address="127.0.0.1",
        encrypted=False,
        mpi_launcher="mpiexec",
        max_workers_per_block=1,
        provider=LocalProvider(
            init_blocks=1,
            max_blocks=1,
            min_blocks=1,
            launcher=SimpleLauncher(),
            # The nodes of a batch job, as PBS lists them.
            worker_init=f"export PBS_NODEFILE={nodes} PYTHONPATH={Path(__file__).parent}:$PYTHONPATH",
        ),
    )
    specification = {"num_nodes": 1, "ranks_per_node": 2, "num_ranks": 2}

    ranks = bash_app(tasks.count, executors=["mpi"])
    out = tmp_path / "out"
    with load(tmp_path, wrap(executor)):
        done = ranks("x" * 300_000, stdout=str(out), parsl_resource_specification=specification)
        assert done.result(WAIT) == 0
        add = python_app(tasks.add, executors=["mpi"])
        first = add(tasks.big(), parsl_resource_specification=specification)
        assert add(first, parsl_resource_specification=specification).result(WAIT)[0] == 3
    assert out.read_text() == "300000\n" * 2


def test_the_serializer_for_executors_that_cannot_be_wrapped(tmp_path: Path) -> None:
    with StoreSerializer(threshold="100 kB") as serializer, load(tmp_path, htex("htex")):
        assert python_app(tasks.total)(tasks.big(), inputs=[tasks.big(2)]).result(WAIT) == 3 * tasks.BIG
        assert serializer._link is not None
        assert len(stored(serializer._link)) == 2
        assert python_app(tasks.total)(np.ones(3)).result(WAIT) == 3
        assert python_app(tasks.add)(tasks.big()).result(WAIT)[0] == 2
