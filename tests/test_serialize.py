"""Objects to buffers and back: exact types, no copies, typed errors."""

import collections
import copyreg
import dataclasses
import datetime as dt
import enum
import pickle
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import types

import cloudpickle
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxystore_core.errors import CorruptError, GoneError, SerializationError
from proxystore_core.frames import nbytes, pack
from proxystore_core.serialize import IN_BAND, deserialize, serialize

MB = 1 << 20
LARGE = 30_000  # elements: well out of band


class Text(str):  # noqa: SLOT000 - as people write it
    pass


class Data(bytes):
    pass


class Row(list[int]):
    pass


class Table(dict[str, int]):
    pass


class Colour(str, enum.Enum):  # noqa: UP042 - not the same as StrEnum
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


Point = collections.namedtuple("Point", ["x", "y"])  # noqa: PYI024


@dataclasses.dataclass
class Run:
    name: str
    values: list[int]


class Tagged(np.ndarray):
    """An array with an attribute, as the numpy manual has it."""

    def __array_finalize__(self, other):
        self.tag = getattr(other, "tag", None)

    def __reduce__(self):
        rebuild, args, state = tuple(super().__reduce__())
        return rebuild, args, (state, self.tag)

    def __setstate__(self, state):
        state, self.tag = state
        super().__setstate__(state)


class Fails:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return _fail, (self.error,)


def _fail(error):
    raise error


def stored(obj, **kwargs):
    return bytearray().join(serialize(obj, **kwargs))


def round_trip(obj, **kwargs):
    return deserialize(stored(obj, **kwargs))


@pytest.mark.parametrize(
    "obj",
    [
        None, 5, 2**100, 1.5, "text", "é" * 100_000, "a\ud800", b"", b"x" * 200_000,
        bytearray(b"y" * 200_000), (1, [2, {3: {4}}]), {"a": b"z" * 100_000}, frozenset("ab"), range(3),
        slice(1, 2), ..., NotImplemented, Text("t" * 100_000), Data(b"d" * 100_000), Row([1]), Table(a=1),
        Colour.RED, Level.LOW, Access.READ | Access.WRITE, Point(1, [2]), Run("a", [1]),
        collections.OrderedDict(b=1, a=2), dt.datetime(2026, 1, 2, tzinfo=dt.UTC), list(range(50_000)),
        np.float32(1.5), np.dtype("i4"),
    ],
    ids=lambda obj: type(obj).__name__,
)  # fmt: skip
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_exact_types_and_values(obj, compression):
    result = round_trip(obj, compression=compression, checksum=compression is None)
    assert type(result) is type(obj)
    assert result == obj


def test_enum_members_are_the_same_objects():
    assert round_trip([Colour.RED, Level.LOW]) == [Colour.RED, Level.LOW]
    assert round_trip(Colour.RED) is Colour.RED


def arrays():
    rng = np.random.default_rng(0)
    record = np.dtype([("a", "i4"), ("b", "f8", (2,)), ("s", "S3")])
    masked = np.ma.masked_array(rng.random(LARGE), rng.random(LARGE) > 0.5, fill_value=7.0)
    tagged = np.arange(LARGE).view(Tagged)
    tagged.tag = {"unit": "m"}
    return {
        "float": rng.random((100, 300)),
        "small": np.arange(3),
        "fortran": np.asfortranarray(rng.random((100, 300))),
        "small fortran": np.asfortranarray(rng.random((2, 3))),
        "strided": np.arange(2 * LARGE)[::2],
        "0-d": np.array(1.5),
        "empty": np.empty((0, 3), "f4"),
        "big endian": np.arange(LARGE, dtype=">i8"),
        "structured": np.zeros(LARGE, record),
        "recarray": np.zeros(LARGE, record).view(np.recarray),
        "datetime": np.arange(LARGE).astype("M8[ns]"),
        "timedelta": np.arange(LARGE).astype("m8[s]"),
        "object": np.array([1, "a", None, [2]], dtype=object),
        "text": np.array(["a", "bcd"] * 5000),
        "bool": np.arange(LARGE) % 2 == 0,
        "complex": np.ones(LARGE, complex),
        "half": np.ones(LARGE, np.float16),
        "masked": masked,
        "masked structured": np.ma.array(np.zeros(3, record), mask=np.array([(1, [0, 1], 0)] * 3, "?,2?,?")),
        "subclass": tagged,
        "metadata": np.zeros(LARGE, np.dtype("f8", metadata={"unit": "m"})),
    }


