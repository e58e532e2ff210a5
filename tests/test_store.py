"""Store: objects in and out, by key and by proxy, from any thread and any process."""

from __future__ import annotations

import json
import marshal
import os
import pickle
import secrets
import subprocess
import sys
import textwrap
import threading
import tomllib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from proxystore_core.connectors import memory
from proxystore_core.connectors.base import USER_SESSION, Buffer, Key, leased
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    GoneError,
    RefusedError,
    SerializationError,
    StoreError,
    UnreachableError,
)
from proxystore_core.proxy import Proxy, ProxyLocker, extract, is_resolved, resolve, resolve_async
from proxystore_core.recipe import Recipe
from proxystore_core.reference import Reference
from proxystore_core.registry import store_for
from proxystore_core.store import NotProxiableError, Store, get_key, get_store


@pytest.fixture(params=["memory", "file", "shm"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/store" if request.param == "file" else f"{request.param}://test-store"


@pytest.fixture
def store(url: str):
    with Store.from_url(url, name="test", register=True) as store:
        yield store
        store.close(clear=True)


@pytest.fixture
def file_store(tmp_path: Path):
    with Store("files", FileConnector(tmp_path / "store"), register=True) as store:
        yield store


@pytest.fixture(params=["file", "shm"])
def shared_store(request: pytest.FixtureRequest, tmp_path: Path):
    """A store that other processes reach."""
    url = f"file://{tmp_path}/store" if request.param == "file" else "shm://test-store"
    with Store.from_url(url, name="shared", register=True) as store:
        yield store
        store.close(clear=True)


def elsewhere(code: str, given: Any = None) -> Any:
    """Run code in a new process, which has ``given`` and prints its ``answer`` (plain values only)."""
    script = "import json, pickle, sys\ngiven = pickle.load(sys.stdin.buffer)\n"
    script += textwrap.dedent(code) + "\nprint(json.dumps(answer))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(given),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


def shout(obj: Any) -> bytes:
    return repr(obj).upper().encode()


def whisper(data: Buffer) -> str:
    return bytes(data).decode().lower()


class Gated(FileConnector):
    """Files whose `get` runs a hook first and says how often it was asked."""

    schemes: ClassVar[tuple[str, ...]] = ("gated",)

    def __init__(self, store_dir: str | os.PathLike[str]) -> None:
        super().__init__(store_dir)
        self.gets = 0
        self.hook: Callable[[], Any] = lambda: None

    def get(self, key: Key) -> Buffer | None:
        self.gets += 1
        self.hook()
        return super().get(key)


@pytest.fixture
def gated(tmp_path: Path):
    with Store("gated", Gated(tmp_path / "gated"), register=True) as store:
        yield store


def fresh(proxy: Any) -> Any:
    """The proxy as another process gets it: not resolved."""
    return pickle.loads(pickle.dumps(proxy))


# -- By key --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "obj",
    [None, True, 0, "text", b"", b"bytes" * 9999, [1, [2]], {"k": {"nested"}}, OrderedDict(a=1), range(9)],
    ids=lambda obj: repr(obj)[:12],
)
def test_put_and_get(store, obj):
    key = store.put(obj)
    assert isinstance(key, str)
    got = store.get(key)
    assert got == obj
    assert type(got) is type(obj)


@pytest.mark.parametrize("size", [0, 10, 10_000, 3_000_000])
def test_arrays_come_back_writable_and_private(store, size):
    key = store.put(np.arange(size))
    for _ in range(2):
        got = store.get(key)
        np.testing.assert_array_equal(got, np.arange(size))
        got += 1


def test_the_bytes_are_taken_at_put(store):
    array = np.zeros(300_000)
    key = store.put(array)
    array[:] = 1
    assert not store.get(key).any()


def test_every_put_is_an_object_of_its_own(store):
    first, second = store.put("same"), store.put("same")
    assert first != second
    store.evict(first)
    assert store.get(second) == "same"


def test_exists_evict_and_default(store):
    key = store.put([1])
    assert store.exists(key)
    assert store.get(key, "default") == [1]
    store.evict(key)
    store.evict(key)
    assert not store.exists(key)
    assert store.get(key) is None
    assert store.get(key, "default") == "default"
    assert store.get(key, default="default") == "default"


def test_batches(store):
    keys = store.put_batch(i * 1000 for i in range(20))
    assert len(set(keys)) == 20
    store.evict(keys[3])
    expected = [i * 1000 for i in range(20)]
    expected[3] = -1
    assert store.get_batch(keys, -1) == expected
    assert store.put_batch([]) == store.get_batch([]) == []


def test_keys_of_another_shape_are_refused(store):
    for ask in (store.get, store.exists, store.evict):
        with pytest.raises(StoreError) as caught:
            ask("/etc/passwd")
        assert isinstance(caught.value, RefusedError | UnreachableError)
        assert "/etc/passwd" in str(caught.value)


@pytest.mark.parametrize("batch", ["put_batch", "proxy_batch", "reference_batch"])
def test_a_batch_is_stored_whole_or_not_at_all(file_store, tmp_path, batch):
    with pytest.raises(SerializationError):
        getattr(file_store, batch)([*range(20), threading.Lock(), *range(20)])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_sessions(store):
    kept = store.put("kept")
    gone = [store.put("a", session="one-run"), *store.put_batch(["b", "c"], session="one-run")]
    gone += [get_key(store.proxy("d", session="one-run"))]
    gone += map(get_key, store.proxy_batch(["e", "f"], session="one-run"))
    gone += [get_key(store.locked_proxy("g", session="one-run").unlock())]
    assert store.connector.end("one-run") == 7
    assert [store.exists(key) for key in gone] == [False] * 7
    assert store.get(kept) == "kept"


def test_the_session_of_a_store(url):
    with Store.from_url(url, name="mine", session="my-run") as store:
        key = store.put(1)
        keeper = leased(store.connector)
        assert keeper is not None
        assert keeper.end("my-run") == 1
        assert not store.exists(key)
        key = store.put(1, session=USER_SESSION)
        assert keeper.end("my-run") == 0
        store.evict(key)


# -- By proxy ------------------------------------------------------------------------------------


def test_a_populated_proxy_is_the_object_itself(store):
    obj = {"k": [1]}
    proxy = store.proxy(obj)
    assert isinstance(proxy, Proxy)
    assert is_resolved(proxy)
    assert extract(proxy) is obj
    assert store.exists(get_key(proxy))


def test_populate_target(url):
    with Store.from_url(url, name="lazy", populate_target=False) as store:
        assert not is_resolved(store.proxy("x"))
        assert is_resolved(store.proxy("x", populate_target=True))
        assert [is_resolved(p) for p in store.proxy_batch(["x", "y"])] == [False, False]
        assert [is_resolved(p) for p in store.proxy_batch(["x"], populate_target=True)] == [True]
        store.populate_target = True
        assert not is_resolved(store.proxy("x", populate_target=False))
        store.close(clear=True)


def test_proxy_of_a_proxy_is_the_same_proxy(store):
    proxy = store.proxy([1], populate_target=False)
    assert store.proxy(proxy) is proxy
    assert not is_resolved(proxy)


@pytest.mark.parametrize("obj", [None, True, False])
def test_what_cannot_be_proxied(store, obj):
    with pytest.raises(NotProxiableError, match=f"{obj} cannot be proxied"):
        store.proxy(obj)
    with pytest.raises(NotProxiableError):
        store.locked_proxy(obj)


def test_a_batch_with_what_cannot_be_proxied_stores_nothing(file_store, tmp_path):
    with pytest.raises(NotProxiableError):
        file_store.proxy_batch(["stored?", None])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_proxies_resolve_lazily_and_know_their_class(gated):
    proxy = fresh(gated.proxy(np.arange(5)))
    assert isinstance(proxy, np.ndarray)
    assert not isinstance(proxy, list)
    assert "numpy.ndarray" in repr(proxy)
    hash(proxy)
    assert gated.connector.gets == 0
    assert proxy.sum() == 10
    assert proxy[1] == 1
    assert gated.connector.gets == 1


def test_proxies_by_key(store):
    key = store.put([1, 2])
    proxy = store.proxy_from_key(key)
    assert not is_resolved(proxy)
    assert get_key(proxy) == key
    assert proxy == [1, 2]
    lost = store.proxy_from_key(store.put(0), evict=True)
    resolve(lost)
    assert not store.exists(get_key(lost))


def test_a_proxy_by_key_is_asked_for_its_class(store):
    key = store.put([1, 2])
    assert isinstance(store.proxy_from_key(key), list)
    assert isinstance(fresh(store.proxy_from_key(key)), list)
    assert not isinstance(store.proxy_from_key(key), dict)
    proxy = store.proxy_from_key(key)
    assert repr(proxy)
    assert len({proxy, proxy}) == 1
    assert pickle.dumps(proxy)
    assert not is_resolved(proxy)


def test_evicting_proxies(store):
    proxy = store.proxy([1], evict=True, populate_target=False)
    key = get_key(proxy)
    assert store.exists(key)
    assert proxy == [1]
    assert not store.exists(key)
    assert proxy == [1]


def test_a_populated_evicting_proxy_leaves_the_object_to_who_loads_it(store):
    proxy = store.proxy([1], evict=True)
    assert proxy == [1]
    assert store.exists(get_key(proxy))
    assert fresh(proxy) == [1]
    assert not store.exists(get_key(proxy))


def test_locked_proxies(store):
    locked = store.locked_proxy([1], evict=True)
    assert type(locked) is ProxyLocker
    proxy = locked.unlock()
    assert not is_resolved(proxy)
    assert extract(proxy) == [1]
    assert not store.exists(get_key(proxy))


def test_proxy_batch(store):
    proxies = store.proxy_batch([[i] for i in range(5)], evict=True, populate_target=False)
    assert [extract(p) for p in proxies] == [[i] for i in range(5)]
    assert not any(store.exists(get_key(p)) for p in proxies)


def test_proxies_in_a_batch_stay_as_they_are(store):
    proxy = store.proxy([0], populate_target=False)
    batch = store.proxy_batch([[1], proxy, [2]])
    assert batch[1] is proxy
    assert [extract(p) for p in batch] == [[1], [0], [2]]


def test_references(store):
    reference = store.reference(np.zeros(1000))
    assert reference.kind == "numpy:ndarray"
    assert 8000 <= reference.size < 8500
    assert store.load(reference).shape == (1000,)
    assert [a.shape for a in store.load_batch([reference] * 3)] == [(1000,)] * 3


async def _awaited(proxy: Proxy[Any]) -> Any:
    return await proxy, await resolve_async(proxy)


def test_await(store):
    import asyncio

    assert asyncio.run(_awaited(store.proxy([1], populate_target=False))) == ([1], [1])


# -- Threads -------------------------------------------------------------------------------------


def in_threads(count: int, function: Any) -> list[Any]:
    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(function, range(count)))


