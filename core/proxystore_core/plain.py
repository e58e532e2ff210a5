"""Objects without pickle: what is read back builds values, and runs nobody's code.

The stream is JSON (RFC 8259, with NaN and Infinity). Null, booleans, numbers and short text stand for
themselves; everything else is a list that begins with a tag:

    ["l", item ...]  list          ["b"]  bytes            ["n", dtype, shape, order]  numpy array
    ["t", item ...]  tuple         ["B"]  bytearray        ["g", dtype]                numpy scalar
    ["s", item ...]  set           ["u"]  long text        ["a"], ["r"]                Arrow table, batch
    ["f", item ...]  frozenset     ["c", real, imaginary]  complex
    ["d", key, value ...]  dict    ["x", name, value]      a type of `register_plain`

Bytes, text, arrays and tables are out-of-band buffers, each used once, in the order of their tags; text is
UTF-8 with surrogates, tables are Arrow's IPC streams. A dtype is numpy's own description of one.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from proxystore_core.connectors.base import Buffer
from proxystore_core.errors import CorruptError, SerializationError

__all__ = ["decode", "encode", "register_plain"]

LONG = 4096
"""Characters from which a text is a buffer of its own."""

_TYPES = (
    "None, booleans, numbers, text, bytes, lists, tuples, sets and dicts of such, numpy arrays and scalars "
    "without Python objects in them, Arrow tables, and what register_plain() was told of"
)
_Out: TypeAlias = list[Buffer]
_In: TypeAlias = Iterator[memoryview]
_registered: dict[type, tuple[str, Callable[[Any], Any]]] = {}
_named: dict[str, Callable[[Any], Any]] = {}


def register_plain(
    kind: type, name: str, to_plain: Callable[[Any], Any], from_plain: Callable[[Any], Any]
) -> None:
    """Let objects of a class be stored without pickle; in every process that stores or loads them.

    Args:
        kind: the class itself; its subclasses are others.
        name: what it is called in a stored object.
        to_plain: from an object to one that can be stored without pickle.
        from_plain: the inverse. It is given what may come from anybody: it must not trust it.
    """
    _registered[kind] = name, to_plain
    _named[name] = from_plain


def encode(obj: Any) -> tuple[bytes, list[Buffer]]:
    """Stream and buffers of an object; the buffers alias it.

    Raises:
        SerializationError: it is, or holds, an object of another type; says which.
    """
    buffers: _Out = []
    try:
        return json.dumps(_tree(obj, buffers), separators=(",", ":")).encode(), buffers
    except (RecursionError, ValueError) as error:
        raise SerializationError(
            f"an object of type {_name(obj)} cannot be stored without pickle: {error}"
        ) from error


def decode(stream: memoryview, buffers: Sequence[memoryview]) -> Any:
    """The inverse of `encode`. Arrays are views of the buffers.

    Raises:
        CorruptError: that is no such stream.
        SerializationError: a registered type is not known here, or cannot be built of what is there.
    """
    rest = iter(buffers)
    try:
        obj = _object(json.loads(bytes(stream)), rest)
        if next(rest, None) is not None:
            raise ValueError("buffers are left over")
    except (SerializationError, MemoryError):
        raise
    except Exception as error:  # whatever json, numpy and Arrow say of nonsense
        raise CorruptError(f"the stored object is no plain one: {type(error).__name__}: {error}") from error
    return obj


def _name(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def _tree(obj: Any, out: _Out) -> Any:
    kind = type(obj)
    if obj is None or kind in (bool, int, float):
        return obj
    if kind is str:
        if len(obj) < LONG:
            return obj
        out.append(obj.encode("utf-8", "surrogatepass"))
        return ["u"]
    if kind in _SEQUENCES:
        return [_SEQUENCES[kind], *[_tree(item, out) for item in obj]]
    if kind is dict:
        return ["d", *[_tree(part, out) for pair in obj.items() for part in pair]]
    if kind is bytes or kind is bytearray:
        out.append(obj)
        return ["b" if kind is bytes else "B"]
    if kind is complex:
        return ["c", obj.real, obj.imag]
    if kind in _registered:
        name, to_plain = _registered[kind]
        return ["x", name, _tree(to_plain(obj), out)]
    tree = _array(obj, kind, out) or _table(obj, kind, out)
    if tree is None:
        raise SerializationError(
            f"an object of type {_name(obj)} cannot be stored without pickle",
            remedy=f"With allow_pickle = false there are {_TYPES}.",
        )
    return tree


_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "f"}
_OF_ITEMS: dict[str, Callable[[list[Any]], Any]] = {"l": list, "t": tuple, "s": set, "f": frozenset}


def _array(obj: Any, kind: type, out: _Out) -> Any:
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or kind.__module__ != "numpy" or not isinstance(obj, numpy.ndarray | numpy.generic):
        return None
    if kind is not numpy.ndarray and isinstance(obj, numpy.ndarray):
        return None  # matrix, memmap: other types
    dtype = obj.dtype
    described = numpy.lib.format.dtype_to_descr(dtype) if not dtype.hasobject else None
    if described is None or _dtype(numpy, json.loads(json.dumps(described))) != dtype:
        raise SerializationError(
            f"a numpy array of dtype {dtype} cannot be stored without pickle",
            remedy="Convert it to numbers or text of a fixed length.",
        )
    if kind is not numpy.ndarray:
        out.append(obj.tobytes())
        return ["g", described]
    order = "F" if obj.flags.f_contiguous and not obj.flags.c_contiguous else "C"
    flat = obj.reshape(-1, order=order)  # copies only what is contiguous in neither order
    out.append(flat.view(numpy.uint8).data if flat.nbytes else b"")
    return ["n", described, list(obj.shape), order]


def _dtype(numpy: Any, described: Any) -> Any:
    def tuples(part: Any) -> Any:  # of lists, as JSON has it
        if isinstance(part, list) and part and isinstance(part[0], list):
            return [tuple(map(tuples, field)) for field in part]
        return tuple(map(tuples, part)) if isinstance(part, list) else part

    dtype = numpy.lib.format.descr_to_dtype(tuples(described))
    if dtype.hasobject:
        raise ValueError(f"dtype {dtype}")
    return dtype


def _table(obj: Any, kind: type, out: _Out) -> Any:
    arrow: Any = sys.modules.get("pyarrow")
    if arrow is None or kind not in (arrow.Table, arrow.RecordBatch):
        return None
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, obj.schema) as writer:
        writer.write(obj)
    out.append(memoryview(sink.getvalue()).cast("B"))
    return ["a" if kind is arrow.Table else "r"]


def _object(tree: Any, rest: _In) -> Any:
    if type(tree) is not list:
        if type(tree) is dict:
            raise ValueError("an object of JSON")
        return tree
    tag, *parts = tree
    if tag in _OF_ITEMS:
        return _OF_ITEMS[tag]([_object(part, rest) for part in parts])
    if tag == "d":
        items = iter([_object(part, rest) for part in parts])
        return dict(zip(items, items, strict=True))
    return _BUILDERS[tag](rest, *parts)


def _built_array(rest: _In, described: Any, shape: Any, order: Any) -> Any:
    import numpy as np

    dtype, data = _dtype(np, described), next(rest)
    if not all(type(count) is int and count >= 0 for count in shape) or order not in ("C", "F"):
        raise ValueError(f"shape {shape!r} in order {order!r}")
    if math.prod(shape) * dtype.itemsize != data.nbytes:
        raise ValueError(f"{data.nbytes} bytes of an array of shape {shape} and {dtype}")
    if not data.nbytes:
        return np.empty(shape, dtype, order)
    return np.ndarray(shape, dtype, data, order=order)


def _built_scalar(rest: _In, described: Any) -> Any:
    return _built_array(rest, described, [], "C")[()]


def _built_table(rest: _In) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(next(rest))) as reader:
        table = reader.read_all()
    table.validate(full=True)
    return table


def _built_batch(rest: _In) -> Any:
    import pyarrow as pa

    table = _built_table(rest)  # which knows no empty batch
    (batch,) = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    return batch


def _built_registered(rest: _In, name: Any, tree: Any) -> Any:
    if name not in _named:
        raise SerializationError(
            f"the stored object has the type {str(name)[:200]!r}, which is not known here",
            remedy="Call register_plain() for it in this process, too.",
        )
    plain = _object(tree, rest)
    try:
        return _named[name](plain)
    except Exception as error:
        raise SerializationError(
            f"the stored object cannot be rebuilt: {type(error).__name__}: {error}"
        ) from error


_BUILDERS: dict[str, Callable[..., Any]] = {
    "b": lambda rest: bytes(next(rest)),
    "B": lambda rest: bytearray(next(rest)),
    "u": lambda rest: str(next(rest), "utf-8", "surrogatepass"),
    "c": lambda rest, real, imaginary: complex(real, imaginary),
    "n": _built_array,
    "g": _built_scalar,
    "a": _built_table,
    "r": _built_batch,
    "x": _built_registered,
}
