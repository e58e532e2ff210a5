"""What several values of a call hold, and what only looks like that."""

from __future__ import annotations

import gc
import secrets
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from proxystore_core import Reference, Store
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.memos import Memo, remembering
from proxystore_core.pickling import Pickling
from proxystore_core.serialize import serialize
from proxystore_core.sharing import Sharing
from proxystore_integrations.policy import Policy
from proxystore_integrations.testing.tasks import Noted, big, note
from proxystore_integrations.transfer import ByValue, Outgoing


class Carrier(NamedTuple):
    reference: Reference
    item: int | None

    def value(self) -> Any:
        loaded = self.reference()
        return loaded if self.item is None else loaded[self.item]


class Collecting(Outgoing):
    def carrier(self, reference: Reference, item: int | None = None) -> Carrier:
        return Carrier(reference, item)

    def call(self, *values: Any) -> list[Any]:
        return self.together(values, lambda: self.substitute_all(values))


@pytest.fixture(params=[False, True], ids=["pickle", "cloudpickle"])
def outgoing(request: pytest.FixtureRequest) -> Iterator[Collecting]:
    name = secrets.token_hex(4)
    with Store(name, MemoryConnector(name)) as store:
        sharing = Sharing(store, "s", pickling=Pickling(main_by_value=request.param))
        yield Collecting(sharing, Policy(100_000), ByValue("raise"))
        store.connector.end("s")


def stored(outgoing: Collecting) -> int:
    return len(outgoing.sharing.store.connector.keys("s"))


def holders(notes: list[Any] | None = None) -> tuple[Noted, Noted]:
    notes = [] if notes is None else notes
    return Noted(big(1), notes), Noted(big(2), notes)


def frame() -> Any:
    return pd.DataFrame({"group": np.arange(30_000) % 7, "value": np.arange(30_000.0), "text": "a"})


def dataset() -> Any:
    return xr.Dataset({"a": (("x", "y"), np.ones((300, 100)))}, coords={"x": np.arange(300.0)})


def test_what_is_stored_for_nothing_goes(outgoing: Collecting) -> None:
    a, b = holders()
    first, second, number = outgoing.call(a, b, 5)
    assert (first.reference, number) == (second.reference, 5)
    assert stored(outgoing) == 3
    outgoing.settle()
    assert stored(outgoing) == len(outgoing.references) == 1
    a, b = first.reference()
    assert a.notes is b.notes


def test_nothing_is_kept_until_garbage_is_collected(outgoing: Collecting) -> None:
    a, b = holders()
    kept = [weakref.ref(one) for one in (a, b)]
    gc.disable()
    try:
        for values in ((a,), (a, b), ([a, {"b": b}], 5)):
            again = Collecting(outgoing.sharing, outgoing.policy, outgoing.by_value)
            again.call(*values)
            again.settle()
        del a, b, values, again
        assert [one() for one in kept] == [None, None]
    finally:
        gc.enable()


def test_what_another_task_has_by_itself_stays(outgoing: Collecting) -> None:
    a, b = holders()
    for alone, united in (([a], [a, b]), ([b], [b, a])):
        (carrier,) = outgoing.call(*alone)
        assert carrier.item is None
        assert [one.item for one in outgoing.call(*united)] == [0, 1]
    assert outgoing.call(a)[0].item is None
    outgoing.settle()
    assert stored(outgoing) == len(outgoing.references) == 4  # either by itself, and both in either order
    assert outgoing.call(b)[0].value().notes == []


def test_equal_ones_have_their_own(outgoing: Collecting) -> None:
    pairs = [holders(), holders()]
    carriers = outgoing.call(*(one for pair in pairs for one in pair))
    outgoing.settle()
    assert len({carrier.reference for carrier in carriers[:2]}) == 1
    assert len({carrier.reference for carrier in carriers[2:]}) == 1
    assert stored(outgoing) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: (frame(), {"a": 1}, "text", 3),
        lambda: (data := frame(), data[["value", "group"]]),
        lambda: [(data := frame())[data.group == i] for i in range(3)],
        lambda: (frame(), frame().value, big()),
        lambda: (data := dataset(), data * 2),
        lambda: (Noted(big(1), []), Noted(big(2), [])),
        lambda: (Noted(big(1), [(1, 2)]), [(1, 2)], {"notes": []}),
        lambda: ([Noted(None, [i]) for i in range(3000)], {"a": [1]}, {}),
    ],
)
def test_nothing_to_unite(outgoing: Collecting, make: Any) -> None:
    values = make()
    carriers = outgoing.call(*values)
    large = [value for value in values if outgoing.policy.over(value)]
    assert [one.item for one in carriers if type(one) is Carrier] == [None] * len(large)
    outgoing.settle()
    assert stored(outgoing) == len(large)


def test_a_value_among_thousands(outgoing: Collecting) -> None:
    many = [Noted(None, [i]) for i in range(3000)]
    for other in (many[7], many[8].notes, {"one": many[9]}, [1, [many[2999].notes]]):
        carriers = outgoing.call(many, other)
        assert [one.item for one in carriers] == [0, 1]
    others = [Noted(None, [i]) for i in range(3000)]
    assert [one.item for one in outgoing.call(many, others)] == [None, None]
    others = [*others[:1234], Noted(None, many[4].notes), *others[1234:]]
    assert [one.item for one in outgoing.call(many, others, big())] == [0, 1, None]


def test_what_was_met_is_asked_without_running_anything() -> None:
    asked = []

    class Loud:
        def __reduce__(self) -> Any:
            asked.append(self)
            raise AssertionError

    inner: dict[str, Any] = {"a": [1]}
    outer = [inner, (inner, big())]
    with remembering() as memos:
        serialize(outer)
    memo = memos[id(outer)]
    assert inner in memo
    assert inner["a"] in memo
    for other in ({}, {"a": [1]}, {"a": inner}, [1], [inner["a"]], Loud(), [Loud()], {}):
        assert other not in memo
        assert other not in memo
    assert not asked
    assert id(inner) in memo.objects()
    assert not [one for one in memo.objects().values() if type(one) is Loud]


def test_a_python_that_asks_no_pickler() -> None:
    class Pickler:
        """As Python 3.13.0 has it."""

        __slots__ = ("fast", "memo")

    pickler, held = Pickler(), [1]
    pickler.memo = {id(held): (0, held)}
    memo = Memo(pickler, [])
    assert held in memo
    assert [1] not in memo


def test_items_of_a_dask_map(client: Any, bare_client: Any, stored: Any) -> None:
    notes = [["made"], ["made"]]
    firsts, seconds = zip(*map(holders, notes), strict=True)
    shared = Noted(big(3), notes[1])
    keywords: dict[str, Any]
    for keywords in ({}, {"other": shared}, {"other": Noted(big(3), [])}):
        ours, bare = (one.map(note, firsts, seconds, pure=False, **keywords) for one in (client, bare_client))
        assert client.gather(ours) == bare_client.gather(bare)
    del ours, bare
    stored.becomes(0)


def test_tasks_of_one_dask_graph(client: Any, stored: Any) -> None:
    from dask import compute, delayed

    a, b = holders(["made"])
    lazy = delayed(note, pure=False)
    assert compute(lazy(a), lazy(a, b), lazy([b, a]), lazy(b)) == ([2], [2, 2], [2, 2], [2])
    stored.becomes(0)
