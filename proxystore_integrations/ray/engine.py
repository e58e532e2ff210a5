"""What this integration takes from inside Ray, in one place, checked against the version.

These names are not public: an update of Ray may move them, and then this file changes.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import inspect
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle.cloudpickle as our_pickle

from proxystore_core import MissingExtraError, SerializationError
from proxystore_integrations.ray.releases import TESTED, check_minimum, numbers_of

try:
    import ray
    import ray.cloudpickle.cloudpickle as rays_pickle
    import ray.remote_function as functions_module
    from ray._common.utils import load_class
    from ray._private import services as services_module
    from ray._private import worker as worker_module
    from ray._private.client_mode_hook import client_mode_should_convert
    from ray._private.serialization import SerializationContext
    from ray.actor import ActorClass, ActorHandle
    from ray.cloudpickle import CloudPickler
    from ray.core.generated.common_pb2 import Address  # type: ignore[attr-defined]
    from ray.remote_function import RemoteFunction
except ImportError as error:
    raise MissingExtraError(
        f"the Ray integration did not load: {error}",
        remedy='Run: pip install --upgrade "proxystore-integrations[ray]".',
    ) from error

__all__ = [
    "FIRST_JOB",
    "OWN",
    "SETUP_HOOK",
    "ActorClass",
    "ActorHandle",
    "RemoteFunction",
    "SerializationContext",
    "check_release",
    "connected",
    "empty_object",
    "ended",
    "functions_module",
    "given_to_init",
    "job",
    "load_class",
    "module_of",
    "on_connect",
    "on_disconnect",
    "outer",
    "owner_lives",
    "owner_of",
    "putting",
    "ray",
    "referred_to",
    "refusing",
    "share_pickle_state",
    "starts_cluster",
    "task_module",
    "version",
    "watch",
    "watch_actor",
    "watch_generators",
    "yielded",
]

SETUP_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Environment variable of a setup hook that another driver of the same job has chosen."""

FIRST_JOB: str = ray.JobID.from_int(1).hex()
"""The job, as `job` names it, of the driver that has started a cluster."""

_raylet: Any = ray._raylet
_METHODS: dict[Any, str] = {
    RemoteFunction: "_remote",
    ActorClass: "_remote",
    ActorHandle: "_actor_method_call",
    SerializationContext: "get_outer_object_ref serialize",
    functions_module: "pickle_dumps",
    _raylet: "inspect",
    _raylet.CoreWorker: "add_object_out_of_scope_callback current_actor_is_asyncio get_all_reference_counts"
    " get_owner_address serialize_actor_handle",
    services_module: "canonicalize_bootstrap_address",
    worker_module: "SCRIPT_MODE WORKER_MODE Worker connect disconnect global_worker",
    our_pickle: "_DYNAMIC_CLASS_TRACKER_BY_CLASS _DYNAMIC_CLASS_TRACKER_BY_ID _PICKLE_BY_VALUE_MODULES",
    rays_pickle: "_DYNAMIC_CLASS_TRACKER_BY_CLASS _DYNAMIC_CLASS_TRACKER_BY_ID _PICKLE_BY_VALUE_MODULES",
}

OWN: tuple[type, ...] = (
    ray.ObjectRef,
    ActorHandle,
    ray.ObjectRefGenerator,
    ray.DynamicObjectRefGenerator,
)
"""Ray's own objects: only Ray's pickler may pickle them, since it counts references to them."""


def check_release(release: str) -> None:
    """Check Ray's release and the names that are used of its inside.

    Args:
        release: Ray's version.

    Raises:
        MissingExtraError: it is too old or not tested, or a name is not there any more; says which.
    """
    check_minimum(release)
    this = f"{TESTED[0]}.{TESTED[1]}"
    remedy = f"Use Ray {this}, or a newer proxystore-integrations."
    missing = [
        f"{place.__name__}.{name}"
        for place, names in _METHODS.items()
        for name in names.split()
        if not hasattr(place, name)
    ]
    if missing:
        raise MissingExtraError(
            f"Ray {release} has no {', '.join(missing)}, which this integration needs", remedy=remedy
        )
    if numbers_of(release) > TESTED:
        raise MissingExtraError(
            f"this integration was tested with Ray up to {this}, this is {release}", remedy=remedy
        )


version: str = ray.__version__

check_release(version)


def connected() -> bool:
    """Whether this process is a driver or worker of a cluster: not Ray Client, not local mode."""
    worker = worker_module.global_worker
    modes = (worker_module.SCRIPT_MODE, worker_module.WORKER_MODE)
    return worker.connected and worker.mode in modes and not client_mode_should_convert()


