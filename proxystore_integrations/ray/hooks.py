"""The places in Ray where values pass: arguments of tasks and actors, results, puts."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from proxystore_core.ownership import borrows_in, end_with
from proxystore_integrations import ledger
from proxystore_integrations.functions import carries_large
from proxystore_integrations.ray import engine, joining, tasks
from proxystore_integrations.ray.carriers import RayOutgoing
from proxystore_integrations.ray.link import RayLink, called_by_others, caller, current, leave, pause
from proxystore_integrations.ray.pickling import share_pickle_state
from proxystore_integrations.ray.results import putting, yielded

__all__ = ["install"]

_EQUIPPED = ("ray.util.multiprocessing", "ray.util.joblib")
"""Ray's own modules whose tasks carry the user's values; others know plasma best (ray.data)."""

_PLASMAS = ("ray.", "proxystore_integrations.ray.")

_installed = False
_submitting = threading.local()


def install() -> None:
    """Equip this process's Ray; what has no link to a store is as it was. Once."""
    global _installed
    if _installed:
        return
    _installed = True
    share_pickle_state()
    function: Any = engine.RemoteFunction
    function._remote = _calling(function._remote)
    actors: Any = engine.ActorClass
    actors._remote = _calling(actors._remote)
    handle: Any = engine.ActorHandle
    handle._actor_method_call = _calling_method(handle._actor_method_call)
    context: Any = engine.SerializationContext
    context.serialize = _serializing(context.serialize)
    functions: Any = engine.functions_module
    functions.pickle_dumps = _exporting(functions.pickle_dumps)
    joining.on_disconnect(pause)
    joining.on_shutdown(leave)


