"""Objects to buffers and back: pickle protocol 5 with large data out of band, never joined or copied.

Pickle comes first because its C code is the fastest there is and keeps exact types. Cloudpickle
takes over for what another process could not import: lambdas, closures, what ``__main__`` defines
and modules registered with `cloudpickle.register_pickle_by_value`.
"""

from __future__ import annotations

import copyreg
import importlib
import pickle
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeAlias

import cloudpickle

from proxystore_core import plain
from proxystore_core.buffers import MAP_FROM, fresh_buffer
from proxystore_core.connectors.base import Buffer
from proxystore_core.errors import CorruptError, RefusedError, SerializationError, StoreError
from proxystore_core.frames import KIND_CUSTOM, KIND_PICKLE, KIND_PLAIN, pack, unpack
from proxystore_core.memos import remember
from proxystore_core.pickling import Pickling, Reducer, is_of_numbers

__all__ = ["IN_BAND", "Deserializer", "Serializer", "deserialize", "serialize", "undo_if_it_fails"]

Serializer: TypeAlias = Callable[[Any], Any]
"""Turns an object into anything with a contiguous buffer (bytes, bytearray, memoryview, array ...)."""

Deserializer: TypeAlias = Callable[[memoryview], Any]
"""Turns what a `Serializer` returned, given as a memoryview, into the object again."""

IN_BAND = 4096
"""Buffers smaller than this (bytes) are copied into the stream, which is cheaper than one more frame."""

# Pickle's frames end below twice its target size, so a longer chunk is a payload without names.
_LONGEST_FRAME = (64 * 1024 + 16) * 2


def serialize(
    obj: object,
    *,
    compression: str | None = None,
    checksum: bool = False,
    serializer: Serializer | None = None,
    pickling: Pickling = Pickling(),  # noqa: B008  unchanging
    allow_pickle: bool = True,
) -> list[Buffer]:
    """Turn an object into buffers whose concatenation a store keeps.

    Large contiguous buffers (arrays, tables, bytes) are aliased, not copied: store the result
    before the object changes.

    Args:
        obj: anything that pickle or cloudpickle can take.
        compression: ``"lz4"``, ``"zstd"`` or None; frames that do not shrink are left as they are.
        checksum: whether `deserialize` is to detect altered bytes.
        serializer: used in place of pickle; returns a bytes-like object.
        pickling: whose readers the object is for.
        allow_pickle: False for `proxystore_core.plain` instead.

    Raises:
        SerializationError: neither pickle nor cloudpickle (or not ``serializer``, `plain`) can take ``obj``.
        RefusedError: there is a ``serializer``, and pickle is not allowed.
        ConfigurationError: there is no such compression.
        MissingExtraError: the compression's library is not installed.
    """
    if not allow_pickle:
        if serializer is not None:
            raise _customs()
        tree, plain_buffers = plain.encode(obj)
        return pack([tree], plain_buffers, kind=KIND_PLAIN, codec=compression, checksum=checksum)
    if serializer is not None:
        view = _serialize_custom(obj, serializer)
        return pack([view], kind=KIND_CUSTOM, codec=compression, checksum=checksum)
    array: Any = obj
    known = None if compression or checksum else _plain_array(array, pickling)
    if known is not None and (before := _before.get(known)):
        return [before, pickle.PickleBuffer(array).raw()]
    stream, buffers = _pickle(obj, pickling)
    frames = pack(stream, buffers, kind=KIND_PICKLE, codec=compression, checksum=checksum)
    if known is not None and len(buffers) == 1:
        before = b"".join(frames[:-1])
        if len(_before) >= _KNOWN:
            _before.clear()  # which another thread may do at any time
        _before[known] = before
        frames = [before, frames[-1]]  # cut as the next one is: who compares sees the same
    return frames


def deserialize(
    data: Buffer,
    *,
    deserializer: Deserializer | None = None,
    checksum: bool = False,
    allow_pickle: bool = True,
) -> Any:
    """Turn a stored object into an object again; the inverse of `serialize`.

    Arrays and the like are views into ``data`` where that is writable, and private copies else.
    Read-only ones come back read-only.

    Args:
        data: the stored object; the caller's own, because the object aliases it.
        deserializer: the counterpart of the ``serializer`` that made the object; only for such objects.
        checksum: refuse data that carries no checksum. One that is there is always verified.
        allow_pickle: False to take nothing but what `proxystore_core.plain` made.

    Raises:
        CorruptError: ``data`` is truncated, altered or not a stored object.
        RefusedError: it is a pickle, or another serializer's, and pickle is not allowed.
        SerializationError: the object's module or class is missing here, its own code fails, or
            it was made by a ``serializer`` and no ``deserializer`` is given.
        MissingExtraError: the library that decompresses ``data`` is not installed.
    """
    kind, stream, buffers, verified = unpack(data, checksum=checksum)
    if kind == KIND_PLAIN:
        return plain.decode(stream, buffers)
    if not allow_pickle:
        if kind == KIND_CUSTOM:
            raise _customs()
        raise RefusedError(
            "the object is a pickle, and allow_pickle is false in this process", remedy=_WITHOUT_PICKLE
        )
    if kind == KIND_CUSTOM:
        return _deserialize_custom(stream, deserializer)
    try:
        return pickle.loads(stream, buffers=buffers)
    except (MemoryError, StoreError):
        raise
    except (pickle.UnpicklingError, EOFError, IndexError) as error:
        blame = SerializationError if verified else CorruptError
        raise blame(f"the pickle in the stored object cannot be read: {error}") from error
    except ImportError as error:
        raise SerializationError(
            f"the stored object needs the module {error.name or str(error)!r}, which cannot be imported here",
            remedy="Install it where the object is read, or register it with "
            "cloudpickle.register_pickle_by_value where it is stored.",
        ) from error
    except AttributeError as error:
        raise SerializationError(
            f"the stored object cannot be rebuilt here: {error}",
            remedy="Use the same version of the code where the object is stored and where it is read.",
        ) from error
    except Exception as error:
        raise SerializationError(
            f"the stored object cannot be rebuilt: {type(error).__name__}: {error}"
        ) from error


