"""Registry: which store a name, a recipe or a proxy means in this process."""

from __future__ import annotations

import gc
import marshal
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import proxystore_core
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.errors import ConfigurationError
from proxystore_core.proxy import Proxy, is_resolved
from proxystore_core.recipe import Recipe, import_name, imported, named, register_connector
from proxystore_core.registry import (
    get_key,
    get_or_create_store,
    get_store,
    register_store,
    store_for,
    store_registration,
    unregister_store,
)
from proxystore_core.store import Store
from proxystore_core.testing import in_new_process


def memory(name: str) -> Store[MemoryConnector]:
    return Store(name, MemoryConnector(name))


def fresh(proxy: Any) -> Any:
    """The proxy as another process gets it: not resolved."""
    return pickle.loads(pickle.dumps(proxy))


@register_connector
class Counted(FileConnector):
    """Files; counts how often a process opens them, each time at the same moment as others."""

    schemes: ClassVar[tuple[str, ...]] = ("counted",)
    opened: ClassVar[list[str]] = []
    closed: ClassVar[list[str]] = []

    def __init__(self, store_dir: str | os.PathLike[str], *, grace: float | None = None) -> None:
        super().__init__(store_dir, grace=grace)
        self.opened.append(self.url)

    def close(self, *, clear: bool = False) -> None:
        super().close(clear=clear)
        self.closed.append(self.url)


@pytest.fixture
def counted(tmp_path: Path):
    Counted.opened.clear()
    Counted.closed.clear()
    return f"counted://{tmp_path}"


def test_register_and_forget():
    with memory("a") as store:
        assert get_store("a") is None
        register_store(store)
        register_store(store)
        assert get_store("a") is store
        unregister_store("a")
        unregister_store("a")
        unregister_store(store)
        unregister_store("never there")
        assert get_store("a") is None
        register_store(store)
        unregister_store(store)
        assert get_store("a") is None


def test_a_taken_name():
    with memory("a") as store, Store("a", MemoryConnector("other")) as other:
        register_store(store)
        with pytest.raises(ConfigurationError, match=r"'a' is registered already .*exist_ok=True"):
            register_store(other)
        assert get_store("a") is store
        with pytest.raises(ConfigurationError, match="registered already"):
            Store("a", MemoryConnector("other"), register=True)
        register_store(other, exist_ok=True)
        assert get_store("a") is other
    assert get_store("a") is None


def test_proxies_reach_their_own_store_whatever_its_name():
    with memory("a") as store, Store("a", MemoryConnector("other")) as other:
        register_store(store)
        register_store(other, exist_ok=True)
        mine, others = store.proxy(["a"]), other.proxy(["other"])
        assert (fresh(mine), fresh(others)) == (["a"], ["other"])
        assert get_store(mine) is store
        assert get_store(others) is other


def test_registration_for_a_while():
    with memory("a") as a, memory("b") as b:
        with store_registration(a, b):
            assert (get_store("a"), get_store("b")) == (a, b)
        assert (get_store("a"), get_store("b")) == (None, None)
        with pytest.raises(ZeroDivisionError), store_registration(a):
            1 / 0  # noqa: B018
        assert get_store("a") is None


def test_a_failed_registration_leaves_none():
    with memory("a") as a, memory("b") as b, Store("b", MemoryConnector("other")) as other:
        register_store(b)
        with pytest.raises(ConfigurationError), store_registration(a, other):
            pass
        assert get_store("a") is None
        assert get_store("b") is b
        with store_registration(a, other, exist_ok=True):
            assert get_store("b") is other


def test_get_store_and_key_of_a_proxy(counted):
    with Store.from_url(counted, name="a", register=True) as store:
        proxy = store.proxy_from_key(store.put(1))
        assert get_store(proxy) is store
        assert store.exists(get_key(proxy))
        assert not is_resolved(proxy)


def test_a_proxy_that_comes_from_elsewhere():
    for ask in (get_store, get_key):
        with pytest.raises(ConfigurationError, match=r"does not come from a store.*Store\.proxy\(\)"):
            ask(Proxy(list))
    with pytest.raises(TypeError):
        get_key([1])  # type: ignore[arg-type]


def test_get_or_create_store(counted):
    with Store.from_url(counted, name="a") as store:
        config = store.config()
    first = get_or_create_store(config)
    assert get_store("a") is first
    assert get_or_create_store(config) is first
    first.put(1)
    other = get_or_create_store({**config, "compression": "lz4"}, register=False)
    assert other is not first
    assert get_store("a") is first
    first.close()
    other.close()
    assert len(Counted.opened) == len(Counted.closed)