def ended(reference: Any, seconds: float | None) -> bool:
    """Wait for a call's end, and leave its result where it is.

    Args:
        reference: ObjectRef of the result.
        seconds: None for no end.

    Returns:
        Whether it has ended, or nobody can tell any more.
    """
    try:
        return bool(ray.wait([reference], timeout=seconds, fetch_local=False)[0])
    except Exception:  # disconnected
        return not connected()


def empty_object() -> Any:
    """ObjectRef of an empty object that this process owns.

    Where an async actor's results are pickled, Ray numbers what is put by whichever of its tasks began or
    ended last: two objects may get one number, and the process dies. A thread has numbers of its own.
    """
    core: Any = worker_module.global_worker.core_worker  # type: ignore[attr-defined]
    if core.current_actor_is_asyncio():
        return _apart().submit(ray.put, None).result()
    return ray.put(None)


@functools.cache
def _apart() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "proxystore-guard")


def watch(reference: Any, gone: Callable[[], None]) -> bool:
    """Call a function, in Ray's thread, when nobody refers to an object any more.

    Args:
        reference: ObjectRef of an object.
        gone: to be called; it must not block.

    Returns:
        Whether it will be called: the object must be this process's own, and still referred to.
    """
    core: Any = worker_module.global_worker.core_worker  # type: ignore[attr-defined]
    try:
        return bool(core.add_object_out_of_scope_callback(reference, lambda _: gone()))
    except ValueError:
        return False


def watch_actor(handle: Any, gone: Callable[[], None]) -> bool:
    """`watch` for an actor that this process has made: nobody has a handle of it or waits for a call."""
    core: Any = worker_module.global_worker.core_worker  # type: ignore[attr-defined]
    return watch(core.serialize_actor_handle(handle._ray_actor_id)[1], gone)


def outer() -> Any:
    """ObjectRef of the object that this thread is unpickling; None if it is an argument by value."""
    found = worker_module.global_worker.get_serialization_context().get_outer_object_ref()
    return None if found is None or found.is_nil() else found


def owner_of(reference: Any) -> bytes:
    """Address of the process that owns an object; empty for this one, and where Ray does not know."""
    core: Any = worker_module.global_worker.core_worker  # type: ignore[attr-defined]
    try:
        address: bytes = core.get_owner_address(reference)
    except ValueError:
        return b""
    mine = Address.FromString(address).worker_id == worker_module.global_worker.worker_id
    return b"" if mine else address


def owner_lives(owner: bytes) -> bool:
    """Whether a process is still there, as far as anyone can tell; takes about 0.1 ms.

    Args:
        owner: as `owner_of` gives it.
    """
    address = Address.FromString(owner)
    if not any(node["Alive"] and node["NodeID"] == address.node_id.hex() for node in ray.nodes()):
        return False
    try:
        socket.create_connection((address.ip_address, address.port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        pass
    return True


def referred_to(name: str) -> bool:
    """Whether this process, or a task that it submitted, refers to an object.

    Args:
        name: of its ObjectRef, hexadecimal.
    """
    core: Any = worker_module.global_worker.core_worker  # type: ignore[attr-defined]
    return name.encode() in core.get_all_reference_counts()


def is_error(value: Any) -> bool:
    """Whether Ray treats a value as the failure of a task."""
    return isinstance(value, ray.exceptions.RayError)


def module_of(called: Any) -> str:
    """Name of the module of a remote function, an actor's class or an actor; empty when not Python's."""
    if isinstance(called, RemoteFunction):
        return getattr(called._function, "__module__", None) or ""
    if isinstance(called, ActorHandle):
        descriptor = called._ray_actor_creation_function_descriptor
        return "" if called._ray_is_cross_language else str(getattr(descriptor, "module_name", ""))
    return getattr(called.__ray_metadata__.modified_class, "__module__", None) or ""


def task_module() -> str:
    """Dotted name of the function or method that this worker runs; empty in a driver."""
    if worker_module.global_worker.mode != worker_module.WORKER_MODE:
        return ""
    return ray.get_runtime_context().get_task_function_name() or ""


def job() -> str:
    """ID of the job that this process works for, in hexadecimal digits."""
    return str(ray.get_runtime_context().get_job_id())


def given_to_init() -> Mapping[str, Any] | None:
    """The arguments of the `ray.init` that has called the caller; None where none has."""
    code = getattr(inspect.unwrap(ray.init), "__code__", None)
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else {**frame.f_locals.get("kwargs", {}), **frame.f_locals}


def starts_cluster(given: Mapping[str, Any]) -> bool:
    """Whether `ray.init` starts a cluster of its own and joins none.

    Args:
        given: its arguments by name.
    """
    address: Any = given.get("address")
    try:
        address = services_module.canonicalize_bootstrap_address(address, given.get("_temp_dir"))
    except Exception:  # ray.init meets the same, and raises its own error
        return False
    return address is None and not given.get("local_mode")


_executing = threading.local()
_put_object: Any = worker_module.Worker.put_object.__code__


@functools.cache
def watch_generators() -> None:
    """Let `yielded` know: Ray asks of what each task returned whether it is a generator."""
    asking = types.ModuleType(inspect.__name__)
    asking.__dict__.update(inspect.__dict__)
    asking.isgenerator = _asked(inspect.isgenerator)  # type: ignore[attr-defined]
    asking.isasyncgen = _asked(inspect.isasyncgen)  # type: ignore[attr-defined]
    _raylet.inspect = asking


def _asked(ask: Callable[[object], bool]) -> Callable[[object], bool]:
    def asked(returned: object) -> bool:
        _executing.yields = inspect.isgenerator(returned) or inspect.isasyncgen(returned)
        return ask(returned)

    return asked


def yielded() -> bool:
    """Whether the value that the caller's caller pickles is one that a generator yielded.

    Ray does not keep what references in such a value refer to: as soon as the generator goes on they dangle.
    To be asked after `watch_generators`. An async generator's values are pickled in a thread of which
    nothing is known.
    """
    frame: Any = sys._getframe(1).f_back
    return (frame is None or frame.f_code is not _put_object) and getattr(_executing, "yields", True)


def putting() -> str:
    """Name of the module that puts the value which the caller's caller pickles; empty when nobody puts it."""
    frame: Any = sys._getframe(1).f_back
    if frame is None or frame.f_code is not _put_object:
        return ""
    while frame is not None and frame.f_globals.get("__name__", "").startswith("ray._private."):
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))


