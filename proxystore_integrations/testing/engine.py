"""What a test needs of an engine."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from proxystore_core.connectors.base import listed

__all__ = ["Engine", "objects_of"]


def objects_of(link: Any) -> list[str]:
    """Keys of the values that a link's session has in its store now, which has to be one that can tell."""
    if not link.is_open:
        return []
    lister = listed(link._store.connector)
    assert lister is not None, f"{link.url} cannot tell what is in it"
    return [key for key in lister.keys(link.session) if key != link.marker]


class Engine:
    """An engine with a store (``threshold`` 100 kB), and the same engine bare; tests subclass it.

    Attributes:
        passes_futures: futures may be arguments of other calls.
        is_local: tasks run in this process, so nothing is stored and arguments are the very objects.
        keeps_tasks: a task lives as long as its future: its result in a worker's memory, its arguments in
            the store for running it again.
        by_name_only: arguments and functions are pickled by name: no closures, no lambdas.
        runs_again: a task whose worker is killed is run again; else its future fails.
        tells_text: of a task's exception the client learns the text only.
        loses_unpicklable: bare, a task whose argument cannot be pickled is never heard of again.
    """

    passes_futures = True
    is_local = False
    keeps_tasks = False
    by_name_only = False
    runs_again = False
    tells_text = False
    loses_unpicklable = False

    def raised(self, error: BaseException | None) -> str:
        """Name of the class of what a task raised, by the exception of its future."""
        return type(error).__name__

    def submit(self, function: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call with the store; its future."""
        raise NotImplementedError

    def bare_submit(self, function: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call to the engine as it is without us; its future."""
        raise NotImplementedError

    def store(self) -> Any:
        """The open `Store` whose session the engine uses."""
        raise NotImplementedError

    def stored(self) -> list[str]:
        """Names of what the engine's session has in the store now (see `objects_of`)."""
        raise NotImplementedError

    def fresh(self) -> AbstractContextManager[Engine]:
        """An engine of this kind for a test that kills its workers; this one, where it survives that."""
        return nullcontext(self)
