"""Defects reported of an older library of this kind, as tests that this one passes.

Here are those of store, proxy, serialization, registry and file connector; those of an engine or of
another connector are tested with it. Around each idiom that failed stand some of its neighbours.
"""

from __future__ import annotations

import collections
import enum
import hashlib
import io
import operator
import os
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import dill
import numpy as np
import pandas as pd
import pytest

from proxystore_core.connectors.base import Buffer, Key
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import CorruptError, RefusedError
from proxystore_core.proxy import Proxy, extract, is_resolved
from proxystore_core.recipe import register_connector
from proxystore_core.registry import get_store, unregister_store
from proxystore_core.store import Store


@register_connector
class Watched(FileConnector):
    """Files, with a hook in `get` and a count of openings."""

    schemes: ClassVar[tuple[str, ...]] = ("watched",)
    opened: ClassVar[int] = 0

    def __init__(self, store_dir: str | os.PathLike[str]) -> None:
        super().__init__(store_dir)
        Watched.opened += 1
        self.hook: Callable[[], Any] = lambda: None

    def get(self, key: Key) -> Buffer | None:
        data = super().get(key)
        self.hook()
        return data


@pytest.fixture
def store(tmp_path: Path):
    with Store("peer", Watched(tmp_path / "store"), populate_target=False, register=True) as store:
        yield store


def fresh(proxy: Any) -> Any:
    """What another task gets."""
    return pickle.loads(pickle.dumps(proxy))


def in_threads(count: int, function: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(function, range(count)))


# -- Silent wrong answers ------------------------------------------------------------------------


class Subclass(np.ndarray[Any, Any]):
    pass


class Colour(str, enum.Enum):  # noqa: UP042 (the older form of it is what was lost)
    RED = "red"


class Text(str):
    __slots__ = ("note",)
    note: str


class Data(bytes):
    __slots__ = ()


def test_masked_arrays_keep_their_mask(store):
    got = store.get(store.put(np.ma.array([1, 2, 3], mask=[False, True, False])))
    assert type(got) is np.ma.MaskedArray
    assert got.mask.tolist() == [False, True, False]
    assert got.sum() == 4


def test_record_arrays_stay_record_arrays(store):
    got = store.get(store.put(np.rec.array([(1, 2.5)], dtype=[("a", int), ("b", float)])))
    assert type(got) is np.recarray
    assert got.b[0] == 2.5


def test_array_subclasses_keep_their_class(store):
    assert type(store.get(store.put(np.zeros(3000).view(Subclass)))) is Subclass


def test_string_enums_keep_their_class(store):
    assert store.get(store.put(Colour.RED)) is Colour.RED


def test_subclasses_of_str_and_bytes_keep_their_class(store):
    text = Text("text")
    text.note = "kept"
    got = store.get(store.put(text))
    assert type(got) is Text
    assert got.note == "kept"
    assert type(store.get(store.put(Data(b"data" * 9999)))) is Data


def test_dtype_metadata_is_kept(store):
    array = np.zeros(2, dtype=np.dtype("f8", metadata={"unit": "m"}))
    assert store.get(store.put(array)).dtype.metadata == {"unit": "m"}


@pytest.mark.parametrize("size", [10, 100_000, 8_000_000])
def test_tasks_that_change_an_argument_do_not_see_each_other(store, size):
    argument = pickle.dumps(store.proxy(np.zeros(size)))
    sums = []
    for _ in range(3):
        array = extract(pickle.loads(argument))
        array += 1
        sums.append(int(array.sum()))
    assert sums == [size] * 3


def test_a_cached_list_is_everyone_s_own(store):
    key = store.put([1])
    store.get(key).append(2)
    assert store.get(key) == [1]


@pytest.mark.parametrize("evict", [False, True])
def test_an_argument_changed_in_place_and_returned_is_the_changed_one(store, evict):
    def task(x: Any) -> Any:
        x += 1
        return x

    result = fresh(task(fresh(store.proxy(np.zeros(3), evict=evict))))
    assert result.tolist() == [1, 1, 1]


