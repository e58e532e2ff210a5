"""Ray's jobs in a cluster that runs already, each with a driver of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray_scripts
from mounts import own_mounts
from ray_scripts import Driver, script

cluster = ray_scripts.cluster
joining = ray_scripts.joining


def test_a_serializer_of_arrays_changes_nothing_else(joining: dict[str, str]) -> None:
    out = script(
        """
import os, pickle, sys
sys.path.insert(0, os.environ["TESTS"])
import numpy as np, ray, ray_tasks as work
from proxystore_integrations.ray import init
init(**work.JOINING, threshold="100 kB", results="never")
ray.util.register_serializer(np.ndarray, serializer=lambda array: array.tolist(), deserializer=np.array)
print(ray.get(work.total.remote(work.big(1), work.big(2))))
print(pickle.loads(pickle.dumps(np.ones(3), protocol=4)))
ray.util.deregister_serializer(np.ndarray)
print(ray.get(work.writable.remote(work.big(1))))  # by the store again
ray.shutdown()
""",
        **joining,
    )
    assert out.splitlines() == ["90000.0", "[1. 1. 1.]", "True"]


def test_a_worker_has_its_drivers_store_or_none(joining: dict[str, str]) -> None:
    out = script(
        """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
ray.init(**work.JOINING)

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
        **joining,
    )
    assert "is a worker of Ray's, and no driver" in out


def test_auto_leaves_to_plasma_what_is_passed_once(joining: dict[str, str]) -> None:
    out = script(
        """
import sys, os
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
ray.init(**work.JOINING)
from proxystore_integrations.ray import instrument, link
instrument()
array = work.big(1)
print([ray.get(work.writable.remote(array)) for _ in range(3)])
print([ray.get(work.writable.remote(work.big(i))) for i in range(3)])
print(ray.get(work.nested.remote(array)))
ray.shutdown()
print(link.current())
""",
        **joining,
    )
    assert "[False, True, True]" in out
    assert "[False, False, False]" in out
    assert "60000.0" in out
    assert "None" in out


def test_what_a_remote_function_captures_is_stored_once_until_the_job_ends(joining: dict[str, str]) -> None:
    out = script(
        """
import os, sys
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import numpy as np
import ray, ray_tasks as work
from proxystore_integrations.ray import init, link
init(**work.JOINING, threshold="100 kB")
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
        **joining,
    )
    assert "as bare Ray" in out


def test_results_in_the_store_go_with_their_references(joining: dict[str, str]) -> None:
    out = script(
        """
import sys, os, gc, signal
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from waiting import until
from proxystore_integrations.ray import init, link
init(**work.JOINING, results="always")
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
        **joining,
    )
    assert "all gone" in out
    assert "another engine has it, too" in out
    assert "7.0 outlives the job" in out


@pytest.mark.parametrize("store", ["shm", "file"])
def test_a_worker_that_outlives_the_session_begins_no_other(
    store: str, tmp_path: Path, joining: dict[str, str]
) -> None:
    out = script(
        """
import os, sys
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from proxystore_integrations.ray import init, link
init(**work.JOINING, threshold="100 kB", results="always", store=os.environ["STORE"])
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
        **joining,
    )
    assert out.split() == ["True", *["False"] * 3, "60000.0", "False"]


def test_what_is_borrowed_for_a_task_ends_with_ray(joining: dict[str, str]) -> None:
    out = script(
        """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from proxystore_core import Store
from proxystore_core.ownership import borrow, mut_borrow
from proxystore_integrations.ray import init
init(**work.JOINING, threshold="100 kB", results="never")
with Store.from_url("shm://", name="theirs") as store:
    owned = store.owned_proxy(work.big(1))
    result = work.wait_for.remote("/nowhere", borrow(owned))
    ray.shutdown()
    print(float(mut_borrow(owned)[0]), ray.is_initialized())  # to ask Ray would start it again
""",
        **joining,
    )
    assert out.split() == ["1.0", "False"]


def test_an_untested_release_gets_the_public_hook_with_one_warning(joining: dict[str, str]) -> None:
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
    init(**work.JOINING, threshold="100 kB", results="never")
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
narrow.__version__ = "97.3.1"
try:
    ray.get(work.total.remote(work.big(3)))
except ray.exceptions.RayError as error:
    print("the client has proxystore-integrations 97.3.1" in str(error))
ray.shutdown()
print(narrow._current, stored())
""",
        **joining,
    ).splitlines()
    assert out[0].startswith("Only the driver's large NumPy arrays go through the store: ")
    assert out[0].count("this is 2.999.0") == 1
    assert out[1:] == [
        "0 True False 1",
        "90000.0 60000.0",
        "2",
        "[{'a': 1}, 'b'] [1. 1.]",
        "2.0",
        "True",
        "None 0",
    ]


NODE = """
import sys
from ray._private.node import Node
from ray._private.parameter import RayParams
given = {"num_cpus": 1, "resources": {"far": 1}, "object_store_memory": 100_000_000}
node = Node(RayParams(gcs_address=sys.argv[1], **given), head=False, spawn_reaper=False)
sys.stdin.read()
node.kill_all_processes(check_alive=False, allow_graceful=False)
"""
ELSEWHERE = 'mount -t tmpfs tmpfs /dev/shm && hostname elsewhere && exec "$@"'


def test_a_node_that_joins_while_calls_wait_has_their_arguments_from_ray(joining: dict[str, str]) -> None:
    own_mounts()  # or skip
    with ExitStack() as stack:
        drivers = []
        for inputs in ("value", "proxy"):
            start = f"init(**work.JOINING, threshold='100 kB', results='always', inputs={inputs!r})"
            drivers.append(driver := Driver(start, **joining))
            stack.callback(driver.end)
            driver("far = {'resources': {'far': 1}}")
            driver("waiting = [work.add.options(**far).remote(work.big(i)) for i in range(2)]")
            driver("waiting += [work.total.options(**far).remote(work.big(2))]")
            assert driver("len(work.stored(link.current()))") == 3
        host = ["unshare", "--mount", "--uts", "sh", "-c", ELSEWHERE, "sh"]
        node = [sys.executable, "-c", NODE, joining["RAY_ADDRESS"]]
        with subprocess.Popen([*host, *node], stdin=subprocess.PIPE, env={**os.environ, **joining}):
            for driver in drivers:
                assert driver("[work.failure(one) for one in waiting]") == [None] * 3
                assert driver("[float(np.sum(ray.get(one))) / work.BIG for one in waiting]") == [1, 2, 2]
