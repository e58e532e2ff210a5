"""Ray whose results go through the store, too: several, of generators, of actors of all kinds."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray_clusters
import ray_tasks as work
from ray_clusters import WAIT, get
from ray_scripts import script
from waiting import until

cluster = ray_clusters.cluster_with(results="always")
stored = ray_clusters.stored


def test_several_results_go_with_a_reference_each(stored: Any) -> None:
    first, second = work.make.options(num_returns=2).remote(2)
    assert (get(first)[0], get(second)[0]) == (0, 1)
    assert get(first).flags.writeable
    until(lambda: len(stored()) == 2)
    del first
    until(lambda: len(stored()) == 1)
    assert get(second)[0] == 1


def yields_of(kind: str) -> list[Any]:
    if kind == "dynamic":
        with pytest.warns(DeprecationWarning, match="dynamic"):
            return list(get(work.pieces.options(num_returns="dynamic").remote(3)))
    if kind == "three":
        return list(work.pieces.options(num_returns=3).remote(3))
    if kind == "function":
        return list(work.pieces.remote(3))
    if kind == "actor":
        return list(work.Counter.remote(np.zeros(work.BIG)).stream.remote(3))
    if kind == "threaded actor":
        counter = work.Counter.options(max_concurrency=2).remote(np.zeros(work.BIG))
        return list(counter.stream.remote(3))
    actor = work.AsyncCounter.remote()
    return list((actor.stream if kind == "async actor" else actor.pieces).remote(3))


@pytest.mark.parametrize(
    "kind",
    [
        "function",
        "dynamic",
        "three",
        "actor",
        "threaded actor",
        "async actor",
        "a generator of an async actor",
    ],
)
def test_what_generators_yield_is_there_for_who_comes_late(kind: str, stored: Any) -> None:
    references = yields_of(kind)
    assert not ray.wait(references, num_returns=3, timeout=WAIT, fetch_local=False)[1]
    gc.collect()
    time.sleep(0.5)  # Ray has lost by then what references in them refer to
    assert [float(get(reference)[0]) for reference in references] == [0, 1, 2]
    assert [get(work.total.remote(reference)) for reference in references] == [0, work.BIG, 2 * work.BIG]


def test_many_calls_of_an_async_actor_at_once(stored: Any) -> None:
    actor = work.AsyncCounter.remote()
    results = [actor.add.remote(work.big(i)) for i in range(20)]
    assert [float(value[0]) for value in get(results)] == list(range(1, 21))
    until(lambda: len(stored()) == 20)
    more = [actor.add.remote(result) for result in results]
    del results
    assert [float(value[0]) for value in get(more)] == list(range(2, 22))


def test_what_a_task_puts(stored: Any) -> None:
    pieces = get(work.pieces_put.remote(3))
    assert [float(get(piece)[0]) for piece in pieces] == [0, 1, 2]
    until(lambda: len(stored()) == 3)


def test_an_exception_with_data(stored: Any) -> None:
    @ray.remote
    def fails(array: Any) -> None:
        raise ValueError("what", array * 2)

    with pytest.raises(ValueError, match="what") as caught:
        get(fails.remote(work.big(1)))
    assert isinstance(caught.value, ray.exceptions.RayTaskError)
    assert caught.value.cause.args[1][0] == 2


def test_a_result_that_is_read_passed_on_and_let_go_of(stored: Any) -> None:
    results = [work.add.remote(work.big(i)) for i in range(10)]
    assert [float(value[0]) for value in get(results)] == list(range(1, 11))
    more = [work.add.remote(result) for result in results]
    del results  # Ray has put their bytes, which name what is stored, into the calls
    assert [float(value[0]) for value in get(more)] == list(range(2, 12))


@pytest.mark.parametrize("how", ["killed", "let go of"])
def test_a_call_waits_for_a_result_of_an_actor_that_is_no_more(how: str, stored: Any, tmp_path: Path) -> None:
    actor = work.Counter.remote(work.big(1))
    result = actor.give.remote()
    assert get(result)[0] == 1
    pid = get(actor.pid.remote())
    go = tmp_path / "go"
    busy = [work.wait_for.remote(str(go), np.zeros(1)) for _ in range(2)]
    waiting = work.total.remote(result)
    if how == "killed":
        os.kill(pid, signal.SIGKILL)
    del actor, result
    gc.collect()
    until(lambda: not Path(f"/proc/{pid}").exists())
    time.sleep(0.5)  # what is not needed is evicted by then
    assert len(stored()) == 1
    go.touch()
    assert get(waiting) == work.BIG
    get(busy)
    until(lambda: not stored())


def test_a_call_of_a_third_process_waits_for_a_result_whose_producer_is_no_more(
    cluster: Any,
) -> None:
    out = script(
        """
import gc, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from waiting import until
from proxystore_integrations.ray import init, link
init(**work.JOINING, threshold="100 kB", results="always")

@ray.remote
class Third:
    def submit(self, references, gate):
        # Ray puts the bytes of the small object, which name what is stored, into the call.
        self.result = work.total_after.remote(gate.wait.remote(), references[0])
    def get(self):
        return ray.get(self.result, timeout=30)

gate, third = work.Gate.options(num_cpus=0).remote(), Third.options(num_cpus=0).remote()
producers = [work.Counter.options(num_cpus=0).remote(work.big(1)) for _ in range(2)]
lent, kept = [producer.give.remote() for producer in producers]
assert len(ray.get([lent, kept])) == 2
ray.get(third.submit.remote([lent], gate))
for pid in ray.get([producer.pid.remote() for producer in producers]):
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())
del producers, lent, kept
gc.collect()
until(lambda: len(work.stored(link.current())) == 1)
time.sleep(2.5)  # that one is looked at, too
ray.get(gate.open.remote())
print(ray.get(third.get.remote()))
ray.shutdown()
""",
        RAY_ADDRESS=ray.get_runtime_context().gcs_address,
    )
    assert "30000.0" in out.splitlines()  # Ray tells of the dead, too


def test_what_rays_own_libraries_put_stays_in_plasma(stored: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        data = importlib.import_module("ray.data")
        data.DataContext.get_current().enable_progress_bars = False
        table = data.from_numpy(np.arange(100_000))
        assert stored() == []
        assert table.map_batches(lambda batch: {"x": batch["data"] * 2}).sum("x") == 2 * sum(range(100_000))
        dag = importlib.import_module("ray.dag")
        actor = work.Counter.remote(np.ones(1))
        with dag.InputNode() as array:
            compiled = actor.total.bind(array).experimental_compile()
        try:  # its channel is an object that Ray puts, and grows with what goes through it
            assert ray.get(compiled.execute(np.ones(200_000)), timeout=WAIT) == 200_001
        finally:
            compiled.teardown()
    assert stored() == []
