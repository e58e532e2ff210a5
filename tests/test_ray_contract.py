"""Ray passes what every engine passes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
import ray_tasks

from proxystore_core.testing import until
from proxystore_integrations.ray import init, link
from proxystore_integrations.testing import Engine, EngineContract, tasks

WAIT = 60


class RayFuture:
    """An ObjectRef in the shape of a future."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def result(self, timeout: float | None = None) -> Any:
        return ray.get(self.reference, timeout=timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            self.result(timeout)
        except ray.exceptions.RayTaskError as error:
            return error.cause  # `error` is of a class that Ray makes for each
        except ray.exceptions.RayError as error:
            return error
        return None


class RayEngine(Engine):
    runs_again = True

    def __init__(self, results: str) -> None:
        self.results = results

    def submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        def plain(value: Any) -> Any:
            return value.reference if type(value) is RayFuture else value

        if type(function).__name__ != "function" or function.__closure__:
            args, function = (function, *args), ray_tasks.call
        kwargs = {name: plain(value) for name, value in kwargs.items()}
        return RayFuture(ray.remote(function).remote(*map(plain, args), **kwargs))

    def bare_submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        ours, link._current = link._current, None
        try:
            return self.submit(function, *args, **kwargs)
        finally:
            link._current = ours

    def store(self) -> Any:
        return link.current()._store

    def stored(self) -> list[str]:
        return ray_tasks.stored(link.current())


@pytest.fixture(scope="module", params=["never", "always"])
def running(request: pytest.FixtureRequest) -> Iterator[RayEngine]:
    init(**ray_tasks.OPTIONS, threshold="100 kB", results=request.param)
    try:
        yield RayEngine(request.param)
    finally:
        ray.shutdown()


def stores_results(engine: Engine) -> bool:
    assert isinstance(engine, RayEngine)
    return engine.results == "always"


class TestRay(EngineContract):
    @pytest.fixture
    def engine(self, running: RayEngine) -> RayEngine:
        return running

    # Ray writes each argument by itself, and a list or dict in it each time it appears.

    def test_one_object_stays_one(self, engine: Engine) -> None:
        for one in ([1.0], [1.0] * tasks.BIG, tasks.big()):
            assert not engine.submit(tasks.same, one, second=one).result(WAIT)
            for both in ([one, one], (one, one), {"a": one, "b": one}, [[one], [one]], ([one], [one])):
                ours = engine.submit(ray_tasks.is_one, both).result(WAIT)
                assert ours == engine.bare_submit(ray_tasks.is_one, both).result(WAIT)

    # Bare Ray hands out arrays that cannot be written to: what its tasks cannot do, ours can.

    def test_a_change_in_a_task_is_its_own(self, engine: Engine) -> None:
        array = tasks.big(1)
        assert engine.submit(tasks.writable, array).result(WAIT)
        assert not engine.bare_submit(tasks.writable, array).result(WAIT)
        assert [engine.submit(tasks.add, array).result(WAIT)[0] for _ in range(3)] == [2, 2, 2]
        assert array[0] == 1

    def test_a_result_is_the_users_to_change(self, engine: Engine) -> None:
        future = engine.submit(tasks.big, 1.0)
        assert future.result(WAIT).flags.writeable is (stores_results(engine))
        assert not engine.bare_submit(tasks.give_back, tasks.big(1)).result(WAIT).flags.writeable or (
            stores_results(engine)
        )
        if stores_results(engine):
            future.result()[:] = 5
        assert future.result()[0] == 1

    def test_a_result_goes_on_as_a_reference(self, engine: Engine) -> None:
        if stores_results(engine):
            super().test_a_result_goes_on_as_a_reference(engine)
            return
        first = engine.submit(tasks.big, 1.0)
        second = engine.submit(np.add, first, 1.0)
        assert engine.submit(np.add, second, 2.0).result(WAIT)[0] == 4

    def test_a_result_is_stored_while_somebody_has_its_future(self, engine: Engine) -> None:
        if stores_results(engine):
            super().test_a_result_is_stored_while_somebody_has_its_future(engine)
            return
        future = engine.submit(tasks.big, 1.0)
        assert future.result(WAIT)[0] == 1
        assert engine.stored() == []

    def test_a_result_that_nobody_can_pickle(self, engine: Engine) -> None:
        # Ray takes a generator that a task returns for its results.
        ours = engine.submit(tasks.unpicklable, tasks.big(1))
        bare = engine.bare_submit(tasks.unpicklable, tasks.big(1))
        assert ours.result(WAIT) == bare.result(WAIT)

    def test_arguments_go_when_the_task_is_over(self, engine: Engine) -> None:
        done = engine.submit(tasks.total, tasks.big(1))
        assert done.result(WAIT) == tasks.BIG
        until(lambda: not engine.stored())
        failed = engine.submit(tasks.fail_from, tasks.big(1))
        error = failed.exception(WAIT)
        # As in bare Ray: what a task needs to make its large outcome in plasma again stays as long as that.
        assert len(engine.stored()) == 1
        del failed, error
        gc.collect()
        until(lambda: not engine.stored())

    def test_a_killed_worker(self, engine: Engine, tmp_path: Any) -> None:
        held = engine.submit(tasks.big, 3.0)
        assert held.result(WAIT)[0] == 3
        died = engine.submit(tasks.die_once, str(tmp_path / "died"), tasks.big(1))
        assert died.result(WAIT) == tasks.BIG
        assert held.result(WAIT)[0] == 3
        del died
        gc.collect()
        until(lambda: len(engine.stored()) == int(stores_results(engine)))
