"""Proxy: lazy, once, typed without loading, and nothing but its factory on the wire."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import inspect
import math
import os
import pickle
import secrets
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import dill
import numpy as np
import pandas as pd
import pytest

from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.errors import ConfigurationError, GoneError
from proxystore_core.proxy import (
    Proxy,
    ProxyLocker,
    ProxyOr,
    extract,
    get_factory,
    is_resolved,
    resolve,
    resolve_async,
)
from proxystore_core.store import Store


class Known:
    """A factory that knows its target's class and says how often it was called."""

    def __init__(self, target: Any, kind: type | None = None) -> None:
        self.target = target
        self.kind = kind
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.target

    def target_class(self) -> type | None:
        return self.kind

    def describe(self) -> str:
        return "numpy.ndarray, 100 MB, shm://"


class Small:
    """A factory of three strings, as a reference to a store is."""

    def __init__(self, key: str, recipe: str, name: str) -> None:
        self.parts = key, recipe, name

    def __call__(self) -> int:
        return 42

    def __reduce__(self) -> tuple[Any, ...]:
        return Small, self.parts


class Counted(Proxy[Any]):
    __slots__ = ()


def failing() -> Any:
    raise GoneError("the object is gone", key="k")


def load_array() -> Any:
    return np.arange(3)


def load_dict() -> Any:
    return {"a": []}


def is_proxy(value: object) -> bool:
    return type(value) is Proxy


def a_function(x: int) -> int:
    """Doc of a function."""
    return x


def test_names_of_the_interface() -> None:
    factory = Known(5, int)
    p: ProxyOr[int] = Proxy(factory)
    assert isinstance(p, Proxy)
    assert type(p) is Proxy
    assert get_factory(p) is factory
    assert not is_resolved(p)
    resolve(p)
    assert is_resolved(p)
    assert extract(p) == 5
    assert type(extract(p)) is int
    assert factory.calls == 1


@pytest.mark.parametrize("function", [extract, resolve, is_resolved, get_factory, ProxyLocker])
def test_what_is_not_a_proxy(function: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="not int"):
        function(5)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="callable"):
        Proxy(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="target"):
        Proxy(int, cache_defaults=True)


def test_given_target() -> None:
    p = Proxy(failing, target="text", cache_defaults=True)
    assert is_resolved(p)
    assert isinstance(p, str)
    assert hash(p) == hash("text")
    assert p == "text"
    assert is_resolved(Proxy(failing, target=None))


def test_factory_that_gives_a_proxy() -> None:
    p: Proxy[Any] = Proxy(lambda: Proxy(lambda: [1]))
    assert type(extract(p)) is list


def test_a_target_that_is_a_proxy() -> None:
    inner = Proxy(lambda: [2])
    unresolved = Proxy(lambda: inner, target=inner)
    assert not is_resolved(unresolved)
    assert not is_resolved(inner)
    resolve(inner)
    resolved = Proxy(lambda: inner, target=inner)
    assert is_resolved(resolved)
    for p in (unresolved, resolved):
        target: Any = extract(p)
        assert type(target) is list


def test_once_under_threads() -> None:
    calls = []
    barrier = threading.Barrier(8)
    release = threading.Event()

    def factory() -> object:
        calls.append(1)
        assert release.wait(30)
        return object()

    p = Proxy(factory)

    def get() -> object:
        barrier.wait(30)
        return extract(p)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(get) for _ in range(8)]
        release.set()
        assert len({id(future.result(30)) for future in futures}) == 1
    assert len(calls) == 1


def test_no_lock_while_the_factory_runs() -> None:
    inner = Proxy(lambda: 1)

    def factory() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(extract, inner).result(30) + 1

    assert extract(Proxy(factory)) == 2


def test_factory_that_needs_its_own_proxy() -> None:
    p: Any = Proxy(lambda: p + 1)
    with pytest.raises(RuntimeError, match="Proxy"):
        resolve(p)


