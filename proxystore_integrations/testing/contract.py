"""What holds of every engine with a store."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxystore_core import get_key, is_resolved
from proxystore_core.connectors.base import deferred
from proxystore_core.ownership import MutableBorrowError, borrow, mut_borrow
from proxystore_core.testing import until
from proxystore_integrations.testing import tasks
from proxystore_integrations.testing.engine import Engine

__all__ = ["EngineContract"]

WAIT = 60
"""Seconds for any one task."""


class EngineContract:
    """Subclass it, and give it a fixture ``engine``."""

    @pytest.fixture(autouse=True)
    def nothing_stays(self, engine: Engine) -> Iterator[None]:
        """After each test, its futures gone, the engine's session holds nothing."""
        yield
        gc.collect()
        if engine.stored():  # an engine's own threads may keep the last future they saw until the next
            engine.submit(tasks.give_back, 1).result(WAIT)
        until(lambda: not engine.stored())

    # Same answer.

    @pytest.mark.parametrize("name", tasks.VALUES)
    def test_a_task_gets_what_it_gets_without_us(self, engine: Engine, name: str) -> None:
        value = tasks.VALUES[name]()
        ours = _outcome(engine.submit(tasks.digests, value, keyword=value))
        assert ours == _outcome(engine.bare_submit(tasks.digests, value, keyword=value))

    @pytest.mark.parametrize("name", tasks.VALUES)
    def test_a_result_is_what_it_is_without_us(self, engine: Engine, name: str) -> None:
        ours, bare = engine.submit(tasks.make, name), engine.bare_submit(tasks.make, name)
        assert tasks.digest(ours.result(WAIT)) == tasks.digest(bare.result(WAIT))
        assert (ours.result() is ours.result()) is (bare.result() is bare.result())
        assert ours.exception() is None

    @pytest.mark.parametrize("name", ["array", "bytes", "list", "dict", "dataclass", "many small"])
    def test_an_argument_that_is_returned(self, engine: Engine, name: str) -> None:
        value = tasks.VALUES[name]()
        again = engine.submit(tasks.give_back, value).result(WAIT)
        assert tasks.digest(again) == tasks.digest(value)
        several = engine.submit(tasks.give_back_all, value, 1, value).result(WAIT)
        assert tasks.digest(several) == tasks.digest((value, 1, value))

    def test_one_object_stays_one(self, engine: Engine) -> None:
        array = tasks.big()
        assert engine.submit(tasks.same, array, array, [array]).result(WAIT)
        assert engine.submit(tasks.same, first=array, second=array).result(WAIT)
        small = [1]
        ours = engine.submit(tasks.same, small, small, (small, array)).result(WAIT)
        assert ours == engine.bare_submit(tasks.same, small, small, (small, array)).result(WAIT)

    @pytest.mark.parametrize("name", ["list", "dict", "tuple"])
    def test_one_container_stays_one(self, engine: Engine, name: str) -> None:
        def arguments() -> Any:
            some = tasks.VALUES[name]()
            inner = some if name == "list" else [some]
            return (some, some), (inner, inner, [inner]), ([inner], {"a": inner}, (inner, some))

        for ours, bare in zip(arguments(), arguments(), strict=True):
            assert engine.submit(tasks.places, *ours).result(WAIT) == engine.bare_submit(
                tasks.places, *bare
            ).result(WAIT)

    def test_a_small_object_beside_a_large_one(self, engine: Engine) -> None:
        small = [1]
        outcomes = [
            submit(tasks.places, tasks.big(1), small, (small, 2), again=small, more=[small]).result(WAIT)
            for submit in (engine.submit, engine.bare_submit)
        ]
        assert outcomes[0] == outcomes[1]

    def test_equal_objects_stay_two(self, engine: Engine) -> None:
        def equal() -> list[float]:
            return [1.0] * tasks.BIG

        for arguments in ((equal(), equal()), ([equal(), equal()],), ({"a": equal(), "b": equal()},)):
            assert engine.submit(tasks.grow_first, *arguments).result(WAIT) == (tasks.BIG + 1, tasks.BIG)
        ours = engine.submit(tasks.grow_first, equal(), second=equal()).result(WAIT)
        assert ours == engine.bare_submit(tasks.grow_first, equal(), second=equal()).result(WAIT)

    @pytest.mark.parametrize("name", tasks.SHARING)
    def test_what_several_arguments_hold_stays_one(self, engine: Engine, name: str) -> None:
        outcomes = []
        for submit in (engine.submit, engine.bare_submit):
            function, args, kwargs = tasks.SHARING[name]()
            outcomes.append(_outcome(submit(function, *args, **kwargs)))
        assert outcomes[0] == outcomes[1]

    def test_a_part_of_an_argument_as_the_result(self, engine: Engine) -> None:
        half = engine.submit(tasks.half, np.arange(4 * tasks.BIG)).result(WAIT)
        np.testing.assert_array_equal(half, np.arange(2 * tasks.BIG))

    def test_functions_that_carry_data(self, engine: Engine) -> None:
        assert engine.submit(tasks.partial(tasks.big(1))).result(WAIT) == tasks.BIG
        assert engine.submit(tasks.partial(tasks.big(1)), tasks.big(2)).result(WAIT) == 3 * tasks.BIG
        assert engine.submit(tasks.Model("m", tasks.big(1)).score, factor=2.0).result(WAIT) == 2 * tasks.BIG
        if not engine.by_name_only:
            assert engine.submit(tasks.closure(tasks.big(1))).result(WAIT) == tasks.BIG

    # In-place changes.

    def test_a_change_in_a_task_is_its_own(self, engine: Engine) -> None:
        ours, bare = tasks.big(1), tasks.big(1)
        assert engine.submit(tasks.writable, ours).result(WAIT)
        seen = [engine.submit(tasks.add, ours).result(WAIT)[0] for _ in range(3)]
        assert seen == [engine.bare_submit(tasks.add, bare).result(WAIT)[0] for _ in range(3)]
        assert seen == ([2, 3, 4] if engine.is_local else [2, 2, 2])
        assert ours[0] == bare[0]

    def test_what_is_submitted_is_what_is_seen(self, engine: Engine, tmp_path: Path) -> None:
        array = tasks.big(1)
        go = tmp_path / "go"
        first = engine.submit(tasks.wait_for, str(go), array)
        if not engine.is_local:
            until(lambda: bool(engine.stored()))
        array[:] = 2
        second = engine.submit(tasks.total, array)
        go.touch()
        assert first.result(WAIT) == (2 * tasks.BIG if engine.is_local else tasks.BIG)
        assert second.result(WAIT) == 2 * tasks.BIG

    def test_a_result_is_the_users_to_change(self, engine: Engine) -> None:
        seen = []
        for submit in (engine.submit, engine.bare_submit):
            future = submit(tasks.big, 1.0)
            future.result(WAIT)[:] = 5
            seen.append(future.result()[0])
        assert seen[0] == seen[1]
        assert engine.submit(tasks.big, 1.0).result(WAIT)[0] == 1

    # Exceptions.

    def test_an_exception_is_the_same(self, engine: Engine) -> None:
        ours = engine.submit(tasks.fail, ValueError, "what", tasks.big(1)).exception(WAIT)
        bare = engine.bare_submit(tasks.fail, ValueError, "what", tasks.big(1)).exception(WAIT)
        assert ours is not None
        assert bare is not None
        assert type(ours) is type(bare)
        assert engine.raised(ours) == engine.raised(bare) == "ValueError"
        assert engine.tells_text or tasks.digest(ours.args) == tasks.digest(bare.args)

    def test_an_exception_keeps_its_cause(self, engine: Engine) -> None:
        ours = engine.submit(tasks.fail_from, tasks.big(1)).exception(WAIT)
        bare = engine.bare_submit(tasks.fail_from, tasks.big(1)).exception(WAIT)
        assert ours is not None
        assert bare is not None
        assert engine.raised(ours) == engine.raised(bare)
        assert engine.raised(ours).rpartition(".")[2] == "BigError"
        assert type(ours.__cause__) is type(bare.__cause__)

    @pytest.mark.parametrize("beside", [1, tasks.big(1)], ids=["small", "large"])
    def test_an_argument_that_nobody_can_pickle(self, engine: Engine, beside: Any) -> None:
        outcomes: list[type] = []
        for submit in (engine.submit, engine.bare_submit):
            if submit == engine.bare_submit and engine.loses_unpicklable:
                outcomes.append(outcomes[0])
                break
            try:
                error = submit(tasks.kinds, tasks.unpicklable(), beside).exception(WAIT)
            except Exception as raised:
                error = raised
            outcomes.append(type(error))
        assert outcomes[0] is outcomes[1]
        assert (outcomes[0] is type(None)) is engine.is_local

    def test_a_result_that_nobody_can_pickle(self, engine: Engine) -> None:
        ours = engine.submit(tasks.unpicklable, tasks.big(1)).exception(WAIT)
        bare = engine.bare_submit(tasks.unpicklable, tasks.big(1)).exception(WAIT)
        assert type(ours) is type(bare)
        assert ours is not None or engine.is_local or engine.keeps_tasks

    # The user's own proxies.

    def test_a_users_proxy_is_the_users(self, engine: Engine) -> None:
        store = engine.store()
        proxy = store.proxy(tasks.big(1), populate_target=False)
        key = get_key(proxy)
        try:
            assert engine.submit(tasks.is_lazy, proxy).result(WAIT) == (True, True)
            assert engine.submit(tasks.total, proxy, tasks.big(2)).result(WAIT) == 3 * tasks.BIG
            again = engine.submit(tasks.give_back, proxy).result(WAIT)
            assert tasks.is_lazy(again)[0]
            assert again.sum() == tasks.BIG
            assert store.exists(key)
        finally:
            store.evict(key)

    def test_a_task_may_return_a_resolved_proxy(self, engine: Engine) -> None:
        store = engine.store()
        proxy = store.proxy(tasks.big(1))
        try:
            assert is_resolved(proxy)
            assert engine.submit(tasks.give_back, proxy).result(WAIT)[0] == 1
        finally:
            store.evict(get_key(proxy))

    # Futures of the store.

    @pytest.fixture
    def later(self, engine: Engine) -> Any:
        """The engine's store, which sets objects later."""
        store = engine.store()
        if deferred(store.connector) is None:
            pytest.skip("this store sets no object later")
        return store

    def test_a_proxy_of_what_nobody_has_made(self, engine: Engine, later: Any) -> None:
        store = later
        for submit in (engine.submit, engine.bare_submit):
            future = store.future(deadline=WAIT)
            try:
                # Submitted, and run, before its producer is: if anything here waited, nothing would go on.
                asked = submit(tasks.is_array, future.proxy())
                produced = submit(tasks.set_result, future, 1.0)
                assert produced.result(WAIT) is None
                assert asked.result(WAIT) is True
                used = submit(tasks.total_of, [future.proxy(), future.proxy()])
                assert used.result(WAIT) == 2 * tasks.BIG
                assert submit(tasks.is_array, value=future.proxy()).result(WAIT) is True
            finally:
                store.evict(future.key)

    def test_an_exception_where_a_proxy_is_used(self, engine: Engine, later: Any) -> None:
        store = later
        future = store.future(deadline=WAIT)
        try:
            used = engine.submit(tasks.total, future.proxy())
            future.set_exception(ValueError("never made"))
            assert engine.raised(used.exception(WAIT)) == "ValueError"
            late = store.future(deadline=0.01)
            assert engine.raised(engine.submit(tasks.total, late.proxy()).exception(WAIT)).endswith(
                "DeadlineError"
            )
            store.evict(late.key)
        finally:
            store.evict(future.key)

    # What is borrowed.

    def test_what_is_borrowed_for_a_task_ends_with_it(self, engine: Engine, tmp_path: Path) -> None:
        store = engine.store()
        owned = store.owned_proxy(tasks.big(1), populate_target=False)
        go = tmp_path / "go"
        reader = engine.submit(tasks.wait_for, str(go), borrow(owned))
        other = engine.submit(tasks.total_of, [borrow(owned)])
        gc.collect()
        with pytest.raises(MutableBorrowError, match="borrowed to be read"):
            mut_borrow(owned)
        go.touch()
        assert [reader.result(WAIT), other.result(WAIT)] == [tasks.BIG] * 2
        writer = engine.submit(tasks.change, mut_borrow(owned), 2.0)
        if deferred(store.connector) is None:
            assert engine.raised(writer.exception(WAIT)).endswith("ConfigurationError")
        else:
            assert writer.result(WAIT) is None
            assert engine.submit(tasks.total, borrow(owned)).result(WAIT) == 2 * tasks.BIG
        key = get_key(owned)
        assert store.exists(key)
        del owned
        until(lambda: not store.exists(key))

    # References.

    def test_a_result_goes_on_as_a_reference(self, engine: Engine) -> None:
        if not engine.passes_futures:  # it is an argument like any other
            first = engine.submit(tasks.big, 1.0)
            first.result(WAIT)
            assert engine.submit(tasks.same, first, first).result(WAIT)
            return
        first = engine.submit(tasks.big, 1.0)
        second = engine.submit(tasks.add, first)
        third = engine.submit(tasks.add, array=second, by=2.0)
        assert third.result(WAIT)[0] == 4
        if not engine.is_local and not engine.keeps_tasks:
            assert first.result(WAIT)[0] == 1
            assert second.result(WAIT)[0] == 2

    def test_a_failed_dependency_fails_its_dependents(self, engine: Engine) -> None:
        failed = engine.submit(tasks.fail, ValueError, "what")
        if not engine.passes_futures:
            assert engine.raised(failed.exception(WAIT)) == "ValueError"
            return
        error = engine.submit(tasks.total, failed, tasks.big(1)).exception(WAIT)
        assert error is not None
        assert "ValueError" in (engine.raised(error), engine.raised(error.__cause__))

    def test_many_calls_with_one_argument(self, engine: Engine, tmp_path: Path) -> None:
        array = tasks.big(1)
        go = tmp_path / "go"
        futures = [engine.submit(tasks.wait_for, str(go), array) for _ in range(10)]
        equal = engine.submit(tasks.wait_for, str(go), array.copy())
        if not engine.is_local:
            until(lambda: bool(engine.stored()))
        assert len(engine.stored()) == (0 if engine.is_local else 1)
        go.touch()
        assert [future.result(WAIT) for future in [*futures, equal]] == [tasks.BIG] * 11

    def test_what_is_small_is_not_stored(self, engine: Engine, tmp_path: Path) -> None:
        go = tmp_path / "go"
        future = engine.submit(tasks.wait_for, str(go), np.ones(1000))
        assert engine.stored() == []
        go.touch()
        assert future.result(WAIT) == 1000
        small = engine.submit(tasks.give_back, "small")
        assert small.result(WAIT) == "small"
        assert engine.stored() == []

    def test_a_result_is_stored_while_somebody_has_its_future(self, engine: Engine) -> None:
        future = engine.submit(tasks.big, 1.0)
        future.result(WAIT)
        until(lambda: len(engine.stored()) == int(not engine.keeps_tasks and not engine.is_local))
        del future
        gc.collect()
        assert engine.submit(tasks.give_back, 1).result(WAIT) == 1
        until(lambda: not engine.stored())

    def test_arguments_go_when_the_task_is_over(self, engine: Engine) -> None:
        done = engine.submit(tasks.total, tasks.big(1))
        assert done.result(WAIT) == tasks.BIG
        until(lambda: len(engine.stored()) == int(engine.keeps_tasks))
        failed = engine.submit(tasks.fail_from, tasks.big(1))
        assert failed.exception(WAIT) is not None
        until(lambda: len(engine.stored()) == int(engine.keeps_tasks))

    # Deaths.

    def test_a_killed_worker(self, engine: Engine, tmp_path: Path) -> None:
        if engine.is_local:
            assert engine.stored() == []  # it would be this process
            return
        with engine.fresh() as fresh:
            held = fresh.submit(tasks.big, 3.0)
            assert held.result(WAIT)[0] == 3
            died = fresh.submit(tasks.die_once, str(tmp_path / "died"), tasks.big(1))
            error = died.exception(WAIT)
            assert (error is None) is fresh.runs_again
            assert error is not None or died.result() == tasks.BIG
            assert held.result(WAIT)[0] == 3
            del died, error
            gc.collect()
            until(lambda: len(fresh.stored()) == int(not fresh.keeps_tasks))


def _outcome(future: Any) -> Any:
    """A future's result, or the type of its exception."""
    error = future.exception(WAIT)
    return future.result() if error is None else type(error)
