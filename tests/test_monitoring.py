"""Progress lines, metrics, and the page on Dask's dashboard."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser import rendered
from redis_servers import serving
from terminal import at_terminal
from waiting import until

from proxystore_core import MissingExtraError

SLOW = """
import sys, time
from proxystore_integrations import progress
progress.PATIENCE = 0.05
from proxystore_integrations.transfer import progress as same
assert same is progress
with progress.shown("storing", int(sys.argv[1])):
    time.sleep(0.6)
print("done")
"""
HALF = """
import time
from concurrent.futures import ThreadPoolExecutor
from proxystore_core.moving import moved
from proxystore_integrations import progress
progress.PATIENCE = 0.01
def move(doing, size, *steps):
    with progress.shown(doing, size):
        for nbytes, word in steps:
            moved(nbytes, word)
            time.sleep(0.25)
steps = [(0, ""), (500_000_000, ""), (450_000_000, ""), (900_000_000, "")]
away = [(0, "transferring"), (500_000_000, "transferring"), (1_000_000_000, "")]
with ThreadPoolExecutor(2) as both:
    both.submit(move, "storing", 1_000_000_000, *steps)
    both.submit(move, "loading", 2_000_000_000, *away)
print("done")
"""


def test_what_takes_long_is_shown_at_a_terminal_only(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    python = (sys.executable, str(tmp_path / "slow.py"))
    code, shown = at_terminal(*python, "2000000000")
    assert code == 0
    assert "storing 2 GB" in shown
    assert shown.rstrip().endswith("done")
    assert "storing" not in at_terminal(*python, "1000")[1]
    assert "storing" not in at_terminal(*python, "2000000000", PROXYSTORE_PROGRESS="off")[1]
    done = subprocess.run([*python, "2000000000"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_how_far_it_is_and_when_it_will_be_done(tmp_path):
    (tmp_path / "half.py").write_text(HALF)
    code, shown = at_terminal(sys.executable, str(tmp_path / "half.py"))
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert code == 0
    for said in (
        r"storing 1 GB +\S+ +50%, \d s left",
        r"transferring 2 GB +\S+ +25%",
        r"loading 2 GB +\S+ +50%",
    ):
        assert re.search(said, plain), plain
    assert "100%" in plain  # however often a part is sent
    assert "190%" not in plain
    assert plain.rstrip().endswith("done")


@pytest.mark.parametrize("scheme", ["file", "redis"])
def test_connectors_tell_of_all_that_moves(scheme, tmp_path, monkeypatch):
    from proxystore_core import Store, buffers, moving

    monkeypatch.setattr(buffers, "STEP", 1 << 20)
    with ExitStack() as stack:
        url = f"file://{tmp_path}/store"
        if scheme == "redis":
            url = f"redis://{stack.enter_context(serving(tmp_path)).address}"
        store = stack.enter_context(Store.from_url(url, cache_size=0))
        told: list[int] = []
        with moving.listening(lambda nbytes, doing: told.append(nbytes)):
            key = store.put(bytes(20_000_000))
            put = told.copy()
            assert store.get(key) == bytes(20_000_000)
        for steps in (put, told[len(put) :]):
            assert 0 <= sum(steps) - 20_000_000 < 1000  # the header
            assert len(steps) > 2
        store.close(clear=True)


METRICS = """
from concurrent.futures import ProcessPoolExecutor
from proxystore_integrations import metrics
from proxystore_integrations.futures import StoreExecutor
if __name__ == "__main__":
    import opentelemetry.sdk.metrics as sdk
    import opentelemetry.sdk.metrics.export as export
    import prometheus_client
    metrics.prometheus()
    reader = export.InMemoryMetricReader()
    metrics.opentelemetry(sdk.MeterProvider([reader]))
    with StoreExecutor(ProcessPoolExecutor(1), threshold="1 MB") as executor:
        executor.submit(len, bytes(2_000_000)).result()
        executor.submit(bytes, 3_000_000).result()
        executor.submit(len, bytes(500)).result()
    print(prometheus_client.generate_latest().decode())
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    print(metric.name, metric.unit, dict(point.attributes), point.value)
"""


def test_metrics_of_prometheus_and_opentelemetry(tmp_path):
    pytest.importorskip("prometheus_client")
    pytest.importorskip("opentelemetry.sdk")
    (tmp_path / "script.py").write_text(METRICS)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    argument = '{engine="concurrent.futures",what="argument"}'
    assert f"proxystore_put_objects_total{argument} 1.0" in lines
    (size,) = [line for line in lines if line.startswith(f"proxystore_put_bytes_total{argument}")]
    assert 2_000_000 <= float(size.split()[-1]) < 2_001_000
    assert "proxystore_get_objects_total 1.0" in lines  # the result, here
    labels = '{engine="concurrent.futures",why="small"}'
    assert any(line.startswith(f"proxystore_by_value_objects_total{labels}") for line in lines)
    labels = "{'engine': 'concurrent.futures', 'what': 'argument'}"
    assert f"proxystore.put.objects 1 {labels} 1" in lines
    assert any(line.startswith("proxystore.get.seconds s {} ") for line in lines)


def test_metrics_without_their_library_say_what_to_install(monkeypatch):
    from proxystore_integrations import metrics

    for name in ("prometheus_client", "opentelemetry.metrics", "opentelemetry"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="pip install prometheus-client"):
        metrics.prometheus()
    with pytest.raises(MissingExtraError, match="pip install opentelemetry-api"):
        metrics.opentelemetry()


def test_a_page_on_dasks_dashboard(tmp_path: Path) -> None:
    import distributed
    import numpy as np

    from proxystore_integrations.dask import Client

    def page(url: str) -> str:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return str(answer.read().decode())

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        port = cluster.scheduler.http_server.port
        url = f"http://127.0.0.1:{port}/proxystore"
        with Client(cluster, threshold=1000) as client:
            session = client._link.session
            future: Any = client.submit(np.sum, np.ones(10_000))
            assert future.result() == 10_000
            text = page(url)
            row = f"<td>shm://</td><td>{session}</td><td>connected</td><td>[1-9]</td><td>1000</td>"
            assert re.search(row, text)
            (tmp_path / "page.html").write_text(text)
            assert session in rendered(tmp_path / "page.html", tmp_path / "profile")
            assert page(f"http://127.0.0.1:{port}/health") == "ok"
        until(lambda: "None now." in page(url))