def test_error_is_unchanged_and_a_later_attempt_succeeds() -> None:
    error = GoneError("the object is gone", key="k")
    outcomes: list[Any] = [error, 7]

    def factory() -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    p = Proxy(factory)
    with pytest.raises(GoneError) as caught:
        _ = p + 1  # type: ignore[operator]
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert not is_resolved(p)
    assert p + 1 == 8  # type: ignore[operator]


NEVER_LOADS: dict[str, Callable[[Any], Any]] = {
    "hash": hash,
    "repr": repr,
    "format of a container": lambda p: f"{[p]}",
    "type": type,
    "isinstance": lambda p: isinstance(p, list | str | Proxy),
    "class": lambda p: p.__class__,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "cloudpickle": cloudpickle.dumps,
    "dill": dill.dumps,
    "weakref": weakref.ref,
    "callable": callable,
    "id": id,
    "dask": lambda p: [hasattr(p, f"__dask_{name}__") for name in ("graph", "future", "tokenize", "keys")],
    "arrays": lambda p: [
        hasattr(p, f"__{name}__") for name in ("array_interface", "cuda_array_interface", "dataframe")
    ],
    "notebook": lambda p: [
        hasattr(p, name) for name in ("_repr_html_", "_ipython_display_", "_repr_mimebundle_",
                                      "_ipython_canary_method_should_not_exist_")
    ],
    "inspect": lambda p: (inspect.isawaitable(p), inspect.iscoroutine(p), inspect.isclass(p)),
    "doc": lambda p: (p.__doc__, p.__module__),
    "absent dunder": lambda p: hasattr(p, "__absent__"),
    "set member": lambda p: p in {p, None},
}  # fmt: skip


@pytest.mark.parametrize("kind", [np.ndarray, None], ids=["class known", "module not loaded"])
@pytest.mark.parametrize("question", NEVER_LOADS)
def test_never_loads(question: str, kind: type | None) -> None:
    factory = Known(np.arange(3), kind)
    p = Proxy(factory)
    NEVER_LOADS[question](p)
    assert not is_resolved(p)
    assert factory.calls == 0


LOADED_BY_CLASS = {"isinstance", "class", "inspect", "doc", "absent dunder"}


@pytest.mark.parametrize("question", sorted(set(NEVER_LOADS) - LOADED_BY_CLASS))
def test_plain_factory_is_not_called_either(question: str) -> None:
    p = Proxy(load_array)
    NEVER_LOADS[question](p)
    assert not is_resolved(p)


SHOWING = """
import numpy as np
from IPython.core.interactiveshell import InteractiveShell
from proxystore_core import Store, is_resolved, resolve

shell = InteractiveShell.instance()
show = shell.display_formatter.format
with Store.from_url("memory://shown", name="shown") as store:
    for of in ({"k": 1}, [1], (1,), "text", 5, np.arange(3)):
        p = store.proxy(of, populate_target=False)
        show(p)
        assert not is_resolved(p)
        resolve(p)
        assert show(p)[0]["text/plain"] == show(of)[0]["text/plain"]
    future = store.future(deadline=0.1)  # that nobody sets
    show(future.proxy())
    assert show([future.proxy()])[0]["text/plain"].startswith("[<Proxy of a future's result, ")
    store.close(clear=True)
"""


