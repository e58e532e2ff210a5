"""What Ray has that other engines have not, with a store: actors, generators, puts, guards, settings."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import ray
import ray_clusters
import ray_tasks as work
from mounts import own_mounts
from ray_clusters import WAIT, get
from ray_scripts import script
from waiting import until

from proxystore_core import ConfigurationError, MissingExtraError
from proxystore_integrations.ray import cluster as cluster_module
from proxystore_integrations.ray import engine, init, instrument, joining, link, start

cluster = ray_clusters.cluster_with(results="never")
stored = ray_clusters.stored


# What passes.


def test_an_actor_gets_its_arguments_and_keeps_them(stored: Any) -> None:
    actor = work.Counter.remote(work.big(1))
    assert get(actor.total.remote(work.big(2), work.big(3))) == 6 * work.BIG
    assert get(actor.change.remote()) == 2
    assert get(actor.change.remote()) == 3
    pieces = [get(piece)[0] for piece in actor.stream.options(num_returns="streaming").remote(3)]
    assert pieces == [3, 4, 5]


def test_async_and_threaded_actors(stored: Any) -> None:
    actor = work.AsyncCounter.remote()
    assert get([actor.total.remote(work.big(i)) for i in range(4)]) == [i * work.BIG for i in range(4)]
    meeting = work.Meeting.remote()
    assert get([meeting.total.remote(work.big(i)) for i in range(2)]) == [0, work.BIG]


def test_generators_and_several_results(stored: Any) -> None:
    assert [get(piece)[0] for piece in work.pieces.remote(3)] == [0, 1, 2]
    first, second = work.make.options(num_returns=2).remote(2)
    assert (get(first)[0], get(second)[0]) == (0, 1)


def test_references_in_containers_stay_references(stored: Any) -> None:
    reference = ray.put(work.big(1))
    assert get(work.inside.remote([reference, work.big(2)])) == 3 * work.BIG
    assert get(work.inside.remote((reference, reference))) == 2 * work.BIG
    ready, waiting = ray.wait([work.total.remote(reference, work.big(1))], timeout=WAIT)
    assert get(ready) == [2 * work.BIG]
    assert waiting == []


def test_references_in_objects_stay_references(stored: Any) -> None:
    @ray.remote
    def both(holder: Any) -> float:
        return float(holder.array.sum() + ray.get(holder.reference).sum())

    holder = work.Holder(work.big(1))
    holder.reference = ray.put(work.big(2))
    result = both.remote(holder)
    assert stored() == []  # only Ray's pickler can take it
    del holder
    gc.collect()
    assert get(result) == 3 * work.BIG


def test_a_class_of_the_script_is_one_class(stored: Any) -> None:
    import cloudpickle
    import ray.cloudpickle

    assert cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID is (
        ray.cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
    )
    local = type("Local", (work.Holder,), {"__module__": "__main__"})

    @ray.remote
    def kind(value: Any) -> tuple[bool, float]:
        return isinstance(value, local), float(value.array.sum())

    value = local(work.big(1))
    assert get(kind.remote(value)) == (True, work.BIG)


def test_a_user_serializer_is_asked(stored: Any) -> None:
    ray.util.register_serializer(
        work.Holder, serializer=lambda value: value.array * 2, deserializer=work.Holder
    )
    try:

        @ray.remote
        def first(value: Any) -> float:
            return float(value.array[0])

        assert get(first.remote(work.Holder(work.big(1)))) == 2
    finally:
        ray.util.deregister_serializer(work.Holder)


def test_a_serializer_of_arrays_changes_nothing_else() -> None:
    out = script(
        """
import os, pickle, sys
sys.path.insert(0, os.environ["TESTS"])
import numpy as np, ray, ray_tasks as work
from proxystore_integrations.ray import init
init(**work.OPTIONS, threshold="100 kB", results="never")
ray.util.register_serializer(np.ndarray, serializer=lambda array: array.tolist(), deserializer=np.array)
print(ray.get(work.total.remote(work.big(1), work.big(2))))
print(pickle.loads(pickle.dumps(np.ones(3), protocol=4)))
ray.util.deregister_serializer(np.ndarray)
print(ray.get(work.writable.remote(work.big(1))))  # by the store again
ray.shutdown()
""",
    )
    assert out.splitlines() == ["90000.0", "[1. 1. 1.]", "True"]


def test_a_worker_has_its_drivers_store_or_none() -> None:
    out = script(
        """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
ray.init(**work.OPTIONS)

