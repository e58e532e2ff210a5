"""Proxy: stands for an object that is somewhere else, and becomes it on first use.

A proxy holds a *factory*, a callable that fetches the target. Whatever needs the target
resolves the proxy: once, also under threads; after that an operator costs one slot read more
than on the target itself. What does not need it never loads it: ``hash``, ``repr``, ``copy``,
pickling (which carries the factory alone), engines' and notebooks' probes for optional methods,
and, where the factory knows the target's class, ``isinstance`` and the completion of names in a
shell, notebook or editor (which has those of the class, not those of the object alone).

A factory may know its target without loading it, through two optional methods:
``target_class()`` returns the class, or None where its module is not imported, and
``describe()`` a few words for ``repr``. A third one, the coroutine ``fetch_async()``, does for
``await p`` what keeps no event loop, and returns a factory for the rest; or None.

Limits that no class written in Python can overcome: C code that checks exact types does not
take a proxy (``json.dumps``, ``re.match``, ``"".join([p])``; ``memoryview`` before Python 3.12),
``p is None`` and ``type(p) is int`` are false, ``case [a, b]`` does not match, the hash of a proxy
that was hashed before it was resolved is not its target's, C code does not take a proxy of a tensor
for a tensor (see `proxystore_core.truth`), and by its class every proxy is callable, iterable,
awaitable, path-like and a context manager. `extract` gives the plain object.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import types
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar, Union, runtime_checkable

from proxystore_core.errors import ConfigurationError
from proxystore_core.flight import Flights
from proxystore_core.operators import OPERATORS, PROXIES
from proxystore_core.truth import asks_in_python, is_laid_bare

__all__ = [
    "Proxied",
    "Proxy",
    "ProxyLocker",
    "ProxyOr",
    "extract",
    "get_factory",
    "is_resolved",
    "resolve",
    "resolve_async",
]

T = TypeVar("T")

_MISSING: Any = object()
_flights = Flights()

# Dunder names that only probes ask for: of no use through a proxy, or answered by one of its methods.
_PROBES = frozenset(
    {
        "__array_interface__",
        "__array_struct__",
        "__array_priority__",
        "__array_namespace__",
        "__arrow_array__",
        "__arrow_c_array__",
        "__arrow_c_schema__",
        "__arrow_c_stream__",
        "__cuda_array_interface__",
        "__dataframe__",
        "__dlpack__",
        "__geo_interface__",
        "__jax_array__",
    }
)
# Modules that complete names (the beginnings of theirs): who types must not wait for an object.
_COMPLETERS = (
    "IPython.core.completer",
    "IPython.core.guarded_eval",
    "IPython.utils.",
    "_pydev_bundle.",
    "bpython.",
    "idlelib.",
    "jedi.",
    "ptpython.completer",
    "rlcompleter",
)
# NumPy would take these instead of __array__ and lose the subclass (the mask).
_HIDDEN = frozenset({"__array_interface__", "__array_struct__"})
# Objects of these classes carry dunder names of their own, which their class does not tell.
_SELF_DESCRIBED = (type, types.FunctionType, types.ModuleType)
# Modules that ask a proxy something for somebody else.
_SHOWING = frozenset({"IPython.core.formatters", "IPython.lib.pretty"})
"""Modules that ask for the class of what they show."""
_BETWEEN = frozenset(
    {__name__, "proxystore_core.operators", "proxystore_core.ownership", "abc", "functools", "inspect"}
)
_OF_ANY_OBJECT = frozenset({"__dict__", "__name__", "__qualname__"})


class _OfTarget:
    """An attribute that the class keeps for itself and that an instance takes from its target."""

    def __get__(self, p: Any, owner: type | None = None) -> Any:
        if p is None:
            return self
        name = self.attribute  # type: ignore[attr-defined]
        if is_resolved(p) or not hasattr(p.__proxy_factory__, "target_class"):
            return getattr(p.__proxy_target__, name)
        kind = _known_class(p) or type(p)
        return getattr(p.__proxy_target__ if issubclass(kind, _SELF_DESCRIBED) else kind, name)


class _Text(_OfTarget, str):  # noqa: SLOT000 (no slots may be added to a str)
    attribute: str

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str.__str__(self),)  # pickle writes Proxy's __module__ whenever it writes Proxy


class _Annotations(_OfTarget, dict[str, Any]):
    attribute = "__annotations__"


MYPY = False  # which mypy takes to be true

if TYPE_CHECKING:
    from proxystore_core.operands import Operands as _Base
else:
    _Base = Generic


class Proxy(_Base[T]):
    """Stands for the object that ``factory`` returns, and forwards everything to it.

    ``isinstance(p, C)`` holds for the target's class C and for `Proxy`; ``type(p)`` is `Proxy`.
    In-place operators give the plain object: after ``p += 1``, ``p`` is the changed target.
    ``copy.copy`` and ``copy.deepcopy`` of a resolved proxy copy the target; of an unresolved one
    they give another lazy proxy of the same factory. ``await p`` resolves while the event
    loop goes on, and gives the target. Attributes are the target's, so the proxy's own operations are
    functions: `extract`, `get_factory`, `is_resolved`, `resolve`, `resolve_async`.

    Args:
        factory: returns the target; called at most once successfully. Its errors reach the
            caller unchanged, and the next use tries again.
        cache_defaults: remember the given target's class and hash.
        target: the target, if it is at hand: the proxy is resolved from the start.

    Raises:
        TypeError: the factory cannot be called.
        ConfigurationError: ``cache_defaults`` without a target.
    """

    __slots__ = ("__proxy_class__", "__proxy_factory__", "__proxy_hash__", "__proxy_target__", "__weakref__")

    if TYPE_CHECKING:  # a class-level __annotations__ would hide the target's
        __proxy_class__: type
        __proxy_factory__: Callable[[], T]
        __proxy_hash__: int
        __proxy_target__: T

    # No Python frame on the way of isinstance(p, C).
    __class__ = property(operator.attrgetter("__proxy_class__"))

    def __init__(
        self,
        factory: Callable[[], T],
        *,
        cache_defaults: bool = False,
        target: T = _MISSING,
    ) -> None:
        if not callable(factory):
            raise TypeError(f"factory must be callable without arguments, not {type(factory).__name__}")
        _set(self, "__proxy_factory__", factory)
        if type(target) in PROXIES:
            target = target.__proxy_target__ if is_resolved(target) else _MISSING  # type: ignore[arg-type, attr-defined]
            cache_defaults = cache_defaults and target is not _MISSING
        if target is not _MISSING:
            _settle(self, target)
            if cache_defaults:
                hash(self)
        elif cache_defaults:
            raise ConfigurationError("cache_defaults=True needs a target", remedy="Give target=")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        PROXIES.add(cls)

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "_":
            return _special(self, name)
        return getattr(self.__proxy_target__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__orig_class__":  # typing: Proxy[int](factory)
            raise AttributeError(name)
        setattr(self.__proxy_target__, name, value)
        if name == "__class__":
            _settle(self, self.__proxy_target__)

    def __delattr__(self, name: str) -> None:
        delattr(self.__proxy_target__, name)

    def __repr__(self) -> str:
        if is_resolved(self):
            return repr(self.__proxy_target__)
        factory = self.__proxy_factory__
        describe = getattr(factory, "describe", None)
        if describe is not None:
            return f"<Proxy of {describe()}, not resolved>"
        return f"<Proxy from {getattr(factory, '__qualname__', type(factory).__qualname__)}, not resolved>"

    def __dir__(self) -> list[str]:
        names = _completed_names(self) if not is_resolved(self) and _is_completing() else None
        return dir(self.__proxy_target__) if names is None else names

    def __hash__(self) -> int:
        return self.__proxy_hash__

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __reduce__(self) -> tuple[Any, ...]:
        kind = type(self)
        return _proxy if kind is Proxy else kind, (self.__proxy_factory__,)

    def __await__(self) -> Generator[Any, None, T]:
        return resolve_async(self).__await__()


Proxied: TypeAlias = Proxy[T]
"""What makes a proxy returns it as this."""

if TYPE_CHECKING and not MYPY:
    # The class above is mypy's, which learns the rest from `proxystore_core.mypy_plugin`. Other checkers have
    # no plugins: for them any object passes for a Proxy of its class, by the one member that tells the class;
    # a Proxy passes for anything, by the base Any; and what makes a proxy returns a T.
    T_co = TypeVar("T_co", covariant=True)

    @runtime_checkable
    class Proxy(Any, Protocol[T_co]):
        @property
        def __class__(self) -> type[T_co]: ...

    Proxied: TypeAlias = T

ProxyOr: TypeAlias = Union[Proxy[T], T]  # noqa: UP007 (T may be a string)
"""A T, or a proxy of one."""


class ProxyLocker(Generic[T]):
    """Holds a proxy that nobody can resolve by accident: nothing but `unlock` can be done with it.

    Args:
        proxy: the proxy to hold.
    """

    __slots__ = ("__held",)

    def __init__(self, proxy: Proxy[T]) -> None:
        self.__held = _checked(proxy)

    def unlock(self) -> Proxied[T]:
        """The proxy."""
        return self.__held

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name!r} is out of reach: the proxy is locked, unlock() gives it")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.__held,)


def get_factory(proxy: Proxy[T]) -> Callable[[], T]:
    """The factory of a proxy. Never loads.

    Raises:
        TypeError: not a proxy.
    """
    return _checked(proxy).__proxy_factory__


def extract(proxy: Proxy[T]) -> T:
    """The plain target of a proxy, resolved if need be.

    Raises:
        TypeError: not a proxy.
        BaseException: whatever the factory raises.
    """
    return _checked(proxy).__proxy_target__


def resolve(proxy: Proxy[T]) -> None:
    """Load the target now rather than on first use. Errors as in `extract`."""
    extract(proxy)


def is_resolved(proxy: Proxy[T]) -> bool:
    """Whether the target is at hand. Never loads.

    Raises:
        TypeError: not a proxy.
    """
    try:
        _get(_checked(proxy), "__proxy_target__")
    except AttributeError:
        return False
    return True


async def resolve_async(proxy: Proxy[T]) -> T:
    """Resolve while the event loop goes on. ``await proxy`` is the same.

    A store whose connector is `Awaited` fetches the bytes without a thread. One makes the object of them,
    or does all of it elsewhere.

    Returns:
        The target. Errors as in `extract`.
    """
    if is_resolved(proxy):
        return proxy.__proxy_target__
    import asyncio  # costs more than all of this package

    fetch = getattr(proxy.__proxy_factory__, "fetch_async", None)
    rest = None if fetch is None else await fetch()
    if rest is None:
        return await asyncio.to_thread(_for_coroutine, extract, proxy)
    # The object is made, and evicted if need be, in the flight that those in other threads share.
    return await asyncio.to_thread(_for_coroutine, _load, proxy, rest)


def _for_coroutine(function: Callable[..., T], *args: Any) -> T:
    try:
        return function(*args)
    except StopIteration as error:  # which no future carries: who awaits would wait for ever
        raise RuntimeError("the factory of a proxy raised StopIteration") from error


_get = object.__getattribute__
_set = object.__setattr__


def _checked(proxy: Proxy[T]) -> Proxy[T]:
    if type(proxy) not in PROXIES:
        raise TypeError(f"a Proxy is needed, not {type(proxy).__name__}")
    return proxy


def _proxy(factory: Callable[[], T]) -> Proxy[T]:
    p: Proxy[T] = object.__new__(Proxy)
    _set(p, "__proxy_factory__", factory)
    return p


def _settle(p: Proxy[Any], target: Any) -> None:
    kind = target.__class__
    if kind is types.FunctionType or is_laid_bare(kind):
        _forget_class(p)  # asked each time: see _class
    else:
        _set(p, "__proxy_class__", kind)
    _set(p, "__proxy_target__", target)


def forget_target(p: Proxy[Any]) -> None:
    """Make a proxy unresolved again: its next use calls its factory."""
    with contextlib.suppress(AttributeError):
        object.__delattr__(p, "__proxy_target__")


def _forget_class(p: Proxy[Any]) -> None:
    with contextlib.suppress(AttributeError):
        object.__delattr__(p, "__proxy_class__")


def _load(p: Proxy[T], factory: Callable[[], T] | None = None) -> T:
    make: Callable[[], T] = _get(p, "__proxy_factory__") if factory is None else factory
    if factory is None and _is_completing() and _completed_names(p) is not None:
        raise AttributeError("an object that is not here is not loaded for a completion")

    def fly() -> T:
        if not is_resolved(p):  # a flight may have landed since the slot was read
            target = make()
            _settle(p, _through(p, target) if type(target) in PROXIES else target)
        return p.__proxy_target__

    return _flights.run(("Proxy", id(p)), fly)


_on_the_way: ContextVar[tuple[Any, ...]] = ContextVar("proxystore_on_the_way", default=())


def _through(p: Proxy[Any], inner: Any) -> Any:
    """The target of a proxy whose factory gave another proxy."""
    passed = (*_on_the_way.get(), p.__proxy_factory__)
    if not is_resolved(inner) and inner.__proxy_factory__ in passed:
        raise ConfigurationError(
            "these proxies stand for each other, and for no object",
            key=getattr(inner.__proxy_factory__, "key", None),
            remedy="Were futures set to each other's proxies? Set one of them to an object.",
        )
    token = _on_the_way.set(passed)
    try:
        return inner.__proxy_target__
    finally:
        _on_the_way.reset(token)


def _known_class(p: Proxy[Any]) -> type | None:
    """The target's class as far as it is known without loading."""
    try:
        return _get(p, "__proxy_class__")  # type: ignore[no-any-return]
    except AttributeError:
        target_class = getattr(p.__proxy_factory__, "target_class", None)
        kind: type | None = target_class() if target_class is not None else None
        if kind is not None and kind is not types.FunctionType and not is_laid_bare(kind):
            _set(p, "__proxy_class__", kind)
        return kind


