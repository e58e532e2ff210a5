"""Dask: when stored objects go, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dask_tasks as tasks
import distributed
import numpy as np
import pytest
from waiting import until

from proxystore_integrations.dask import Client

BIG = 30_000


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float)


def test_an_argument_stays_while_its_task_is_known_and_goes_with_it(client, array, stored):
    future = client.submit(tasks.total, array, pure=False)
    assert future.result() == tasks.total(array)
    time.sleep(0.2)
    assert len(stored()) == 1  # a killed worker would need it again
    del future
    stored.becomes(0)


def test_equal_arguments_of_many_calls_are_stored_once(client, array, stored):
    futures = [client.submit(tasks.total, array.copy(), pure=False) for _ in range(100)]
    distributed.wait(futures)
    assert len(stored()) == 1
    del futures[1:]
    time.sleep(0.2)
    assert len(stored()) == 1
    changed = array.copy()
    changed[0] = 5  # not equal any more
    other = client.submit(tasks.total, changed, pure=False)
    assert other.result() == tasks.total(array) + 5
    assert len(stored()) == 2
    del futures, other
    stored.becomes(0)


def test_an_equal_argument_that_comes_while_the_last_one_goes(client, array, stored):
    """The scheduler's order to evict and the next submit cross on their way, again and again."""
    for i in range(150):
        future = client.submit(tasks.total, array, pure=False)
        if i % 3 == 0:
            assert future.result() == tasks.total(array)
        elif i % 3 == 1:
            time.sleep(0.002)
    assert future.result() == tasks.total(array)
    assert len(stored()) == 1
    del future
    stored.becomes(0)


def test_an_argument_lost_behind_our_back_is_stored_again(client, array, stored):
    first = client.submit(tasks.total, array, pure=False)
    first.result()
    for name in stored():
        (stored.directory / name.rpartition(".")[2]).unlink()
    again = client.submit(tasks.total, array, pure=False)
    assert again.result() == tasks.total(array)
    del first, again
    stored.becomes(0)


def test_dependents_keep_an_argument(client, array, stored):
    first = client.submit(tasks.increment, array, pure=False)
    second = client.submit(tasks.total, first, pure=False)
    del first
    assert second.result() == tasks.total(array + 1)
    del second
    stored.becomes(0)


def test_an_equal_task_submitted_again_leaves_nothing(client, array, stored):
    futures = [client.submit(tasks.total, array) for _ in range(3)]
    assert [future.result() for future in futures] == [tasks.total(array)] * 3
    with Client(client.cluster) as other:  # knows nothing of the first client's futures
        again = other.submit(tasks.total, array)
        assert again.result() == tasks.total(array)
        del again
    del futures
    stored.becomes(0)


def test_gathering_twice_and_late(client, array, stored):
    future = client.submit(tasks.increment, array, pure=False)
    for _ in range(2):
        np.testing.assert_array_equal(future.result(), array + 1)
    np.testing.assert_array_equal(client.gather([future, future])[1], array + 1)
    late = client.submit(tasks.total, future, pure=False)
    assert late.result() == tasks.total(array + 1)
    assert len(stored()) <= 2
    del future, late
    stored.becomes(0)


@pytest.mark.parametrize("results", ["auto", "always", "never"])
def test_results(cluster, array, results, stored_by):
    with Client(cluster, results=results) as client:
        stored = stored_by(client)
        future = client.submit(tasks.increment, array, pure=False)
        after = client.submit(tasks.total, future, pure=False)
        assert after.result() == tasks.total(array + 1)
        assert len(stored()) == (2 if results == "always" else 1)
        for _ in range(2):
            gathered = future.result()
            np.testing.assert_array_equal(gathered, array + 1)
            assert gathered.flags.writeable
        nested = client.submit(tasks.wrap_argument, array, pure=False)
        np.testing.assert_array_equal(nested.result()["again"], array)
        raw = client.submit(tasks.make_bytes, 300_000, pure=False)
        assert raw.result() == b"x" * 300_000
        soon = client.submit(tasks.total_soon, future, pure=False)
        assert soon.result() == tasks.total(array + 1)
        del future, after, nested, raw, soon
        stored.becomes(0)


