"""What Parsl's dataflow does with a result that is in the store.

Between tasks it goes on as it is; the user, memo tables, checkpoints and executors without a store get
its value. All of it is inert where no result is stored.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from proxystore_core import StoreError
from proxystore_integrations.carriers import Filling, StoredResult, plain
from proxystore_integrations.parsl.engine import (
    AppFuture,
    BasicMemoizer,
    CheckpointCommand,
    DataFlowKernel,
    RemoteExceptionWrapper,
    deep_traverse_to_unwrap,
    id_for_memo,
    shallow_traverse_to_unwrap,
)

__all__ = ["StoreMixin", "install", "takes_results"]


class StoreMixin:
    """Marks executors that take stored results as arguments."""

    _submitting: Any = None
    """The lock under which Parsl submits: executors need not be safe in threads."""


_internal = threading.local()


def install() -> None:
    """Make Parsl pass stored results on as references, and show them to everybody else as values. Once."""
    future: Any = AppFuture
    if future.result is _result:
        return
    future.result = _result
    future.set_result = _flagged(Future.set_result, False)
    future.set_exception = _flagged(Future.set_exception, False)
    # Dependencies: the two resolvers that Parsl ships.
    shallow_traverse_to_unwrap.register(AppFuture, _as_it_came)
    deep_traverse_to_unwrap.register(AppFuture, _as_it_came)
    for kind in (list, tuple, set):
        deep_traverse_to_unwrap.register(kind, _deep_items)
    deep_traverse_to_unwrap.register(dict, _deep_dict)
    # Memoization and checkpoints: by content, and of the value.
    id_for_memo.register(StoredResult, lambda result, output_ref=False: id_for_memo(result.value, output_ref))
    command: Any = CheckpointCommand
    command.result = property(lambda command: _plain(command._result))
    flow: Any = DataFlowKernel
    flow._unwrap_remote_exception_wrapper = staticmethod(_unwrapped)
    flow.handle_exec_update = _ending(_showing(flow.handle_exec_update))
    flow.handle_join_update = _ending(_flagged(flow.handle_join_update, True))
    flow.launch_task = _launching(flow.launch_task)
    flow._complete_task_result = _completing(flow._complete_task_result)
    flow._complete_task_exception = _letting_go(flow._complete_task_exception)


# The user's side of an AppFuture.


def _result(self: Any, timeout: float | None = None) -> Any:
    """The app's result. As `concurrent.futures.Future.result`."""
    result = Future.result(self, timeout)
    if getattr(_internal, "active", False):
        return result
    if type(result) is not list or not _is_stored(self):
        return plain(result)
    # Of a join app: several apps' results. Whoever asks gets the same list.
    if "_proxystore_list" not in self.__dict__:
        self.__dict__.setdefault("_proxystore_list", _plain(result))
    return self.__dict__["_proxystore_list"]


def _flagged(method: Callable[..., Any], internal: bool) -> Callable[..., Any]:
    """A method of Parsl's that handles results unseen (``internal``), or that calls the user's callbacks."""

    @functools.wraps(method)
    def flagged(*args: Any, **kwargs: Any) -> Any:
        before, _internal.active = getattr(_internal, "active", False), internal
        try:
            return method(*args, **kwargs)
        finally:
            _internal.active = before

    return flagged


# Dependencies.


def _as_it_came(future: Any) -> Any:
    return Future.result(future)


def _deep_items(items: Any) -> Any:
    inner = map(deep_traverse_to_unwrap, items)
    # Stored results are looked for in exact lists, tuples and dicts only.
    return type(items)(inner if type(items) in (list, tuple) else map(Filling(), inner))


def _deep_dict(items: Any) -> Any:
    fill = Filling()
    return {
        fill(deep_traverse_to_unwrap(key)): deep_traverse_to_unwrap(value) for key, value in items.items()
    }


def _unwrapped(future: Any) -> Any:
    result = Future.result(future)
    if type(result) is StoredResult and result.reference.kind.endswith(":RemoteExceptionWrapper"):
        result = result.value
    if isinstance(result, RemoteExceptionWrapper):
        result.reraise()
    return result


# The life of a task.