def test_a_notebook_shows_a_proxy_without_loading_it(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    done = subprocess.run(
        [sys.executable, "-c", SHOWING],
        env={**os.environ, "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not resolved") == 7, done.stdout


def test_class() -> None:
    assert isinstance(Proxy(Known([1], list)), list)
    assert not isinstance(Proxy(Known([1], list)), dict)
    unloaded: Any = Proxy(Known([1], None))
    assert not isinstance(unloaded, list)
    assert unloaded.__class__ is Proxy
    assert not is_resolved(unloaded)
    resolve(unloaded)
    assert isinstance(unloaded, list)
    plain = Proxy(lambda: [1])
    assert isinstance(plain, list)
    assert is_resolved(plain)
    wrong: Any = Proxy(Known({1: 2}, list))
    assert isinstance(wrong, list)
    resolve(wrong)
    assert isinstance(wrong, dict)
    assert not isinstance(wrong, list)


def documented(a: int, b: int = 2) -> int:
    """Of this function."""
    return a + b


class Documented:
    """Of this class."""

    size: int = 0


@pytest.mark.parametrize("of", [documented, Documented, math], ids=["function", "class", "module"])
def test_what_describes_itself_does_so_unresolved_and_resolved(of: Any) -> None:
    with Store("describing", MemoryConnector(secrets.token_hex(4))) as store:
        for name in ("__doc__", "__module__", "__annotations__", "__name__", "__defaults__", "__code__"):
            p = store.proxy(of, populate_target=False)
            assert getattr(p, name, None) == getattr(of, name, None), name
        for question in (inspect.isfunction, inspect.isclass, inspect.ismodule, inspect.getdoc):
            assert question(store.proxy(of, populate_target=False)) == question(of)
        if of is documented:
            assert inspect.signature(store.proxy(of, populate_target=False)) == inspect.signature(of)
        for dumps in (pickle.dumps, cloudpickle.dumps, dill.dumps):
            p = store.proxy(of, populate_target=False)
            assert type(pickle.loads(dumps(p))) is Proxy
            assert not is_resolved(p)
        store.close(clear=True)


def test_class_is_assignable() -> None:
    class One:
        pass

    class Two:
        pass

    target = One()
    p: Any = Proxy(lambda: target)
    setattr(p, "__class__", Two)  # noqa: B010
    assert type(p) is Proxy
    assert type(target).__name__ == "Two"
    assert isinstance(p, Two)


def test_hash_is_the_first_given() -> None:
    early = Proxy(lambda: "text")
    first = hash(early)
    resolve(early)
    assert hash(early) == first
    late: Any = Proxy(lambda: "text")
    resolve(late)
    assert hash(late) == hash("text")
    assert {"text": 1}[late] == 1
    unhashable = Proxy(load_dict)
    resolve(unhashable)
    assert hash(unhashable) == hash(load_dict)

    class Unhashable(Known):
        __hash__ = None  # type: ignore[assignment]

    p = Proxy(Unhashable([]))
    assert hash(p) == hash(p)
    assert not is_resolved(p)


def test_repr() -> None:
    p = Proxy(Known(np.arange(2)))
    assert repr(p) == "<Proxy of numpy.ndarray, 100 MB, shm://, not resolved>"
    resolve(p)
    assert repr(p) == "array([0, 1])"
    assert repr(Proxy(load_array)) == "<Proxy from load_array, not resolved>"


def test_in_place_gives_the_plain_object() -> None:
    target = np.zeros(2)

    def task(x: Any) -> Any:
        x += 1
        return x

    result = task(Proxy(lambda: target))
    assert type(result) is np.ndarray
    assert result is target
    assert result.tolist() == [1, 1]
    number: Any = Proxy(lambda: 5)
    same = number
    number += 1
    assert type(number) is int
    assert number == 6
    assert same == 5


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps, dill.dumps], ids=lambda f: f.__module__)
@pytest.mark.parametrize("resolved", [False, True])
@pytest.mark.parametrize("load", [load_array, load_dict])
def test_pickle_carries_the_factory_alone(
    dumps: Callable[[Any], bytes], resolved: bool, load: Callable[[], Any]
) -> None:
    p = Proxy(load, target=load()) if resolved else Proxy(load)
    back = dill.loads(dumps(p))
    assert type(back) is Proxy
    assert not is_resolved(back)
    assert is_resolved(p) is resolved
    assert type(extract(back)) is type(load())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(protocol: int) -> None:
    p = pickle.loads(pickle.dumps(Proxy(load_array), protocol))
    assert type(p) is Proxy
    assert len(p) == 3
    assert pickle.loads(pickle.dumps(Proxy, protocol)) is Proxy
    assert type(pickle.loads(pickle.dumps(Counted(load_array), protocol))) is Counted