IDIOMS: dict[str, tuple[Any, Callable[[Any], Any], Any]] = {
    "format": (2.345, lambda p: f"{p:.1f}", "2.3"),
    "round": (2.345, lambda p: round(p, 1), 2.3),
    "dict key": ({"a": 1}, lambda p: {"a": 2} | p, {"a": 1}),
    "index": (1, lambda p: (1, 2, 3)[p], 2),
    "slice": (1, lambda p: [1, 2, 3][p:], [2, 3]),
    "bytes": (b"x", bytes, b"x"),
    "divmod": (7, lambda p: divmod(p, 2), (3, 1)),
    "power": (7, lambda p: pow(2, p), 128),
    "path": (os.sep, os.fspath, os.sep),
    "isinstance of a proxied class": (int, lambda p: isinstance(1, p), True),
    "column of a frame": ("a", lambda p: pd.DataFrame({"a": [1, 2]})[p].tolist(), [1, 2]),
    "np.copyto": (np.ones(2), lambda p: np.copyto(np.zeros(2), p), None),
    "np.asarray of a list": ([1, 2], lambda p: np.asarray(p).shape, (2,)),
    "np.asarray of a nested list": ([[1, 2], [3, 4]], lambda p: np.array(p).shape, (2, 2)),
    "object array": (1, lambda p: np.array(["a", "b"], dtype=object)[p], "b"),
    "sum": ([1, 2], sum, 3),
    "reversed": ([1, 2], lambda p: list(reversed(p)), [2, 1]),
    "sorted": ([2, 1], sorted, [1, 2]),
    "length hint": ([2, 1], operator.length_hint, 2),
    "unpacking": ({"a": 1}, lambda p: dict(**p), {"a": 1}),
}


@pytest.mark.parametrize("idiom", IDIOMS)
def test_everyday_idioms(store, idiom):
    obj, use, expected = IDIOMS[idiom]
    assert use(store.proxy(obj)) == use(obj) == expected


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a class in Python has no buffer before 3.12")
def test_idioms_of_buffers(store):
    proxy = store.proxy(b"data")
    with pytest.raises(BufferError, match="extract"):  # NumPy asks for the same, and would make numbers of it
        memoryview(proxy)
    assert io.BytesIO(proxy).read() == b"data"
    assert hashlib.sha256(proxy).digest() == hashlib.sha256(b"data").digest()


# -- The store -----------------------------------------------------------------------------------


def test_no_lock_covers_input_and_output(store):
    keys = store.put_batch(range(8))
    barrier = threading.Barrier(8)
    store.connector.hook = lambda: barrier.wait(30)
    assert in_threads(8, lambda i: store.get(keys[i])) == list(range(8))


def test_a_proxy_calls_its_factory_once():
    calls = []
    barrier = threading.Barrier(8)

    def factory() -> list[int]:
        calls.append(1)
        time.sleep(0.05)
        return [1]

    proxy = Proxy(factory)

    def ask(_: int) -> int:
        barrier.wait(30)
        return len(proxy)

    assert in_threads(8, ask) == [1] * 8
    assert len(calls) == 1


def test_an_evicting_proxy_serves_all_threads(store):
    proxy = store.proxy([1], evict=True)
    barrier = threading.Barrier(8)
    store.connector.hook = lambda: time.sleep(0.02)

    def ask(_: int) -> int:
        barrier.wait(30)
        return len(proxy)

    assert in_threads(8, ask) == [1] * 8


def test_same_name_and_another_configuration_are_two_stores(tmp_path):
    with Store("name", FileConnector(tmp_path / "a"), populate_target=False) as first:
        proxy = first.proxy([1])
        with Store("name", FileConnector(tmp_path / "b"), register=True):
            assert fresh(proxy) == [1]
        found = get_store(proxy)
        assert found is not None
        found.close()


def test_the_cache_is_bounded_in_bytes(store):
    with Store("bounded", store.connector, cache_size=1_000_000) as bounded:
        keys = bounded.put_batch(bytes(100_000) for _ in range(16))
        bounded.get_batch(keys)
        big = bounded.put(bytes(10_000_000))
        bounded.get(big)
        assert sum(map(bounded.is_cached, keys)) * 100_000 <= 1_000_000
        assert not bounded.is_cached(big)


def test_times_are_in_the_unit_they_say(tmp_path):
    connector = Watched(tmp_path)
    with Store("timed", connector, metrics=True, populate_target=False, register=True) as store:
        proxy = store.proxy([1])
        connector.hook = lambda: time.sleep(0.02)
        start = time.perf_counter()
        extract(proxy)
        assert store.metrics is not None
        assert 0.02 <= store.metrics["get"].seconds <= time.perf_counter() - start