@pytest.mark.parametrize("ask", ["get", "resolve"])
def test_different_keys_load_side_by_side(gated, ask):
    """No lock is held over the connector: none of 8 loads passes before all 8 are inside."""
    proxies = gated.proxy_batch([[i] for i in range(8)], populate_target=False)
    barrier = threading.Barrier(8)
    gated.connector.hook = lambda: barrier.wait(30)
    if ask == "get":
        got = in_threads(8, lambda i: gated.get(get_key(proxies[i])))
    else:
        got = in_threads(8, lambda i: extract(proxies[i]))
    assert got == [[i] for i in range(8)]


def test_a_batch_loads_side_by_side(gated):
    keys = gated.put_batch(range(4))
    barrier = threading.Barrier(4)
    gated.connector.hook = lambda: barrier.wait(30)
    assert gated.get_batch(keys) == [0, 1, 2, 3]


class _Resolving:
    """Decoding it waits until all threads decode."""

    barrier: ClassVar[threading.Barrier]

    def __reduce__(self) -> Any:
        return _meet, ()


def _meet() -> str:
    _Resolving.barrier.wait(30)
    return "met"


def test_decoding_goes_side_by_side(store):
    keys = [store.put(_Resolving()) for _ in range(4)]
    _Resolving.barrier = threading.Barrier(4)
    assert in_threads(4, lambda i: store.get(keys[i])) == ["met"] * 4