@ray.remote
def ask():
    from proxystore_integrations.ray import instrument
    try:
        instrument()
    except Exception as error:
        return str(error)

print(ray.get(ask.remote()))
ray.shutdown()
""",
    )
    assert "is a worker of Ray's, and no driver" in out


def test_nested_tasks_store_for_the_same_session(stored: Any) -> None:
    assert get(work.nested.remote(work.big(1))) == 2 * work.BIG


def test_pools_and_joblib(stored: Any) -> None:
    from ray.util.multiprocessing import Pool

    with Pool(2) as pool:
        assert pool.map(np.sum, [work.big(i) for i in range(4)]) == [i * work.BIG for i in range(4)]
    joblib = importlib.import_module("joblib")
    importlib.import_module("ray.util.joblib").register_ray()
    with joblib.parallel_backend("ray", n_jobs=2):
        sums = joblib.Parallel()(joblib.delayed(np.sum)(work.big(i)) for i in range(4))
    assert sums == [i * work.BIG for i in range(4)]


def test_what_is_in_plasma_is_as_ray_gives_it(stored: Any) -> None:
    reference = ray.put(work.big(1))
    assert not get(reference).flags.writeable
    assert not get(work.writable.remote(reference))
    assert get(work.writable.remote(work.big(1)))
    assert isinstance(get(work.add.remote(work.big(1))), np.ndarray)


def test_a_lazy_argument_keeps_its_object(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = link.current()
    assert ours is not None
    lazy = msgspec.structs.replace(ours.settings, inputs="proxy")
    monkeypatch.setattr(ours, "settings", lazy)

    @ray.remote
    def look(value: Any) -> tuple[str, bool, float]:
        from proxystore_core import is_resolved

        return type(value).__name__, is_resolved(value), float(value.sum())

    keeper = work.Keeper.remote()
    assert get(look.remote(work.big(1))) == ("Proxy", False, work.BIG)
    get(keeper.hold.remote(work.big(2)))
    gc.collect()
    until(lambda: len(stored()) == 1)  # an actor has its proxy
    assert get(keeper.held.remote()) == 2 * work.BIG
    ray.kill(keeper)


def test_a_detached_actor_gets_its_arguments_from_ray(stored: Any) -> None:
    actor = work.Counter.options(name="detached", lifetime="detached").remote(work.big(1))
    with pytest.raises(ray.exceptions.RayTaskError, match="read-only"):
        get(actor.change.remote())
    assert stored() == []
    again = work.Counter.options(name="detached", get_if_exists=True).remote(work.big(5))
    assert get(again.total.remote()) == work.BIG
    ray.kill(actor)


def test_data_of_rays_own_libraries_stays_where_it_is(stored: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        data = importlib.import_module("ray.data")
        data.DataContext.get_current().enable_progress_bars = False
        table = data.from_numpy(np.arange(100_000)).map_batches(lambda batch: {"x": batch["data"] * 2})
        assert table.sum("x") == 2 * sum(range(100_000))
    assert stored() == []


def test_a_users_setup_hook_and_variables_stay(cluster: Any) -> None:
    ours = link.current()
    assert ours is not None
    theirs = {"env_vars": {"A": "1"}, "pip": ["x"], "worker_process_setup_hook": "module.setup"}
    merged = start._merged(theirs, ours)
    assert theirs["env_vars"] == {"A": "1"}
    assert merged["pip"] == ["x"]
    assert merged["env_vars"]["A"] == "1"
    assert merged["env_vars"]["_PROXYSTORE_RAY_SETUP_HOOK"] == "module.setup"
    assert merged["worker_process_setup_hook"] == "proxystore_integrations.ray.worker_setup"
    chosen = {"env_vars": {engine.SETUP_HOOK: "another"}}
    assert start._merged(chosen, ours) == chosen


# Lifetimes.


def test_an_argument_stays_while_its_task_waits(stored: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    results = [work.wait_for.remote(str(go), work.big(1)) for _ in range(5)]
    gc.collect()
    assert len(stored()) == 1
    go.touch()
    assert get(results) == [work.BIG] * 5
    until(lambda: not stored())


def test_retries_find_their_arguments(stored: Any, tmp_path: Path) -> None:
    assert get(work.fail_once.remote(str(tmp_path / "failed"), work.big(1))) == work.BIG
    assert get(work.die_once.remote(str(tmp_path / "died"), work.big(2))) == 2 * work.BIG
    until(lambda: not stored())


def test_a_restarted_actor_finds_its_arguments(stored: Any) -> None:
    actor = work.Counter.options(max_restarts=1, max_task_retries=1).remote(work.big(1))
    pid = get(actor.pid.remote())
    gc.collect()
    os.kill(pid, signal.SIGKILL)
    assert get(actor.total.remote(work.big(2))) == 3 * work.BIG
    assert get(actor.pid.remote()) != pid
    ray.kill(actor)


def test_a_cancelled_task_lets_go(stored: Any, tmp_path: Path) -> None:
    result = work.wait_for.remote(str(tmp_path / "never"), work.big(1))
    until(lambda: len(stored()) == 1)
    ray.cancel(result)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        get(result)
    until(lambda: not stored())


# The environment variable, and what settings do.


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


def test_auto_leaves_to_plasma_what_is_passed_once() -> None:
    out = script(
        """