def _launching(launch_task: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(launch_task)
    def launching(self: Any, task_record: Any) -> Any:
        executor = self.executors.get(task_record["executor"])
        if isinstance(executor, StoreMixin):
            executor._submitting = self.submitter_lock
        else:
            fill = Filling()
            task_record["args"] = fill(list(task_record["args"]))
            task_record["kwargs"] = fill(task_record["kwargs"])
        _internal.takes_results = any(map(_is_stored, task_record["depends"]))
        try:
            return launch_task(self, task_record)
        finally:
            _internal.takes_results = False

    return launching


def takes_results() -> bool:
    """Whether the task that this thread launches takes stored results, anywhere in its arguments."""
    return getattr(_internal, "takes_results", False)


def _showing(handle: Callable[..., Any]) -> Callable[..., Any]:
    """A retry handler that the user gave sees the arguments of the task that failed as values."""

    @functools.wraps(handle)
    def showing(self: Any, task_record: Any, future: Any) -> Any:
        if self.config.retry_handler is not None and _failed(future):
            fill = Filling()
            with contextlib.suppress(StoreError):  # the retry says so
                task_record["args"] = fill(list(task_record["args"]))
                task_record["kwargs"] = fill(task_record["kwargs"])
        return handle(self, task_record, future)

    return showing


def _failed(future: Any) -> bool:
    try:
        _unwrapped(future)
    except Exception:
        return True
    return False


def _completing(complete: Callable[..., Any]) -> Callable[..., Any]:
    def plainly(self: Any, task_record: Any, new_state: Any, result: Any) -> Any:
        if not isinstance(self.memoizer, BasicMemoizer):  # nobody knows what it does with a result
            result = _plain(result)
        return complete(self, task_record, new_state, result)

    return _letting_go(functools.wraps(complete)(plainly))


def _letting_go(complete: Callable[..., Any]) -> Callable[..., Any]:
    """A task that is over keeps its inputs no longer, whoever keeps its future."""

    @functools.wraps(complete)
    def letting_go(self: Any, task_record: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return complete(self, task_record, *args, **kwargs)
        finally:
            task_record["depends"] = [future for future in task_record["depends"] if not _is_stored(future)]
            task_record["args"] = [_inert(value) for value in task_record["args"]]
            task_record["kwargs"] = {name: _inert(value) for name, value in task_record["kwargs"].items()}

    return letting_go


def _ending(handle: Callable[..., Any]) -> Callable[..., Any]:
    """The last that Parsl does with a task.

    Its record and its future know each other. Left so, a stored result would wait for the garbage
    collector, and fill the store meanwhile.
    """

    @functools.wraps(handle)
    def ending(self: Any, task_record: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return handle(self, task_record, *args, **kwargs)
        finally:
            future = task_record["app_fu"]
            # Who lets Parsl keep all records looks for the futures there.
            if type(future) is AppFuture and _is_stored(future) and self.config.garbage_collect:
                task_record["app_fu"] = _Ended(future)
                task_record["joins"] = None

    return ending


class _Ended:
    """Stands for the future of a task that is over, which is its user's alone from then on.

    Whoever has waited for all tasks may come across the record of one whose future is gone already.
    """

    def __init__(self, future: Any) -> None:
        self._future = weakref.ref(future)

    def __getattr__(self, name: str) -> Any:
        future = self._future()
        if future is None:
            raise ReferenceError("nobody has this task's future any more")
        return getattr(future, name)

    def done(self) -> bool:
        return True

    def exception(self, timeout: float | None = None) -> None:
        """None: its result is in the store."""


def _is_stored(future: Any) -> bool:
    result = future.__dict__.get("_result")
    if type(result) is not list:
        return type(result) is StoredResult
    record = getattr(future, "task_record", None)  # of an app's future
    return bool(record and record["join"]) and _holds_stored(result)


# What a join app returns is a list of other apps' results, lists of join apps among them.


def _holds_stored(items: list[Any]) -> bool:
    return any(type(item) is StoredResult or (type(item) is list and _holds_stored(item)) for item in items)


def _plain(result: Any) -> Any:
    if type(result) is list and _holds_stored(result):
        return [_plain(item) for item in result]
    return plain(result)


def _inert(value: Any) -> Any:
    if type(value) is StoredResult:
        return repr(value)
    if type(value) is list and _holds_stored(value):
        return [_inert(item) for item in value]
    return value