def test_one_flight_per_key(gated):
    proxy = gated.proxy(np.zeros(1000))
    copies = [fresh(proxy) for _ in range(8)]
    started, go = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert go.wait(30)

    gated.connector.hook = hold
    with ThreadPoolExecutor(8) as executor:
        leader = executor.submit(extract, copies[0])
        assert started.wait(30)
        others = [executor.submit(extract, copy) for copy in copies[1:]]
        go.set()
        arrays = [future.result() for future in [leader, *others]]
    assert gated.connector.gets == 1
    for i in range(8):
        arrays[i] += i
    assert [array[0] for array in arrays] == list(range(8))


def test_big_objects_in_threads_are_each_reader_s_own(gated):
    key = gated.put(np.zeros(5_000_000))
    arrays = in_threads(3, lambda i: gated.get(key))
    assert not gated.is_cached(key)
    for i in range(3):
        arrays[i] += 1
    assert [array[-1] for array in arrays] == [1, 1, 1]


def test_one_proxy_loads_once(gated):
    proxy = gated.proxy([1], evict=True, populate_target=False)
    barrier = threading.Barrier(8)

    def ask(_: int) -> Any:
        barrier.wait(30)
        return extract(proxy)

    answers = in_threads(8, ask)
    assert all(answer is answers[0] for answer in answers)
    assert gated.connector.gets == 1


