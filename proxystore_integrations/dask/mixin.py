"""What makes a Dask client send its large values through a store."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import weakref
from collections.abc import Iterator
from typing import Any

import distributed
from dask.tokenize import normalize_token
from dask.utils import key_split
from distributed.utils_comm import retry_operation

from proxystore_core import ConfigurationError, GoneError, Proxy, Reference, StoreError, get_factory
from proxystore_core.ownership import borrows_in, end_with
from proxystore_core.sizeof import sizeof
from proxystore_integrations import ledger
from proxystore_integrations.carriers import VersionError
from proxystore_integrations.dask.graph import substitute_graph
from proxystore_integrations.dask.link import DaskLink
from proxystore_integrations.dask.scatter import carried, named
from proxystore_integrations.dask.scheduler import StoreSchedulerPlugin
from proxystore_integrations.dask.worker import unpack
from proxystore_integrations.transfer import load

__all__ = ["StoreMixin"]

_TRIED_AGAIN = 5.0  # seconds in which who has given up a scatter scatters the same once more, if at all

_options: contextvars.ContextVar[tuple[bool | None, bool | None]] = contextvars.ContextVar(
    "proxystore_options", default=(None, None)
)
_announcement: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "proxystore_announcement", default=None
)

# Dask names a task after its arguments; a proxy must not load for that.
normalize_token.register(Proxy, lambda proxy: ("proxystore_core.Proxy", repr(get_factory(proxy))))


class StoreMixin(distributed.Client):
    """The overrides; `Client` has them from the start, `wrap` gives them to a client that is there."""

    _link: DaskLink

    # Life.

    async def _start(self, *args: Any, **kwargs: Any) -> Any:
        started = await super()._start(*args, **kwargs)
        await self._join()
        return started

    async def _join(self) -> None:
        # Within one process Dask hands objects over as they are: there is nothing to store.
        if self.scheduler.address.startswith("inproc://"):
            return
        link = self._link
        self._stream_handlers["proxystore-evict"] = link.released
        self._stream_handlers["proxystore-unreachable"] = link.unreachable
        _begun.add(self)
        try:
            session = await asyncio.to_thread(link.announce, self.id)
        except StoreError as error:
            link.by_value.accept(error, "work")
            return
        try:
            await self._register_scheduler_plugin(
                StoreSchedulerPlugin(), name=StoreSchedulerPlugin.name, idempotent=True
            )
            elsewhere = await self.scheduler.proxystore_join(session=session)
        except VersionError as error:
            await asyncio.to_thread(link.close)
            link.by_value.accept(error, "work")
        except Exception as error:
            await asyncio.to_thread(link.close)
            link.by_value.accept(
                ConfigurationError(
                    f"the scheduler could not load proxystore_integrations ({type(error).__name__}: {error})",
                    remedy="Install the same proxystore-integrations for the scheduler and the workers.",
                ),
                "work",
            )
        else:
            link.join(elsewhere)
        if self.status in ("closing", "closed"):  # it had nothing to end yet
            await asyncio.to_thread(link.close)

    async def _reconnect(self) -> None:
        link = self._link
        link.part()
        await super()._reconnect()
        # The tasks of the scheduler that was lost are lost, and with them what they took and made.
        await asyncio.to_thread(link.close)
        if self.status == "running":
            await self._join()

    async def _close(self, fast: bool = False) -> None:
        needed = await self._leave() if self._link.joined else False
        try:
            await super()._close(fast=fast)
        finally:
            # Tasks that go on without us (fire_and_forget) need their arguments, and store results: the
            # scheduler sees to them.
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
        borrowed = borrows_in((args, kwargs))
        if proxy_args is None and proxy_result is None:
            return end_with(super().submit(func, *args, **kwargs), borrowed)
        with _these(proxy_args, proxy_result):
            return end_with(self._noted(super().submit(func, *args, **kwargs), proxy_result), borrowed)

    def map(
        self,
        func: Any,
        *iterables: Any,
        proxy_args: bool | None = None,
        proxy_result: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `distributed.Client.map`, with the arguments that `submit` adds."""
        borrowed = borrows_in((iterables, kwargs))
        if proxy_args is None and proxy_result is None:
            # Dask calls this again for each batch: what the caller said of all of them stays.
            return end_with(super().map(func, *iterables, **kwargs), borrowed)
        with _these(proxy_args, proxy_result):
            return end_with(self._noted(super().map(func, *iterables, **kwargs), proxy_result), borrowed)

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
            outgoing.label = key_split(next(iter(keys), ""))
            expr = substitute_graph(expr, outgoing)
            outgoing.settle()
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
        # Whoever stops waiting, what was stored is evicted, and not before the workers have it.
        scattering = asyncio.ensure_future(self._scatter_stored(send, *named(data, hash)))
        try:
            return await asyncio.shield(scattering)
        except asyncio.CancelledError:
            # Its keys, which Dask would keep for ever, are let go of when whoever tries again is through.
            asyncio.get_running_loop().call_later(_TRIED_AGAIN, scattering.cancelled)
            raise

    async def _scatter_stored(self, send: Any, values: dict[Any, Any], rebuild: Any) -> Any:
        link = self._link
        outgoing = link.outgoing()
        outgoing.label = "scatter"
        # Wanted from the start: an equal scatter before this one, which nobody waits for any more, may let
        # go of the keys between the scheduler's having the values and this client's having the futures.
        wanted: list[Any] = [distributed.Future(key, self) for key in values]
        try:
            in_store = await asyncio.to_thread(carried, values, outgoing)
            futures = await send(in_store)
        except StoreError as error:
            link.by_value.accept(error, "scatter")
            futures = await send(values)
        finally:
            # The workers hold the values in their memory by now.
            link.evict_later([reference.key for reference in outgoing.references])
        for key, value in values.items():
            self.futures[key].finish(type=type(value))
        del wanted
        return rebuild(futures)

    # In: results.

    async def _gather_remote(self, direct: bool, local_worker: bool) -> dict[str, Any]:
        link = self._link
        if direct or local_worker or not link.reached or link.publishes_from is None:
            return dict(await super()._gather_remote(direct, local_worker))
        async with self._gather_semaphore:
            # Requests that come in meanwhile form the next batch, as in Dask's own method.
            keys, self._gather_keys, self._gather_future = list(self._gather_keys or ()), None, None
            # Whoever stops waiting, what was published is fetched and evicted.
            return await asyncio.shield(asyncio.ensure_future(self._gather_published(keys)))

    async def _gather_published(self, keys: list[Any]) -> dict[str, Any]:
        link = self._link
        response: dict[str, Any] = dict(
            await retry_operation(
                self.scheduler.proxystore_gather,
                keys=keys,
                client=self.id,
                threshold=link.publishes_from,
                by_value=list(link.by_value_keys.intersection(keys)),
            )
        )
        published = {key: unpack(packed) for key, packed in response.pop("references", {}).items()}
        stored = {key: unpack(packed) for key, packed in response.pop("stored", {}).items()}
        try:
            if response["status"] == "OK":
                data = response["data"] = dict(response["data"])
                for references, shared in ((published, False), (stored, True)):
                    if references:
                        loaded = await asyncio.to_thread(load, list(references.values()), shared=shared)
                        data.update(zip(references, loaded, strict=True))
        except StoreError as error:
            # One that was let go of meanwhile is no trouble of the others'.
            if not stored:
                link.by_value.accept(error, "gather")
            response = dict(await retry_operation(self.scheduler.gather, keys=keys))
            if response["status"] == "error" and not isinstance(error, GoneError):
                raise  # else Dask asks for them again, for ever; what is gone is computed again
            return response
        finally:
            link.evict_later([reference.key for reference in published.values()])
        if (book := ledger.book) is not None:
            for key, value in response.get("data", {}).items():
                if key not in published and key not in stored:
                    size = sizeof(value)
                    why = "small" if size < link.settings.threshold else "fast through the scheduler"
                    book.by_value(link.engine, why, size)
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


_begun: weakref.WeakSet[StoreMixin] = weakref.WeakSet()


def _close_all() -> None:
    """Close what nobody has closed, before Dask stops the clusters that answer."""
    for client in list(_begun):
        if not client._link.is_open:
            continue
        with contextlib.suppress(Exception):
            if not client.asynchronous and client.loop.asyncio_loop.is_running():
                client.close(timeout=3)
        client._link.close()


atexit.register(_close_all)
