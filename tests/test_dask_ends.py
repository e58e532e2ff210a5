"""Dask: what is left when clients, workers and whole clusters end while tasks run. It is nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import dask_tasks as tasks
import distributed
import numpy as np
import pytest
from waiting import until

from proxystore_core import FullError, Session, Sharing, store_for
from proxystore_integrations.dask import Client, results
from proxystore_integrations.dask.orders import Order, carry_out
from proxystore_integrations.policy import Policy
from proxystore_integrations.transfer import ByValue, Outgoing

BIG = 30_000


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float)


def two_workers(**options):
    return distributed.LocalCluster(
        **{"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, **options}
    )


def sessions():
    """Those in this host's shared memory."""
    return set(store_for("shm://").connector.sessions())


def test_a_cluster_that_closes_while_tasks_store_their_results():
    before = sessions()
    with two_workers() as cluster, Client(cluster, results="always") as client:
        futures = [client.submit(tasks.slow_ones, BIG, 1.0, pure=False) for _ in range(2)]
        until(lambda: len(client.processing()) == 2)
    assert len(futures) == 2
    until(lambda: sessions() == before)


def test_a_cluster_that_closes_before_what_nobody_waits_for(array):
    before = sessions()
    with two_workers(n_workers=1) as cluster, Client(cluster) as client:
        distributed.fire_and_forget(client.submit(tasks.slow_total, array, 30.0, pure=False))
        until(lambda: any(client.processing().values()))
    until(lambda: sessions() == before)


def test_workers_that_are_killed_with_clients_of_tasks():
    """The scheduler loses the clients, and has nobody whom it could ask to end their sessions."""
    before = sessions()
    with two_workers() as cluster, Client(cluster) as client:
        futures = client.map(tasks.get_client_inside, [BIG, BIG + 1], pure=False)
        assert client.gather(futures) == [BIG, BIG + 1]
        assert len(sessions() - before) == 3
        del futures  # else they are computed again, with clients of their own
        for process in client.run(os.getpid).values():
            os.kill(process, signal.SIGKILL)
        until(lambda: len(sessions() - before) == 1)
        client.wait_for_workers(2)
    assert sessions() == before


def test_a_gather_that_is_under_way_when_its_client_closes(tmp_path):
    before = sessions()
    with two_workers(n_workers=1) as cluster:
        client = Client(cluster)
        future = client.submit(tasks.ones, 10 * BIG, pure=False)
        distributed.wait(future)
        client.run(tasks.publish_between, str(tmp_path / "began"), str(tmp_path / "go"))

        def gather():
            with contextlib.suppress(BaseException):  # as without us
                client.gather(future)

        gathering = threading.Thread(target=gather)
        gathering.start()
        until((tmp_path / "began").exists)
        client.close()
        assert sessions() == before
        (tmp_path / "go").touch()
        gathering.join()
        until((tmp_path / "go-done").exists)
        until(lambda: sessions() == before)


@pytest.mark.parametrize("way", ["submit", "scatter"])
def test_an_argument_that_is_being_stored_when_its_client_closes(cluster, array, way, monkeypatch):
    before = sessions()
    client = Client(cluster)
    connector, began, go = client._link._store.connector, threading.Event(), threading.Event()
    put = connector.put

    def slow_put(*args, **kwargs):
        began.set()
        go.wait()
        return put(*args, **kwargs)

    def call():
        with contextlib.suppress(BaseException):  # as without us
            client.submit(tasks.total, array) if way == "submit" else client.scatter(array)

    monkeypatch.setattr(connector, "put", slow_put)
    calling = threading.Thread(target=call)
    calling.start()
    began.wait()
    client.close()
    assert sessions() == before
    go.set()
    calling.join()
    until(lambda: sessions() == before)


def test_a_lease_that_is_shorter_than_another_clients(cluster, array, tmp_path):
    """What a client left behind is renewed by its own lease, whoever else is there."""
    path = tmp_path / "total"
    with Client(cluster), Client(cluster, lease=2.0) as client:
        earlier = client.submit(tasks.slow_ones, 1, 5.0, pure=False)
        distributed.fire_and_forget(client.submit(tasks.write_after, earlier, str(path), array, pure=False))
        until(lambda: any(client.processing().values()))
        connector, name = client._link._store.connector, client._link._session.name
        del earlier
        client.close()
        written = False
        while not written:
            store_for("shm://").connector.sweep()
            alive = name in connector.sessions()
            written = path.exists() and bool(path.read_text())
            assert alive or written
        assert float(path.read_text()) == tasks.total(array)
    until(lambda: name not in connector.sessions())


