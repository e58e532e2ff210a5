"""A drop-in for `distributed.Client` whose large values go through a store."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import uuid
from collections.abc import Iterator
from typing import Any

import distributed
from dask.tokenize import normalize_token, tokenize

from proxystore_core import ConfigurationError, Proxy, Reference, StoreError, get_factory
from proxystore_integrations.dask.graph import DaskOutgoing, substitute_graph
from proxystore_integrations.dask.link import Link
from proxystore_integrations.dask.nodes import StoredResult
from proxystore_integrations.dask.scheduler import StoreSchedulerPlugin
from proxystore_integrations.dask.worker import unpack
from proxystore_integrations.settings import Settings
from proxystore_integrations.transfer import load

__all__ = ["Client"]

_options: contextvars.ContextVar[tuple[bool | None, bool | None]] = contextvars.ContextVar(
    "proxystore_options", default=(None, None)
)
_announcement: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "proxystore_announcement", default=None
)

# Dask names a task after its arguments; a proxy must not load for that.
normalize_token.register(Proxy, lambda proxy: ("proxystore_core.Proxy", repr(get_factory(proxy))))


class Client(distributed.Client):
    """`distributed.Client` with a store beside the scheduler.

    Arguments over the threshold are stored once and reach the task as what they were; large
    results that this client gathers come through the store. Everything else is Dask's own.

    Args:
        address: as for `distributed.Client`, like every argument not listed here.
        threshold: size from which a value goes through the store, bytes or ``"100 kB"``.
        store: URL of the store, or a `proxystore_core.Store`.
        inputs: ``"value"``: tasks get objects; ``"proxy"``: they get lazy proxies.
        results: ``"auto"``: results stay in the workers' memory, and what this client gathers comes
            through the store; ``"always"``: large results are stored at the task's end;
            ``"never"``: results are Dask's business alone.
        on_store_error: ``"fallback"``: go by value and warn once; ``"raise"``: raise.
        lease: seconds (or ``"10 min"``) after which the objects of a client that died are dropped.

    What is not given comes from the environment, ``proxystore.toml`` or the defaults
    (see `proxystore_integrations.settings`).

    Raises:
        ConfigurationError: a setting is unknown or wrong.
    """

    def __init__(
        self,
        address: Any = None,
        *args: Any,
        threshold: int | str | None = None,
        store: Any = None,
        inputs: str | None = None,
        results: str | None = None,
        on_store_error: str | None = None,
        lease: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        settings = Settings.load(
            threshold=threshold,
            store=store if isinstance(store, str) else None,
            inputs=inputs,
            results=results,
            on_store_error=on_store_error,
            lease=lease,
        )
        self._link = Link(settings, None if isinstance(store, str) else store)
        super().__init__(address, *args, **kwargs)

    # Life.

    async def _start(self, *args: Any, **kwargs: Any) -> Any:
        self._stream_handlers["proxystore-evict"] = self._link.released
        self._stream_handlers["proxystore-unreachable"] = self._link.unreachable
        started = await super()._start(*args, **kwargs)
        # Within one process Dask hands objects over as they are: there is nothing to store.
        if not self.scheduler.address.startswith("inproc://"):
            await self._join()
        return started

    async def _join(self) -> None:
        try:
            session = await asyncio.to_thread(self._link.open, self.id)
        except StoreError as error:
            self._link.by_value.accept(error, "work")
            return
        try:
            await self._register_scheduler_plugin(
                StoreSchedulerPlugin(), name=StoreSchedulerPlugin.name, idempotent=True
            )
            self._link.elsewhere = await self.scheduler.proxystore_join(session=session)
        except Exception as error:
            await asyncio.to_thread(self._link.close)
            self._link.by_value.accept(
                ConfigurationError(
                    f"the scheduler could not load proxystore_integrations ({type(error).__name__}: {error})",
                    remedy="Install the same proxystore-integrations for the scheduler and the workers.",
                ),
                "work",
            )

    async def _close(self, fast: bool = False) -> None:
        needed = await self._leave() if self._link.joined else False
        await super()._close(fast=fast)
        # Tasks that go on without us (fire_and_forget) need their arguments: the scheduler sees to them.
        await asyncio.to_thread(self._link.close, keep=needed and self._start_arg is not None)

    async def _leave(self) -> bool:
        """Take leave of the scheduler; returns whether tasks that go on without us need what we stored."""
        stream = self.scheduler_comm
        if stream is None or stream.comm is None or stream.comm.closed():
            return False  # the scheduler is gone, and all tasks with it
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        handlers: dict[str, Any] = self._stream_handlers
        handlers["proxystore-left"] = functools.partial(_answer, answer)
        try:
            self._send_to_scheduler({"op": "proxystore-leave"})
            return await asyncio.wait_for(answer, 5)
        except Exception:  # it goes just now
            return False

    # Out: arguments.

    def submit(
        self,
        func: Any,
        *args: Any,
        proxy_args: bool | None = None,
        proxy_result: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `distributed.Client.submit`.

        Args:
            func: the function.
            args: its arguments.
            proxy_args: False: pass this call's arguments by value whatever their size.
            proxy_result: True: store this call's result at the task's end; False: gather it by value.
            kwargs: the function's and Dask's keyword arguments.
        """
        if proxy_args is None and proxy_result is None:
            return super().submit(func, *args, **kwargs)
        with _these(proxy_args, proxy_result):
            return self._noted(super().submit(func, *args, **kwargs), proxy_result)

    def map(
        self,
        func: Any,
        *iterables: Any,
        proxy_args: bool | None = None,
        proxy_result: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `distributed.Client.map`, with the arguments that `submit` adds."""
        with _these(proxy_args, proxy_result):
            return self._noted(super().map(func, *iterables, **kwargs), proxy_result)

    def _noted(self, futures: Any, proxy_result: bool | None) -> Any:
        if proxy_result is False:
            self._link.by_value_keys.update(
                future.key for future in (futures if isinstance(futures, list) else [futures])
            )
        return futures

    def _graph_to_futures(self, expr: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
        link = self._link
        if not link.joined:
            return super()._graph_to_futures(expr, keys, *args, **kwargs)
        proxy_args, proxy_result = _options.get()
        references: list[Reference] = []
        if proxy_args is not False and link.reached:
            outgoing = link.outgoing()
            expr = substitute_graph(expr, outgoing)
            references = outgoing.references
        results = link.stores_results if proxy_result is None else proxy_result and link.reached
        if not references and not results:
            return super()._graph_to_futures(expr, keys, *args, **kwargs)
        token = _announcement.set(
            {
                "keys": [reference.key for reference in references],
                "results": link.settings.threshold if results else None,
            }
        )
        try:
            return super()._graph_to_futures(expr, keys, *args, **kwargs)
        except BaseException:
            link.withdraw([reference.key for reference in references])
            raise
        finally:
            _announcement.reset(token)

    def _send_to_scheduler(self, msg: dict[str, Any]) -> None:
        if msg.get("op") == "update-graph" and (announced := _announcement.get()) is not None:
            msg = {**msg, "proxystore": announced}
        super()._send_to_scheduler(msg)

    async def _scatter(  # type: ignore[override]
        self, data: Any, *, direct: Any = None, local_worker: Any = None, hash: bool = True, **kwargs: Any
    ) -> Any:
        link = self._link
        dasks: Any = super()._scatter
        send = functools.partial(dasks, direct=direct, local_worker=local_worker, hash=hash, **kwargs)
        if local_worker or not link.reached:
            return await send(data)
        named, rebuild = _named(data, hash)
        outgoing = link.outgoing()
        carried = await asyncio.to_thread(_carried, named, outgoing)
        try:
            futures = await send(carried)
        except StoreError as error:
            link.by_value.accept(error, "scatter")
            futures = await send(named)
        finally:
            # The workers hold the values in their memory by now.
            link.evict_later([reference.key for reference in outgoing.references])
        for key, value in named.items():
            self.futures[key].finish(type=type(value))
        return rebuild(futures)

    # In: results.

    async def _gather_remote(self, direct: bool, local_worker: bool) -> dict[str, Any]:
        link = self._link
        if direct or local_worker or not link.reached or link.publishes_from is None:
            response = await super()._gather_remote(direct, local_worker)
        else:
            async with self._gather_semaphore:
                # Requests that come in meanwhile form the next batch, as in Dask's own method.
                keys, self._gather_keys, self._gather_future = list(self._gather_keys or ()), None, None
                # Whoever stops waiting, what was published is fetched and evicted.
                response = await asyncio.shield(asyncio.ensure_future(self._gather_published(keys)))
        stored = {
            key: value.reference
            for key, value in response.get("data", {}).items()
            if type(value) is StoredResult
        }
        if stored:
            loaded = await asyncio.to_thread(load, list(stored.values()))
            response["data"] = {**response["data"], **dict(zip(stored, loaded, strict=True))}
        return dict(response)

    async def _gather_published(self, keys: list[Any]) -> dict[str, Any]:
        link = self._link
        response: dict[str, Any] = dict(
            await self.scheduler.proxystore_gather(
                keys=keys,
                client=self.id,
                threshold=link.publishes_from,
                by_value=list(link.by_value_keys.intersection(keys)),
            )
        )
        published = {key: unpack(packed) for key, packed in response.pop("references", {}).items()}
        try:
            if published and response["status"] == "OK":
                loaded = await asyncio.to_thread(load, list(published.values()))
                response["data"] = {**response["data"], **dict(zip(published, loaded, strict=True))}
        except StoreError as error:
            link.by_value.accept(error, "gather")
            return dict(await self.scheduler.gather(keys=keys))
        finally:
            link.evict_later([reference.key for reference in published.values()])
        return response

    def _release_key(self, key: Any) -> None:
        self._link.by_value_keys.discard(key)
        super()._release_key(key)


def _answer(answer: asyncio.Future[bool], needed: bool) -> None:
    if not answer.done():
        answer.set_result(needed)


@contextlib.contextmanager
def _these(proxy_args: bool | None, proxy_result: bool | None) -> Iterator[None]:
    token = _options.set((proxy_args, proxy_result))
    try:
        yield
    finally:
        _options.reset(token)


def _carried(values: dict[Any, Any], outgoing: DaskOutgoing) -> dict[Any, Any]:
    """The values, the large ones in the store."""
    references = {key: outgoing.whole(value) for key, value in values.items()}
    return {
        key: value
        if (reference := references[key]) is None
        else StoredResult(reference, outgoing.sharing.session)
        for key, value in values.items()
    }


def _named(data: Any, hash: bool) -> tuple[dict[Any, Any], Any]:
    """What is scattered under Dask's key for each value, and how the futures are handed back."""
    kind = type(data)
    if kind is dict:
        return data, lambda futures: futures
    several = (
        list(data) if kind in (list, tuple, set, frozenset, range) or hasattr(kind, "__next__") else None
    )
    is_namedtuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    if is_namedtuple:
        several = list(data)
    values = [data] if several is None else several
    keys = [f"{type(value).__name__}-{tokenize(value) if hash else uuid.uuid4().hex}" for value in values]

    def rebuild(futures: dict[Any, Any]) -> Any:
        ordered = [futures[key] for key in keys]
        if several is None:
            return ordered[0]
        if is_namedtuple:
            return kind(*ordered)
        return kind(ordered) if kind in (tuple, set, frozenset) else ordered

    return dict(zip(keys, values, strict=True)), rebuild