import sys, os
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
ray.init(**work.OPTIONS)
from proxystore_integrations.ray import instrument, link
instrument()
array = work.big(1)
print([ray.get(work.writable.remote(array)) for _ in range(3)])
print([ray.get(work.writable.remote(work.big(i))) for i in range(3)])
print(ray.get(work.nested.remote(array)))
ray.shutdown()
print(link.current())
""",
    )
    assert "[False, True, True]" in out
    assert "[False, False, False]" in out
    assert "60000.0" in out
    assert "None" in out


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


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("from proxystore_integrations.ray import init; init(**options)", "theirs False hook False"),
        ("ray.init(**options)", "theirs False hook False"),
        ("ray.init(**options, runtime_env={'env_vars': {'THEIRS': '1'}})", "theirs True hook False"),
        (
            (
                "def theirs(): os.environ['THEIRS'] = '1'\n"
                "ray.init(**options, runtime_env={'worker_process_setup_hook': theirs})"
            ),
            "theirs True hook True",
        ),
        (
            "from proxystore_integrations.ray import init; init(**options, results='always')",
            "theirs False hook False",
        ),
    ],
    ids=["init", "the variable", "an environment of theirs", "a hook of theirs", "results of ours"],
)
def test_workers_have_what_they_need_from_the_start(start: str, said: str) -> None:
    name = "RAY_RUNTIME_ENV_HOOK"
    variables = {} if "proxystore" in start else {name: HOOK[name]}
    out = script(EQUIPPED.replace("START", start), **variables)
    assert said in out


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


def test_a_cluster_that_runs_already_is_joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert joining.starts_cluster({"address": "local"})
    assert joining.starts_cluster({"address": None, "_temp_dir": str(tmp_path)})
    assert not joining.starts_cluster({"address": "127.0.0.1:6379"})
    assert not joining.starts_cluster({"address": "nonsense"})
    (tmp_path / "ray_current_cluster").write_text("127.0.0.1:6379")
    assert not joining.starts_cluster({"address": None, "_temp_dir": str(tmp_path)})
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not joining.starts_cluster({"address": None})


def test_what_a_remote_function_captures_is_stored_once_until_the_job_ends() -> None:
    out = script(
        """
import os, sys
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import numpy as np
import ray, ray_tasks as work
from proxystore_integrations.ray import init, link
init(**work.OPTIONS, threshold="100 kB")
GLOBAL = np.ones(13_000_000)  # over 95 MB: Ray's table takes no such function

def closing(array):
    @ray.remote
    def closed(step):
        array[0] += step
        return float(array.sum()), array.flags.writeable
    return closed

@ray.remote
def named():
    return float(GLOBAL.sum())

@ray.remote
def nested():
    return ray.get(closing(np.ones(50_000)).remote(1))

@ray.remote
def small():
    return len(work.OPTIONS)

function = closing(np.ones(50_000))
assert ray.get(function.remote(1)) == (50_001.0, True)
assert ray.get(function.options(max_retries=0).remote(0))[1]
assert ray.get([named.remote(), named.remote()]) == [13_000_000.0] * 2
assert len(work.stored(link.current())) == 2
assert ray.get(nested.remote()) == (50_001.0, True)
assert ray.get(small.remote()) == len(work.OPTIONS)
assert len(work.stored(link.current())) == 3

@ray.remote
def own():  # an ObjectRef is for Ray's own pickler: this one goes its way
    return ray.get(held[0]) + held[1].sum()

held = ray.put(1), np.ones(50_000)
assert ray.get(own.remote()) == 50_001
session = Path(link.current()._store.connector.store_dir) / link.current().session
assert session.exists()
ray.shutdown()
assert not session.exists()
print("as bare Ray")
""",
    )
    assert "as bare Ray" in out


def test_results_in_the_store_go_with_their_references() -> None:
    out = script(
        """