@pytest.mark.parametrize("name", arrays())
def test_arrays(name):
    array = arrays()[name]
    result = round_trip(array)
    assert type(result) is type(array)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert result.dtype.metadata == array.dtype.metadata
    assert result.flags.f_contiguous == array.flags.f_contiguous or name == "strided"
    assert result.flags.writeable
    np.testing.assert_array_equal(result, array)
    if isinstance(array, np.ma.MaskedArray):
        np.testing.assert_array_equal(result.mask, array.mask)
        np.testing.assert_array_equal(result.data, array.data)
        assert result.fill_value == array.fill_value
    if isinstance(array, Tagged):
        assert result.tag == array.tag


@pytest.mark.parametrize("length", [3, LARGE])
@pytest.mark.parametrize("source", [bytes, bytearray])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_arrays_come_back_as_writable_as_they_were(length, source, compression):
    free, fixed = np.zeros(length), np.zeros(length)
    fixed.flags.writeable = False
    data = source(stored([free, fixed], compression=compression))
    free_back, fixed_back = deserialize(data)
    assert (free_back.flags.writeable, fixed_back.flags.writeable) == (True, False)
    free_back += 1
    assert free.sum() == 0
    assert fixed_back.sum() == 0


def test_views_are_aligned_in_the_stored_object():
    data = stored([np.ones(LARGE), np.ones(LARGE, "i1"), np.ones(LARGE)])
    base = np.frombuffer(data, np.uint8).ctypes.data
    assert {(array.ctypes.data - base) % 64 for array in deserialize(data)} == {0}


def test_identity_inside_one_graph_is_kept():
    array, row = np.ones(LARGE), [1]
    first, second, (third, fourth) = round_trip([array, array, (row, row)])
    assert first is second
    assert third is fourth
    cycle: list[object] = [1]
    cycle.append(cycle)
    back = round_trip(cycle)
    assert back[1] is back


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": np.arange(LARGE), "b": np.linspace(0, 1, LARGE), "c": ["x", None, "z"] * 10_000}),
        pd.DataFrame({"d": pd.Categorical(["a", "b", "a"], ["b", "a"], ordered=True)}),
        pd.DataFrame({"e": pd.array([1, None, 3], "Int64"), "s": pd.array(["a", None, "c"], "string")}),
        pd.DataFrame({"t": pd.date_range("2026", periods=LARGE, tz="UTC", freq="s")}),
        pd.DataFrame({1: [1]}, index=pd.MultiIndex.from_tuples([("a", 1)], names=["x", None])),
    ],
)  # fmt: skip
def test_pandas_frames(frame):
    frame.attrs["origin"] = ["a"]
    result = round_trip(frame)
    pd.testing.assert_frame_equal(result, frame)
    assert result.attrs == frame.attrs
    result.iloc[0, 0] = result.iloc[-1, 0]


@pytest.mark.parametrize(
    "index",
    [
        pd.Index(["a", "b"], name="n"),
        pd.RangeIndex(5),
        pd.interval_range(0, 3),
        pd.period_range("2026", periods=3),
    ],
)
def test_pandas_series_and_indexes(index):
    series = pd.Series(range(len(index)), index=index, name="s", dtype="float32")
    result = round_trip([series, index])
    pd.testing.assert_series_equal(result[0], series)
    pd.testing.assert_index_equal(result[1], index, exact=True)