def test_pickle_is_small() -> None:
    factory = Small("0123456789abcdef0123456789abcdef", "shm://", "numpy.ndarray")
    factory_alone = len(pickle.dumps(factory))
    data = pickle.dumps(Proxy(factory))
    assert len(data) <= 200
    assert len(data) - factory_alone <= 50
    assert pickle.loads(data) + 1 == 43


def test_cloudpickle_does_not_take_a_proxy_for_a_function() -> None:
    p: Any = Proxy(lambda: a_function)
    back: Any = pickle.loads(cloudpickle.dumps(p))
    assert is_proxy(back)
    assert not is_resolved(p)
    assert back(3) == 3
    assert inspect.isfunction(p)
    assert p(2) == 2
    assert type(pickle.loads(cloudpickle.dumps(p))) is Proxy
    assert cloudpickle.loads(cloudpickle.dumps(Proxy)) is Proxy
    assert dill.loads(dill.dumps(Proxy)) is Proxy


def test_copies() -> None:
    lazy: Any = Proxy(Known({"a": []}, dict))
    for copied in (copy.copy(lazy), copy.deepcopy(lazy)):
        assert type(copied) is Proxy
        assert not is_resolved(copied)
        assert get_factory(copied) is get_factory(lazy)
    resolve(lazy)
    shallow: Any = copy.copy(lazy)
    deep: Any = copy.deepcopy(lazy)
    assert type(shallow) is dict
    assert shallow is not extract(lazy)
    assert shallow["a"] is lazy["a"]
    assert type(deep) is dict
    assert deep["a"] is not lazy["a"]


def test_await() -> None:
    threads = []

    def factory() -> int:
        threads.append(threading.current_thread())
        return 5

    async def main() -> tuple[int, int, int]:
        p = Proxy(factory)
        return await p, await resolve_async(p), await p

    assert asyncio.run(main()) == (5, 5, 5)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_asyncio_loads_proxies_side_by_side_and_not_in_its_loop() -> None:
    both = threading.Barrier(2, timeout=30)
    loaded_in: list[int] = []

    def load(number: int) -> list[int]:
        loaded_in.append(threading.get_ident())
        if number < 2:
            both.wait()
        return [number]

    proxies: list[Any] = [Proxy(functools.partial(load, number)) for number in range(3)]

    async def main() -> None:
        assert await asyncio.gather(*proxies[:2]) == [[0], [1]]
        assert await asyncio.wait_for(proxies[2], 30) == [2]

    asyncio.run(main())
    assert threading.get_ident() not in loaded_in
    assert len(loaded_in) == 3


def test_await_raises_the_factory_error() -> None:
    with pytest.raises(GoneError):
        asyncio.run(resolve_async(Proxy(failing)))


def test_locker() -> None:
    p = Proxy(Known([1], list))
    locker: Any = ProxyLocker(p)
    for touch in (lambda: locker.append, lambda: len(locker), lambda: locker[0]):
        with pytest.raises((AttributeError, TypeError)):
            touch()
    assert not isinstance(locker, list)
    assert not is_resolved(p)
    assert locker.unlock() is p
    back = pickle.loads(pickle.dumps(ProxyLocker(Proxy(load_array))))
    assert not is_resolved(back.unlock())


def test_class_attributes_are_the_class_s_and_instances_the_target_s() -> None:
    p: Any = Proxy(lambda: a_function)
    assert p.__doc__ == "Doc of a function."
    assert p.__module__ == __name__
    assert p.__name__ == "a_function"
    assert p.__annotations__ == {"x": "int", "return": "int"}
    assert inspect.signature(p).return_annotation == "int"
    assert Proxy.__module__ == "proxystore_core.proxy"
    assert (Proxy.__doc__ or "").startswith("Stands for")
    assert inspect.getdoc(Proxy)
    assert Proxy.__annotations__ == {}
    assert Proxy.__name__ == "Proxy"
    assert "append" in dir(Proxy(lambda: [1]))


def test_generic() -> None:
    assert Proxy[int](lambda: 5) + 1 == 6  # type: ignore[operator]
    target = types.SimpleNamespace()
    p = Proxy[types.SimpleNamespace](lambda: target)
    assert not is_resolved(p)
    assert extract(p) is target
    assert vars(target) == {}