import sys, os, gc, signal
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from waiting import until
from proxystore_integrations.ray import init, link
init(**work.OPTIONS, results="always")
stored = lambda: len(work.stored(link.current()))
left_of_the_session = (Path(link.current()._store.connector.store_dir) / link.current().session).exists
actor = work.Counter.remote(work.big(1))
results = [actor.give.remote() for _ in range(3)]
values = ray.get(results)
assert all(value.flags.writeable for value in values)
until(lambda: stored() == 3)  # equal, but each goes with its own
first = work.add.remote(results[0])
assert ray.get(work.add.remote(first))[0] == 3
pid = ray.get(actor.pid.remote())
os.kill(pid, signal.SIGKILL)
assert ray.get(results[0])[0] == 1
del first, results
gc.collect()
until(lambda: stored() == 0)
put = ray.put(work.big(2))
until(lambda: stored() == 1)
assert ray.get(work.inside.remote([put])) == 2 * work.BIG
del put
until(lambda: stored() == 0)
keeper = work.Keeper.remote()
lent = [work.add.remote(work.big(1)), ray.put(work.big(2))]
ray.get(keeper.keep.remote(lent))
del lent
gc.collect()
assert ray.get(keeper.totals.remote()) == [2 * work.BIG, 2 * work.BIG]
until(lambda: stored() == 2)
ray.get(keeper.drop.remote())
until(lambda: stored() == 0)
print("all gone")
from proxystore_core import Store
mine = Store.from_url("shm://")
key = mine.put(work.big(7))
proxy = mine.proxy_from_key(key)
assert ray.get(work.total.remote(proxy, work.big(1))) == 8 * work.BIG
import multiprocessing, numpy
from concurrent.futures import ProcessPoolExecutor
from proxystore_integrations.futures import StoreExecutor
pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
with StoreExecutor(pool, threshold="100 kB") as other:
    assert other.submit(numpy.sum, proxy).result() == 7 * work.BIG
    made = other.submit(numpy.negative, proxy)  # a result of theirs, for a task of Ray
    assert ray.get(work.total.remote(made.result(), proxy)) == 0
print("another engine has it, too")
left = work.make.remote(1)
ray.get(left)
ray.shutdown()
assert not left_of_the_session()
print(mine.get(key)[0], "outlives the job")
mine.evict(key)
""",
    )
    assert "all gone" in out
    assert "another engine has it, too" in out
    assert "7.0 outlives the job" in out


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
    )
    assert "stored 1" in out  # the node's death is reported there, too
    assert "again 2.0" in out


NODE = """
import sys
from ray._private.node import Node
from ray._private.parameter import RayParams
given = {"num_cpus": 1, "resources": {"far": 1}, "object_store_memory": 100_000_000}
node = Node(RayParams(gcs_address=sys.argv[1], **given), head=False, spawn_reaper=False)
sys.stdin.read()
node.kill_all_processes(check_alive=False, allow_graceful=False)
"""


@pytest.mark.parametrize("inputs", ["value", "proxy"])
def test_a_node_that_joins_while_calls_wait_has_their_arguments_from_ray(inputs: str) -> None:
    own_mounts()  # or skip
    out = script(
        """
import os, subprocess, sys
sys.path.insert(0, os.environ["TESTS"])
import numpy as np, ray, ray_tasks as work
from proxystore_integrations.ray import init, link
init(**{**work.OPTIONS, "num_cpus": 1}, threshold="100 kB", results="always", inputs=os.environ["INPUTS"])
waiting = [work.add.options(resources={"far": 1}).remote(work.big(i)) for i in range(2)]
waiting += [work.total.options(resources={"far": 1}).remote(work.big(2))]
host = 'mount -t tmpfs tmpfs /dev/shm && hostname elsewhere && exec "$@"'
node = [sys.executable, "-c", os.environ["NODE"], ray.get_runtime_context().gcs_address]
with subprocess.Popen(["unshare", "--mount", "--uts", "sh", "-c", host, "sh", *node], stdin=subprocess.PIPE):
    stored = len(work.stored(link.current()))
    print(stored, [work.failure(one) or float(np.sum(ray.get(one))) / work.BIG for one in waiting])
ray.shutdown()
""",
        INPUTS=inputs,
        NODE=NODE,
    )
    assert "3 [1.0, 2.0, 2.0]" in out.splitlines()


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


@pytest.mark.parametrize("store", ["shm", "file"])
def test_a_worker_that_outlives_the_session_begins_no_other(store: str, tmp_path: Path) -> None:
    out = script(
        """