def test_a_store_is_opened_once_however_many_ask(counted):
    with Store.from_url(counted, name="a") as store:
        proxies = [fresh(store.proxy([i])) for i in range(8)]
        unregister_store(store)  # as in a process that never opened it
        Counted.opened.clear()
        barrier = threading.Barrier(8)

        def ask(proxy: Proxy[list[int]]) -> Store[Any] | None:
            barrier.wait(30)
            assert len(proxy) == 1
            return get_store(proxy)

        with ThreadPoolExecutor(8) as executor:
            stores = set(executor.map(ask, proxies))
        assert len(Counted.opened) == 1
        (opened,) = stores
        assert get_store("a") is opened
        assert store_for(store.recipe) is opened
        opened.close()


def test_a_store_opened_from_a_recipe_is_as_the_first(counted):
    options: dict[str, Any] = {
        "name": "a",
        "compression": "zstd",
        "serializer": marshal.dumps,
        "deserializer": marshal.loads,
    }
    with Store.from_url(counted, **options) as store:
        unregister_store(store)
        opened = store_for(store.recipe)
        assert opened is not store
        assert opened.recipe == store.recipe
        assert opened.config() == store.config()
        opened.close()


def test_a_store_that_cannot_be_opened_is_tried_again(counted, tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError):
        store_for(f"{counted}#a")
    tmp_path.chmod(0o700)
    store_for(f"{counted}#a").close()
    with pytest.raises(ConfigurationError, match="unknown store scheme"):
        store_for("nowhere://#a")
    with pytest.raises(ConfigurationError, match="unknown option 'colour'"):
        store_for(f"{counted}#a&colour=red")


def test_a_closed_store_is_forgotten(counted):
    store = Store.from_url(counted, name="a", register=True)
    proxy = store.proxy([1])
    store.close()
    assert fresh(proxy) == [1]
    again = get_store(proxy)
    assert again is not None
    assert again is not store
    again.close()


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (Recipe("shm://"), "shm://"),
        (Recipe("shm://", "name"), "shm://#name"),
        (Recipe("file:///a%20b", "a&b#c%"), "file:///a%20b#a%26b%23c%25"),
        (Recipe("shm://", "n", "lz4", "m.n:f.g", "m:h"), None),
        (Recipe("shm://", "", "zstd"), "shm://#&compression=zstd"),
    ],
)
def test_recipes(recipe, text):
    assert Recipe.parse(str(recipe)) == recipe
    assert text is None or str(recipe) == text


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from([None, "lz4"]),
    st.sampled_from([None, "a.b:C.d"]),
)
def test_every_name_survives_in_a_recipe(name, compression, function):
    recipe = Recipe("file:///a", name, compression, function, function)
    text = str(recipe)
    assert text.isascii()
    assert " " not in text
    assert Recipe.parse(text) == recipe


class Nested:
    @staticmethod
    def function() -> None: ...


def test_functions_by_name():
    assert named(import_name(fresh)) is fresh
    assert named(import_name(Nested.function)) is Nested.function
    assert named("no_such:thing") is None
    assert named("os:sep") is None
    assert named("") is None
    assert imported("sched:scheduler").__name__ == "scheduler"


def test_the_public_names_are_there():
    assert len(proxystore_core.__all__) == len(
        {id(getattr(proxystore_core, n)) for n in proxystore_core.__all__}
    )
    for name in ("get_key", "resolve_async", "NotProxiableError", "Store", "Proxy"):
        assert name in dir(proxystore_core)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        proxystore_core.nothing  # noqa: B018


def test_proxies_of_an_unregistered_store_use_it(tmp_path: Path) -> None:
    store = Store("unregistered", FileConnector(tmp_path))
    proxy = pickle.loads(pickle.dumps(store.proxy([1, 2], populate_target=False)))
    assert get_store(proxy) is store
    assert proxy == [1, 2]
    recipe = store.recipe
    store.close()
    assert store_for(recipe) is not store
    unregister_store(store_for(recipe))


def test_proxies_of_a_store_whose_twin_was_closed_use_it(tmp_path: Path) -> None:
    first, second, third = (Store("twins", FileConnector(tmp_path)) for _ in range(3))
    proxy = pickle.loads(pickle.dumps(third.proxy([1, 2], populate_target=False)))
    assert get_store(proxy) is first
    first.close()
    assert get_store(proxy) is second
    del second
    gc.collect()
    assert get_store(proxy) is third
    third.close(clear=True)


def test_a_pickled_store_is_the_same_store_elsewhere(tmp_path: Path) -> None:
    with Store("travels", FileConnector(tmp_path)) as store:
        key = store.put("object")
        assert pickle.loads(pickle.dumps(store)) is store
        assert in_new_process(_get, pickle.dumps(store), key) == "object"


def _get(store: bytes, key: str) -> object:
    return pickle.loads(store).get(key)
