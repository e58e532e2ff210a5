"""Values on a GPU: tasks and clients get what they get without a store.

``make gpu`` runs this; no other run of the tests collects it, and CI has no GPU. ``ANY_DEVICE=1 make gpu``
takes what there is, for work on the tests themselves.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import gpu_tasks as tasks
import numpy as np
import pytest
from waiting import until

from proxystore_core import Proxy, SerializationError, Store, extract, is_resolved
from proxystore_core.serialize import deserialize, serialize
from proxystore_integrations.futures import StoreExecutor
from proxystore_integrations.testing import objects_of

WAIT = 100
THERE = {library: tasks.has(library) for library in tasks.LIBRARIES}
PICKLE_CANNOT = {"float8"}  # of PyTorch 2.11 and others: read again, it raises, and loky's pool is broken
PARSL_CANNOT = {"optimizer"}  # without a store: dill gives it another class
NAMES = [
    name
    for library, values in tasks.LIBRARIES.items()
    if THERE[library]
    for name in values
    if name not in PICKLE_CANNOT
]

if not (os.environ.get("ANY_DEVICE") or (THERE["torch"] and tasks.device() == "cuda")):
    pytest.skip("there is no GPU that PyTorch can use here", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings(
    "default",  # PyTorch's, CuPy's and Numba's own
    "error:.*store.*:RuntimeWarning",
)


def need(name: str) -> None:
    for library, values in tasks.LIBRARIES.items():
        if name in values or name == library:
            if not THERE[library]:
                pytest.skip(f"there is no {library} here, or it finds no GPU")
            return


# Stores. ------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "shm", "file"])
def a_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store[Any]]:
    url = f"file://{tmp_path}" if request.param == "file" else f"{request.param}://{secrets.token_hex(4)}"
    with Store.from_url(url, name=secrets.token_hex(4)) as store:
        yield store
        store.close(clear=True)


@pytest.mark.parametrize("name", tasks.VALUES)
def test_a_store_gives_back_what_pickle_does(name: str, a_store: Store[Any]) -> None:
    need(name)
    import cloudpickle

    value = tasks.make(name)
    try:
        expected = tasks.described(cloudpickle.loads(cloudpickle.dumps(value)))
    except Exception:
        if name not in PICKLE_CANNOT:
            with pytest.raises(SerializationError):
                a_store.put(value)
        return
    key = a_store.put(value)
    assert tasks.described(a_store.get(key)) == expected
    proxy = a_store.proxy(value, populate_target=False)
    assert not is_resolved(proxy)
    assert type(proxy) is Proxy
    assert tasks.described(extract(proxy)) == expected
    assert tasks.described(value) == tasks.described(tasks.make(name))


def test_of_a_view_its_own_bytes_are_stored(a_store: Store[Any]) -> None:
    need("torch")
    tensor = tasks.make("tensor")
    assert a_store.reference(tensor[10:2000]).size < 10_000
    assert a_store.reference(tensor).size < 4 * tasks.MANY + 1000


def test_what_is_read_is_its_readers_own(a_store: Store[Any]) -> None:
    need("torch")
    key = a_store.put(tasks.make("tensor"))
    first = a_store.get(key)
    first += 1
    assert tasks.total(a_store.get(key)) == tasks.total(tasks.make("tensor"))


@pytest.mark.skipif(
    not THERE["torch"] or tasks.device() != "cuda", reason="there are no streams without a GPU"
)
def test_what_is_being_computed_is_waited_for(a_store: Store[Any]) -> None:
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        tensor = torch.ones(tasks.MANY, device="cuda") * 3
        key = a_store.put(tensor)
    assert tasks.total(a_store.get(key)) == 3 * tasks.MANY


def test_memory_of_the_gpu_comes_back() -> None:
    need("torch")
    import torch

    if tasks.device() != "cuda":
        pytest.skip("there is no GPU")
    tensor = torch.ones(10_000_000, device="cuda")
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        frames = b"".join(serialize(tensor))
        other = deserialize(frames)
        assert torch.cuda.memory_allocated() <= before + 40_000_000 + 1024
        del other
    gc.collect()
    assert torch.cuda.memory_allocated() == before


# Engines. -----------------------------------------------------------------------------------------


class Both:
    """An engine, bare and with a store: how to submit to both, and the latter's link to the store."""

    def __init__(self, name: str, bare: Any, ours: Any, link: Any) -> None:
        self.name = name
        self.bare = bare
        self.ours = ours
        self.link = link

    def __call__(self, function: Any, *args: Any) -> tuple[Any, Any]:
        """What both do with a call of these, each made anew: what comes of it, or the kind of exception."""
        found = []
        for submit in (self.bare, self.ours):
            made = [arg() if callable(arg) else arg for arg in args]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = submit(function, *made).result(WAIT)
            except Exception as error:
                found.append(f"raises {type(error).__name__}")
            else:
                found.append(tasks.described(result))
                del result
            del made
        return found[0], found[1]


