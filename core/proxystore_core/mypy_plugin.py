"""A plugin of mypy by which attributes of a `Proxy[T]` have the types they have in T.

In ``pyproject.toml``::

    [tool.mypy]
    plugins = ["proxystore_core.mypy_plugin"]

Without it they are Any, as operators are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mypy.maptype import map_instance_to_supertype
from mypy.plugin import AttributeContext, MethodContext, Plugin
from mypy.types import Instance, Type, get_proper_type

__all__ = ["ProxyPlugin", "plugin"]

_PROXY = "proxystore_core.proxy.Proxy"
_PROXIES = (_PROXY, "proxystore_core.ownership.")
_MAKERS = frozenset(
    {
        "proxystore_core.store.Store.proxy",
        "proxystore_core.futures.Future.proxy",
        "proxystore_core.store.Store.owned_proxy",
    }
)


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
        return _both if fullname in _MAKERS else None


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


def _both(context: MethodContext) -> Type:
    proxy = get_proper_type(context.default_return_type)
    target = _target(proxy)
    target = None if target is None else get_proper_type(target)
    if not isinstance(proxy, Instance) or not isinstance(target, Instance):
        return proxy
    checker: Any = context.api
    both = checker.intersect_instances((proxy, target), [])
    return proxy if both is None else both


def plugin(version: str) -> type[ProxyPlugin]:
    """Where mypy enters."""
    return ProxyPlugin
