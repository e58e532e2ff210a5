"""Dask: clusters of several kinds, also where this package is missing in one of their parts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings

import dask_tasks as tasks
import distributed
import numpy as np
import pytest
from waiting import until

from proxystore_integrations.dask import Client

BIG = 30_000

# An environment in which our packages cannot be imported, as if they were not installed.
BLOCKER = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("proxystore_core", "proxystore_integrations"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float)


@pytest.fixture
def dask_process(tmp_path):
    """Starts `dask scheduler` or `dask worker`; `without=True` is an environment that lacks this package."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCKER)
    with contextlib.ExitStack() as stack:

        def start(*command, without=False):
            path = [str(tmp_path / "blocked")] * without + sys.path
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            return process

        yield start


@pytest.fixture
def deployment(dask_process, tmp_path):
    """A scheduler and workers from the command line; returns the scheduler's address."""

    def deploy(workers=2, *, scheduler_without=False, workers_without=False, nanny=True):
        file = tmp_path / "scheduler.json"
        dask_process(
            *("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)),
            without=scheduler_without,
        )
        until(file.exists)
        for _ in range(workers):
            add_worker(file, without=workers_without, nanny=nanny)
        return file

    def add_worker(file, *, without=False, nanny=True):
        dask_process(
            *("worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard"),
            *(["--nanny"] if nanny else ["--no-nanny"]),
            without=without,
        )

    deploy.add_worker = add_worker  # type: ignore[attr-defined]
    return deploy


def check(client, array):
    assert client.submit(tasks.total, array, pure=False).result(timeout=30) == tasks.total(array)
    np.testing.assert_array_equal(client.submit(tasks.increment, array, pure=False).result(), array + 1)
    assert client.gather(client.map(tasks.total, [array, array + 1], pure=False))[0] == tasks.total(array)
    assert client.submit(tasks.total, client.scatter(array), pure=False).result() == tasks.total(array)


@pytest.mark.parametrize("nanny", [True, False])
def test_from_the_command_line(deployment, array, nanny, stored_by):
    with Client(scheduler_file=str(deployment(nanny=nanny))) as client:
        client.wait_for_workers(2, timeout=30)
        assert client._link.joined
        future = client.submit(tasks.total, array, pure=False)
        assert future.result() == tasks.total(array)
        assert len(stored_by(client)()) == 1
        check(client, array)
        assert client.submit(tasks.submit_inside, BIG, pure=False).result()[1]
        assert not client._link.elsewhere


def test_a_scheduler_without_this_package(deployment, array):
    file = deployment(scheduler_without=True)
    with pytest.warns(RuntimeWarning, match=r"scheduler could not load.*Install the same") as caught:
        with Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(2, timeout=30)
            check(client, array)
            assert not client._link.joined
    assert len([one for one in caught if one.category is RuntimeWarning]) == 1


def test_workers_without_this_package(deployment, array):
    file = deployment(workers_without=True)
    with Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(2, timeout=30)
        until(lambda: len(client._link.elsewhere) == 2)
        with pytest.warns(RuntimeWarning, match=r"could not load proxystore_integrations") as caught:
            check(client, array)
        assert len(caught) == 1


def test_a_late_worker_without_this_package(deployment, array):
    file = deployment(1)
    with Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(1, timeout=30)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(client, array)
        deployment.add_worker(file, without=True)
        client.wait_for_workers(2, timeout=30)
        until(lambda: client._link.elsewhere)
        with pytest.warns(RuntimeWarning, match="could not load proxystore_integrations"):
            check(client, array)
            futures = client.map(tasks.total, [array + i for i in range(6)], pure=False)
            assert client.gather(futures)[0] == tasks.total(array)
    with Client(scheduler_file=str(file)) as again, pytest.warns(RuntimeWarning, match="could not load"):
        check(again, array)


def test_an_adaptive_cluster(array, stored_by):
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="100ms", wait_count=2)
        with Client(cluster) as client:
            stored = stored_by(client)
            for _ in range(2):
                future = client.submit(tasks.total, array, pure=False)
                after = client.submit(tasks.increment, array, pure=False)
                assert future.result(timeout=60) == tasks.total(array)
                np.testing.assert_array_equal(after.result(), array + 1)
                del future, after
                stored.becomes(0)
                until(lambda: not cluster.scheduler.workers)
            assert not client._link.elsewhere
