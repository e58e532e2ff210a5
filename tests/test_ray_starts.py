"""Clusters that a script of Ray's starts: its workers, its nodes, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from ray_scripts import script
from waiting import until

RUN = """
import os, sys
import numpy as np, ray
ray.init(num_cpus=2, object_store_memory=300_000_000, include_dashboard=False, configure_logging=False,
         runtime_env={"env_vars": {"THEIRS": "1"}, "worker_process_setup_hook": setup})

@ray.remote
def f(array):
    array[0] = 5
    return os.environ["THEIRS"], os.environ["SETUP"], float(array.sum())

print(ray.get(f.remote(np.ones(100_000))))
print(ray.get(ray.put(np.ones(100_000))).flags.writeable)
ray.shutdown()
"""
HOOK = {
    "RAY_RUNTIME_ENV_HOOK": "proxystore_integrations.ray.runtime_env_hook",
    "PROXYSTORE_RESULTS": "always",
}
THEIRS = "def setup():\n    import os\n    os.environ['SETUP'] = 'called'\n"


def test_a_script_under_the_environment_variable_alone() -> None:
    out = script(THEIRS + RUN, **HOOK)
    assert "('1', 'called', 100004.0)" in out
    assert "True" in out


EQUIPPED = """
import os, sys
import ray
sys.path.insert(0, os.environ["TESTS"])
import ray_tasks as work
options = {name: value for name, value in work.OPTIONS.items() if name != "runtime_env"}
START

def left():
    ours = "_PROXYSTORE_RAY", "proxystore_integrations.ray.worker_setup"
    return [item for item in os.environ.items() if set(item) & set(ours)]

@ray.remote
def look(step):
    from proxystore_integrations.ray import link
    return left(), link.current() is not None, "THEIRS" in os.environ

assert not left(), left()
found = ray.get([look.remote(step) for step in range(4)])
assert all(names == [] and equipped for names, equipped, _ in found), found
runtime = ray.get_runtime_context().runtime_env
print("theirs", found[0][2], "hook", "worker_process_setup_hook" in runtime)
"""


STARTS = {
    "init": ("from proxystore_integrations.ray import init; init(**options)", "theirs False hook False"),
    "the variable": ("ray.init(**options)", "theirs False hook False"),
    "an environment of theirs": (
        "ray.init(**options, runtime_env={'env_vars': {'THEIRS': '1'}})",
        "theirs True hook False",
    ),
    "a hook of theirs": (
        (
            "def theirs(): os.environ['THEIRS'] = '1'\n"
            "ray.init(**options, runtime_env={'worker_process_setup_hook': theirs})"
        ),
        "theirs True hook True",
    ),
    "results of ours": (
        "from proxystore_integrations.ray import init; init(**options, results='always')",
        "theirs False hook False",
    ),
}


@pytest.fixture(scope="module")
def printed() -> Iterator[dict[str, Future[str]]]:
    """What scripts print that start in each of these ways; three at a time, as a start is mostly waiting."""

    def one(start: str) -> str:
        name = "RAY_RUNTIME_ENV_HOOK"
        variables = {} if "proxystore" in start else {name: HOOK[name]}
        return script(EQUIPPED.replace("START", start), **variables)

    with ThreadPoolExecutor(3) as pool:
        yield {how: pool.submit(one, start) for how, (start, _) in STARTS.items()}


@pytest.mark.parametrize("how", STARTS)
def test_workers_have_what_they_need_from_the_start(how: str, printed: dict[str, Future[str]]) -> None:
    assert STARTS[how][1] in printed[how].result()


def test_the_variable_does_not_undo_what_is_there_already() -> None:
    name = "RAY_RUNTIME_ENV_HOOK"
    out = script(
        """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from proxystore_integrations.ray import init, link
@ray.remote
def look():
    ray.init(ignore_reinit_error=True)
    mine = link.current()
    return mine.settings.threshold, mine.settings.results, mine.terms.session

init(**work.OPTIONS, store="shm://by-name", threshold="1 MB", results="never")
first = link.current()
print(first.url, ray.get(look.remote()) == (1_000_000, "never", first.session))
ray.init(ignore_reinit_error=True)
print(link.current() is first, first.is_open, ray.get(look.remote())[2] == first.session)
try:
    ray.init()
except RuntimeError:
    print(link.current() is first, first.is_open)
ray.shutdown()
ray.init(**work.OPTIONS)
print(link.current().url)
ray.shutdown()
""",
        **{name: HOOK[name]},
    )
    assert out.splitlines() == ["shm://by-name True", "True True True", "True True", "shm://"]


def test_auto_stores_at_once_what_does_not_fit_into_plasma(tmp_path: Path) -> None:
    out = script(
        """
import sys, os
sys.path.insert(0, os.environ["TESTS"])
import numpy as np, ray, ray_tasks as work
from proxystore_integrations.ray import init, link
init(**{**work.OPTIONS, "object_store_memory": 80_000_000})
large = np.ones(10_000_000)
print([ray.get(work.writable.remote(array)) for array in (large, work.big(1), work.big(1))])
result = work.wait_for.remote(os.environ["GO"], large)
print(len(work.stored(link.current())))
open(os.environ["GO"], "w").close()
print(ray.get(result))
ray.shutdown()
""",
        GO=str(tmp_path / "go"),
    )
    assert out.splitlines() == ["[True, False, False]", "1", "10000000.0"]


SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "2",
}
"""A node to which nobody can connect any more is lost; one that is slow to answer still has ten seconds."""


def test_what_a_lost_node_had_made_is_made_again() -> None:
    out = script(
        """
import sys, os, gc
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from ray.cluster_utils import Cluster
from waiting import until
from proxystore_integrations.ray import init, link
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False})
far = {"num_cpus": 1, "resources": {"far": 1}, "object_store_memory": 100_000_000}
node = cluster.add_node(**far)
init(cluster.address, runtime_env=work.OPTIONS["runtime_env"], log_to_driver=False, results="never")
result = work.add.options(resources={"far": 1}).remote(work.big(1))
ray.wait([result], fetch_local=False)
gc.collect()
print("stored", len(work.stored(link.current())))
cluster.remove_node(node, allow_graceful=False)
cluster.add_node(**far)
print("again", ray.get(result, timeout=60)[0])
del result
until(lambda: not work.stored(link.current()))
ray.shutdown()
cluster.shutdown()
""",
        **SOON,
    )
    assert "stored 1" in out  # the node's death is reported there, too
    assert "again 2.0" in out


def test_a_killed_driver_leaves_no_lease_that_is_renewed(tmp_path: Path) -> None:
    text = """
import sys, os, signal
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from proxystore_integrations.ray import init, link
init(**work.OPTIONS, results="never", lease="1 s")
work.wait_for.remote(os.environ["NEVER"], work.big(1))
assert len(work.stored(link.current())) == 1
print(link.current()._store.connector.store_dir, link.current().session, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", text],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "TESTS": str(Path(__file__).parent), "NEVER": str(tmp_path / "never")},
        timeout=100,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    from proxystore_core import Store
    from proxystore_core.connectors.base import leased

    directory, session = done.stdout.split()[-2:]
    with Store.from_url("shm://") as store:
        keeper = leased(store.connector)
        assert keeper is not None

        def swept() -> bool:
            keeper.sweep()
            return not (Path(directory) / session).exists()

        until(swept)
