"""Dask: arrays, frames and bags, whose graphs carry large data in many places."""

from __future__ import annotations

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import dask_tasks as tasks
import numpy as np
import pandas as pd
import pytest

import proxystore_integrations.dask.mixin as mixin
from proxystore_integrations.dask import Client
from proxystore_integrations.dask.engine import Serialized, serialize_graph

BIG = 60_000


def frame():
    rows = np.arange(BIG)
    return pd.DataFrame({"x": rows % 7, "y": rows.astype(float), "s": [f"row {i % 100}" for i in range(BIG)]})


def collections():
    array = np.arange(BIG, dtype=float)
    d = dd.from_pandas(frame(), npartitions=3)
    return {
        "frame sum": lambda: d.y.sum(),
        "frame itself": lambda: d,
        "frame filtered": lambda: d[d.x > 3].y,
        "frame groupby": lambda: d.groupby("x").y.mean(),
        "frame merge": lambda: d.merge(d[d.y < 50][["y"]], on="y"),
        "frame map_partitions": lambda: d.map_partitions(lambda part, k: part.y + k[5], array).sum(),
        "frame shuffle": lambda: d.set_index("y").x.sum(),
        "array in one chunk": lambda: da.from_array(array),
        "array in chunks": lambda: da.from_array(array, chunks=20_000) + 1,
        "array from bytes": lambda: da.from_array(array.astype("S8"), chunks=20_000).astype(float),
        "array map_blocks": lambda: da.ones(BIG, chunks=BIG // 4).map_blocks(
            lambda b, k: b * k[7], array, dtype=float
        ),
        "array mask": lambda: da.from_array(array, chunks=20_000)[array > 5].sum(),
        "array from delayed": lambda: da.from_delayed(dask.delayed(array), array.shape, float) * 2,
        "bag": lambda: db.from_sequence([array, array * 2], npartitions=2).map(tasks.total),
        "bag of bytes": lambda: db.from_sequence([b"x" * 200_000] * 4, npartitions=2).map(len),
        "bag fold": lambda: db.from_sequence([array] * 3).map(np.sum).fold(lambda a, b: a + b),
        "delayed of a frame": lambda: dask.delayed(tasks.describe)(frame()),
        "delayed parts": lambda: dask.delayed(sum)([dask.delayed(len)(part) for part in d.to_delayed()]),
        "delayed attribute": lambda: dask.delayed(tasks.Model("m", array)).score(),
    }


@pytest.fixture
def always(cluster):
    """Stores nearly all results."""
    with Client(cluster, results="always", threshold=1_000, set_as_default=False) as client:
        yield client


@pytest.fixture
def sent(monkeypatch):
    """Bytes of each graph that goes to the scheduler."""
    sizes: list[int] = []
    substitute = mixin.substitute_graph

    def measured(expr, outgoing):
        changed = substitute(expr, outgoing)
        serialized = changed if isinstance(changed, Serialized) else serialize_graph(changed)
        sizes.append(sum(memoryview(part).nbytes for part in serialized.frames))
        return changed

    monkeypatch.setattr(mixin, "substitute_graph", measured)
    return sizes


def assert_equal(ours, bare):
    assert type(ours) is type(bare)
    if isinstance(bare, (pd.DataFrame, pd.Series)):
        # Shuffles do not keep the order of rows, here as without us.
        ours, bare = (one.to_frame() if isinstance(one, pd.Series) else one for one in (ours, bare))
        columns = list(bare.columns)
        pd.testing.assert_frame_equal(
            ours.sort_values(columns).reset_index(drop=True), bare.sort_values(columns).reset_index(drop=True)
        )
    else:
        assert tasks.shape(ours) == tasks.shape(bare)


@pytest.mark.parametrize("name", collections())
def test_the_same_answer_and_a_small_graph(name, client, bare_client, sent, stored):
    make = collections()[name]
    ours, bare = make().compute(scheduler=client), make().compute(scheduler=bare_client)
    assert_equal(ours, bare)
    assert sent
    assert max(sent) < 100_000
    stored.becomes(0)


@pytest.mark.parametrize("name", [*collections(), "frame p2p", "array p2p"])
def test_the_same_answer_of_stored_results(name, always, bare_client, stored_by):
    shuffled = {
        "frame p2p": lambda: (
            dd.from_pandas(frame(), npartitions=4).shuffle("x", shuffle_method="p2p").y.sum()
        ),
        "array p2p": lambda: (
            da.arange(BIG * 1.0, chunks=BIG // 4).reshape(300, -1).rechunk((-1, 50), method="p2p")
        ),
    }
    make = (collections() | shuffled)[name]
    assert_equal(make().compute(scheduler=always), make().compute(scheduler=bare_client))
    stored_by(always).becomes(0)


@pytest.mark.parametrize("name", ["array in chunks", "bag"])
def test_persist_keeps_names(name, client, bare_client, stored):
    collection = collections()[name]()
    ours = collection.persist(scheduler=client)
    bare = collection.persist(scheduler=bare_client)
    assert ours.__dask_keys__() == bare.__dask_keys__()
    assert_equal(ours.compute(scheduler=client), bare.compute(scheduler=bare_client))
    del ours, bare, collection
    stored.becomes(0)


def test_annotations_survive(client, sent):
    (address, _) = client.scheduler_info()["workers"]
    with dask.annotate(workers=[address], priority=3, retries=1):
        lazy = da.from_array(np.arange(BIG, dtype=float), chunks=20_000).map_blocks(tasks.increment)
    with dask.config.set({"optimization.fuse.active": False}):
        kept = lazy.persist(scheduler=client)
    np.testing.assert_array_equal(kept.compute(scheduler=client), np.arange(BIG) + 1.0)
    assert {workers for held in client.who_has(kept).values() for workers in held} == {address}
    assert max(sent) < 30_000


def test_a_graph_of_many_small_tasks_is_sent_as_it_is(client, sent, stored):
    lazies = [dask.delayed(abs)(-i) for i in range(2000)]
    assert dask.delayed(sum)(lazies).compute(scheduler=client) == 1999000
    assert max(sent) > 100_000
    assert not stored()


def test_plain_graphs(client, bare_client, stored):
    array = np.arange(BIG, dtype=float)
    graph = {
        "x": array,
        "y": (tasks.increment, "x"),
        "z": (tasks.total, "y"),
        "w": (tasks.describe_all, [array], "z"),
    }
    assert client.get(graph, ["z", "w"]) == bare_client.get(graph, ["z", "w"])
    stored.becomes(0)


def test_several_collections_at_once(client, bare_client):
    array = np.arange(BIG, dtype=float)
    several = da.from_array(array), dask.delayed(tasks.total)(array), db.from_sequence([array]).map(np.sum)
    for ours, bare in zip(
        dask.compute(*several, 7, scheduler=client),
        dask.compute(*several, 7, scheduler=bare_client),
        strict=True,
    ):
        assert_equal(ours, bare)
    futures = client.compute(list(several))
    np.testing.assert_array_equal(futures[0].result(), array)