_WITHOUT_PICKLE = (
    "Set allow_pickle = false (PROXYSTORE_ALLOW_PICKLE=false) where it is stored, too. Allowing pickles here "
    "lets whoever stores objects run code in this process (docs/security.md)."
)


def _customs() -> RefusedError:
    return RefusedError(
        "allow_pickle is false in this process, and nobody knows what a serializer of its own does",
        remedy="Register the type with proxystore_core.plain.register_plain() instead.",
    )


_KNOWN = 256  # kinds of arrays that are remembered
_before: dict[tuple[str, tuple[int, ...], bool], bytes] = {}
"""What stands before the bytes of an array of a data type and shape, writable or not."""


def _plain_array(obj: Any, pickling: Pickling) -> tuple[str, tuple[int, ...], bool] | None:
    """What tells all of a numpy array but its bytes; None for others than plain large ones of numbers.

    Pickling one goes through Python and costs some 40 us between the tasks of a busy client.
    """
    kind = getattr(sys.modules.get("numpy"), "ndarray", None)
    if type(obj) is not kind or kind in copyreg.dispatch_table:  # somebody's own way of pickling it
        return None
    if not pickling.takes(obj):
        return None
    dtype, flags = obj.dtype, obj.flags
    if not is_of_numbers(dtype):
        return None
    if obj.nbytes < IN_BAND or not flags.c_contiguous:
        return None
    return dtype.char, obj.shape, flags.writeable or pickling.writable


class _Chunks(list[Buffer]):
    """A file that keeps what is written to it: pickle hands large bytes over as they are."""

    def write(self, data: Any) -> None:
        kind = type(data)
        if kind is bytes:
            self.append(data)
        elif kind is bytearray:
            self.append(memoryview(data))  # the view keeps its owner from resizing it
        elif kind is pickle.PickleBuffer:
            self.append(data.raw())
        else:
            self.append(bytes(data))  # a view may outlive what it shows


class _Buffers(list[Buffer]):
    """Collects out-of-band buffers; a true answer asks pickle to copy a small one into the stream."""

    def collect(self, buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if len(view) < IN_BAND:
            return True
        self.append(view)
        return False


class _CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: _Chunks, buffers: _Buffers, reducers: Mapping[type, Reducer]) -> None:
        # The C pickler reads the table once, when it is initialized.
        self.dispatch_table = cloudpickle.Pickler.dispatch_table.new_child(dict(reducers))
        super().__init__(file, 5, buffer_callback=buffers.collect)


_undoing: ContextVar[list[Callable[[], None]] | None] = ContextVar("proxystore_undoing", default=None)


def undo_if_it_fails(undo: Callable[[], None]) -> None:
    """Let a function be called if the pickling that goes on here fails; of `serialize`, not of others."""
    undoing = _undoing.get()
    if undoing is not None:
        undoing.append(undo)


def _pickle(obj: object, pickling: Pickling) -> tuple[_Chunks, _Buffers]:
    undoing: list[Callable[[], None]] = []
    token = _undoing.set(undoing)
    try:
        return _pickled(obj, pickling)
    except BaseException:
        for undo in undoing:
            undo()
        raise
    finally:
        _undoing.reset(token)