def _calling(remote: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(remote)
    def _remote(self: Any, args: Any = None, kwargs: Any = None, *others: Any, **options: Any) -> Any:
        borrowed = borrows_in((args, kwargs))
        return _lent(_sent(remote, self, (), args, kwargs, others, options), borrowed)

    return _remote


def _calling_method(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def _actor_method_call(
        self: Any, method: str, args: Any = None, kwargs: Any = None, *others: Any, **options: Any
    ) -> Any:
        borrowed = borrows_in((args, kwargs))
        return _lent(_sent(call, self, (method,), args, kwargs, others, options), borrowed)

    return _actor_method_call


def _sent(
    send: Callable[..., Any],
    target: Any,
    before: tuple[Any, ...],
    args: Any,
    kwargs: Any,
    others: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    """Submit a call with its large arguments in the store, where that can be."""
    link = _link()
    if (
        link is None
        or not (args or kwargs)
        or _are_small(link, args or (), kwargs or {})
        or options.get("tensor_transport")
        or tasks.makes_detached(target, options.get("lifetime"))  # such an actor may outlive the session
        or options.get("get_if_exists")  # Ray comes here again if it does not
        or _is_rays(tasks.module_of(target))
        or _is_anothers(link)
        or joining.outlives_its_job()
        or not link.reached
    ):
        return send(target, *before, args, kwargs, *others, **options)
    outgoing = RayOutgoing(link, lazy=link.settings.inputs == "proxy")
    outgoing.label = before[0] if before else str(getattr(target, "_function_name", "")).rpartition(".")[2]
    try:
        args = [outgoing.argument(value) for value in args or ()]
        kwargs = {name: outgoing.argument(value) for name, value in (kwargs or {}).items()}
        outgoing.settle()
    except BaseException:
        outgoing.withdraw()
        raise
    # Held until Ray has the call: then the call's references to it count.
    ticket = outgoing.guarded() if not options.get("max_restarts") else None
    was, _submitting.active = getattr(_submitting, "active", False), True
    try:
        sent = send(target, *before, args, kwargs, *others, **options)
    except BaseException:
        if ticket is None:
            outgoing.withdraw()
        raise
    finally:
        _submitting.active = was
        del ticket
    if options.get("max_restarts"):
        link.keep(sent, (reference.key for reference in outgoing.references))
    return sent


class _Task:
    """A call as one whose end can be waited for; its result stays where it is."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def done(self) -> bool:
        """Whether it has ended."""
        return tasks.ended(self.reference, 0)

    def add_done_callback(self, function: Callable[[Any], None]) -> None:
        """Call a function, in a thread, when it has ended."""

        def wait() -> None:
            while not tasks.ended(self.reference, None):
                pass
            function(self)

        threading.Thread(target=wait, name="proxystore-borrowed", daemon=True).start()


def _lent(sent: Any, borrowed: list[Any]) -> Any:
    """What was sent; what was borrowed for it ends with it."""
    references = sent if isinstance(sent, list) else [sent]
    if borrowed and all(isinstance(reference, engine.ray.ObjectRef) for reference in references):
        end_with([_Task(reference) for reference in references], borrowed)
    return sent


def _serializing(serialize: Callable[..., Any]) -> Callable[..., Any]:
    """Results and puts, where the settings want them in the store."""

    @functools.wraps(serialize)
    def serializing(self: Any, value: Any) -> Any:
        told = caller()
        link = told or _link()
        if (
            link is None
            or link.settings.results != "always"
            or getattr(_submitting, "active", False)
            or tasks.is_error(value)
            or isinstance(value, engine.OWN)
            or not link.policy.over(value)
            or yielded()
        ):
            return serialize(self, value)
        putter = putting()
        if putter is not None or told is None:
            link = _keeper(is_put=putter is not None)
        if link is None or _is_rays(putter or "") or _is_rays(tasks.task_module()) or not link.reached:
            return serialize(self, value)
        outgoing = RayOutgoing(link, adopt=True)
        try:
            value = outgoing.argument(value)
            outgoing.settle()
        except BaseException:
            outgoing.withdraw()
            raise
        ticket = outgoing.guarded()
        try:
            return serialize(self, value)  # it refers to the guard
        finally:
            del ticket

    return serializing


def _exporting(dumps: Callable[..., Any]) -> Callable[..., Any]:
    """A remote function that carries large values: Ray writes it to its table of functions, once a job.

    There it stays until the job ends, and so does what is in the store for it.
    """

    @functools.wraps(dumps)
    def pickle_dumps(function: Any, *args: Any, **kwargs: Any) -> Any:
        link = _link()
        if (
            link is None
            or _is_rays(getattr(function, "__module__", None) or "")
            or _is_anothers(link)
            or joining.outlives_its_job()
            or not carries_large(function, link.policy)
            or not link.reached
        ):
            return dumps(function, *args, **kwargs)
        outgoing = RayOutgoing(link)
        outgoing.label = getattr(function, "__qualname__", "")
        return dumps(outgoing.exported(function), *args, **kwargs)

    return pickle_dumps


def _are_small(link: RayLink, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether nothing of a call is for the store, and nobody keeps a ledger of what is not."""
    over = link.policy.over
    return ledger.book is None and not any(map(over, args)) and not any(map(over, kwargs.values()))


def _link() -> RayLink | None:
    link = current()
    return link if link is not None and link.is_open and joining.connected() else None


def _keeper(*, is_put: bool) -> RayLink | None:
    """Of the session in which this process may store what nothing tells the job of; None if there is none.

    What it puts is its own. A result is the caller's, and may be needed when this process's job is over.
    """
    link = _link()
    if link is None or link.settings.results != "always" or _is_anothers(link) or joining.outlives_its_job():
        return None
    return link if is_put or not called_by_others() else None


def _is_anothers(link: RayLink) -> bool:
    """Whether this worker has inherited its terms, and works for a job that came to the cluster later."""
    about = link.terms.job if link.terms is not None else ""
    return bool(about) and about != joining.job()


def _is_rays(module: str) -> bool:
    return module.startswith(_PLASMAS) and not module.startswith(_EQUIPPED)
