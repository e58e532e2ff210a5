"""Arrays of a GPU, as far as they can be told without one; with one, `on_gpu` does."""

from __future__ import annotations

import copyreg
import pickle
import sys
import types
from typing import Any

import numpy as np
import pytest

from proxystore_core.changes import changes
from proxystore_core.errors import SerializationError
from proxystore_core.serialize import _rebuild_tensor, deserialize, serialize

LARGE = 300_000  # elements of 8 bytes: more than a map costs


class TensorOf:
    """A tensor of another device, on its way."""

    def __init__(self, torch: Any, location: str) -> None:
        self._given = torch.float64, (100, 200), (1, 100), True, location

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_tensor, (pickle.PickleBuffer(bytearray(8 * 20_000)), *self._given)


def test_a_tensor_is_read_onto_its_device() -> None:
    torch = pytest.importorskip("torch")
    tensor = deserialize(b"".join(serialize(TensorOf(torch, "meta"))))
    assert (tensor.device.type, tensor.dtype, tensor.requires_grad) == ("meta", torch.float64, True)
    assert (tensor.shape, tensor.stride()) == ((100, 200), (1, 100))


def test_where_there_is_no_gpu_a_tensor_of_one_raises_what_pytorch_raises() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError) as expected:
        torch.serialization.validate_cuda_device("cuda:0")
    with pytest.raises(SerializationError) as caught:
        deserialize(b"".join(serialize(TensorOf(torch, "cuda:0"))))
    assert str(caught.value.__cause__) == str(expected.value)


def test_somebodys_own_way_of_pickling_tensors_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(copyreg.dispatch_table, torch.Tensor, lambda tensor: (list, ("own",)))
    assert deserialize(b"".join(serialize(torch.ones(LARGE)))) == ["o", "w", "n"]


class FakeCupyArray:
    """What is asked of a CuPy array; its GPU is the host's memory."""

    def __init__(self, on_gpu: Any) -> None:
        self.on_gpu = on_gpu
        self.nbytes, self.dtype, self.shape = on_gpu.nbytes, on_gpu.dtype, on_gpu.shape

    def get(self, out: Any = None) -> Any:
        if out is None:
            return self.on_gpu.copy()
        assert out.flags.c_contiguous
        out[...] = self.on_gpu
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        return FakeCupyArray, (self.get(),)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("cupy")
    module.ndarray = module.array = FakeCupyArray
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.mark.parametrize("shape", [(LARGE,), (3, 100_000), (20,), (0,), ()])
def test_an_array_of_cupy(shape: tuple[int, ...], cupy: Any) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=">c16").reshape(shape)
    frames = serialize({"array": FakeCupyArray(np.asfortranarray(array))})
    assert (array.nbytes in map(len, frames)) == (array.nbytes > 4096)
    result = deserialize(b"".join(frames))["array"]
    assert type(result) is FakeCupyArray
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result.on_gpu, array)


def test_methods_of_cupy_that_change_an_array() -> None:
    kind = type("ndarray", (), {"__module__": "cupy"})
    assert all(changes(kind, name) for name in ("fill", "put", "set", "sort", "scatter_add"))
    assert not any(changes(kind, name) for name in ("get", "sum", "copy", "resize"))
