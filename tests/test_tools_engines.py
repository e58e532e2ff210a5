"""`proxystore doctor` asks each engine's workers, `proxystore tune` measures each engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import globus_compute_sdk
import pytest
from globus_fakes import FakeService, process_pool

from proxystore_integrations import tuned
from proxystore_integrations.cli import measure
from proxystore_integrations.cli.main import main
from proxystore_integrations.settings import Settings

PYTHON = [sys.executable, "-m", "proxystore_integrations"]


def proxystore(*words: str, cwd: Path | None = None, **variables: str) -> Any:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [*PYTHON, *words], capture_output=True, text=True, check=False, timeout=100, cwd=cwd, env=environment
    )


def doctor(*words: str, **options: Any) -> tuple[int, dict[str, tuple[str, str]]]:
    """Its exit code, and what it says of workers, by their names."""
    done = proxystore("doctor", "--engine", "loky", "--json", *words, **options)
    found = json.loads(done.stdout)
    return done.returncode, {
        one["what"]: (one["level"], f"{one['detail']} -> {one['remedy']}") for one in found
    }


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    """Globus Compute's service, for commands in this process."""
    with tempfile.TemporaryDirectory() as directory:
        with FakeService(process_pool(max_workers=1), Path(directory)) as service:
            with mock.patch("globus_compute_sdk.sdk.executor.Client", service.client):
                yield service


# doctor


@pytest.mark.parametrize("kind", ["concurrent.futures", "loky", "joblib"])
def test_doctor_asks_a_pool(kind, tmp_path):
    code, found = doctor("--store", f"file://{tmp_path}/store", "--pool", kind)
    assert code == 0
    assert [found[f"{kind} worker {number}"][0] for number in (1, 2)] == ["ok", "ok"]


CONFIG = """
import os, sys
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.providers import LocalProvider
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
def htex():
    provider = LocalProvider(init_blocks=1, min_blocks=0, max_blocks=1)
    return HighThroughputExecutor(label="htex", address="127.0.0.1", encrypted=False, provider=provider,
                                  heartbeat_period=2, heartbeat_threshold=6, max_workers_per_node=1)
def config_of(*executors):
    return Config(executors=executors, run_dir=os.environ["RUNS"], strategy="none", initialize_logging=False)
config = config_of(htex(), ThreadPoolExecutor(label="threads"))
nothing = 5
"""


