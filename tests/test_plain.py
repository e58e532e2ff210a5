"""Without pickle: what can be stored comes back the same, what cannot is named; nothing that is read runs."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from fractions import Fraction
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core import Store, plain
from proxystore_core.errors import ConfigurationError, CorruptError, RefusedError, SerializationError
from proxystore_core.frames import KIND_PLAIN, pack
from proxystore_core.futures import RemoteError
from proxystore_core.serialize import deserialize, serialize
from proxystore_integrations.settings import Settings


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise AssertionError("pickle was used")

    for module in (pickle, cloudpickle):
        for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fail)


def there_and_back(obj: Any) -> Any:
    data = bytearray(b"".join(serialize(obj, allow_pickle=False)))
    return deserialize(data, allow_pickle=False)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.binary().map(bytearray)
)
hashables = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
values = st.recursive(
    scalars | st.frozensets(hashables) | st.sets(hashables),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(hashables | st.tuples(hashables), inner)
    ),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    return bool(one == other)


@given(values)
def test_values_come_back_the_same(value: Any) -> None:
    assert same(there_and_back(value), value)


def test_long_text_odd_text_and_odd_numbers(no_pickle: None) -> None:
    for text in ("x" * 100_000, "\ud800 alone", "\ud800" * 5000, ""):
        assert there_and_back(text) == text
    assert math.isnan(there_and_back(math.nan))
    assert there_and_back([math.inf, -math.inf, -0.0, 10**300]) == [math.inf, -math.inf, 0.0, 10**300]


ARRAYS = [
    np.arange(24.0).reshape(2, 3, 4),
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.arange(24).reshape(4, 6)[::2, ::3],
    np.array(7),
    np.empty((0, 3), "f4"),
    np.zeros((2, 0)),
    np.array(["one", "three"]),
    np.array([b"x", b"yy"]),
    np.array(["2026-01-01", "NaT"], "M8[ns]"),
    np.array([1, 2], "m8[s]"),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array([1], ">i4"),
    np.zeros(3, [("a", "i4"), ("b", "f8", (2,)), ("c", [("d", "S3")])]),
    np.zeros(2, np.dtype({"names": ["a", "b"], "formats": ["i1", "i8"], "offsets": [0, 8], "itemsize": 24})),
    np.zeros(2, "V5"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_arrays_come_back_the_same(array: Any, no_pickle: None) -> None:
    found = there_and_back({"array": array})["array"]
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    assert found.flags.f_contiguous == np.asarray(array, order="K").flags.f_contiguous or array.size < 2
    assert found.flags.writeable == array.flags.writeable


SCALARS = [np.float32(1.5), np.int64(-1), np.bool_(True), np.str_("x"), np.datetime64("NaT")]


@pytest.mark.parametrize("scalar", SCALARS)
def test_scalars_come_back_the_same(scalar: Any, no_pickle: None) -> None:
    found = there_and_back(scalar)
    assert type(found) is type(scalar)
    assert found.tobytes() == scalar.tobytes()


def test_tables(no_pickle: None) -> None:
    table = pa.table({"a": [1, None, 3], "b": ["x", "y", None], "c": [[1], [], None]})
    assert there_and_back(table).equals(table)
    (batch,) = table.to_batches()
    found = there_and_back([batch])[0]
    assert type(found) is pa.RecordBatch
    assert found.equals(batch)
    empty = there_and_back(batch.slice(0, 0))
    assert type(empty) is pa.RecordBatch
    assert empty.equals(batch.slice(0, 0))
    assert empty.schema == batch.schema


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("obj", "named"),
    [
        (Plain(1), "Plain"),
        ([{"deep": (Fraction(1, 2),)}], "fractions.Fraction"),
        (lambda: 1, "function"),
        (np.array([object()]), "dtype object"),
        (np.array([1], [("a", "O")]), "dtype"),
        (np.ma.masked_array([1]), "MaskedArray"),
        (type("Number", (int,), {})(1), "Number"),
        (Path("x"), "Path"),
    ],
)
def test_what_cannot_be_stored_is_named(obj: Any, named: str, no_pickle: None) -> None:
    with pytest.raises(SerializationError, match=named):
        serialize(obj, allow_pickle=False)


def test_cycles_and_depths_end(no_pickle: None) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SerializationError, match="list"):
        serialize(loop, allow_pickle=False)
    deep = [b'["l",' * 100_000 + b"1" + b"]" * 100_000]
    with pytest.raises(CorruptError):
        deserialize(b"".join(pack(deep, kind=KIND_PLAIN)), allow_pickle=False)


def test_serializers_are_refused(no_pickle: None) -> None:
    custom = b"".join(serialize(1, serializer=lambda obj: b"1"))
    for action in (
        lambda: deserialize(custom, allow_pickle=False),
        lambda: deserialize(custom, deserializer=bytes, allow_pickle=False),
        lambda: serialize(1, serializer=lambda obj: b"1", allow_pickle=False),
    ):
        with pytest.raises(RefusedError, match="register_plain"):
            action()


def test_a_pickle_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = b"".join(serialize({1: Plain(2)}))
    monkeypatch.setattr(pickle, "loads", lambda *args, **options: pytest.fail("unpickled"))
    with pytest.raises(RefusedError, match=r"is a pickle.*allow_pickle = false"):
        deserialize(pickled, allow_pickle=False)


def test_registered_types(no_pickle: None) -> None:
    plain.register_plain(Plain, "test.Plain", vars, lambda told: Plain(told["value"]))
    try:
        found = there_and_back([Plain(np.arange(3))])[0]
        assert type(found) is Plain
        assert found.value.tolist() == [0, 1, 2]
        stored = bytearray(b"".join(serialize(Plain(1), allow_pickle=False)))
        wrong = pack([json.dumps(["x", "test.Plain", 3]).encode()], kind=KIND_PLAIN)
        with pytest.raises(SerializationError, match="cannot be rebuilt"):
            deserialize(b"".join(wrong))
    finally:
        del plain._registered[Plain], plain._named["test.Plain"]
    with pytest.raises(SerializationError, match=r"'test.Plain', which is not known here"):
        deserialize(stored)


TREES = [
    ["n", "|O", [1], "C"],
    ["n", [["a", "|O"]], [1], "C"],
    ["n", "<f8", [2], "C"],
    ["n", "<f8", [-1], "C"],
    ["n", "<f8", [1.0], "C"],
    ["n", "<f8", [2**70, 0], "C"],
    ["n", "<f8", 1, "C"],
    ["n", "<f8", [1], "K"],
    ["n", {"__class__": 1}, [1], "C"],
    ["g", "|O"],
    ["a"],
    ["r"],
    ["b"],
    ["d", 1],
    ["s", ["l"]],
    ["nothing"],
    [],
    [["l"]],
    {"a": 1},
    ["c", 1],
    ["x"],
]


@pytest.mark.parametrize("tree", TREES, ids=json.dumps)
@pytest.mark.parametrize("buffers", [[], [bytes(8), bytes(8)]])
def test_nonsense_is_corrupt(tree: Any, buffers: list[bytes]) -> None:
    with pytest.raises(CorruptError):
        deserialize(b"".join(pack([json.dumps(tree).encode()], buffers, kind=KIND_PLAIN)))


@pytest.fixture
def store() -> Iterator[Store[Any]]:
    with Store.from_url("memory://plain", name="plain", allow_pickle=False) as store:
        yield store
        store.close(clear=True)


def test_a_store(store: Store[Any], no_pickle: None) -> None:
    assert store.get(store.put({"a": np.arange(3)}))["a"].tolist() == [0, 1, 2]
    with pytest.raises(SerializationError, match=r"test_plain.Plain"):
        store.put(Plain(1))
    with Store.from_url("memory://plain", name="both", allow_pickle=True) as other:
        assert other.get(store.put((1, b"2"))) == (1, b"2")
    with Store.from_config(store.config()) as again:
        assert not again.allow_pickle


def test_a_recipe_names_no_function_that_is_called(store: Store[Any]) -> None:
    with Store.from_url("memory://plain", name="trap", allow_pickle=False) as trap:
        trap._deserializer = pickle.loads
        pickles: dict[str, Any] = {"serializer": pickle.dumps, "deserializer": pickle.loads}
        with Store("own", trap.connector, **pickles, allow_pickle=True) as own:
            key = own.put({"a": 1})
        with pytest.raises(RefusedError, match="register_plain"):
            trap.get(key)


def test_futures(store: Store[Any], no_pickle: None) -> None:
    done, failed, cancelled = store.future(), store.future(), store.future()
    done.set_result([1])
    failed.set_exception(ValueError("wrong"))
    assert cancelled.cancel()
    assert done.result() == [1]
    with pytest.raises(RemoteError, match="ValueError: wrong"):
        failed.result()
    with pytest.raises(CancelledError):
        cancelled.result()
    assert cancelled.cancelled()


def test_where_it_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.load().allow_pickle
    (tmp_path / "proxystore.toml").write_text("allow_pickle = false")
    assert not Settings.load().allow_pickle
    code = "from proxystore_core import Store; print(Store.from_url('memory://').allow_pickle)"
    for said, expected in ((None, b"False"), ("yes", b"True"), ("0", b"False")):
        environment = dict(os.environ) | ({} if said is None else {"PROXYSTORE_ALLOW_PICKLE": said})
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
        assert found.stdout.strip() == expected
    monkeypatch.setenv("PROXYSTORE_ALLOW_PICKLE", "maybe")
    for action in (Settings.load, lambda: Store.from_url("memory://")):
        with pytest.raises(ConfigurationError, match=r"'maybe'.*true or false"):
            action()
