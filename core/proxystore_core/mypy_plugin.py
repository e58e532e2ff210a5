"""A plugin of mypy by which a `Proxy[T]` passes for a T, and has the attributes of one.

In ``pyproject.toml``::

    [tool.mypy]
    plugins = ["proxystore_core.mypy_plugin"]

What a store makes (`Store.proxy` and its like) is a proxy *and* a T: it passes for nothing else. What is only
annotated as a ``Proxy[T]`` has T's attributes, but passes for anything: mypy knows no type that is another.
Without the plugin attributes are Any, and a proxy passes for a proxy alone. Pyright needs no plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mypy.maptype import map_instance_to_supertype
from mypy.plugin import AttributeContext, ClassDefContext, FunctionContext, MethodContext, Plugin
from mypy.types import Instance, Type, get_proper_type

__all__ = ["ProxyPlugin", "plugin"]

_PROXY = "proxystore_core.proxy.Proxy"
_OWNERSHIP = "proxystore_core.ownership"
_PROXIES = (_PROXY, f"{_OWNERSHIP}.")
_METHODS = frozenset(
    {
        "proxystore_core.store.Store.proxy",
        "proxystore_core.store.Store.proxy_batch",
        "proxystore_core.store.Store.owned_proxy",
        "proxystore_core.futures.Future.proxy",
        "proxystore_core.proxy.ProxyLocker.unlock",
        "proxystore_core.stream.consumer.StreamConsumer.next",
    }
)
_FUNCTIONS = frozenset(f"{_OWNERSHIP}.{name}" for name in ("borrow", "mut_borrow", "into_owned", "clone"))


class ProxyPlugin(Plugin):
    """The plugin."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """Attributes that are a proxy's because of ``__getattr__``."""
        if not fullname.startswith(_PROXIES):
            return None
        name = fullname.rpartition(".")[2]
        return lambda context: _attribute(context, name)

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        """What a store returns is a proxy, and passes for its object."""
        return _made if fullname in _METHODS else None

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        """What is borrowed, or owned, likewise; and a proxy of somebody's own factory."""
        return _made if fullname in _FUNCTIONS or fullname == _PROXY else None

    def get_customize_class_mro_hook(self, fullname: str) -> Callable[[ClassDefContext], None] | None:
        """What is annotated as a proxy passes for its object, too."""
        return _passes if fullname == _PROXY else None


def _passes(context: ClassDefContext) -> None:
    context.cls.info.fallback_to_any = True


def _target(proxy: Type) -> Type | None:
    proxy = get_proper_type(proxy)
    if not isinstance(proxy, Instance):
        return None
    for base in proxy.type.mro:
        if base.fullname == _PROXY:
            return map_instance_to_supertype(proxy, base).args[0]
    return None


def _attribute(context: AttributeContext, name: str) -> Type:
    target = _target(context.type)
    if target is None or name.startswith("__proxy_"):
        return context.default_attr_type
    checker: Any = context.api
    found: Type = checker.expr_checker.analyze_external_member_access(name, target, context.context)
    return found


def _made(context: MethodContext | FunctionContext) -> Type:
    return _both(context.default_return_type, context.api)


def _both(found: Type, checker: Any) -> Type:
    """A proxy and its target in one type; also in a list."""
    found = get_proper_type(found)
    if isinstance(found, Instance) and found.type.fullname == "builtins.list":
        return found.copy_modified(args=[_both(found.args[0], checker)])
    target = _target(found)
    target = None if target is None else get_proper_type(target)
    if not isinstance(found, Instance) or not isinstance(target, Instance):
        return found
    both: Instance | None = checker.intersect_instances((found, target), [])
    if both is None:
        return found
    both.type.fallback_to_any = False
    return both


def plugin(version: str) -> type[ProxyPlugin]:
    """Where mypy enters."""
    return ProxyPlugin
