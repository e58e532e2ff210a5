"""Proxies of tensors under PyTorch: its C code takes what says that it is a tensor for one."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxystore_core import Proxy, Store, borrow, extract, is_resolved, resolve
from proxystore_core.ownership import MutableBorrowError

torch: Any = None


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Not with this module, which every one of pytest's workers imports."""
    global torch
    torch = pytest.importorskip("torch")


@pytest.fixture(params=["unresolved", "resolved"])
def given(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    values = plain()
    proxies: dict[str, Any] = {name: Proxy(returning(value)) for name, value in values.items()}
    if request.param == "resolved":
        for p in proxies.values():
            resolve(p)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting a tensor|Using a non-tuple sequence")
        yield proxies


def returning(value: Any) -> Callable[[], Any]:
    return lambda: value


def plain() -> dict[str, Any]:
    return {"t": torch.arange(4.0), "i": torch.tensor([2, 0]), "x": 2.5, "model": torch.nn.Linear(4, 2)}


def idioms(text: str) -> list[str]:
    return [each for line in text.split("\n") for each in line.split(" || ") if each]


SAME = """
t + t || r + t || t + r || r * t || t @ r || r == t || torch.add(t, 1) || torch.add(r, x) || torch.sum(t)
torch.stack([t, t]) || torch.cat((t, r)) || torch.where(r > 0, t, 0) || torch.equal(t, r) || torch.relu(t)
torch.nn.functional.relu(t) || torch.nn.functional.linear(t, torch.ones(2, 4)) || torch.einsum("i,i", t, r)
torch.as_tensor(t) || torch.asarray(t) || torch.is_tensor(t) || torch.is_floating_point(t)
torch.split(t, 2) || torch.numel(t) || torch.scatter(r, 0, i, t) || r.copy_(t) || r.add_(t)
r.to(t) || r.type_as(t) || r.index_select(0, i) || r.expand_as(t) || torch.utils.data.default_collate([t, t])
torch.allclose(t, t) || torch.nn.Linear(4, 2).weight.shape == model.weight.shape
isinstance(t, torch.Tensor) || len(t) || list(t) || isinstance(t, (int, torch.Tensor))
isinstance(t, torch.nn.Parameter) || t.__class__ is torch.Tensor || isinstance(model, torch.nn.Module)
isinstance(model.weight, torch.nn.Parameter) || t.sum() || t[1:] || t[i]
"""


@pytest.mark.parametrize("idiom", idioms(SAME))
def test_the_same_as_the_tensor(idiom: str, given: dict[str, Any]) -> None:
    scope = {"torch": torch, "r": torch.ones(4)}
    expected = eval(idiom, scope | plain())
    got = eval(idiom, {"torch": torch, "r": torch.ones(4)} | given)
    assert type(got) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
    elif isinstance(expected, list | tuple):
        assert all(map(torch.equal, got, expected))
    else:
        assert got == expected


def test_how_python_code_asks_for_the_class(given: dict[str, Any]) -> None:
    t = given["t"]
    found = [isinstance(each, torch.Tensor) for each in [t, *[t]]]
    assert found == [True, True]
    if not isinstance(t, list) and isinstance({"a": t}["a"], torch.Tensor):
        found.clear()
    assert not found
    match t:
        case torch.Tensor():
            found.append(True)
    assert found
    assert isinstance(t, torch.Tensor)
    assert isinstance(t, Proxy)
    assert type(t) is Proxy


INDEXING = """
r[i] || r[0, i] || r[i, i] || r[mask] || r[i[0]] || r[(i,)] || r.__getitem__(i) || operator.getitem(r, i)
r.__setitem__(i, 7) or r || r.__setitem__(mask, 7) or r || exec("r[i] = 5") or r || exec("r[mask] = 5") or r
exec("r[0] = t") or r || exec("r[0, :] = t") or r || exec("r[i] *= 2") or r || r[i:] if i.dim() == 0 else r[0]
"""


@pytest.mark.parametrize("idiom", idioms(INDEXING))
def test_a_proxy_is_not_taken_for_a_tuple_of_indices(idiom: str, given: dict[str, Any]) -> None:
    def run(values: dict[str, Any]) -> Any:
        r = torch.arange(16.0).reshape(4, 4)
        mask = torch.arange(16).reshape(4, 4) > 5
        given_mask: Any = Proxy(lambda: mask) if type(values["t"]) is Proxy else mask
        return eval(idiom, {"r": r, "mask": given_mask, "operator": operator} | values)

    assert torch.equal(run(given), run(plain()))


DANGEROUS = """
torch.as_tensor(t) || torch.tensor(t) || torch.tensor([t, t]) || torch.Tensor(t) || torch.FloatTensor(t)
torch.asarray(t) || r.new_tensor(t) || r.set_(t) || torch.where(r > 0, t, 0) || setattr(q, "grad", t)
setattr(q, "data", t) || torch.sparse_coo_tensor(t.long()[None], t) || torch.nested.nested_tensor([t])
torch.nn.Parameter(t) || torch.func.vmap(torch.sin)(t) || r[i] || r[i, ] || r[(i,)] || r.__setitem__((i,), 7)
r.__setitem__(slice(None), t) || list(map(torch.as_tensor, [t])) || torch.utils.dlpack.to_dlpack(t)
"""


def test_nothing_crashes() -> None:
    program = """
        import json, sys, warnings
        import torch
        from proxystore_core import Proxy, resolve

        warnings.simplefilter("ignore")
        for idiom in json.load(sys.stdin):
            for resolved in (False, True):
                r, q = torch.ones(4), torch.ones(4, requires_grad=True)
                t, i = Proxy(lambda: torch.arange(4.0)), Proxy(lambda: torch.tensor([2, 0]))
                if resolved:
                    resolve(t), resolve(i)
                print(idiom, resolved, flush=True)
                try:
                    eval(idiom)
                except Exception as error:
                    pass
        print("all")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=json.dumps(idioms(DANGEROUS)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "all", done.stdout[-500:] + done.stderr[-2000:]


def test_a_tensor_of_a_known_class_is_not_loaded_to_tell_it() -> None:
    class Known:
        def target_class(self) -> type:
            kind: type = torch.Tensor
            return kind

        def __call__(self) -> Any:
            return torch.ones(2)

    p: Any = Proxy(Known())
    assert isinstance(p, torch.Tensor)
    assert not is_resolved(p)
    assert torch.equal(torch.add(p, 1), torch.ones(2) + 1)
    assert torch.equal(extract(p), torch.ones(2))


def test_a_tensor_that_was_borrowed_to_be_read() -> None:
    with Store.from_url("memory://torch") as store:
        borrowed: Any = borrow(store.owned_proxy(torch.zeros(3)))
        for change in (lambda: borrowed.add_(1), lambda: borrowed.zero_(), lambda: borrowed.fill_(2)):
            with pytest.raises(MutableBorrowError, match="borrowed to be read"):
                change()
        assert borrowed.add(1).tolist() == [1, 1, 1]
        assert extract(borrowed).tolist() == [0, 0, 0]