def _pool(name: str, make: Callable[[], Executor]) -> Callable[[Path], Any]:
    @contextlib.contextmanager
    def started(path: Path) -> Iterator[Both]:
        with make() as bare, StoreExecutor(bare, threshold="100 kB") as ours:
            yield Both(name, bare.submit, ours.submit, ours._link)
        resource_sharer.stop()

    return started


def _processes() -> Executor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _loky() -> Executor:
    executor: Executor = pytest.importorskip("loky").ProcessPoolExecutor(1, timeout=300)
    return executor


@contextlib.contextmanager
def _dask(path: Path) -> Iterator[Both]:
    distributed = pytest.importorskip("distributed")
    from proxystore_integrations.dask import Client

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as bare,
        Client(cluster, threshold="100 kB", set_as_default=False) as ours,
    ):
        yield Both(
            "dask",
            lambda function, *args: bare.submit(function, *args, pure=False),
            lambda function, *args: ours.submit(function, *args, pure=False),
            ours._link,
        )


@contextlib.contextmanager
def _parsl(path: Path) -> Iterator[Both]:
    pytest.importorskip("parsl")
    from parsl_runs import StoreRun

    with StoreRun(path) as run:
        yield Both(
            "parsl",
            lambda function, *args: run.app(function, "bare")(*args),
            lambda function, *args: run.app(function)(*args),
            run.link,
        )


ENGINES = {
    "threads": _pool("threads", lambda: ThreadPoolExecutor(1)),
    "processes": _pool("processes", _processes),
    "loky": _pool("loky", _loky),
    "dask": _dask,
    "parsl": _parsl,
}


