"""The example of every engine over stores at two sites: the script as it is, the store by its settings alone.

Only the shortest unless asked for all, which takes minutes: ``python tests/contracts.py examples``.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from far_script import be_at_the_first
from far_stores import HERE, NAMES, far_stores

from proxystore_core.connectors.base import USER_SESSION, leased, listed
from proxystore_core.recipe import open_connector

EXAMPLES = Path(__file__).parents[1] / "examples"
FAR = Path(__file__).with_name("far_script.py")
HOOK = {"RAY_RUNTIME_ENV_HOOK": "proxystore_integrations.ray.runtime_env_hook"}
EVERY = 10  # of a path 8 frames are left, 0.8 MB: endpoints move some 5 MB a second
LIMIT = 240  # seconds


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield far_stores(tmp_path_factory.mktemp("stores") / "far", stack)


def configured(directory: Path, url: str) -> None:
    """Settings for all that runs in a directory: any failure of the store is the script's."""
    text = f'store = "{url}"\nthreshold = "100 kB"\non_store_error = "raise"\n'
    (directory / "proxystore.toml").write_text(text)


def said_by(script: Path, directory: Path, *arguments: str, **variables: str) -> str:
    """What a script prints, at the first of the two sites."""
    done = subprocess.run(
        [sys.executable, str(FAR), HERE, str(script), "--every", str(EVERY), *arguments],
        check=False,
        capture_output=True,
        cwd=directory,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **variables},
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "proxystore" not in done.stderr  # no warning that a value went otherwise
    return done.stdout


@contextlib.contextmanager
def used_and_left_empty(url: str) -> Iterator[None]:
    """Check that a session was at work in the store, and that nothing of it stays there."""
    over = threading.Event()

    def look() -> set[str]:
        found: set[str] = set()
        while not over.wait(0.1):
            found |= keeper.sessions().keys()
        return found

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as executor:
        be_at_the_first(HERE, patch.setattr)
        connector = open_connector(url)
        keeper, lister = leased(connector), listed(connector)
        assert keeper is not None
        seen = executor.submit(look)
        try:
            yield
        finally:
            over.set()
        assert seen.result()
        assert not keeper.sessions()
        assert lister is None or not lister.keys(USER_SESSION)
        connector.close()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, stores: dict[str, str]) -> dict[str, str]:
    """What each example prints without a store, once asked for."""
    directory = tmp_path_factory.mktemp("bare")

    class Bare(dict[str, str]):
        def __missing__(self, engine: str) -> str:
            if engine == "globus_compute":
                with ThreadPoolExecutor(1) as pool:
                    return self.setdefault(engine, reported(pool))
            script, arguments = EXAMPLES / f"{engine}_trajectory.py", ["--bare"]
            if engine == "dask":
                demo = runpy.run_path(str(EXAMPLES / "run_demo.py"), run_name="run_demo")
                text = script.read_text(encoding="utf-8").replace(demo["OURS"], demo["BARE"])
                script = directory / "bare_dask.py"
                script.write_text(text, encoding="utf-8")
            if engine in ("dask", "ray"):
                arguments = []
            return self.setdefault(engine, said_by(script, directory, *arguments))

    return Bare()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-example")
        engines = ("futures", "dask", "parsl", "ray", "globus_compute") if every else ("futures",)
        metafunc.parametrize("engine", engines)


@pytest.mark.parametrize("store", NAMES)
def test_an_example_prints_the_same(
    engine: str, store: str, stores: dict[str, str], bare: dict[str, str], tmp_path: Path
) -> None:
    expected = bare[engine]
    assert expected
    configured(tmp_path, stores[store])
    with used_and_left_empty(stores[store]):
        if engine == "globus_compute":
            assert reported_from_an_endpoint(tmp_path) == expected
        else:
            script = EXAMPLES / f"{engine}_trajectory.py"
            assert said_by(script, tmp_path, **HOOK if engine == "ray" else {}) == expected


def reported_from_an_endpoint(directory: Path) -> str:
    """What the example of Globus Compute prints, on a real endpoint's engine behind a fake service."""
    from globus_fakes import FakeService, process_pool

    from proxystore_integrations.globus_compute import Executor

    engine = process_pool(mp_context=get_context("spawn"))
    with contextlib.chdir(directory), FakeService(engine, directory) as service:
        with Executor(service.endpoint_id, service.client()) as executor:
            executor.api_burst_limit = 1
            said = reported(executor)
        assert max(size for size, _ in service.batches) < 200_000
    return said


def reported(executor: Any) -> str:
    """What the example of Globus Compute prints, with any executor."""
    script: dict[str, Any] = runpy.run_path(str(EXAMPLES / "globus_compute_trajectory.py"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        script["report"](script["analyse"](executor, EVERY))
    return said.getvalue()
