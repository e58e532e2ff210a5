"""What travels with a task's function: partials, closures, methods, callable objects."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

from proxystore_core.insides import goes_by_name, inside_of
from proxystore_core.pickling import DEFAULT
from proxystore_integrations.light import lightened
from proxystore_integrations.policy import Policy

__all__ = ["asked", "carries_large", "name_of", "named_globals", "users_function"]

_DEPTH = 3
_FEW = 16
_GLOBAL = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL")
_BUILTIN = (types.BuiltinFunctionType, types.MethodWrapperType)


def carries_large(function: Any, policy: Policy, main_by_value: bool = True) -> bool:
    """Whether what travels with a function is over the threshold; costs under 1 us for a plain one.

    Args:
        function: what a task calls.
        policy: which values are large.
        main_by_value: whether what ``__main__`` defines is pickled by value; else it travels by name.
    """
    if isinstance(function, type):
        return False
    if isinstance(function, types.FunctionType):
        if goes_by_name(function, main_by_value):
            return False
        inside = function.__closure__ or function.__defaults__ or function.__kwdefaults__
        if inside and policy.over(function):
            return True
        return any(map(policy.over, named_globals(function)))
    if isinstance(function, _BUILTIN):
        owner = function.__self__
        return not isinstance(owner, (types.ModuleType, type)) and policy.over(owner)
    inner = _inner_of_light(function, policy)
    if inner is not None:
        return carries_large(inner, policy, main_by_value)
    if policy.over(function):
        return True
    inner = asked(function, "func")  # a partial's
    return isinstance(inner, types.FunctionType | types.MethodType) and carries_large(
        inner, policy, main_by_value
    )


def _inner_of_light(function: Any, policy: Policy) -> Any:
    """A partial's or a method's function, where all else in it is seen at once to be small.

    A tenth of what a walk through it costs, which is much for a call that does little.
    """
    parts: Sequence[Any]
    if type(function) is functools.partial and not function.__dict__:
        inner = function.func
        own, parts = 0, (*function.args, *function.keywords.values())
        count = len(parts)
    elif type(function) is types.MethodType and type(function.__func__) is types.FunctionType:
        inner, owner = function.__func__, function.__self__
        if inner.__closure__ or inner.__defaults__ or inner.__kwdefaults__:
            return None
        try:
            own, count, parts = inside_of(type(owner))(owner, _FEW)
        except Exception:  # its own code's
            return None
    else:
        return None
    share = policy.threshold // (2 * _FEW)
    few = count == len(parts) <= _FEW and own < share
    return inner if few and lightened(tuple(parts), share, DEFAULT, False) is not None else None


def users_function(function: Any) -> Any:
    """The function that a task is known by: not the partial around it, nor what calls it several times."""
    if not isinstance(function, functools.partial):
        return function
    # Executors' maps send several calls as one.
    is_chunk = function.args and getattr(function.func, "__name__", "").endswith(("_chunk", "_chunks"))
    return function.args[0] if is_chunk else function.func


def asked(function: Any, name: str) -> Any:
    """An attribute of what a task calls; None where it has none, or its own code says so with any error."""
    try:
        return getattr(function, name, None)
    except Exception:
        return None


def name_of(function: Any) -> str:
    """What a task is called by."""
    function = users_function(function)
    return str(asked(function, "__name__") or type(function).__name__)


def named_globals(function: types.FunctionType, depth: int = _DEPTH) -> Iterator[Any]:
    """The globals that cloudpickle takes with a function; none where it takes just the function's name.

    Args:
        function: any.
        depth: of functions that are named in functions.
    """
    if goes_by_name(function):
        return
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, types.FunctionType):
            if depth and not goes_by_name(value):
                yield value
                yield from named_globals(value, depth - 1)
        elif value is not None and not isinstance(value, types.ModuleType | type):
            yield value


@functools.lru_cache(1000)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Of globals; names of attributes are in ``co_names``, too."""
    names = dict.fromkeys(one.argval for one in dis.get_instructions(code) if one.opname in _GLOBAL)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= dict.fromkeys(_names(constant))
    return tuple(names)
