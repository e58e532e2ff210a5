"""Giving a store to the executors of a Parsl Config."""

from __future__ import annotations

from typing import Any, TypeVar

from proxystore_core import ConfigurationError
from proxystore_core.ownership import borrows_in, end_with
from proxystore_integrations.calls import CallLink
from proxystore_integrations.parsl.engine import Config, ParslExecutor, ThreadPoolExecutor
from proxystore_integrations.parsl.flow import StoreMixin, install
from proxystore_integrations.parsl.mixin import StoreExecutorMixin

__all__ = ["wrap"]

T = TypeVar("T")


def wrap(target: T, **settings: Any) -> T:
    """Let the large arguments and results of a Parsl Config's apps go through a store.

    Args:
        target: a `parsl.Config`, whose executors are wrapped, or one executor. A thread pool is left as
            it is: it hands objects over, and there is nothing to store.
        **settings: ``threshold`` (bytes or ``"100 kB"``), ``store`` (URL or an open `Store`), ``inputs``,
            ``results``, ``on_store_error``, ``lease``. What is not given comes from the environment,
            ``proxystore.toml`` or the defaults (see `proxystore_integrations.settings`).

    Returns:
        The same object. What has a store already is left as it is.

    Raises:
        ConfigurationError: a setting is unknown or wrong, an executor has a store and settings are given
            again, or ``target`` is neither a Config nor an executor.
    """
    if isinstance(target, Config):
        executors = list(target.executors)
    elif isinstance(target, ParslExecutor):
        executors = [target]
    else:
        raise ConfigurationError(
            f"{type(target).__name__} is neither a parsl.Config nor an executor",
            remedy="Expected parsl.load(wrap(Config(executors=[...]))).",
        )
    loaded, store = CallLink.settled(**settings)
    for executor in executors:
        if isinstance(executor, StoreMixin) and settings:
            raise ConfigurationError(
                f"the executor {executor.label!r} has a store already: {', '.join(settings)} cannot be set",
                remedy="Give the settings where it is wrapped first.",
            )
    for executor in executors:
        if isinstance(executor, ThreadPoolExecutor):
            _end_borrowings(executor)
        elif not isinstance(executor, StoreMixin):
            link = CallLink(loaded, store, "parsl")
            link.pickles_apart = True
            _equip(executor, link)
    install()
    return target


def _end_borrowings(executor: Any) -> None:
    """Let what is borrowed for a thread pool's task end with it: all else of it stays."""
    if "submit" in vars(executor):
        return
    send = executor.submit

    def submit(func: Any, resource_specification: Any, *args: Any, **kwargs: Any) -> Any:
        borrowed = borrows_in((args, kwargs))
        return end_with(send(func, resource_specification, *args, **kwargs), borrowed, retried=True)

    executor.submit = submit


def _equip(executor: Any, link: CallLink) -> None:
    """Mix our overrides into an executor; by name, module and signature it stays what it was."""
    kind = type(executor)
    executor._link = link
    executor.__class__ = type(
        kind.__name__,
        (StoreExecutorMixin, kind),
        {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
            "__init__": kind.__init__,
        },
    )
