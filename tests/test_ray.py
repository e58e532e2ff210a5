"""What Ray has that other engines have not, with a store: actors, generators, puts, guards, settings."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import ray
import ray_clusters
import ray_tasks as work
from ray_clusters import WAIT, get
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


def test_an_argument_whose_own_code_fails(stored: Any) -> None:
    for array in (work.big(), work.big()[:3]):  # in the store, and as without one
        with pytest.raises(ray.exceptions.RaySystemError) as raised:
            get(work.total.remote(work.Unreadable(array)))
        own = raised.value.args[0].args[0]
        assert (type(own), str(own)) == (ValueError, "not here")


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


# What settings, addresses and releases there are.


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