def test_polars():
    frame = pl.DataFrame(
        {"a": range(LARGE), "b": ["x", None, "z"] * (LARGE // 3), "c": [[1], [], [2, 3]] * (LARGE // 3)}
    )
    assert round_trip(frame).equals(frame)
    assert round_trip(frame).schema == frame.schema
    assert round_trip(frame["b"].cast(pl.Categorical)).dtype == pl.Categorical
    assert round_trip(frame.lazy().filter(pl.col("a") < 3)).collect().height == 3


def test_pyarrow_tables_are_views():
    table = pa.table({"a": np.arange(LARGE), "b": ["x", None, "zz"] * (LARGE // 3)}).replace_schema_metadata(
        {"k": "v"}
    )
    data = stored(table)
    result = deserialize(data)
    assert result.equals(table, check_metadata=True)
    start = np.frombuffer(data, np.uint8).ctypes.data
    assert start <= result["a"].chunk(0).buffers()[1].address < start + len(data)


def test_large_payloads_are_never_copied():
    """The buffers in the result are the object's own memory."""
    block, text, mutable, array = b"b" * MB, "t" * MB, bytearray(MB), np.zeros(MB)
    frames = serialize([block, mutable, array, text])
    assert any(frame is block for frame in frames)
    owners = [frame.obj for frame in frames if isinstance(frame, memoryview)]
    assert any(owner is mutable for owner in owners)
    addresses = [np.frombuffer(frame, np.uint8).ctypes.data for frame in frames if len(frame) >= MB]
    assert array.ctypes.data in addresses
    with pytest.raises(BufferError):
        mutable.append(0)  # or the header would lie about its length


def test_a_large_array_costs_no_memory_but_the_stored_copy():
    array = np.ones(256 * MB, np.uint8)
    tracemalloc.start()
    try:
        frames = serialize(array)
        assert tracemalloc.get_traced_memory()[1] < MB
        data = bytearray().join(frames)
        del frames
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = deserialize(data)
        assert tracemalloc.get_traced_memory()[1] - before < MB
    finally:
        tracemalloc.stop()
    result[-1] = 7
    assert data[-1] == 7


def test_small_buffers_travel_in_the_stream():
    assert len(serialize([np.zeros(IN_BAND // 8 - 1)] * 2 + [np.ones(3)] * 1000)) == 2


def test_many_arrays_keep_their_order():
    many = [np.full(IN_BAND // 8 + i, i) for i in range(500)]
    for i, array in enumerate(round_trip(many, checksum=True)):
        np.testing.assert_array_equal(array, many[i])


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=5000),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values, st.sampled_from([None, "lz4", "zstd"]), st.booleans())
def test_round_trip_of_any_plain_value(value, compression, checksum):
    assert round_trip(value, compression=compression, checksum=checksum) == value


def test_lambdas_closures_and_local_classes_travel():
    factor = np.full(LARGE, 3.0)

    class Local:
        def scaled(self, number):
            return factor * number

    assert round_trip(lambda number: number + 1)(1) == 2
    assert round_trip(Local().scaled)(2)[0] == 6.0
    assert any(len(frame) == factor.nbytes for frame in serialize(Local().scaled))  # still out of band


def test_modules_registered_by_value_travel_by_value(monkeypatch):
    module = types.ModuleType("only_here")
    exec("def double(x):\n    return 2 * x", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    cloudpickle.register_pickle_by_value(module)
    try:
        data = stored(module.double)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, "only_here")
    assert deserialize(data)(4) == 8


def test_what_main_defines_reaches_another_process(tmp_path):
    """One script stores what it defines itself; another, which has none of it, reads it."""
    writer = """
        import dataclasses, pathlib, sys
        from proxystore_core.serialize import serialize

        @dataclasses.dataclass
        class Job:
            name: str
            def shout(self):
                return helper(self.name)

        def helper(text):
            return text.upper()

        pathlib.Path(sys.argv[1]).write_bytes(b"".join(serialize([Job("train"), helper, b"x" * 300_000])))
    """
    reader = """
        import pathlib, sys
        from proxystore_core.serialize import deserialize

        job, function, payload = deserialize(pathlib.Path(sys.argv[1]).read_bytes())
        print(job.shout(), function("b"), len(payload))
    """
    for code in (writer, reader):
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(code))
        done = subprocess.run(
            [sys.executable, script, tmp_path / "data"], capture_output=True, text=True, check=True
        )
    assert done.stdout.split() == ["TRAIN", "B", "300000"]


def test_what_cannot_be_serialized_is_named():
    with pytest.raises(SerializationError, match=r"_thread\.lock.*cannot pickle") as caught:
        serialize(threading.Lock())
    assert isinstance(caught.value.__cause__, TypeError)


def test_an_object_that_refuses_is_named():
    class Refuses:
        def __reduce__(self):
            raise RuntimeError("not me")

    with pytest.raises(SerializationError, match=r"Refuses.*not me") as caught:
        serialize(Refuses())
    assert caught.value.__cause__ is not None


def test_a_missing_module_is_named(monkeypatch):
    module = types.ModuleType("not_installed")
    exec("class Thing:\n    pass", vars(module))
    monkeypatch.setitem(sys.modules, "not_installed", module)
    data = stored(module.Thing())
    monkeypatch.delattr(module, "Thing")
    with pytest.raises(SerializationError, match=r"(?s)Thing.*[Ss]ame version"):
        deserialize(data)
    monkeypatch.delitem(sys.modules, "not_installed")
    with pytest.raises(SerializationError, match=r"'not_installed'.*Install it") as caught:
        deserialize(data)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyError("no"), IndexError("no"), EOFError("no")])
def test_code_that_fails_while_reading_is_not_called_corrupt_when_the_checksum_holds(error):
    with pytest.raises(SerializationError, match="no") as caught:
        deserialize(stored(Fails(error), checksum=True))
    assert isinstance(caught.value.__cause__, type(error))


def test_errors_of_a_store_pass_as_they_are():
    with pytest.raises(GoneError, match="evicted"):
        deserialize(stored(Fails(GoneError("evicted"))))


@pytest.mark.parametrize(
    "stream", [b"", b"\x80\x05", b"garbage", b"0.", b"\x80\xff.", b"\x80\x05\x97.", b"."]
)
def test_a_stream_that_is_no_pickle_is_corrupt(stream):
    with pytest.raises((CorruptError, SerializationError)) as caught:
        deserialize(bytearray().join(pack([stream])))
    assert isinstance(caught.value, CorruptError) or stream in (b"garbage", b"\x80\xff.")


@given(st.data())
@settings(max_examples=200)
def test_damage_to_a_summed_object_is_always_corrupt(data):
    packed = stored({"a": [1, "b", np.arange(1000)]}, checksum=True)
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptError):
        deserialize(packed)


@given(st.data())
@settings(max_examples=200)
def test_truncated_or_random_bytes_are_corrupt(data):
    packed = stored(["a", {"b": 1.5}, b"c"], checksum=data.draw(st.booleans()))
    with pytest.raises(CorruptError):
        deserialize(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with pytest.raises(CorruptError):
        deserialize(data.draw(st.binary(max_size=100)))


def test_a_checksum_can_be_demanded():
    with pytest.raises(CorruptError, match="required"):
        deserialize(stored(1), checksum=True)
    assert deserialize(stored(1, checksum=True), checksum=True) == 1


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_custom_serializer_replaces_pickle(compression):
    text = "a" * 10_000
    data = stored(text, serializer=str.encode, compression=compression, checksum=True)
    assert deserialize(data, deserializer=lambda view: bytes(view).decode()) == text
    assert pickle.PROTO + b"\x05" not in data


def test_any_contiguous_buffer_is_good_enough_for_a_custom_serializer():
    array = np.arange(LARGE, dtype="f4")
    frames = serialize(array, serializer=lambda obj: obj)
    assert nbytes(frames) < array.nbytes + 100
    result = deserialize(b"".join(frames), deserializer=lambda view: np.frombuffer(view, "f4"))
    np.testing.assert_array_equal(result, array)


def test_a_custom_object_without_its_deserializer_says_so():
    with pytest.raises(SerializationError, match=r"custom serializer.*[Gg]ive the deserializer"):
        deserialize(stored("a", serializer=str.encode))


def test_failures_of_custom_code_are_chained():
    with pytest.raises(SerializationError, match="serializer failed") as caught:
        serialize("a", serializer=lambda obj: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(SerializationError, match="returns bytes"):
        serialize("a", serializer=lambda obj: obj)
    with pytest.raises(SerializationError, match=r"deserializer failed.*memoryview") as caught:
        deserialize(stored("a", serializer=str.encode), deserializer=lambda view: view.nothing)  # type: ignore[attr-defined]
    assert isinstance(caught.value.__cause__, AttributeError)


def test_libraries_are_not_loaded_without_need():
    code = "import sys, proxystore_core.serialize as s; s.deserialize(b''.join(s.serialize([1, lambda: 2])));"
    code += "print({'numpy', 'lz4', 'zstandard', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def tensors(torch):
    base = torch.arange(60_000.0)
    return {
        "float": base,
        "bfloat16": base.to(torch.bfloat16),
        "float8": base.to(torch.float8_e4m3fn),
        "bool": base > 5,
        "int": base.long().reshape(3, 4, 5, 1000),
        "complex": torch.complex(base, base),
        "transposed": base.reshape(200, 300).T,
        "channels last": base.reshape(1, 3, 100, 200).to(memory_format=torch.channels_last),
        "slice": base[100:20_000],
        "strided": base[::2],
        "expanded": torch.zeros(100).expand(300, 100),
        "conjugate": torch.complex(base, base).conj(),
        "empty": torch.zeros(0, 3),
        "0-d": torch.tensor(3),
        "grad": torch.ones(LARGE, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.ones(200, 200)),
        "frozen": torch.nn.Parameter(torch.ones(200, 200), requires_grad=False),
    }


@pytest.mark.parametrize("name", [
    "float", "bfloat16", "float8", "bool", "int", "complex", "transposed", "channels last", "slice",
    "strided", "expanded", "conjugate", "empty", "0-d", "grad", "parameter", "frozen",
])  # fmt: skip
def test_tensors(name):
    torch = pytest.importorskip("torch")
    tensor = tensors(torch)[name]
    result = round_trip(tensor)
    assert type(result) is type(tensor)
    assert (result.dtype, result.shape, result.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    assert result.requires_grad == tensor.requires_grad
    assert torch.equal(result.to(torch.complex64), tensor.to(torch.complex64))


def test_tensors_are_not_copied_and_are_private():
    torch = pytest.importorskip("torch")
    tensor = torch.ones(MB)
    frames = serialize({"weights": tensor})
    assert tensor.data_ptr() in [np.frombuffer(frame, np.uint8).ctypes.data for frame in frames]
    result = deserialize(b"".join(frames))["weights"]
    result += 1
    assert (tensor.sum(), result.sum()) == (MB, 2 * MB)


def test_a_model_learns_on_after_the_journey():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Tanh(), torch.nn.Linear(100, 1))
    result = round_trip([model, model[0].weight])
    assert result[0][0].weight is result[1]
    result[0](torch.ones(1, 100)).sum().backward()
    torch.optim.SGD(result[0].parameters(), lr=0.1).step()
    assert not torch.equal(result[1], model[0].weight)


def test_an_array_of_a_kind_that_was_seen_before() -> None:
    np = pytest.importorskip("numpy")

    def joined(array: object) -> bytes:
        return b"".join(map(bytes, serialize(array)))

    base = np.arange(20_000, dtype="f8").reshape(100, 200)
    for array in (base, base.T, base[::2], base.astype(">f8"), base.astype("c16"), base > 3, base[:, :150]):
        fixed = array.copy(order="K")
        fixed.flags.writeable = False
        for one in (array, fixed):
            first = joined(one)
            assert joined(one) == first
            other = one + one.dtype.type(1) if one.dtype.kind != "b" else ~one
            for value in (one, other, one):
                found = deserialize(bytearray(joined(value)))
                assert found.dtype == value.dtype
                assert found.shape == value.shape
                assert found.flags.writeable == value.flags.writeable
                assert found.flags.f_contiguous == value.flags.f_contiguous
                assert (found == value).all()
    noted = np.dtype("f8", metadata={"unit": "m"})
    assert deserialize(bytearray(joined(base.astype(noted)))).dtype.metadata == {"unit": "m"}
    assert deserialize(bytearray(joined(base))).dtype.metadata is None


def test_arrays_that_somebody_pickles_in_a_way_of_his_own(monkeypatch) -> None:
    array = np.arange(20_000.0)
    serialize(array)  # so that one of this kind has been seen
    monkeypatch.setitem(copyreg.dispatch_table, np.ndarray, _marked)
    for number in (1.0, 2.0):  # what stands before the bytes is another thing each time
        array[0] = number
        assert deserialize(b"".join(serialize(array))) == ("marked", number)


def _marked(array):
    return _unmarked, ("marked", float(array[0]), pickle.PickleBuffer(array))


def _unmarked(name, number, buffer):
    return name, number


def test_what_is_remembered_of_arrays_may_go_at_any_time(monkeypatch) -> None:
    class Cleared(dict[object, bytes]):
        def __setitem__(self, known, before):  # and then another thread finds it full
            super().__setitem__(known, before)
            self.clear()

    monkeypatch.setattr("proxystore_core.serialize._before", Cleared())
    array = np.arange(20_000.0)
    for _ in range(2):
        assert (deserialize(b"".join(serialize(array))) == array).all()


def test_more_kinds_of_arrays_than_are_remembered() -> None:
    for size in [*range(IN_BAND, IN_BAND + 600), IN_BAND]:
        array = np.full(size, size % 251, dtype="u1")
        assert (deserialize(b"".join(serialize(array))) == array).all()
