"""Proxies of JAX's arrays: its functions ask them for the array, where JAX lets them."""

from __future__ import annotations

import importlib
import secrets
from typing import Any

import pytest

from proxystore_core import Proxy, Store, is_resolved, resolve


class FakeJaxArray(type("Array", (), {"__module__": "jax"})):  # type: ignore[misc]
    """An array as far as its class tells."""


def test_a_proxy_is_asked_for_its_array() -> None:
    array = FakeJaxArray()
    p: Any = Proxy(lambda: array)
    resolve(p)
    assert p.__jax_array__() is array
    assert not hasattr(Proxy(lambda: array), "__jax_array__")  # of unknown class: nothing is loaded
    with Store.from_url(f"memory://{secrets.token_hex(4)}") as store:
        p = store.proxy(FakeJaxArray(), populate_target=False)
        asked = p.__jax_array__
        assert not is_resolved(p)
        assert type(asked()) is FakeJaxArray
        assert not hasattr(store.proxy([1, 2]), "__jax_array__")


WITH_PROXY = """
x + p || p + x || 1 + p || p * 2 || x == p || x @ p || jnp.asarray(p) || jnp.array(p) || jnp.stack([p, p])
jnp.concatenate([p, x]) || jnp.array([p, p]) || jnp.einsum("i,i", p, x) || jax.jit(lambda a: a + p)(x)
p.at[0].set(5) || p[1:] || p.sum() || jax.jit(jnp.sum)(jnp.asarray(p))
np.asarray(p) || np.sum(p) || isinstance(p, jax.Array)
"""


@pytest.mark.parametrize(
    "idiom", [each for line in WITH_PROXY.strip().split("\n") for each in line.split(" || ")]
)
def test_what_takes_a_proxy(idiom: str) -> None:
    jax = pytest.importorskip("jax")
    scope = {"jax": jax, "jnp": importlib.import_module("jax.numpy"), "np": importlib.import_module("numpy")}
    array = scope["jnp"].arange(4.0)
    scope["x"] = scope["jnp"].ones(4)
    expected = eval(idiom, scope | {"p": array})
    with Store.from_url(f"memory://{secrets.token_hex(4)}") as store:
        got = eval(idiom, scope | {"p": store.proxy(array, populate_target=False)})
    assert type(got) is type(expected)
    assert str(got) == str(expected)