def test_subclass() -> None:
    p: Any = Counted(lambda: [1, 2])
    assert len(p) == 2
    assert type(p) is Counted
    assert isinstance(p, Proxy)
    assert isinstance(p, list)
    assert Proxy(lambda: [10, 11])[Counted(lambda: 1)] == 11


def test_weakref_and_no_leak() -> None:
    p = Proxy(load_array)
    resolve(p)
    ref = weakref.ref(p)
    target = weakref.ref(extract(p))
    del p
    gc.collect()
    assert ref() is None
    assert target() is None


def test_attributes_are_the_target_s() -> None:
    target = types.SimpleNamespace(v=1)
    p: Any = Proxy(lambda: target)
    p.w = 2
    del p.v
    assert vars(target) == {"w": 2}
    assert p.__dict__ is vars(target)
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = p.absent


def test_subclasses_of_arrays_survive() -> None:
    masked = np.ma.array([1, 2], mask=[True, False])
    proxies: list[Any] = [Proxy(lambda: masked), Proxy(lambda: masked, target=masked)]
    for p in proxies:
        assert np.asanyarray(p).mask.tolist() == [True, False]
        assert np.array(p, subok=True).mask.tolist() == [True, False]
        assert not np.shares_memory(np.array(p), masked.data)
    assert np.shares_memory(np.asarray(Proxy(lambda: masked)), masked.data)
    objects = np.empty(1, object)
    objects[0] = {"a": 1}
    assert np.asarray(Proxy(lambda: objects)).dtype == object


def test_array_copy_argument() -> None:
    p: Any = Proxy(lambda: np.arange(3))
    assert np.asarray(p, copy=False) is not None
    assert np.array(p, dtype="f4").dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.asarray(Proxy(lambda: [1, 2]), copy=False)


def test_calling_what_cannot_be_called() -> None:
    with pytest.raises(TypeError, match="not callable"):
        Proxy(lambda: 5)(1)  # type: ignore[operator]
    frame = pd.DataFrame({"a": [1]})
    column: Any = Proxy(lambda: "a")
    assert frame[column].tolist() == [1]


COMPLETIONS = """
import rlcompleter

import numpy as np

from proxystore_core import Store, is_resolved

store = Store.from_url("memory://completed")
data = np.arange(10)


def by_rlcompleter(p, text):
    completer, found = rlcompleter.Completer({"p": p}), []
    while (match := completer.complete(text, len(found))) is not None:
        found.append(match.rpartition(".")[2])
    return found


def by_jedi(p, text):
    import jedi

    return [completion.name for completion in jedi.Interpreter(text, [{"p": p}]).complete()]


def by_ipython(with_jedi):
    from IPython.core.completer import provisionalcompleter
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.Completer.use_jedi = with_jedi

    def complete(p, text):
        shell.user_ns["p"] = p
        with provisionalcompleter():
            return [each.text.strip(".") for each in shell.Completer.completions(text, len(text))]

    return complete


for complete in (by_rlcompleter, by_jedi, by_ipython(True), by_ipython(False)):
    proxy = store.proxy(data, populate_target=False)
    assert complete(proxy, "p.sha") == ["shape"], complete(proxy, "p.sha")
    complete(proxy, "p.shape.")
    complete(proxy, "p[")
    assert not is_resolved(proxy)
    assert dir(proxy) == dir(data)  # whoever completes nothing has all names
    assert is_resolved(proxy)
    late = store.future().proxy()
    complete(late, "p.sha")  # and does not wait
    assert not is_resolved(late)
    unknown = store.proxy_from_key(store.put(data))
    assert complete(unknown, "p.sha") == ["shape"], complete(unknown, "p.sha")
"""


def test_completion_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    pytest.importorskip("jedi")
    home = {"HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")}
    subprocess.run([sys.executable, "-c", COMPLETIONS], env={**os.environ, **home}, timeout=120, check=True)