import os, sys
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from proxystore_integrations.ray import init, link
init(**work.OPTIONS, threshold="100 kB", results="always", store=os.environ["STORE"])
actor = work.Counter.remote(work.big(1))
print(ray.get(actor.give.remote()).flags.writeable)
link.current()._session.end()  # a driver that goes does this, and then its workers go
results = [actor.give.remote(), *ray.get(work.pieces_put.remote(2))]
for result in results:
    print(ray.get(result).flags.writeable)
print(ray.get(work.nested.remote(results[0])))
print((Path(link.current()._store.connector.store_dir) / link.current().session).exists())
""",
        STORE="shm://" if store == "shm" else f"file://{tmp_path}/store",
    )
    assert out.split() == ["True", *["False"] * 3, "60000.0", "False"]


def test_what_is_borrowed_for_a_task_ends_with_ray() -> None:
    out = script(
        """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from proxystore_core import Store
from proxystore_core.ownership import borrow, mut_borrow
from proxystore_integrations.ray import init
init(**work.OPTIONS, threshold="100 kB", results="never")
with Store.from_url("shm://", name="theirs") as store:
    owned = store.owned_proxy(work.big(1))
    result = work.wait_for.remote("/nowhere", borrow(owned))
    ray.shutdown()
    print(float(mut_borrow(owned)[0]), ray.is_initialized())  # to ask Ray would start it again
"""
    )
    assert out.split() == ["1.0", "False"]


# What is said.


def test_settings_and_addresses_are_checked(cluster: Any) -> None:
    with pytest.raises(ConfigurationError, match="threshold"):
        init(threshold="many")
    with pytest.raises(ConfigurationError, match="Ray Client"):
        init("ray://127.0.0.1:10001")
    with pytest.raises(ConfigurationError, match="has a store already"):
        instrument(threshold="1 MB")


def test_releases_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingExtraError, match="too old"):
        engine.check_release("2.9.1")
    with pytest.raises(MissingExtraError, match=r"tested with Ray up to .* this is 3\.1\.0"):
        engine.check_release("3.1.0")
    monkeypatch.delattr(engine.RemoteFunction, "_remote")
    with pytest.raises(MissingExtraError, match=r"no RemoteFunction\._remote"):
        engine.check_release(engine.version)


def test_an_untested_release_gets_the_public_hook_with_one_warning() -> None:
    out = script(
        """
import os, sys, warnings
sys.path.insert(0, os.environ["TESTS"])
import numpy as np
import ray, ray_tasks as work
release, ray.__version__ = ray.__version__, "2.999.0"
from proxystore_integrations.ray import init, instrument, runtime_env_hook
ray.__version__ = release
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    init(**work.OPTIONS, threshold="100 kB", results="never")
    instrument()
    print(*[one.message for one in caught if one.category is RuntimeWarning], sep="|")
from proxystore_integrations.ray import narrow
stored = lambda: len(work.stored(narrow._current))
array = work.big(1)
print(stored(), ray.get(work.writable.remote(array)), ray.get(work.writable.remote(np.ones(9))), stored())
print(ray.get(work.total.remote(array, more=work.big(2))), ray.get(work.inside.remote([array, array])))
print(stored())
objects = np.array([{"a": 1}, "b"], dtype=object)
print(ray.get(ray.put(objects)).tolist(), ray.get(ray.put(np.ones(3)[::2])))
print(ray.get(work.add.remote(array))[0])
ray.shutdown()
print(narrow._current, stored())
""",
    ).splitlines()
    assert out[0].startswith("Only the driver's large NumPy arrays go through the store: ")
    assert out[0].count("this is 2.999.0") == 1
    assert out[1:] == [
        "0 True False 1",
        "90000.0 60000.0",
        "2",
        "[{'a': 1}, 'b'] [1. 1.]",
        "2.0",
        "None 0",
    ]


def test_a_node_elsewhere_is_seen_before_the_first_argument(
    stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = link.current()
    assert ours is not None
    elsewhere = {"NodeManagerHostname": "elsewhere", "Resources": {}}
    monkeypatch.setattr(cluster_module, "_nodes", lambda: [elsewhere])
    monkeypatch.setattr(ours, "_looked", float("-inf"))
    try:
        with pytest.warns(RuntimeWarning, match="elsewhere does not reach the store"):
            result = work.writable.remote(work.big(1))
        assert not get(result)
    finally:
        ours.elsewhere.clear()
