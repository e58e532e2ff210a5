"""The SDK's Executor, with a store."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

from proxystore_core import StoreError
from proxystore_core.flight import Flights
from proxystore_integrations.calls import Call, CallLink
from proxystore_integrations.carriers import Packed, StoredResult, StoreFunction
from proxystore_integrations.executor import CallExecutor
from proxystore_integrations.globus_compute.arguments import filling
from proxystore_integrations.globus_compute.batches import SurvivingExecutor
from proxystore_integrations.globus_compute.engine import (
    ComputeExecutor,
    ComputeSerializer,
    ShellFunction,
)
from proxystore_integrations.globus_compute.future import GlobusFuture
from proxystore_integrations.globus_compute.reach import check_reach
from proxystore_integrations.settings import check_spelling

__all__ = ["Executor"]


class Registered(NamedTuple):
    """A function that only the service knows."""

    id: str


_SETTINGS = ("endpoint_id", "resource_specification", "user_endpoint_config")

_sending = threading.local()
"""What was set when the task was submitted that this thread sends."""


def _task() -> tuple[Any, dict[str, Any]]:
    return getattr(_sending, "task", (None, {}))


def _setting(name: str) -> Any:
    """A property of the SDK's executor: for a task that is sent later, as it was at its submit."""
    sdks = vars(ComputeExecutor)[name]

    def get(self: Executor) -> Any:
        executor, settings = _task()
        return settings[name] if executor is self else sdks.fget(self)

    return property(get, sdks.fset, doc=sdks.__doc__)