@pytest.fixture(scope="module", params=ENGINES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXYSTORE_THRESHOLD", "100 kB")
        with ENGINES[request.param](tmp_path_factory.mktemp("engine")) as both:
            yield both


@pytest.mark.parametrize("name", NAMES)
def test_an_argument(name: str, both: Both) -> None:
    bare, ours = both(tasks.described, lambda: tasks.make(name))
    assert ours == bare or (both.name == "parsl" and name in PARSL_CANNOT)
    until(lambda: not objects_of(both.link))


@pytest.mark.parametrize("name", NAMES)
def test_a_result(name: str, both: Both) -> None:
    bare, ours = both(tasks.make, name)
    assert ours == bare or (both.name == "parsl" and name in PARSL_CANNOT)
    both(tasks.same, 1)  # Parsl's thread keeps the last future until the next
    gc.collect()
    until(lambda: not objects_of(both.link))


@pytest.mark.parametrize("name", ["tensor", "cupy", "jax"])
def test_there_and_back(name: str, both: Both) -> None:
    need(name)
    bare, ours = both(tasks.same, lambda: tasks.make(name))
    assert ours == bare


@pytest.mark.parametrize("name", ["tensor", "parameter", "cupy"])
def test_a_change_is_seen_where_it_is_seen_without_a_store(name: str, both: Both) -> None:
    need(name)
    import torch

    seen = []
    for submit in (both.bare, both.ours):
        value = tasks.make(name)
        with torch.no_grad(), contextlib.suppress(Exception):
            submit(tasks.increment, value).result(WAIT)
        seen.append(tasks.total(value))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", ["tensor", "cupy"])
def test_two_arguments_are_one_object_where_they_are_without_a_store(name: str, both: Both) -> None:
    need(name)
    found = []
    for submit in (both.bare, both.ours):
        value = tasks.make(name)
        found.append(submit(tasks.change_both, value, value).result(WAIT))
        value = tasks.make(name)
        found.append(submit(tasks.change_both, value, value[:50_000]).result(WAIT))
    assert found[:2] == found[2:]


# Lazy proxies. ------------------------------------------------------------------------------------

CUPY = """
p + x || x + p || p * 2 || 2 - p || p @ x || p == x || -p || cupy.add(p, 1) || cupy.add(x, p) || cupy.sum(p)
p.sum() || cupy.asarray(p) || cupy.array(p) || cupy.asnumpy(p) || p.get() || cupy.concatenate([p, x])
cupy.where(p > 1, p, 0) || cupy.dot(p, x) || cupy.einsum("i,i", p, x) || p[1:] || x[i] || p[i] || len(p)
isinstance(p, cupy.ndarray) || np.add(p, 1) || np.sum(p) || cupy.get_array_module(p).__name__ || cupy.max(p)
cupy.from_dlpack(p) || double(p) || float(p[1]) || x.dot(p) || cupy.matmul(p, x) || cupy.copyto(x, p)
cupy.linalg.norm(p)
"""
TORCH = """
t + t || r + t || t + r || r * t || t @ r || r == t || torch.add(t, 1) || torch.add(r, x) || torch.sum(t)
torch.stack([t, t]) || torch.cat((t, r)) || torch.where(r > 0, t, 0) || torch.equal(t, r) || torch.relu(t)
torch.as_tensor(t) || torch.is_tensor(t) || r.copy_(t) || r.add_(t) || r.to(t) || r.index_select(0, i)
isinstance(t, torch.Tensor) || t.is_cuda || t.device || t.cpu() || t.to("cpu") || t[1:] || t[i]
"""


def idioms(text: str) -> list[str]:
    return [each for line in text.split("\n") for each in line.split(" || ") if each]


@pytest.mark.parametrize("idiom", idioms(CUPY))
def test_cupy_takes_a_proxy(idiom: str) -> None:
    need("cupy")
    cupy = importlib.import_module("cupy")
    double = cupy.ElementwiseKernel("T a", "T b", "b = 2 * a", "double_it")
    scope = {"cupy": cupy, "np": np, "double": double}
    plain = {"p": cupy.arange(4.0), "i": cupy.asarray([2, 0])}
    expected = eval(idiom, scope | plain | {"x": cupy.ones(4)})
    with Store.from_url(f"memory://{secrets.token_hex(4)}") as store:
        proxies = {name: store.proxy(value, populate_target=False) for name, value in plain.items()}
        got = eval(idiom, scope | proxies | {"x": cupy.ones(4)})
    assert tasks.described(got) == tasks.described(expected)


@pytest.mark.parametrize("idiom", idioms(TORCH))
def test_torch_takes_a_proxy(idiom: str) -> None:
    need("torch")
    import torch

    where = tasks.device()
    plain = {"t": torch.arange(4.0, device=where), "i": torch.tensor([2, 0], device=where), "x": 2.5}
    expected = eval(idiom, {"torch": torch, "r": torch.ones(4, device=where)} | plain)
    with Store.from_url(f"memory://{secrets.token_hex(4)}") as store:
        proxies = {name: store.proxy(value, populate_target=False) for name, value in plain.items()}
        got = eval(idiom, {"torch": torch, "r": torch.ones(4, device=where)} | proxies)
    assert type(got) is type(expected)
    assert tasks.described(got) == tasks.described(expected)