def _pickled(obj: object, pickling: Pickling) -> tuple[_Chunks, _Buffers]:
    reducers = {**_reducers(), **pickling.reducers()}
    chunks, buffers = _Chunks(), _Buffers()
    try:
        pickler = pickle.Pickler(chunks, 5, buffer_callback=buffers.collect)
        if reducers:
            pickler.dispatch_table = {**copyreg.dispatch_table, **reducers}
        pickler.dump(obj)
    except MemoryError:
        raise
    except Exception as error:
        refusal: Exception | None = error
    else:
        if not (pickling.main_by_value and _by_value(chunks)):
            remember(obj, pickler, chunks)
            return chunks, buffers
        refusal = None
    chunks, buffers = _Chunks(), _Buffers()
    try:
        if refusal is not None and not pickling.main_by_value:
            raise refusal
        pickler = _CloudPickler(chunks, buffers, reducers)
        pickler.dump(obj)
    except MemoryError:
        raise
    except Exception as error:
        kind = type(obj)
        raise SerializationError(
            f"an object of type {kind.__module__}.{kind.__qualname__} cannot be serialized: "
            f"{type(error).__name__}: {error}",
            remedy="Leave out what belongs to one process (locks, files, sockets), or give a serializer.",
        ) from (refusal or error)
    finally:
        del refusal  # its traceback names this frame: a cycle that would keep the callers' objects
    remember(obj, pickler, chunks)
    return chunks, buffers


def _by_value(chunks: _Chunks) -> bool:
    """Whether the stream names something that another process could not import."""
    names = [b"__main__"]
    if registered := cloudpickle.list_registry_pickle_by_value():
        names += (name.encode() for name in registered)
    for chunk in chunks:
        if type(chunk) is bytes and len(chunk) < _LONGEST_FRAME:
            for name in names:
                if name in chunk:
                    return True
    return False


def _reducers() -> Mapping[type, Reducer]:
    """How to reduce types whose own way copies; only of libraries that are in use."""
    found: dict[type, Reducer] = {}
    for library, name, reduce in (("torch", "Tensor", _reduce_tensor), ("cupy", "ndarray", _reduce_cupy)):
        kind = getattr(sys.modules.get(library), name, None)
        if kind is not None and kind not in copyreg.dispatch_table:
            found[kind] = reduce
    return found


def _reduce_cupy(array: Any) -> Any:
    """As CuPy does, with a large one copied into memory whose pages may be paid for."""
    if array.nbytes < MAP_FROM or array.dtype.hasobject:
        return array.__reduce_ex__(5)
    numpy, cupy = sys.modules["numpy"], sys.modules["cupy"]
    on_host = numpy.frombuffer(fresh_buffer(array.nbytes), array.dtype).reshape(array.shape)
    return cupy.array, (array.get(out=on_host),)


def _reduce_tensor(tensor: Any) -> Any:
    """Reduce a plain dense tensor to the bytes it covers, of any dtype; leave others to torch.

    One of a GPU is copied to the host once; torch's own way writes it to a file in memory, and that to bytes.
    """
    torch = sys.modules["torch"]
    if (
        tensor.device.type not in ("cpu", "cuda")
        or tensor.layout is not torch.strided
        or not tensor.numel()
        or tensor.is_quantized
        or tensor.is_conj()
        or tensor.is_neg()
        or tensor._backward_hooks
        or tensor.__dict__
        or "numpy" not in sys.modules
    ):
        return tensor.__reduce_ex__(5)
    # Dense with permuted dimensions (channels last, transposed) is as plain as contiguous.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    if not tensor.permute(order).is_contiguous():
        return tensor.__reduce_ex__(5)
    size = tensor.numel() * tensor.element_size()
    start = tensor.storage_offset() * tensor.element_size()
    storage = tensor.untyped_storage()
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, start, (size,), (1,))
    given = tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.requires_grad
    if tensor.device.type == "cpu":
        return _rebuild_tensor, (pickle.PickleBuffer(flat.numpy()), *given)
    on_host = torch.frombuffer(fresh_buffer(size), dtype=torch.uint8).copy_(flat)
    location = torch.serialization.location_tag(storage)
    return _rebuild_tensor, (pickle.PickleBuffer(on_host.numpy()), *given, location)


def _rebuild_tensor(
    buffer: Buffer,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    location: str = "cpu",
) -> Any:
    torch = importlib.import_module("torch")
    storage = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    if location != "cpu":  # as torch.load does, which raises where there is no such device
        storage = torch.serialization.default_restore_location(storage, location)
    tensor = torch.empty(0, dtype=dtype, device=storage.device).set_(storage, 0, shape, strides)
    return tensor.requires_grad_(requires_grad)


def _serialize_custom(obj: object, serializer: Serializer) -> memoryview:
    try:
        result = serializer(obj)
        return pickle.PickleBuffer(result).raw()
    except MemoryError:
        raise
    except Exception as error:
        raise SerializationError(
            f"the serializer failed on an object of type {type(obj).__qualname__}: "
            f"{type(error).__name__}: {error}",
            remedy="A serializer returns bytes or another contiguous buffer.",
        ) from error


def _deserialize_custom(stream: memoryview, deserializer: Deserializer | None) -> Any:
    if deserializer is None:
        raise SerializationError(
            "the object was stored by a custom serializer and no deserializer is given",
            remedy="Give the deserializer that belongs to it.",
        )
    try:
        return deserializer(stream)
    except MemoryError:
        raise
    except Exception as error:
        raise SerializationError(
            f"the deserializer failed: {type(error).__name__}: {error}",
            remedy="It is given a read-only memoryview; wrap it in bytes() for a library that wants bytes.",
        ) from error
