"""Values on a GPU, and tasks that tell what came of them; workers import them by name.

Without a GPU the same on the CPU, as far as that goes: for work on the tests themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else each process takes three quarters

MANY = 100_000  # elements: over the threshold of the tests
SOME = 1000


def has(library: str) -> bool:
    """Whether it is there, and can make an array."""
    try:
        if library == "numba":
            return bool(importlib.import_module("numba.cuda").is_available())
        if library == "jax":
            return importlib.import_module("jax.numpy").zeros(1).size == 1
        if library == "torch":
            return importlib.import_module("torch").zeros(1, device=device()).numel() == 1
        return importlib.import_module("cupy").zeros(1).size == 1
    except Exception:
        return False


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass
class Parcel:
    inside: Any
    more: Any = None


def _base(count: int = MANY) -> Any:
    import torch

    return torch.arange(float(count), device=device())


def _linear(count: int = 300) -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Linear(count, count).to(device())


def _with_optimizer() -> Any:
    import torch

    model = _linear()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 300, device=device())).sum().backward()
    optimizer.step()
    return Parcel(model, optimizer)


def _with_gradient() -> Any:
    tensor = _base().requires_grad_()
    (tensor * 2).sum().backward()
    return tensor


def _torch(name: str) -> Any:
    return getattr(importlib.import_module("torch"), name)


def _sparse() -> Any:
    import torch

    return torch.eye(SOME, device=device()).to_sparse()


def _pinned() -> Any:
    import torch

    tensor = torch.arange(float(MANY))
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def _tagged() -> Any:
    tensor = _base()
    tensor.tag = "mine"
    return tensor


def _event() -> Any:
    import torch

    return Parcel(torch.cuda.Event(interprocess=True, enable_timing=False), _base())


TORCH: dict[str, Callable[[], Any]] = {
    "tensor": _base,
    "small": lambda: _base(10),
    "half": lambda: _base().half(),
    "bfloat16": lambda: _base().bfloat16(),
    "float8": lambda: _base().to(_torch("float8_e4m3fn")),
    "bool": lambda: _base() > 5,
    "complex": lambda: _torch("complex")(_base(), _base()),
    "conjugate": lambda: _torch("complex")(_base(), _base()).conj(),
    "0-d": lambda: _base()[7],
    "empty": lambda: _base()[:0].reshape(0, 3),
    "slice": lambda: _base()[100:90_000],
    "small slice": lambda: _base()[3:5],
    "strided": lambda: _base()[::2],
    "transposed": lambda: _base().reshape(200, 500).T,
    "channels last": lambda: _base().reshape(1, 4, 100, 250).to(memory_format=_torch("channels_last")),
    "expanded": lambda: _base(100).expand(SOME, 100),
    "grad": lambda: _base().requires_grad_(),
    "has gradient": _with_gradient,
    "not a leaf": lambda: _base().requires_grad_() * 2,
    "parameter": lambda: _torch("nn").Parameter(_base()),
    "frozen": lambda: _torch("nn").Parameter(_base(), requires_grad=False),
    "tagged": _tagged,
    "sparse": _sparse,
    "pinned": _pinned,
    "twice": lambda: [tensor := _base(), tensor],
    "views": lambda: [tensor := _base(), tensor[:500], tensor[500:].reshape(-1, 10)],
    "views in an object": lambda: Parcel(tensor := _base(), tensor[500:]),
    "on both": lambda: {"gpu": _base(), "cpu": _base().cpu(), "array": np.arange(MANY)},
    "model": _linear,
    "weights": lambda: _linear().state_dict(),
    "model and its weight": lambda: [model := _linear(), model.weight],
    "optimizer": _with_optimizer,
    "event": _event,
}


def _cupy() -> Any:
    return importlib.import_module("cupy")


def _cupy_sparse() -> Any:
    return importlib.import_module("cupyx.scipy.sparse").csr_matrix(_cupy().eye(SOME))


CUPY: dict[str, Callable[[], Any]] = {
    "cupy": lambda: _cupy().arange(float(MANY)),
    "cupy small": lambda: _cupy().arange(10.0),
    "cupy half": lambda: _cupy().arange(MANY).astype("f2"),
    "cupy complex": lambda: _cupy().arange(MANY).astype("c8"),
    "cupy 0-d": lambda: _cupy().arange(10.0).sum(),
    "cupy Fortran": lambda: _cupy().asfortranarray(_cupy().arange(float(MANY)).reshape(100, -1)),
    "cupy strided": lambda: _cupy().arange(float(MANY))[::2],
    "cupy twice": lambda: [array := _cupy().arange(float(MANY)), array],
    "cupy views": lambda: [array := _cupy().arange(float(MANY)), array[500:]],
    "cupy sparse": _cupy_sparse,
    "cupy and numpy": lambda: Parcel(_cupy().arange(float(MANY)), np.arange(MANY)),
    "cupy and torch": lambda: Parcel(_cupy().arange(float(MANY)), _base()),
}


def _jax(what: str = "numpy") -> Any:
    return importlib.import_module(f"jax.{what}")


JAX: dict[str, Callable[[], Any]] = {
    "jax": lambda: _jax().arange(float(MANY)),
    "jax small": lambda: _jax().arange(10.0),
    "jax bfloat16": lambda: _jax().ones(MANY, "bfloat16"),
    "jax weak": lambda: _jax().asarray(3.0),
    "jax key": lambda: _jax("random").key(1),
    "jax twice": lambda: {"a": (array := _jax().arange(float(MANY))), "b": array},
}


def _numba() -> Any:
    return importlib.import_module("numba.cuda").to_device(np.arange(float(MANY)))


NUMBA: dict[str, Callable[[], Any]] = {"numba": _numba}

LIBRARIES = {"torch": TORCH, "cupy": CUPY, "jax": JAX, "numba": NUMBA}
VALUES = {name: make for values in LIBRARIES.values() for name, make in values.items()}


def make(name: str) -> Any:
    return VALUES[name]()


def described(value: Any) -> Any:
    """All that a task could tell of a value, in plain values; also which objects and memory are the same."""
    return _Told()(value)


class _Told:
    def __init__(self) -> None:
        self._objects: dict[int, tuple[int, Any]] = {}
        self._memory: dict[int, int] = {}

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, str | int | float | bool):
            return value
        if id(value) in self._objects:
            return f"number {self._objects[id(value)][0]}"
        self._objects[id(value)] = len(self._objects), value
        kind = type(value)
        name = f"{kind.__module__.partition('.')[0]} {kind.__qualname__}"
        if isinstance(value, list | tuple):
            return [name, *map(self, value)]
        if isinstance(value, dict):
            return {"": name, **{str(key): self(item) for key, item in value.items()}}
        if isinstance(value, Parcel):
            return [name, self(value.inside), self(value.more)]
        if isinstance(value, np.ndarray):
            return [name, value.dtype.str, value.shape, value.strides, value.flags.writeable, _digest(value)]
        if name.startswith("torch "):
            return [name, *self._of_torch(value)]
        if name.startswith("cupy"):
            return [name, *self._of_cupy(value)]
        if name.startswith("jax"):
            return [name, str(value.dtype), value.shape, str(value.devices()), _digest(_plain_of_jax(value))]
        if hasattr(value, "copy_to_host"):
            return [name, _digest(value.copy_to_host())]
        return name

    def _where(self, address: int) -> str:
        """Which memory it is, counted from the first: what shares it is told by that."""
        return f"memory {self._memory.setdefault(address, len(self._memory))}"

    def _of_torch(self, value: Any) -> list[Any]:
        import torch

        if isinstance(value, torch.nn.Module):
            return [self(dict(value.state_dict(keep_vars=True)))]
        if isinstance(value, torch.optim.Optimizer):
            groups = [[self(one) for one in group["params"]] for group in value.param_groups]
            return [groups, [self(dict(state)) for state in value.state.values()]]
        if not isinstance(value, torch.Tensor):
            return []
        told = [str(value.dtype), tuple(value.shape), str(value.device), str(value.layout)]
        told += [value.requires_grad, value.is_leaf, value.is_pinned(), value.is_conj(), sorted(vars(value))]
        if value.layout is torch.strided:
            told += [value.stride(), self._where(value.untyped_storage().data_ptr())]
        if value.is_leaf:
            told.append(self(value.grad))
        plain = value.detach().to_dense().cpu().resolve_conj().contiguous()
        return [*told, _digest(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else ""]

    def _of_cupy(self, value: Any) -> list[Any]:
        cupy = _cupy()
        if not isinstance(value, cupy.ndarray):
            return [self(value.data)] if hasattr(value, "data") else []
        told = [value.dtype.str, value.shape, value.device.id, self._where(value.data.mem.ptr)]
        return [*told, _digest(value.get())]


def _plain_of_jax(value: Any) -> Any:
    jax = importlib.import_module("jax")
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def _digest(array: Any) -> str:
    return hashlib.sha1(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


def increment(value: Any) -> None:
    """Changes what it is given."""
    value += 1


def total(*values: Any) -> float:
    return sum(float(value.sum()) for value in values)


def change_both(first: Any, second: Any) -> float:
    first += 1
    return float(second.sum())


def same(value: Any) -> Any:
    return value


def full(library: str, count: int, number: float) -> Any:
    """An array of one number."""
    if library == "torch":
        import torch

        return torch.full((count,), number, device=device())
    return (_cupy() if library == "cupy" else _jax()).full((count,), number, dtype="f4")