def on_connect(began: Callable[[], None]) -> None:
    """Call a function whenever this process has joined a cluster. To be asked for once."""
    connect: Any = worker_module.connect

    def joining(*args: Any, **kwargs: Any) -> Any:
        try:
            return connect(*args, **kwargs)
        finally:
            began()

    worker_module.connect = joining


def on_disconnect(ended: Callable[[], None]) -> None:
    """Call a function whenever this process leaves its cluster. To be asked for once."""
    disconnect: Any = worker_module.disconnect

    def leaving(*args: Any, **kwargs: Any) -> Any:
        try:
            return disconnect(*args, **kwargs)
        finally:
            ended()

    worker_module.disconnect = leaving


# Pickling.

_storing = threading.local()
_refused: set[type] = set()


def share_pickle_state() -> None:
    """Let cloudpickle and Ray's copy of it know the same classes.

    What ``__main__`` defines travels by value. With two memories, a worker would make two classes of one:
    one for the function that names it, by Ray, and one for an argument of that class, by us. Idempotent.
    """
    if our_pickle._DYNAMIC_CLASS_TRACKER_BY_ID is rays_pickle._DYNAMIC_CLASS_TRACKER_BY_ID:
        return
    for name in ("_DYNAMIC_CLASS_TRACKER_BY_CLASS", "_DYNAMIC_CLASS_TRACKER_BY_ID"):
        table = getattr(rays_pickle, name)
        for key, value in getattr(our_pickle, name).items():
            table.setdefault(key, value)
        setattr(our_pickle, name, table)
    our_pickle._DYNAMIC_CLASS_TRACKER_LOCK = rays_pickle._DYNAMIC_CLASS_TRACKER_LOCK
    rays_pickle._PICKLE_BY_VALUE_MODULES |= our_pickle._PICKLE_BY_VALUE_MODULES
    our_pickle._PICKLE_BY_VALUE_MODULES = rays_pickle._PICKLE_BY_VALUE_MODULES


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """While a value is pickled for the store: refuse what only Ray's pickler can pickle.

    That is Ray's own objects, and classes that have a serializer by `ray.util.register_serializer`.
    """
    kinds = CloudPickler.dispatch.maps[0]
    for kind in [*OWN, *(kind for kind in kinds if kind not in our_pickle.Pickler._dispatch_table)]:
        if kind not in _refused:
            _refused.add(kind)
            copyreg.pickle(kind, _refuser(kind))
    before, _storing.active = getattr(_storing, "active", False), True
    try:
        yield
    finally:
        _storing.active = before


def _refuser(kind: type) -> Callable[[Any], Any]:
    others = copyreg.dispatch_table.get(kind)

    def reduce(value: Any) -> Any:
        if getattr(_storing, "active", False):
            raise SerializationError(f"{kind.__name__} is for Ray's pickler only")
        return others(value) if others is not None else value.__reduce_ex__(5)

    return reduce