def _class(p: Proxy[Any]) -> type:
    # cloudpickle asks whether all that it pickles is a function, to send functions by value:
    # it must neither load a proxy nor send a function's code in its stead.
    asking = sys._getframe()
    for _ in range(3):
        asking = asking.f_back or asking
    if asking.f_code.co_name == "reducer_override":
        return type(p)
    if asking.f_globals.get("__name__") in _SHOWING and not is_resolved(p):
        return type(p)  # and then its repr; a list or dict would be shown by its items, a future waited for
    kind = None if is_resolved(p) else _known_class(p)
    if kind is None:
        if not is_resolved(p) and (
            hasattr(p.__proxy_factory__, "target_class") or _is_about_to_await(asking)
        ):
            return type(p)
        kind = p.__proxy_target__.__class__
    if is_laid_bare(kind) and not asks_in_python(asking.f_code, asking.f_lasti):
        return type(p)
    return kind


def _completed_names(p: Proxy[Any]) -> list[str] | None:
    """What completes a proxy that is not resolved; None where only its object tells."""
    kind = _known_class(p)
    if kind is not None and not issubclass(kind, _SELF_DESCRIBED):
        return dir(kind)
    return [] if hasattr(p.__proxy_factory__, "wait") else None  # what is waited for may never come


def _is_completing() -> bool:
    """Whether the code that uses a proxy completes what somebody types."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if name not in _BETWEEN and frame.f_code.co_filename != "<string>":  # which rlcompleter evaluates
            return isinstance(name, str) and name.startswith(_COMPLETERS)
        frame = frame.f_back
    return False


def _is_about_to_await(asking: types.FrameType) -> bool:
    """Whether it is asked, as asyncio does, if a proxy can be awaited: it can, and is to load elsewhere."""
    if asking.f_code.co_name == "__instancecheck__" and asking.f_back is not None:
        asking = asking.f_back
    return asking.f_code.co_name in ("isawaitable", "iscoroutine", "isfuture")


def _hash(p: Proxy[Any]) -> int:
    value = object.__hash__(p)
    for source in (p.__proxy_target__, p.__proxy_factory__) if is_resolved(p) else (p.__proxy_factory__,):
        try:
            value = hash(source)
        except TypeError:
            continue
        break
    _set(p, "__proxy_hash__", value)
    return value


_UNSET_SLOTS: dict[str, Callable[[Proxy[Any]], Any]] = {
    "__proxy_target__": _load,
    "__proxy_class__": _class,
    "__proxy_hash__": _hash,
}


def _special(p: Proxy[Any], name: str) -> Any:
    """An attribute whose name starts with an underscore, and that the class does not have."""
    unset = _UNSET_SLOTS.get(name)
    if unset is not None:
        return unset(p)
    if name == "_ipython_display_" and not is_resolved(p):
        return lambda: _show(repr(p))
    if name == "_ipython_key_completions_" and not is_resolved(p):
        return list  # none: else it asks the object for its keys
    if name == "__jax_array__" and _is_of_jax(p):
        return lambda: p.__proxy_target__
    if name == "__proxy_factory__" or name in _HIDDEN or not (is_resolved(p) or _worth_loading(p, name)):
        raise AttributeError(f"{type(p).__name__!r} object has no attribute {name!r}", name=name, obj=None)
    target = p.__proxy_target__
    value = getattr(target, name)
    # issubclass(p, C) climbs from the bases of p and would miss p's target itself.
    return (target,) if name == "__bases__" and isinstance(target, type) else value


def _is_of_jax(p: Proxy[Any]) -> bool:
    """Whether JAX takes the target for an array as it is: a proxy has to be asked for it."""
    kind = type(p.__proxy_target__) if is_resolved(p) else _known_class(p)
    return any(
        (base.__module__, base.__qualname__) == ("jax", "Array") for base in getattr(kind, "__mro__", ())
    )


def _show(text: str) -> None:
    """What a notebook does with a proxy that is not resolved: it would print a dict or list by its items."""
    from IPython.display import display

    display({"text/plain": text}, raw=True)


def _worth_loading(p: Proxy[Any], name: str) -> bool:
    """Whether an unresolved proxy's target may have the attribute, as far as its class tells."""
    if name.startswith(("_repr_", "_ipython_")):
        return False
    if not (name.startswith("__") and name.endswith("__")):
        return True
    if name in _PROBES or name.startswith("__dask_"):
        kind = _known_class(p)
        return kind is not None and _has(kind, name)
    kind = _known_class(p)
    if kind is not None:
        return issubclass(kind, _SELF_DESCRIBED) or _has(kind, name)
    return name in _OF_ANY_OBJECT or not hasattr(p.__proxy_factory__, "target_class")


def _has(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in kind.__mro__)


def _complete(kind: type[Proxy[Any]]) -> None:
    """Give the class what it forwards: the operators, and what a class statement cannot say."""
    for name, function in OPERATORS.items():
        function.__name__ = name
        function.__qualname__ = f"{kind.__name__}.{name}"
        setattr(kind, name, function)
    for name in ("__doc__", "__module__"):
        text = _Text(getattr(kind, name))
        text.attribute = name
        setattr(kind, name, text)
    kind.__annotations__ = _Annotations()
    PROXIES.add(kind)


_complete(Proxy)
