"""What makes a Parsl executor send its large values through a store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from proxystore_core import StoreError
from proxystore_core.ownership import borrows_in, end_with
from proxystore_integrations.attempts import CallFuture
from proxystore_integrations.calls import Call, CallLink
from proxystore_integrations.parsl.engine import (
    LocalProvider,
    ParslExecutor,
    SimpleLauncher,
    SingleNodeLauncher,
)
from proxystore_integrations.parsl.flow import StoreMixin, takes_results

__all__ = ["StoreExecutorMixin"]


class StoreExecutorMixin(StoreMixin, ParslExecutor):
    """The overrides; `wrap` gives them to an executor that is there."""

    _link: CallLink

    def start(self) -> None:
        """Open the store and start the executor."""
        self._opened()
        super().start()

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """As the executor's own; large arguments and the result go through the store."""
        link = self._opened()
        borrowed = borrows_in((args, kwargs))
        send = super().submit  # type: ignore[safe-super]
        call = link.call(func, args, kwargs, results=takes_results())
        first = call

        def submit(call: Call) -> Future[Any]:
            # Parsl holds its lock for the first attempt; the second comes from the executor's own thread.
            with contextlib.nullcontext() if call is first else self._submitting or contextlib.nullcontext():
                return send(call.function, resource_specification, *call.args, **call.kwargs)

        future = CallFuture(submit, call)
        attempt: Any = future.attempt
        if hasattr(attempt, "parsl_executor_task_id"):
            future.parsl_executor_task_id = attempt.parsl_executor_task_id  # type: ignore[attr-defined]
        end_with(future, borrowed, retried=True)
        return future

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Shut the executor down, then take what is still needed out of the store and empty it."""
        try:
            super().shutdown(*args, **kwargs)
        finally:
            self._link.close_now()

    def _opened(self) -> CallLink:
        link = self._link
        if not link.was_opened:
            try:
                link.open()
            except StoreError as error:
                link.by_value.accept(error, "work")
            else:
                reason = _elsewhere(self, link)
                if reason:
                    link.elsewhere[f"of executor {self.label!r}"] = reason
        return link


def _elsewhere(executor: Any, link: CallLink) -> str:
    """Why the executor's workers do not reach the store; empty when nothing says so."""
    if not link.place:
        return ""
    provider = getattr(executor, "provider", None)
    starter = provider
    if provider is None or isinstance(provider, LocalProvider):
        starter = getattr(provider, "launcher", None)
        if starter is None or isinstance(starter, SingleNodeLauncher | SimpleLauncher):
            return ""
    return (
        f"{type(starter).__name__} starts it on other machines, and {link.settings.store} is the memory of "
        'this one. Set store to one that all of them reach, such as "redis://host:6379" or '
        '"file:///shared/directory"'
    )