# -- The cache -----------------------------------------------------------------------------------


def test_is_cached(gated):
    key = gated.put([1])
    assert not gated.is_cached(key)
    gated.get(key)
    assert gated.is_cached(key)
    assert gated.get(key) == [1]
    assert gated.connector.gets == 1
    gated.evict(key)
    assert not gated.is_cached(key)
    assert gated.get(key) is None


def test_shared_memory_needs_no_cache():
    with Store.from_url("shm://test-store") as store:
        key = store.put([1])
        assert store.get(key) == [1]
        assert not store.is_cached(key)
        store.evict(key)


def test_what_the_cache_gives_is_nobody_else_s(gated):
    key = gated.put({"list": [1], "array": np.zeros(1000), "bytes": bytearray(9999)})
    for _ in range(3):
        got = gated.get(key)
        assert got["list"] == [1]
        assert not got["array"].any()
        assert not any(got["bytes"])
        got["list"].append(2)
        got["array"] += 1
        got["bytes"][0] = 1
    assert gated.connector.gets == 1


def test_cache_size(tmp_path):
    with Store("none", Gated(tmp_path), cache_size=0) as store:
        key = store.put(1)
        assert store.get_batch([key]) == store.get_batch([key]) == [1]
        assert store.connector.gets == 2
    with Store("small", Gated(tmp_path), cache_size=80_000) as store:
        keys = store.put_batch(bytes(8000) for _ in range(20))
        store.get_batch(keys)
        assert 5 <= sum(map(store.is_cached, keys)) < 10
        big = store.put(bytes(20_000))
        store.get(big)
        assert not store.is_cached(big)


@pytest.mark.parametrize("size", [-1, 1.5, "1 MB", None])
def test_bad_cache_size(size):
    with pytest.raises(ConfigurationError, match=r"cache_size is .*: expected bytes"):
        Store("bad", MemoryConnector(), cache_size=size)


# -- Serializers and compression -----------------------------------------------------------------


def test_own_serializer(url):
    with Store.from_url(url, name="own", serializer=shout, deserializer=whisper, register=True) as store:
        proxy = fresh(store.proxy(["Abc"]))
        assert extract(proxy) == "['abc']"
        assert store.get(get_key(proxy)) == "['abc']"
        store.close(clear=True)


def test_serializer_of_one_call(store):
    key = store.put("Abc", serializer=shout)
    assert store.get(key, deserializer=whisper) == "'abc'"
    with pytest.raises(SerializationError, match="no deserializer is given"):
        store.get(key)


def test_serializers_that_others_cannot_find():
    def nested(obj: Any) -> bytes:
        return b""

    for function in (lambda obj: b"", nested):
        with pytest.raises(ConfigurationError, match="cannot be found by other processes"):
            Store("bad", MemoryConnector(), serializer=function, deserializer=whisper)
    with pytest.raises(ConfigurationError, match="or neither of them"):
        Store("bad", MemoryConnector(), serializer=shout)


def test_own_serializer_in_another_process(shared_store):
    with Store("own", shared_store.connector, serializer=marshal.dumps, deserializer=marshal.loads) as store:
        proxy = store.proxy({"k": (1, 2.5)})
        answer = elsewhere("answer = [type(given).__name__, given['k'][1], isinstance(given, dict)]", proxy)
        assert answer == ["Proxy", 2.5, True]


def test_serializer_whose_module_is_not_loaded(shared_store, monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    reference = Reference(
        shared_store.put(1), str(Recipe(shared_store.connector.url, serializer="colorsys:a"))
    )
    with pytest.raises(ConfigurationError, match=r"Import colorsys in this process first"):
        reference()
    assert "colorsys" not in sys.modules


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compression(url, codec):
    with Store.from_url(url, name="small", compression=codec, register=True) as store:
        array = np.zeros(1_000_000)
        reference = store.reference(array)
        assert reference.size < array.nbytes / 20
        got = extract(pickle.loads(pickle.dumps(Proxy(reference))))
        np.testing.assert_array_equal(got, array)
        got += 1
        store.close(clear=True)


def test_unknown_compression():
    with pytest.raises(ConfigurationError, match="lzma"):
        Store("bad", MemoryConnector(), compression="lzma")


def test_what_cannot_be_serialized(store):
    with pytest.raises(SerializationError, match="lock"):
        store.put(threading.Lock())


# -- Configuration and life ----------------------------------------------------------------------


def toml(table: dict[str, Any], path: str = "") -> str:
    plain = {k: v for k, v in table.items() if not isinstance(v, dict)}
    text = f"[{path}]\n" if path else ""
    text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items())
    tables = {k: v for k, v in table.items() if isinstance(v, dict)}
    return text + "".join(toml(v, f"{path}.{k}".strip(".")) for k, v in tables.items())