def test_an_unregistered_store_is_opened_once_and_not_once_a_task(tmp_path):
    with Store("unregistered", Watched(tmp_path), populate_target=False) as store:
        tasks = [pickle.dumps(store.proxy([i])) for i in range(8)]
        unregister_store(store)  # as in a process that never opened it
        opened = Watched.opened
        barrier = threading.Barrier(8)

        def task(i: int) -> int:
            barrier.wait(30)
            return int(pickle.loads(tasks[i])[0])

        assert in_threads(8, task) == list(range(8))
        assert Watched.opened == opened + 1
        found = get_store(pickle.loads(tasks[0]))
        assert found is not None
        found.close()


def test_config_is_a_copy(store):
    for connector in (store.connector, MemoryConnector("a"), ShmConnector("test-store")):
        before = connector.config()
        connector.config().clear()
        assert connector.config() == before
        connector.close()
    config = store.config()
    config["connector"]["options"].clear()
    assert store.config()["connector"]["options"]


# -- Hidden resolves -----------------------------------------------------------------------------


def test_hash_and_isinstance_do_not_resolve(store):
    proxy: Any = store.proxy([1])
    assert [isinstance(proxy, kind) for kind in (list, dict, tuple, int)] == [True, False, False, False]
    assert hash(proxy) == hash(proxy)
    assert "list" in repr(proxy)
    assert not is_resolved(proxy)


def test_the_hash_of_what_has_none_is_no_error(store):
    unhashable: list[Any] = [[1], {"a": 1}, np.zeros(3), collections.deque()]
    for obj in unhashable:
        for proxy in (store.proxy(obj), store.proxy(obj, populate_target=True)):
            assert len({proxy, proxy}) == 1


@pytest.mark.parametrize("populated", [False, True])
def test_dill_takes_a_proxy_of_an_array_and_does_not_load_it(store, populated):
    data = dill.dumps(store.proxy(np.zeros(10_000), populate_target=populated))
    assert len(data) < 500
    proxy: Any = dill.loads(data)
    assert not is_resolved(proxy)
    assert not proxy.any()


# -- Costs ---------------------------------------------------------------------------------------


def test_a_pickled_proxy_is_small():
    with Store("a-name", ShmConnector("test-store")) as store:
        assert len(pickle.dumps(store.proxy(np.zeros(10)))) <= 200
        store.close(clear=True)


def test_importing_the_store_loads_no_library_for_data():
    heavy = ("numpy", "pandas", "polars", "pydantic")
    script = (
        f"import sys, proxystore_core.store; raise SystemExit(' '.join(sys.modules.keys() & {set(heavy)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_serialization_copies_nothing(store):
    array = np.ones(4_000_000)
    tracemalloc.start()
    try:
        store.evict(store.put(array))
        assert tracemalloc.get_traced_memory()[1] < array.nbytes / 20
    finally:
        tracemalloc.stop()


# -- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["{}", "user.{}", "/{}", "../{}", "user./../../{}", "../../{}.{}"])
def test_no_key_reads_or_deletes_another_file(tmp_path, shape):
    victim = tmp_path / "victim"
    victim.write_bytes(b"secret")
    connector = FileConnector(tmp_path / "store")
    connector.put([b"x"])
    for path in (str(victim), "victim", str(victim).lstrip("/")):
        key = shape.replace("{}", path)
        for ask in (connector.get, connector.exists, connector.evict):
            with pytest.raises(RefusedError):
                ask(key)
    assert victim.read_bytes() == b"secret"


def test_closing_one_store_leaves_the_objects_of_others(tmp_path):
    with Store("first", FileConnector(tmp_path / "store")) as first:
        key = first.put([1])
        Store("second", FileConnector(tmp_path / "store")).close()
        assert first.get(key) == [1]
        second = Store("second", FileConnector(tmp_path / "store"))
        second.put([2])
        second.close(clear=True)
        assert first.get(key) == [1]


def test_altered_bytes_are_noticed(store, tmp_path):
    key = store.put(np.arange(1000))
    (path,) = tmp_path.rglob(key.rpartition(".")[2])
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="checksum"):
        store.get(key)


def test_stored_files_are_the_user_s_own(store, tmp_path):
    store.put([1])
    paths = list((tmp_path / "store").rglob("*"))
    assert paths
    for path in [tmp_path / "store", *paths]:
        assert path.stat().st_mode & 0o077 == 0
