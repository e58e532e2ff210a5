"""Dask: a store for clients that are already there, and for scripts that are left as they are."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import dask
import dask_tasks as tasks
import distributed
import numpy as np
import pytest

from proxystore_core import ConfigurationError
from proxystore_integrations.dask import Client, wrap

BIG = 30_000
PRELOAD = "proxystore_integrations.dask.preload"


@pytest.fixture(scope="module")
def array():
    return np.arange(BIG, dtype=float)


def test_wrap_keeps_the_client(cluster, array, stored_by):
    with distributed.Client(cluster) as client:
        before = client.submit(tasks.increment, array, pure=False)
        assert wrap(client, threshold="50 kB") is client
        assert isinstance(client, Client)
        assert repr(client).startswith("<Client: 'tcp://")
        assert client._link.settings.threshold == 50_000
        stored = stored_by(client)
        future = client.submit(tasks.total, before, pure=False)
        assert future.result() == tasks.total(array + 1)
        large = client.submit(tasks.total, array, pure=False)
        assert large.result() == tasks.total(array)
        assert len(stored()) == 1
        assert wrap(client) is client
        with pytest.raises(ConfigurationError, match="threshold"):
            wrap(client, threshold=1)
        session = stored.directory
    assert not session.exists()


def test_wrap_takes_settings_as_the_client_does(bare_client):
    with pytest.raises(ConfigurationError, match="colour"):
        wrap(bare_client, colour="red")
    with pytest.raises(ConfigurationError, match="shmm"):
        wrap(bare_client, store="shmm://")
    with pytest.raises(ConfigurationError, match="no Dask client"):
        wrap(7)
    assert type(bare_client) is distributed.Client


def test_wrap_keeps_a_class_of_the_users_own(cluster, array):
    class Mine(distributed.Client):
        def twice(self, *args):
            return [self.submit(*args, pure=False) for _ in range(2)]

    with Mine(cluster) as client:
        wrap(client)
        assert type(client).__name__ == "Mine"
        assert isinstance(client, Mine)
        assert client.gather(client.twice(tasks.total, array)) == [tasks.total(array)] * 2
        assert client._link.joined


def test_wrap_an_asynchronous_client(cluster, array):
    async def run():
        async with distributed.Client(cluster.scheduler_address, asynchronous=True) as client:
            assert await wrap(client) is client
            assert await wrap(client) is client
            np.testing.assert_array_equal(await client.submit(tasks.increment, array, pure=False), array + 1)
            assert client._link.joined
        starting = distributed.Client(cluster.scheduler_address, asynchronous=True)
        async with await wrap(starting):
            assert await starting.submit(tasks.total, array, pure=False) == tasks.total(array)
            assert starting._link.joined

    asyncio.run(run())


def test_dasks_configuration(cluster, tmp_path, monkeypatch):
    (tmp_path / "proxystore.toml").write_text('threshold = "7 kB"\nlease = "5 min"\nresults = "never"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROXYSTORE_RESULTS", "always")
    with dask.config.set(
        {"proxystore.threshold": "8 kB", "proxystore.results": "auto", "proxystore.on-store-error": "raise"}
    ):
        with Client(cluster) as client:
            settings = client._link.settings
            assert (settings.threshold, settings.lease, settings.results) == (8_000, 300.0, "always")
            assert settings.on_store_error == "raise"
            assert settings.origin("threshold") == "Dask's configuration"
        with Client(cluster, threshold=9_000) as client:
            assert client._link.settings.threshold == 9_000
    with dask.config.set({"proxystore.thresholds": 1}):
        with pytest.raises(
            ConfigurationError, match=r"Dask's configuration.*thresholds.*Did you mean 'threshold'"
        ):
            Client(cluster)
    with dask.config.set({"proxystore": "shm://"}), pytest.raises(ConfigurationError, match="proxystore"):
        Client(cluster)


SCRIPT = """
import time
import dask, dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster, as_completed, get_client

def inc(x):
    return x + 1

def add(x, y):
    return x + y

def inside(n):
    client = get_client()
    return client.submit(np.sum, np.ones(n), pure=False).result() if False else type(client).__name__

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            x = np.arange(50_000, dtype=float)
            print(client.submit(inc, x).result().sum())
            futures = client.map(inc, [x * i for i in range(4)])
            print(sorted(float(future.result().sum()) for future in as_completed(futures)))
            print(client.submit(sum, client.map(np.sum, futures)).result())
            scattered = client.scatter(x)
            print(client.submit(np.mean, scattered).result(), client.gather(scattered).shape)
            print(dask.delayed(add)(dask.delayed(inc)(x), x).sum().compute())
            print(da.from_array(x, chunks=20_000).mean().compute())
            print(client.submit(inside, 5).result())
            if hasattr(client, "_link"):
                import sys
                held = client._link._sharing.holdings._by_key
                print("stored", len(held), client._link.joined, file=sys.stderr)
"""


def run(script, tmp_path, config):
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    (tmp_path / "dask.yaml").write_text(config)
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "DASK_CONFIG": str(tmp_path / "dask.yaml"),
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


def test_a_script_left_as_it_is(tmp_path):
    parts = "".join(f"  {part}:\n    preload: [{PRELOAD}]\n" for part in ("client", "scheduler", "worker"))
    bare = run(SCRIPT, tmp_path, "")
    ours = run(SCRIPT, tmp_path, f"distributed:\n{parts}proxystore:\n  threshold: 50 kB\n")
    assert ours.stdout == bare.stdout
    assert ours.stdout.count("\n") == 7
    assert "stored" not in bare.stderr
    (line,) = [line for line in ours.stderr.splitlines() if line.startswith("stored")]
    count, joined = line.split()[1:]
    assert joined == "True"
    assert int(count) >= 4


def test_a_tutorial_under_yaml_alone(tmp_path):
    script = (Path(__file__).parent / "tutorials" / "dask_tutorial.py").read_text()
    parts = "".join(f"  {part}:\n    preload: [{PRELOAD}]\n" for part in ("client", "scheduler", "worker"))
    bare = run(script, tmp_path, "")
    ours = run(script, tmp_path, f"distributed:\n{parts}")
    assert ours.stdout == bare.stdout
    assert ours.stdout.startswith("submit ")
    nowhere = f"proxystore:\n  store: file://{tmp_path / 'script.py'}\n"
    fallen_back = run(script, tmp_path, f"distributed:\n{parts}{nowhere}")
    assert fallen_back.stdout == bare.stdout
    assert "Values go through the engine instead" in fallen_back.stderr


def test_a_wrong_setting_in_dasks_configuration_is_named(tmp_path):
    script = """
    from dask.distributed import Client
    if __name__ == "__main__":
        with Client(n_workers=1, dashboard_address=None) as client:
            print(client.submit(sum, [1, 2]).result())
    """
    config = f"distributed:\n  client:\n    preload: [{PRELOAD}]\nproxystore:\n  thresholds: 1\n"
    done = run(script, tmp_path, config)
    assert done.stdout == "3\n"
    assert "without a store" in done.stderr
    assert "thresholds" in done.stderr