@pytest.mark.parametrize(
    ("dumps", "loads"), [(json.dumps, json.loads), (toml, tomllib.loads)], ids=["json", "toml"]
)
def test_config_round_trip(url, dumps, loads):
    options = {
        "cache_size": 1234,
        "compression": "lz4",
        "metrics": True,
        "populate_target": False,
        "serializer": marshal.dumps,
        "deserializer": marshal.loads,
        "session": "my-run",
    }
    with Store.from_url(url, name="Näme & #1", **options) as store:
        config = loads(dumps(store.config()))
        with Store.from_config(config) as again:
            assert again.config() == store.config() == config
            assert again.recipe == store.recipe
            assert again.name == "Näme & #1"
            assert again.cache_size == 1234
            assert again.metrics is not None
            assert again.session == "my-run"
            key = store.put([1])
            assert again.get(key) == [1]
            again.connector.end("my-run")  # type: ignore[attr-defined]


def test_config_in_another_process(shared_store):
    with Store("own", shared_store.connector, serializer=marshal.dumps, deserializer=marshal.loads) as store:
        answer = elsewhere(
            """
            from proxystore_core import Store
            config, key = given
            with Store.from_config(config) as store:
                answer = store.get(key)
            """,
            (store.config(), store.put([1, 2])),
        )
        assert answer == [1, 2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": None}, "lacks 'name'"),
        ({"connector": None}, "lacks 'connector'"),
        ({"connector": {}}, "lacks 'kind'"),
        ({"connector": "memory"}, "configuration is wrong"),
        ({"connector": {"kind": "memry"}}, "did you mean 'memory'"),
        ({"connector": {"kind": "memory", "options": {"host": "x"}}}, "host"),
        ({"cache": 1}, "cache"),
        ({"serializer": "marshal:nothing", "deserializer": "marshal:loads"}, "marshal:nothing"),
        ({"serializer": "no_such_module:f", "deserializer": "marshal:loads"}, "cannot be imported"),
        ({"serializer": "", "deserializer": "marshal:loads"}, "expected 'module:function'"),
        ({"compression": "rar"}, "rar"),
    ],
)
def test_bad_config(change, problem):
    config = {"name": "n", "connector": {"kind": "memory"}, **change}
    with pytest.raises(ConfigurationError, match=problem):
        Store.from_config({key: value for key, value in config.items() if value is not None})


def test_close():
    store = Store("closing", MemoryConnector("closing"), register=True)
    assert get_store("closing") is store
    store.close()
    store.close()
    assert get_store("closing") is None


def test_clear_evicts_what_this_store_put_for_nobody_s_session(shared_store):
    other: Any = Store.from_config(shared_store.config())
    mine, theirs, run = shared_store.put(1), other.put(2), shared_store.put(3, session="one-run")
    shared_store.close(clear=True)
    assert [other.exists(key) for key in (mine, theirs, run)] == [False, True, True]
    assert other.connector.end("one-run") == 1
    other.close(clear=True)


def test_context_manager_closes_after_an_error():
    with pytest.raises(ZeroDivisionError), Store("failing", MemoryConnector(), register=True):
        1 / 0  # noqa: B018
    assert get_store("failing") is None


def test_names_that_need_quoting(url):
    name = "a&b#c/d e=ü%41"
    with Store.from_url(url, name=name) as store:
        assert Recipe.parse(store.recipe).name == name
        proxy = store.proxy([1])
        assert fresh(proxy) == [1]
        opened = get_store(proxy)
        assert opened is not None
        assert opened.name == name
        opened.close()
        store.close(clear=True)


def test_paths_that_need_quoting(tmp_path):
    with Store("odd", FileConnector(tmp_path / "a b#c?d&e=%41ü"), populate_target=False) as store:
        assert fresh(store.proxy([1])) == [1]
        opened = get_store(store.proxy([1]))
        assert opened is not None
        assert opened.connector.config() == store.connector.config()
        opened.close()


