"""For a Dask whose inside has changed: large arguments of `submit` and `map` through public hooks alone.

Results, graphs (`compute`, `delayed`, collections) and scattered data go by Dask's own way. What was
stored stays until the client closes: nothing public tells when Dask will not run a task again.
"""

from __future__ import annotations

import inspect
import socket
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import dask.config
import distributed
from dask.base import tokenize
from dask.utils import funcname

from proxystore_core import ConfigurationError, MissingExtraError, StoreError, store_for
from proxystore_core.connectors.base import place_of
from proxystore_core.pickling import Pickling
from proxystore_integrations import __version__
from proxystore_integrations.calls import CallLink
from proxystore_integrations.carriers import Filling, NotDeliveredError, StoredArgument, check_version
from proxystore_integrations.outgoing import CallOutgoing
from proxystore_integrations.transfer import load

__all__ = ["Client", "unfit", "wrap"]

_reason: list[str] = []


def unfit(error: MissingExtraError) -> None:
    """Note why the whole integration cannot work with this Dask; said when the first client is made."""
    _reason[:] = [str(error)]


def _warn() -> None:
    if _reason:
        warnings.warn(
            f"Only large arguments of submit() and map() go through the store: {_reason.pop()}",
            RuntimeWarning,
            stacklevel=3,
        )


class Filled:
    """A function on its way to a worker, which takes some of its arguments from the store.

    Args:
        function: the user's.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = funcname(function)

    def __reduce__(self) -> tuple[Callable[..., Filled], tuple[Any, ...]]:
        return _filled, (__version__, self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        references = list(dict.fromkeys(_references([*args, *kwargs.values()])))
        try:
            loaded = dict(zip(references, load(references), strict=True))
        except StoreError as error:
            raise NotDeliveredError(
                f"{socket.gethostname()} cannot have the arguments of {self.__name__}(): {error.problem}",
                store=error.store,
                key=error.key,
                remedy=error.remedy,
            ) from error
        fill = Filling(loaded)
        return self.function(*fill(args), **fill(kwargs))


def _filled(version: str, function: Callable[..., Any]) -> Filled:
    check_version(version)
    return Filled(function)


def _references(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if type(value) is StoredArgument and not value.lazy:
            yield value.reference
        elif type(value) in (list, tuple):
            yield from _references(value)
        elif type(value) is dict:
            yield from _references(value.values())


class NarrowMixin(distributed.Client):
    """The overrides; `Client` has them from the start, `wrap` gives them to a client that is there."""

    _link: CallLink
    _seen: frozenset[str] = frozenset()

    def submit(
        self, func: Any, *args: Any, proxy_args: bool | None = None, proxy_result: Any = None, **kwargs: Any
    ) -> Any:
        outgoing = self._outgoing(proxy_args, kwargs)
        if outgoing is not None:
            stored, named = outgoing.together(
                (func, *args, *kwargs.values()),
                lambda: (
                    outgoing.substitute_all(args),
                    {name: outgoing.substitute(value) for name, value in kwargs.items()},
                ),
            )
            outgoing.settle()
            if outgoing.references:
                if named.get("key") is None and named.get("pure", True):
                    named["key"] = f"{funcname(func)}-{tokenize(func, kwargs, *args)}"
                return super().submit(Filled(func), *stored, **named)
        return super().submit(func, *args, **kwargs)

    def map(
        self,
        func: Any,
        *iterables: Any,
        proxy_args: bool | None = None,
        proxy_result: Any = None,
        **kwargs: Any,
    ) -> Any:
        outgoing = self._outgoing(proxy_args, kwargs)
        if outgoing is not None:
            lists = [list(iterable) for iterable in iterables]
            stored, named = outgoing.together(
                (func, *kwargs.values()),
                lambda: (
                    [outgoing.substitute_all(items) for items in lists],
                    {name: outgoing.substitute(value) for name, value in kwargs.items()},
                ),
                list(zip(*lists, strict=False)),
            )
            outgoing.settle()
            if outgoing.references:
                if named.get("key") is None and named.get("pure", True):
                    named["key"] = [
                        f"{funcname(func)}-{tokenize(func, kwargs, *items)}"
                        for items in zip(*lists, strict=False)
                    ]
                return super().map(Filled(func), *stored, **named)
            iterables = tuple(lists)
        return super().map(func, *iterables, **kwargs)

    def close(self, *args: Any, **kwargs: Any) -> Any:
        closed = super().close(*args, **kwargs)  # type: ignore[no-untyped-call]
        if not inspect.isawaitable(closed):
            self._link.close_now()
            return closed

        async def close() -> Any:
            result = await closed
            self._link.close_now()
            return result

        return close()

    def _outgoing(self, proxy_args: bool | None, kwargs: dict[str, Any]) -> CallOutgoing | None:
        """A collector for the values of one call; None where they go by value."""
        link = self._link
        if proxy_args is False or kwargs.get("actor") or kwargs.get("actors") or self.asynchronous:
            return None
        if not link.was_opened:
            try:
                link.open()
            except StoreError as error:
                link.by_value.accept(error, "work")
        if not link.is_open or not self._reached():
            return None
        return CallOutgoing(link)

    def _reached(self) -> bool:
        """Whether every worker reaches the store; asked when there are others than the last time."""
        info: Any = self.scheduler_info(n_workers=-1)
        if str(info.get("address", "")).startswith("inproc://"):
            return False
        workers = frozenset(info["workers"])
        if workers != self._seen:
            self._seen = workers
            answers: dict[str, Any] = self.run(_probe, self._link.recipe, self._link.place)
            self._link.elsewhere = {worker: reason for worker, reason in answers.items() if reason}
        return self._link.reached


def _probe(recipe: str, place: str) -> str:
    """Why this worker does not reach a store; empty when it does."""
    try:
        here = place_of(store_for(recipe).connector)
    except StoreError as error:
        return str(error)
    return "" if here == place else f"the store is in {place}, this worker in {here or 'no such place'}"


class Client(NarrowMixin):
    """Dask's client, whose large arguments of `submit` and `map` go through a store."""

    def __init__(self, address: Any = None, *args: Any, **kwargs: Any) -> None:
        self._link = _link_of(kwargs)
        _warn()
        super().__init__(address, *args, **kwargs)  # type: ignore[no-untyped-call]


def wrap(client: Any, **settings: Any) -> Any:
    """Give a client that is already there a store; for an asynchronous client an awaitable of it."""
    if not isinstance(client, distributed.Client):
        raise ConfigurationError(
            f"{type(client).__name__} is no Dask client", remedy="Expected a distributed.Client."
        )

    async def same() -> Any:
        return client

    if not isinstance(client, NarrowMixin):
        _warn()
        kind: Any = type(client)
        client._link = _link_of(settings)  # type: ignore[attr-defined]
        client.__class__ = (
            Client if kind is distributed.Client else type(kind.__name__, (NarrowMixin, kind), {})
        )
    return client.sync(same)


def _link_of(keywords: dict[str, Any]) -> CallLink:
    """A link with the settings among some keywords, which are taken out."""
    names = ("threshold", "store", "inputs", "results", "on_store_error", "lease")
    given = {name: keywords.pop(name) for name in names if name in keywords}
    configured = dask.config.get("proxystore", default=None) or {}
    table = {str(name).replace("-", "_"): value for name, value in configured.items()}
    link = CallLink(*CallLink.settled(("Dask's configuration", table), **given), "dask")
    link.pickling = Pickling()
    return link