def test_always_stored_results_reach_another_client(cluster, array):
    with Client(cluster, results="always") as one:
        future = one.submit(tasks.increment, array, pure=False)
        distributed.wait(future)
        one.publish_dataset(shared=future)
        with distributed.Client(cluster) as bare:
            seen = bare.submit(tasks.total, bare.get_dataset("shared"), pure=False).result()
            assert seen == tasks.total(array + 1)
        one.unpublish_dataset("shared")


def test_a_cancelled_future_takes_its_argument_along(client, array, stored):
    future = client.submit(tasks.slow_total, array, 0.5, pure=False)
    future.cancel()
    stored.becomes(0)
    many = client.map(tasks.slow_total, [array + i for i in range(10)], [0.2] * 10, pure=False)
    client.cancel(many)
    del many
    stored.becomes(0)


def test_a_failed_task_leaves_nothing(client, array, stored):
    future = client.submit(tasks.fail_with, array, pure=False)
    assert isinstance(future.exception(), ValueError)
    del future
    stored.becomes(0)


@pytest.mark.parametrize("results", ["auto", "always"])
def test_a_killed_worker_is_recomputed(cluster, array, results, stored_by):
    with Client(cluster, results=results) as client:
        stored = stored_by(client)
        future = client.submit(tasks.increment, array, pure=False)
        distributed.wait(future)
        (holder,) = client.who_has(future)[future.key]
        pids = client.run(os.getpid)
        os.kill(pids[holder], signal.SIGKILL)
        np.testing.assert_array_equal(future.result(), array + 1)
        client.wait_for_workers(2)
        del future
        stored.becomes(0)


def test_a_worker_killed_in_its_task(client, array, tmp_path, stored):
    future = client.submit(tasks.die_once, str(tmp_path / "died"), array, pure=False)
    assert future.result() == tasks.total(array)
    del future
    client.wait_for_workers(2)
    stored.becomes(0)


def test_restart_drops_everything(client, array, stored):
    futures = client.map(tasks.increment, [array, array + 1], pure=False)
    distributed.wait(futures)
    client.restart()
    stored.becomes(0)
    assert client.submit(tasks.total, array, pure=False).result() == tasks.total(array)


def test_closing_the_client_empties_its_session(cluster, array, stored_by):
    with Client(cluster) as client:
        stored = stored_by(client)
        futures = client.map(tasks.increment, [array, array + 1], pure=False)
        distributed.wait(futures)
        assert len(stored()) == 2
        session = stored.directory
    assert not session.exists()


def test_fire_and_forget_outlives_its_client(cluster, array, tmp_path):
    path = tmp_path / "total"
    with Client(cluster) as client:
        distributed.fire_and_forget(client.submit(tasks.write_total, str(path), array, 1.0, pure=False))
        session = Path(client._link._store.connector.store_dir) / client._link._session.name
    assert session.exists()
    until(path.exists)
    assert float(path.read_text()) == tasks.total(array)
    until(lambda: not session.exists())


def test_a_client_that_is_killed(cluster, array):
    """The scheduler notices, and a worker ends the session."""
    script = textwrap.dedent(
        f"""
        import sys, time
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import numpy as np, dask_tasks as tasks
        from proxystore_integrations.dask import Client
        client = Client({cluster.scheduler_address!r})
        future = client.submit(tasks.increment, np.arange({BIG}.0), pure=False)
        future.result()
        print(client._link._store.connector.store_dir + "/" + client._link._session.name, flush=True)
        time.sleep(60)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    session = Path(process.stdout.readline().strip())
    assert len(list(session.glob("[0-9a-f]*"))) == 1
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not session.exists())


def test_forked_children_of_a_client_end_nothing(client, array, stored):
    future = client.submit(tasks.total, array, pure=False)
    future.result()
    session = client._link._session
    pid = os.fork()
    if pid == 0:
        session.end()
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(stored()) == 1
    assert multiprocessing.active_children() is not None
    del future
    stored.becomes(0)