def test_metrics(tmp_path):
    with Store("counted", FileConnector(tmp_path / "store"), metrics=True) as store:
        key = store.put(bytes(10_000))
        store.get(key)
        store.get(key)
        store.exists(key)
        store.evict(key)
        assert store.metrics is not None
        counts = {name: one.count for name, one in store.metrics.as_dict().items()}
        assert counts == {"serialize": 1, "put": 1, "get": 1, "deserialize": 2, "exists": 1, "evict": 1}
        assert store.metrics["put"].nbytes == store.metrics["get"].nbytes > 10_000
    assert Store("quiet", MemoryConnector()).metrics is None


def test_the_readme_of_the_design():
    class MyDataType(dict[str, int]):
        pass

    def my_function(x: Any) -> int:
        assert isinstance(x, MyDataType)
        return x["a"]

    data = MyDataType(a=1)
    with Store("example", connector=MemoryConnector(), register=True) as store:
        proxy = store.proxy(data)
        assert isinstance(proxy, Proxy)
        assert my_function(proxy) == 1
        assert get_store("example") is store


# -- Other processes -----------------------------------------------------------------------------


def test_pickled_proxies_are_small_and_loading_them_opens_nothing():
    with Store.from_url("shm://test-store", name="a-store-with-a-name") as store:
        data = pickle.dumps(store.proxy(np.zeros(100_000)))
        assert len(data) <= 200
        answer = elsewhere(
            """
            from proxystore_core import is_resolved, registry
            proxy = pickle.loads(given)
            loaded = [name for name in sys.modules if name.startswith("proxystore_core.connectors.")]
            answer = [is_resolved(proxy), len(registry._by_recipe), "numpy" in sys.modules]
            answer += [sorted(loaded)]
            """,
            data,
        )
        assert answer == [False, 0, False, ["proxystore_core.connectors.base"]]
        store.close(clear=True)


def test_a_process_opens_the_store_of_its_proxies_once(shared_store):
    arrays = [np.full(200_000, i) for i in range(8)]
    answer = elsewhere(
        """
        from concurrent.futures import ThreadPoolExecutor
        from proxystore_core import get_store, recipe
        kind = recipe.connector_class(given[0].partition(":")[0])
        opened = []
        init = kind.__init__
        kind.__init__ = lambda self, *a, **k: (opened.append(self), init(self, *a, **k))[1]
        with ThreadPoolExecutor(8) as executor:
            sums = list(executor.map(lambda p: int(p.sum()), given[1]))
        stores = {id(get_store(proxy)) for proxy in given[1]}
        answer = [sums, len(opened), len(stores), get_store("shared") is get_store(given[1][0])]
        """,
        (shared_store.connector.url, shared_store.proxy_batch(arrays)),
    )
    assert answer == [[200_000 * i for i in range(8)], 1, 1, True]


def test_what_another_process_stores(shared_store):
    answer = elsewhere(
        """
        from proxystore_core import get_key, get_store
        store = get_store(given)
        answer = store.put({"seen": given[0]})
        given[0] = 2
        """,
        shared_store.proxy([1]),
    )
    assert shared_store.get(answer) == {"seen": 1}
    shared_store.evict(answer)


def test_a_class_that_is_not_loaded_is_not_imported_because_a_proxy_says_so(shared_store):
    import fractions

    answer = elsewhere(
        """
        from proxystore_core import Proxy, is_resolved
        before = [isinstance(given, int), is_resolved(given), "fractions" in sys.modules]
        half = given + 0 == 0.5
        answer = [*before, half, isinstance(given, sys.modules["fractions"].Fraction)]
        """,
        shared_store.proxy(fractions.Fraction(1, 2)),
    )
    assert answer == [False, False, False, True, True]


def test_after_a_fork(shared_store):
    answer = elsewhere(
        """
        import os
        from proxystore_core import get_store
        parent_says = int(given[0].sum())
        store = get_store(given[0])
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                key = store.put("from the child")
                says = [int(given[1].sum()), store.get(key)]
                os.write(write, json.dumps(says).encode())
                store.evict(key)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        answer = [parent_says, *json.loads(os.read(read, 999)), int(given[1].sum())]
        """,
        shared_store.proxy_batch([np.ones(1000), np.ones(2000)]),
    )
    assert answer == [1000, 2000, "from the child", 2000]


def test_a_fork_that_ends_takes_nothing_along(shared_store):
    key = shared_store.put([1])
    answer = elsewhere(
        """
        import os
        from proxystore_core import Store
        store = Store.from_config(given[0])
        key = store.put(2)
        child = os.fork()
        if not child:
            sys.exit()
        os.waitpid(child, 0)
        answer = [store.get(given[1]), store.get(key)]
        store.evict(key)
        """,
        (shared_store.config(), key),
    )
    assert answer == [[1], 2]


