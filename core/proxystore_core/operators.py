"""What a `Proxy` forwards to its target, as one table: special method -> function.

Python looks special methods up on the class, so each must be there, whatever the target can do;
a target that cannot raises its own error. Left out on purpose: ``__next__`` and the asynchronous
protocols (any proxy would pass for an iterator: ``for`` and ``next(iter(p))`` work without) and
the descriptor protocol (a proxy in a class body would change what it means).

Reading ``p.__proxy_target__`` is the whole price of an operator: the slot is set once the proxy
is resolved, and while it is unset the read falls to ``Proxy.__getattr__``, which resolves.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
import os
import sys
from collections.abc import Callable
from typing import Any

from proxystore_core.truth import LAID_BARE, indexes

__all__ = ["OPERATORS", "PROXIES", "plain"]

PROXIES: set[type] = set()
"""`Proxy` and its subclasses: a set look-up of the type is the cheapest question there is."""


def plain(value: Any) -> Any:
    """The target if ``value`` is a proxy, else ``value`` itself."""
    return value.__proxy_target__ if type(value) in PROXIES else value


def _plain_tree(value: Any) -> Any:
    kind = type(value)
    if kind is list or kind is tuple:
        return kind(map(_plain_tree, value))
    if kind is dict:
        return {name: _plain_tree(item) for name, item in value.items()}
    return plain(value)


def _call(p: Any, /, *args: Any, **kwargs: Any) -> Any:
    target = p.__proxy_target__
    # df[p], df.loc[p]: pandas calls whatever is callable, and by its class a proxy is.
    if not callable(target) and sys._getframe(1).f_globals.get("__name__") == "pandas.core.common":
        return target
    return target(*args, **kwargs)


def _len(p: Any) -> int:
    target = p.__proxy_target__
    if type(target) in LAID_BARE:
        asking = sys._getframe(1)
        if indexes(asking.f_code, asking.f_lasti):  # r[p]: else PyTorch takes it for a tuple of indices
            raise TypeError("a proxy of a tensor is no tuple of indices; use extract(p)")
    return len(target)


def _array(p: Any, dtype: Any = None, copy: bool | None = None) -> Any:
    import numpy as np

    return np.array(p.__proxy_target__, dtype=dtype, copy=copy, subok=True)


# The Python operator of a ufunc, for operands that NumPy's operators defer to (scipy.sparse).
_OPERATOR_OF_UFUNC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "matmul": operator.matmul,
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}


def _array_ufunc(p: Any, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    args = [plain(value) for value in inputs]
    for value in args:
        kind = type(value)
        if hasattr(kind, "__array_priority__") and not hasattr(kind, "__array_ufunc__"):
            python = _OPERATOR_OF_UFUNC.get(ufunc.__name__)
            if python and method == "__call__" and not kwargs:
                return python(*args)
    if kwargs:
        kwargs = _plain_tree(kwargs)
    return getattr(ufunc, method)(*args, **kwargs)


def _array_function(p: Any, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
    return function(*_plain_tree(args), **_plain_tree(kwargs))


def _torch_function(function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return function(*_plain_tree(args), **_plain_tree(kwargs or {}))


def _copy(p: Any) -> Any:
    return type(p)(p.__proxy_factory__) if not _is_resolved(p) else copy.copy(p.__proxy_target__)


def _deepcopy(p: Any, memo: dict[int, Any]) -> Any:
    if not _is_resolved(p):
        return type(p)(p.__proxy_factory__)
    return copy.deepcopy(p.__proxy_target__, memo)


def _is_resolved(p: Any) -> bool:
    try:
        object.__getattribute__(p, "__proxy_target__")
    except AttributeError:
        return False
    return True


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    # The name is bound to the plain result: after `p += 1`, `return p` returns the changed object
    # and never a reference to the unchanged input.
    operation: Callable[[Any, Any], Any] = getattr(operator, name)
    return lambda p, other: operation(p.__proxy_target__, plain(other))


OPERATORS: dict[str, Callable[..., Any]] = {
    # Text. __repr__ and __hash__ are Proxy's own: they never load.
    "__str__": lambda p: str(p.__proxy_target__),
    "__format__": lambda p, spec: format(p.__proxy_target__, spec),
    "__bytes__": lambda p: bytes(p.__proxy_target__),
    "__fspath__": lambda p: os.fspath(p.__proxy_target__),
    # Comparison.
    "__eq__": lambda p, other: p.__proxy_target__ == other,
    "__ne__": lambda p, other: p.__proxy_target__ != other,
    "__lt__": lambda p, other: p.__proxy_target__ < other,
    "__le__": lambda p, other: p.__proxy_target__ <= other,
    "__gt__": lambda p, other: p.__proxy_target__ > other,
    "__ge__": lambda p, other: p.__proxy_target__ >= other,
    # Numbers: unary.
    "__bool__": lambda p: bool(p.__proxy_target__),
    "__neg__": lambda p: -p.__proxy_target__,
    "__pos__": lambda p: +p.__proxy_target__,
    "__abs__": lambda p: abs(p.__proxy_target__),
    "__invert__": lambda p: ~p.__proxy_target__,
    # Numbers: binary. A proxy on the other side answers through its own reflected operator,
    # except where C takes any operand for granted (str % args).
    "__add__": lambda p, other: p.__proxy_target__ + other,
    "__sub__": lambda p, other: p.__proxy_target__ - other,
    "__mul__": lambda p, other: p.__proxy_target__ * other,
    "__matmul__": lambda p, other: p.__proxy_target__ @ other,
    "__truediv__": lambda p, other: p.__proxy_target__ / other,
    "__floordiv__": lambda p, other: p.__proxy_target__ // other,
    "__mod__": lambda p, other: p.__proxy_target__ % plain(other),
    "__divmod__": lambda p, other: divmod(p.__proxy_target__, other),
    "__pow__": lambda p, *others: pow(p.__proxy_target__, *map(plain, others)),
    "__lshift__": lambda p, other: p.__proxy_target__ << other,
    "__rshift__": lambda p, other: p.__proxy_target__ >> other,
    "__and__": lambda p, other: p.__proxy_target__ & other,
    "__or__": lambda p, other: p.__proxy_target__ | other,
    "__xor__": lambda p, other: p.__proxy_target__ ^ other,
    # Numbers: reflected.
    "__radd__": lambda p, other: other + p.__proxy_target__,
    "__rsub__": lambda p, other: other - p.__proxy_target__,
    "__rmul__": lambda p, other: other * p.__proxy_target__,
    "__rmatmul__": lambda p, other: other @ p.__proxy_target__,
    "__rtruediv__": lambda p, other: other / p.__proxy_target__,
    "__rfloordiv__": lambda p, other: other // p.__proxy_target__,
    "__rmod__": lambda p, other: other % p.__proxy_target__,
    "__rdivmod__": lambda p, other: divmod(other, p.__proxy_target__),
    "__rpow__": lambda p, other, *modulus: pow(other, p.__proxy_target__, *modulus),
    "__rlshift__": lambda p, other: other << p.__proxy_target__,
    "__rrshift__": lambda p, other: other >> p.__proxy_target__,
    "__rand__": lambda p, other: other & p.__proxy_target__,
    "__ror__": lambda p, other: other | p.__proxy_target__,
    "__rxor__": lambda p, other: other ^ p.__proxy_target__,
    # Numbers: conversions.
    "__int__": lambda p: int(p.__proxy_target__),
    "__float__": lambda p: float(p.__proxy_target__),
    "__complex__": lambda p: complex(p.__proxy_target__),
    "__index__": lambda p: operator.index(p.__proxy_target__),
    "__round__": lambda p, *digits: round(p.__proxy_target__, *map(plain, digits)),
    "__trunc__": lambda p: math.trunc(p.__proxy_target__),
    "__floor__": lambda p: math.floor(p.__proxy_target__),
    "__ceil__": lambda p: math.ceil(p.__proxy_target__),
    # Containers. A key that is itself a proxy is unwrapped: C wants real tuples, slices and equal hashes.
    "__len__": _len,
    "__length_hint__": lambda p: operator.length_hint(p.__proxy_target__),
    "__iter__": lambda p: iter(p.__proxy_target__),
    "__reversed__": lambda p: reversed(p.__proxy_target__),
    "__contains__": lambda p, item: (
        (item.__proxy_target__ if type(item) in PROXIES else item) in p.__proxy_target__
    ),
    "__getitem__": lambda p, key: p.__proxy_target__[key.__proxy_target__ if type(key) in PROXIES else key],
    "__setitem__": lambda p, key, value: operator.setitem(p.__proxy_target__, plain(key), value),
    "__delitem__": lambda p, key: operator.delitem(p.__proxy_target__, plain(key)),
    # Calls, contexts, classes.
    "__call__": _call,
    "__enter__": lambda p: p.__proxy_target__.__enter__(),
    "__exit__": lambda p, *error: p.__proxy_target__.__exit__(*error),
    "__instancecheck__": lambda p, instance: isinstance(instance, p.__proxy_target__),
    "__subclasscheck__": lambda p, subclass: issubclass(subclass, p.__proxy_target__),
    "__mro_entries__": lambda p, bases: (p.__proxy_target__,),
    # Copies are those of the plain object; an unresolved proxy's copy is another lazy proxy.
    "__copy__": _copy,
    "__deepcopy__": _deepcopy,
    # NumPy, PyTorch, and SQLite's parameters.
    "__array__": _array,
    "__array_ufunc__": _array_ufunc,
    "__array_function__": _array_function,
    "__torch_function__": staticmethod(_torch_function),
    "__conform__": lambda p, protocol: p.__proxy_target__,
}

OPERATORS |= {
    f"__{name}__": _in_place(name)
    for name in (
        *("iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow"),
        *("ilshift", "irshift", "iand", "ior", "ixor"),
    )
}

if sys.version_info >= (3, 12):

    def _buffer(p: Any, flags: int) -> memoryview:
        target = p.__proxy_target__
        kind = type(target)
        # NumPy asks for a buffer before __array__, and would strip the subclass (the mask) silently.
        if kind.__name__ != "ndarray" and hasattr(kind, "__array_finalize__"):
            raise BufferError(f"a proxy lends no buffer of a {kind.__name__}; use extract(p)")
        # np.asarray(p) of bytes would be an array of numbers, not of one string. It asks as memoryview does,
        # which is the smaller loss.
        if isinstance(target, bytes) and flags == inspect.BufferFlags.FULL_RO:
            raise BufferError(f"a proxy lends no full buffer of {kind.__name__}; use extract(p)")
        return target.__buffer__(flags)  # type: ignore[no-any-return]

    OPERATORS["__buffer__"] = _buffer