class Executor(CallExecutor, SurvivingExecutor):  # type: ignore[misc]
    """`globus_compute_sdk.Executor` whose tasks' large arguments and results go through a store.

    All of the SDK's arguments, attributes and methods are the SDK's own. Beyond them there is `map`, futures
    may be arguments of other tasks, and a task that cannot be submitted fails alone.

    Args:
        endpoint_id: as for the SDK's.
        client: as for the SDK's.
        store: URL of a store that this process and the endpoint's workers reach, or an open `Store`.
        threshold: size from which a value goes through the store, bytes or ``"1 MB"``.
        should_proxy: a function of a value, picklable, which may keep large ones out of the store.
        reachable: true where the endpoint shares a ``shm://`` or ``file://`` store, and the service does not
            show that it runs on this machine.
        inputs, results, on_store_error, lease: as in every integration.
        **options: all else of the SDK's.

    What is not given comes from the environment, ``proxystore.toml`` or the defaults (see
    `proxystore_integrations.settings`).

    Raises:
        ConfigurationError: a setting is unknown or wrong; at the first submit, the endpoint cannot reach the
            store.
        StoreError: at the first submit, the store cannot be opened, and settings want that raised.
    """

    future = GlobusFuture
    endpoint_id = _setting("endpoint_id")
    resource_specification = _setting("resource_specification")
    user_endpoint_config = _setting("user_endpoint_config")

    def __init__(
        self,
        endpoint_id: Any = None,
        client: Any = None,
        *args: Any,
        store: Any = None,
        threshold: int | str | None = None,
        should_proxy: Callable[[Any], bool] | None = None,
        reachable: bool = False,
        inputs: str | None = None,
        results: str | None = None,
        on_store_error: str | None = None,
        lease: float | str | None = None,
        **options: Any,
    ) -> None:
        known = inspect.signature(ComputeExecutor.__init__).parameters
        check_spelling(name for name in options if name not in known)
        settings, given = CallLink.settled(
            store=store,
            threshold=threshold,
            inputs=inputs,
            results=results,
            on_store_error=on_store_error,
            lease=lease,
        )
        link = CallLink(settings, given, "globus-compute")
        link.pickles_apart = True
        CallExecutor.__init__(self, link)
        self._link.should_proxy = should_proxy
        self._link.outlived = True
        self.reachable = reachable
        self._reached: set[Any] = set()
        self._flights = Flights()
        self._ids: dict[Any, str] = {}
        self._registered: set[Any] = set()
        SurvivingExecutor.__init__(self, endpoint_id, client, *args, **options)

    def __repr__(self) -> str:
        return f"{SurvivingExecutor.__repr__(self)[:-1]}; {self._link!r}>"

    def register_function(
        self, fn: Callable[..., Any], function_id: str | None = None, **options: Any
    ) -> str:
        """As the SDK's. Tasks of a function that was registered so are tasks of it, as it is: their large
        arguments go through the store, their results do not.
        """
        identity: str = super().register_function(fn, function_id, **options)
        self._ids[fn] = identity
        self._registered.add(fn)
        return identity

    def submit_to_registered_function(
        self, function_id: str, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
    ) -> Future[Any]:
        """As the SDK's; large arguments go through the store, the result does not."""
        return self.submit(Registered(str(function_id)), *(args or ()), **(kwargs or {}))  # type: ignore[arg-type]

    def reload_tasks(self, task_group_id: Any = None) -> list[GlobusFuture]:
        """As the SDK's. Large results of tasks that were not done when their client ended can be had while
        its lease lasts.
        """
        return [
            GlobusFuture(functools.partial(_same, future), Call(self._link, None, (), {}))
            for future in super().reload_tasks(task_group_id)
        ]

    def _call(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: bool = False
    ) -> Call:
        if isinstance(function, ShellFunction):
            return Call(self._link, function, args, kwargs)
        if self.endpoint_id is not None and self.endpoint_id not in self._reached:
            self._flights.run(self.endpoint_id, self._reach)
        carried = _carried(self.serializer, self.result_serializers)
        if not carried.arguments:
            return Call(self._link, function, args, kwargs)
        wrapped = carried.functions and type(function) is not Registered and function not in self._registered
        return self._link.call(function, args, kwargs, wrapped=wrapped, results=results)

    def _reach(self) -> None:
        endpoint_id = self.endpoint_id
        if endpoint_id in self._reached:
            return
        if not self.reachable:
            check_reach(self._link.url, self.client, endpoint_id)
        if not self._link.was_opened:
            try:
                self._link.open()
            except StoreError as error:
                self._link.by_value.accept(error, "work")
        self._reached.add(endpoint_id)

    def _sender(self, options: dict[str, Any]) -> Callable[[Call], Future[Any]]:
        return self._later(super()._sender(options))

    def _later(self, function: Callable[..., Any]) -> Callable[..., Any]:
        settings = {name: getattr(self, name) for name in _SETTINGS}

        def call(*args: Any) -> Any:
            before = _task()
            _sending.task = self, settings
            try:
                return function(*args)
            finally:
                _sending.task = before

        return call

    def _send(self, call: Call, **options: Any) -> Future[Any]:
        args, kwargs = call.args, call.kwargs
        if call.is_stored and type(call.function) is not StoreFunction:
            args, kwargs = filling(args[0])
        identity = "" if self.endpoint_id is None else self._id(call.function)
        future: Future[Any] = super().submit_to_registered_function(identity, args, kwargs)
        return future

    def _stop(self, wait: bool, cancel_futures: bool, **options: Any) -> None:
        shutdown: Any = SurvivingExecutor.shutdown
        shutdown(self, wait=wait, cancel_futures=cancel_futures, **options)

    # Functions.

    def _id(self, function: Any) -> str:
        """The service's identifier of what is to be called; registers it once."""
        if type(function) is Registered:
            return function.id
        key = function
        if type(function) is StoreFunction:
            key = StoreFunction, function.function or function.__name__
        if key not in self._ids:
            self._flights.run(key, functools.partial(self._register, key, function))
        return self._ids[key]

    def _register(self, key: Any, function: Any) -> None:
        if key in self._ids:
            return
        described = function.function if type(function) is StoreFunction else function
        description = inspect.getdoc(described) if described is not None else None
        self._ids[key] = super().register_function(function, description=description or "")


def _same(future: Future[Any], call: Call) -> Future[Any]:
    return future


class Carried(NamedTuple):
    """What a client's serializers can carry of ours."""

    arguments: bool
    functions: bool


@functools.lru_cache(64)
def _data(strategy: Any) -> bool:
    return _returns(strategy, Packed(None, (), {}, ())) and _returns(strategy, (StoredResult,))


@functools.lru_cache(64)
def _code(strategy: Any) -> bool:
    return _returns(strategy, StoreFunction(len, None, "len"))


def _returns(strategy: Any, sample: Any) -> bool:
    try:
        return type(strategy.deserialize(strategy.serialize(sample))) is type(sample)
    except Exception:
        return False


def _carried(serializer: ComputeSerializer, results: Iterable[Any] | None) -> Carried:
    arguments = _data(serializer.data_serializer)
    functions = arguments and _code(serializer.code_serializer)
    return Carried(arguments, functions and (not results or _any_data(tuple(results))))


@functools.lru_cache(64)
def _any_data(strategies: tuple[Any, ...]) -> bool:
    serializers = [ComputeSerializer(strategy_data=strategy).data_serializer for strategy in strategies]
    return any(map(_data, serializers))