MEASURE = """
import gc, tracemalloc
import numpy as np
from proxystore_core import Store

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":")) * 1024

def peak(function):
    "Result, and bytes of resident memory at the worst moment beyond those before."
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("RssAnon") + status("RssFile")
    result = function()
    return result, status("VmHWM") - before - status("RssShmem")

store = Store.from_url(given)
store.evict(store.put(bytes(2_000_000)))
array = np.ones(256_000_000 // 8)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measures as Linux allows")
def test_putting_an_array_costs_nothing_beyond_its_stored_copy(shared_store):
    extra, traced = elsewhere(
        MEASURE
        + textwrap.dedent(
            """
            key, extra = peak(lambda: store.put(array))
            store.evict(key)
            tracemalloc.start()
            store.evict(store.put(array))
            answer = [extra, tracemalloc.get_traced_memory()[1]]
            store.close(clear=True)
            """
        ),
        shared_store.connector.url,
    )
    assert extra < 5_000_000
    assert traced < 5_000_000


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measures as Linux allows")
def test_getting_a_big_array_holds_it_once(shared_store):
    extra = elsewhere(
        MEASURE
        + textwrap.dedent(
            """
            key = store.put(array)
            size = array.nbytes
            del array
            got, answer = peak(lambda: store.get(key))
            assert got[0] == got[-1] == 1
            answer -= size
            store.evict(key)
            store.close(clear=True)
            """
        ),
        shared_store.connector.url,
    )
    assert extra < 5_000_000


# -- Errors --------------------------------------------------------------------------------------


def check(error: StoreError, store: str, key: Key) -> None:
    """The error names everything and survives a process boundary."""
    assert error.store is not None
    assert store in error.store
    assert error.key == key
    assert error.remedy
    for part in (error.problem, error.store, key, error.remedy):
        assert part in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.store, again.key, again.remedy) == (error.store, error.key, error.remedy)


def test_gone(store):
    proxy = fresh(store.proxy(np.zeros(10)))
    store.evict(get_key(proxy))
    with pytest.raises(GoneError, match=r"numpy\.ndarray") as caught:
        resolve(proxy)
    check(caught.value, "test", get_key(proxy))
    assert isinstance(caught.value, LookupError)


def test_a_proxy_whose_object_comes_too_late_is_asked_again(gated):
    proxy = fresh(gated.proxy([1]))

    def down() -> None:
        raise UnreachableError("down", key="k")

    gated.connector.hook = down
    for _ in range(2):
        with pytest.raises(UnreachableError):
            resolve(proxy)
    gated.connector.hook = lambda: None
    assert proxy == [1]


def test_corrupt(file_store, tmp_path):
    key = file_store.put(np.arange(1000))
    (path,) = (path for path in tmp_path.rglob(key.partition(".")[2]))
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    for ask in (lambda: file_store.get(key), lambda: resolve(file_store.proxy_from_key(key))):
        with pytest.raises(CorruptError, match="checksum") as caught:
            ask()
        check(caught.value, "files", key)


def test_truncated(shared_store):
    key = shared_store.put(np.arange(1000))
    directory = Path(shared_store.connector.store_dir)
    (path,) = directory.rglob(key.rpartition(".")[2])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptError) as caught:
        shared_store.get(key)
    check(caught.value, "shared", key)


def test_unreachable():
    with Store.from_url("shm://test-store", name="near") as store:
        key = store.put(1)
        far = "far-0badcafe" + key[key.index(".") :]
        with pytest.raises(UnreachableError, match="far-0badcafe") as caught:
            resolve(fresh(store.proxy_from_key(far)))
        check(caught.value, "shm://test-store", far)
        store.evict(key)


def test_memory_of_another_process_is_unreachable():
    with Store("local", MemoryConnector(), register=True) as store:
        proxy = store.proxy([1])
        answer = elsewhere(
            """
            from proxystore_core import StoreError, resolve
            try:
                resolve(given)
            except StoreError as error:
                answer = [type(error).__name__, str(error)]
            """,
            proxy,
        )
        assert answer[0] == "UnreachableError"
        assert "Use a store that all processes reach" in answer[1]
        assert get_key(proxy) in answer[1]


def test_refused(file_store, tmp_path):
    with pytest.raises(RefusedError) as caught:
        file_store.get("../../etc/passwd")
    assert caught.value.store == file_store.connector.url
    assert caught.value.key == "../../etc/passwd"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    tmp_path.joinpath("open").mkdir()
    tmp_path.joinpath("open").chmod(0o777)
    with pytest.raises(RefusedError, match="mode 0700"):
        Store.from_url(f"file://{tmp_path}/open")


def test_a_module_missing_where_it_is_read(file_store):
    class Elsewhere:
        pass

    Elsewhere.__module__ = "no_such_module"
    Elsewhere.__qualname__ = "Elsewhere"
    module = type(sys)("no_such_module")
    module.Elsewhere = Elsewhere  # type: ignore[attr-defined]
    sys.modules["no_such_module"] = module
    try:
        key = file_store.put(Elsewhere())
    finally:
        del sys.modules["no_such_module"]
    with pytest.raises(SerializationError, match="no_such_module") as caught:
        file_store.get(key)
    check(caught.value, "files", key)


def test_bad_arguments():
    with pytest.raises(ConfigurationError, match="name is text, not 3"):
        Store(3, MemoryConnector())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"'shm://' is not a connector.*from_url"):
        Store("name", "shm://")  # type: ignore[type-var]


def test_bad_urls():
    for url, problem in (
        ("shmm://", "did you mean 'shm'"),
        ("nothing", "expected scheme://"),
        ("file://", "names no directory"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            Store.from_url(url)


@pytest.mark.parametrize("key", [None, 5, b"key", ("a", "b"), ["a"], Proxy(list)], ids=repr)
def test_what_is_no_key(key: Any) -> None:
    with Store("keys", MemoryConnector(secrets.token_hex(4))) as store:
        for use in (store.get, store.exists, store.evict, store.proxy_from_key):
            with pytest.raises(RefusedError, match="get_key"):
                use(key)


def test_arguments_of_other_types() -> None:
    wrong: Any = MemoryConnector
    with pytest.raises(ConfigurationError, match="connector"):
        Store("wrong", wrong)
    for wrong in (None, 5, b"shm://", Path("/tmp")):
        with pytest.raises(ConfigurationError, match="URL"):
            Store.from_url(wrong)
    with Store("lifetimes", MemoryConnector(secrets.token_hex(4))) as store:
        for wrong in (5, "10 min"):
            for use in (store.put, store.proxy, store.locked_proxy):
                with pytest.raises(ConfigurationError, match="lifetime"):
                    use(1, lifetime=wrong)
            with pytest.raises(ConfigurationError, match="lifetime"):
                store.future(lifetime=wrong)


@pytest.mark.parametrize("session", [5, b"s", None, "no session's name"])
def test_what_is_no_session(session: Any) -> None:
    with Store("", MemoryConnector(secrets.token_hex(4))) as store:
        calls: list[Callable[[], Any]] = [
            lambda: Store("", MemoryConnector(secrets.token_hex(4)), session=session),
            lambda: store.put(1, session=session),
            lambda: store.put_batch([1], session=session),
            lambda: store.proxy([1], session=session),
            lambda: store.future(session=session),
        ]
        for call in calls[: 1 if session is None else None]:
            with pytest.raises(RefusedError, match=r"is not a session's name.*at most 64 letters"):
                call()


def test_an_object_put_beside_an_end_has_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = MemoryConnector(secrets.token_hex(4))
    new = connector._new

    def ended_beside(session: str) -> Any:
        made = new(session)
        connector.end(session)
        return made

    monkeypatch.setattr(connector, "_new", ended_beside)
    for put in (lambda: connector.put([b"data"], session="s"), lambda: connector.reserve(session="s")):
        put()
        assert "s" in connector.sessions()
        connector.end("s")
    connector.close()


def test_a_store_that_cannot_be_made_leaves_no_connector_open() -> None:
    name = secrets.token_hex(4)
    url = f"memory://{name}"
    recipe = str(Recipe(url, "", None, "no_such_module:dumps", "no_such_module:loads"))
    part = {"kind": "memory", "options": {"name": name}}
    makers: list[Callable[[], Any]] = [
        lambda: Store.from_url(url, cache_size=-1),
        lambda: Store.from_config({"name": "", "connector": part, "cache_size": -1}),
        lambda: store_for(recipe),
    ]
    for make in makers:
        with pytest.raises(ConfigurationError):
            make()
        assert name not in memory._spaces


def test_a_batch_that_is_not_whole_takes_nothing_away(url: str) -> None:
    with Store.from_url(url, name=secrets.token_hex(4)) as store:
        once, gone, again = store.reference([1], evict=True), store.reference([2]), store.reference([3])
        store.evict(gone.key)
        with pytest.raises(GoneError):
            store.load_batch([once, gone, again])
        assert store.load_batch([once, again]) == [[1], [3]]
        assert [store.exists(each.key) for each in (once, again)] == [False, True]
        store.close(clear=True)
