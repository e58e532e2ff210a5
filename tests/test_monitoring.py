"""Progress lines, metrics, and the page on Dask's dashboard."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from browser import rendered
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