def test_doctor_asks_parsls_workers(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    options = {"cwd": tmp_path, "RUNS": str(tmp_path / "runs")}
    with ThreadPoolExecutor() as pool:
        asked, *wrong = [
            pool.submit(doctor, "--parsl", *words, **options)
            for words in (
                ("config.py", "--store", f"file://{tmp_path}/store"),
                ("config.py:nothing",),
                ("elsewhere.py",),
            )
        ]
    code, found = asked.result()
    workers = {
        what.split()[2]: level for what, (level, _) in found.items() if what.startswith("parsl worker")
    }
    assert (code, workers) == (0, {"htex": "ok", "threads": "ok"})
    code, found = wrong[0].result()
    assert "no Config named 'nothing' -> Expected config.py:NAME" in found["parsl config.py:nothing"][1]
    code, found = wrong[1].result()
    said = "there is no file 'elsewhere.py' -> Expected FILE.py or module:NAME."
    assert found["parsl elsewhere.py"] == ("problem", said)


def test_workers_that_are_late_or_cannot_run_what_they_are_asked():
    from concurrent.futures import Future

    from proxystore_integrations.cli.workers import Question, _answers

    futures: list[Future[Any]] = [Future() for _ in range(5)]
    futures[0].set_result(("host", "8000000"))
    futures[1].set_result(("host", "UnreachableError: no"))
    futures[2].set_exception(ModuleNotFoundError("Traceback\nNo module named 'proxystore_integrations'"))
    labels = ["htex", "htex", "bare", "slow", "htex"]
    found = _answers(dict(zip(futures, labels, strict=True)), Question("", "", 0.01))
    assert found == {
        "htex host": "UnreachableError: no",
        "bare": "ModuleNotFoundError: No module named 'proxystore_integrations'",
        "slow": "no worker has answered after 0.01 s (--timeout waits longer)",
    }


def told(words: list[str], capsysbinary: Any) -> tuple[int, Any]:
    code = main(words)
    return code, json.loads(capsysbinary.readouterr().out)


def test_doctor_asks_the_workers_of_an_endpoint(service, tmp_path, capsysbinary):
    endpoint = str(service.endpoint_id)
    words = ["doctor", "--engine", "loky", "--json", "--globus-compute", endpoint, "--store"]
    code, found = told([*words, f"file://{tmp_path}/store"], capsysbinary)
    (worker,) = [one for one in found if one["what"].startswith("globus-compute worker")]
    assert (code, worker["level"]) == (0, "ok")
    code, found = told([*words, "memory://"], capsysbinary)
    (worker,) = [one for one in found if one["what"].startswith("globus-compute worker")]
    assert (code, worker["level"]) == (1, "problem")
    assert "Name a store that all workers reach" in worker["remedy"]


# tune


@pytest.mark.parametrize("engine", ["joblib", "loky", "parsl"])
def test_tune_measures(engine, tmp_path):
    words = ("--engine", engine, "--sizes", "1kB,20MB", "--repeat", "1", "--workers", "1", "--json")
    done = proxystore("tune", *words, XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {way: [size for size, *_ in points] for way, points in found["points"].items()} == {
        "arguments": [1000, 20_000_000],
        "results": [1000, 20_000_000],
    }
    assert all(seconds > 0 for points in found["points"].values() for _, *both in points for seconds in both)
    kept = json.loads((tmp_path / "proxystore" / "tuned.json").read_text())
    assert [engines[engine]["points"] for engines in kept.values()] == [found["points"]]


def test_tune_measures_globus_compute_at_an_endpoint(service, tmp_path, monkeypatch, capsysbinary):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["tune", "--engine", "globus-compute", "--json", "--repeat", "1", "--sizes"]
    assert main([*words, "1kB"]) == 2
    assert (
        "Globus Compute is measured at one of your endpoints. Name it: --endpoint UUID."
        in capsysbinary.readouterr().err.decode()
    )
    patient = measure.ENGINES["globus-compute"]
    monkeypatch.setitem(measure.ENGINES, "globus-compute", patient._replace(pause=0.0))
    unlimited = property(lambda executor: 1, lambda executor, limit: None)
    with mock.patch.object(globus_compute_sdk.Executor, "api_burst_limit", unlimited, create=True):
        code, found = told([*words, "1kB,1MB,20MB", "--endpoint", str(service.endpoint_id)], capsysbinary)
    assert code == 0
    assert [point[0] for point in found["points"]["arguments"]] == [1000, 1_000_000]  # 20 MB it does not take
    assert tuned.measured("shm://", "globus-compute") is not None


# threshold = "auto"


def links() -> dict[str, Any]:
    """A link of each engine's, by its name."""
    from concurrent.futures import ProcessPoolExecutor

    import loky
    from parsl.executors import HighThroughputExecutor

    from proxystore_integrations import dask, globus_compute, parsl, ray  # noqa: F401
    from proxystore_integrations.dask.client import link_of
    from proxystore_integrations.futures import StoreExecutor
    from proxystore_integrations.ray.link import RayLink

    with (
        StoreExecutor(ProcessPoolExecutor(1)) as pool,
        StoreExecutor(loky.ProcessPoolExecutor(1)) as other,
        globus_compute.Executor(client=mock.Mock()) as executor,
    ):
        return {
            "concurrent.futures": pool._link,
            "dask": link_of(),
            "globus-compute": executor._link,
            "loky": other._link,
            "parsl": parsl.wrap(HighThroughputExecutor())._link,
            "ray": RayLink(*RayLink.settled()),
        }


def test_auto_is_what_was_measured_with_the_very_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PROXYSTORE_THRESHOLD", "auto")
    assert {link.policy.threshold for name, link in links().items()} == {100_000, 1_500_000}  # the defaults
    names = sorted(links())
    for number, name in enumerate(names, 1):
        tuned.remember("shm://", name, number * 1000)
    tuned.remember("file:///elsewhere", "dask", 77)
    assert {name: link.policy.threshold for name, link in links().items()} == {
        name: number * 1000 for number, name in enumerate(names, 1)
    }
    # Where the store won at no size, what is as large as those goes the engine's way.
    for largest, threshold in ((20_000_000, 40_000_000), (1000, 1_500_000)):
        tuned.remember("shm://", "dask", None, {"arguments": [tuned.Point(largest, 1.0, 2.0)]})
        assert links()["dask"].policy.threshold == threshold


def test_doctor_says_whether_auto_was_measured(monkeypatch, tmp_path):
    options = {"XDG_CACHE_HOME": str(tmp_path), "PROXYSTORE_THRESHOLD": "auto"}
    _, found = doctor(**options)
    assert found["setting threshold"][1].startswith("100 kB (auto: not measured here yet), from default")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned.remember(Settings.load().store, "dask", 300_000)
    _, found = doctor(**options)
    assert found["setting threshold"][1].startswith("300 kB (auto: measured here), from PROXYSTORE_THRESHOLD")