@pytest.mark.parametrize("url", ["shm://renewals", "memory://renewals", "zmq://renewals"])
def test_a_renewal_beside_the_end_brings_no_session_back(url):
    """A worker that was asked too long ago still renews while another ends the session."""
    store = store_for(url)
    connector = store.connector
    for number in range(50):
        connector.renew(f"other{number}", 600)
    with ThreadPoolExecutor(2) as executor:
        for _ in range(200):
            connector.renew("s", 600)
            renewing = [executor.submit(carry_out, Order("renew", url, "s", lease=600.0)) for _ in range(2)]
            connector.end("s")
            for each in renewing:
                each.result()
            assert "s" not in connector.sessions()
    for number in range(50):
        connector.end(f"other{number}")
    store.close()


@pytest.mark.parametrize("side", ["worker", "client"])
def test_a_put_that_fails_beside_the_end_leaves_no_session(side, array, monkeypatch):
    store = store_for("shm://failing")
    session, connector = Session(store.connector), store.connector

    def fail(data, *, session):
        ending.end()
        connector._begin(session, 600.0)  # as a put does that finds none
        results.over[session] = None
        sharing.close(ending)
        raise FullError("no room")

    ending = session
    sharing = Sharing(store, session.name)
    monkeypatch.setattr(connector, "put", fail)
    if side == "worker":
        with pytest.raises(FullError):
            results.put(array, "shm://failing", session.name, "key", "result")
    else:
        outgoing = Outgoing(sharing, Policy(1), ByValue())
        with pytest.warns(RuntimeWarning, match="no room"):
            outgoing.reference(array)
    assert session.name not in connector.sessions()
    results.over.pop(session.name)


def test_orders_do_not_hold_up_tasks(array, tmp_path):
    """A store that takes long to evict an object is no reason for a worker to begin no task."""
    path = tmp_path / "evict"
    with two_workers(n_workers=1) as cluster, distributed.Client(cluster, set_as_default=False) as bare:
        with Client(cluster, results="always") as client:
            directory = client._link._store.connector.store_dir + "/" + client._link._session.name
            future = client.submit(tasks.ones, BIG, pure=False)
            distributed.wait(future)
            theirs = tasks.future_of(bare, future.key)
            distributed.wait(theirs)
        assert os.listdir(directory)
        bare.run(tasks.evict_after, str(path))
        del theirs
        bare.submit(path.touch, pure=False).result()
        until((tmp_path / "evict-seen").exists)
        until(lambda: not os.path.exists(directory))


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import numpy as np, dask_tasks as tasks
from proxystore_core import Store
from proxystore_core.connectors.file import FileConnector
from proxystore_integrations.dask import Client

class Own(FileConnector):
    schemes = ("own",)

store = {store}
client = Client({scheduler!r}, store=store)
client.wait_for_workers({workers})
while not client._link.elsewhere:
    time.sleep(0.02)
print(client._link._store.connector.store_dir + "/" + client._link._session.name, flush=True)
time.sleep(60)
"""


def killed_client(cluster, store, workers):
    """Start a client one of whose workers does not reach its store, and kill it; its session's directory."""
    script = textwrap.dedent(SCRIPT).format(
        tests=os.path.dirname(__file__), store=store, scheduler=cluster.scheduler_address, workers=workers
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        session = process.stdout.readline().strip()
        assert os.path.exists(session)
        process.kill()
    return session


def test_workers_that_cannot_open_a_store_survive_the_order_to_end_a_session(bare_client, cluster, tmp_path):
    workers = set(bare_client.scheduler_info()["workers"])
    killed_client(cluster, f"Store('own', Own({str(tmp_path / 'store')!r}))", 2)
    alone = {bare_client.id, "fire-and-forget"}
    until(lambda: bare_client.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.clients)) == alone)
    for worker in workers:
        assert bare_client.submit(tasks.total, np.ones(3), workers=worker, pure=False).result() == 3.0
    assert set(bare_client.scheduler_info()["workers"]) == workers


def test_only_workers_that_reach_a_store_are_asked_to_end_its_sessions(tmp_path):
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs root and mount namespaces")
    with two_workers(n_workers=0) as cluster, distributed.Client(cluster, set_as_default=False) as bare:
        command = (
            f"{sys.executable} -m distributed.cli.dask_worker {cluster.scheduler_address} "
            "--no-nanny --nthreads 1 --no-dashboard"
        )
        elsewhere = f"mount -t tmpfs -o size=16m tmpfs /dev/shm && exec {command}"
        with contextlib.ExitStack() as stack:
            for number, shell in enumerate([f"unshare -m sh -c '{elsewhere}'", command], 1):
                process = subprocess.Popen(
                    ["sh", "-c", f"exec {shell}"],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                stack.callback(process.wait)
                stack.callback(process.terminate)
                bare.wait_for_workers(number)
            session = killed_client(cluster, "None", 2)
            until(lambda: not os.path.exists(session))
