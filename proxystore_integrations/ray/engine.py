"""The names from inside Ray that this integration uses, in one place, checked against the version.

They are not public: an update of Ray may move them, and then this file changes.
"""

from __future__ import annotations

from typing import Any

import cloudpickle.cloudpickle as our_pickle

from proxystore_core import MissingExtraError
from proxystore_integrations.ray.releases import RELEASES

try:
    import ray
    import ray.cloudpickle.cloudpickle as rays_pickle
    import ray.remote_function as functions_module
    from ray._common.utils import load_class
    from ray._private import services as services_module
    from ray._private import worker as worker_module
    from ray._private.client_mode_hook import client_mode_should_convert
    from ray._private.serialization import SerializationContext
    from ray._private.state import state as global_state
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
    "Address",
    "CloudPickler",
    "RemoteFunction",
    "SerializationContext",
    "check_release",
    "client_mode_should_convert",
    "core",
    "functions_module",
    "global_state",
    "load_class",
    "our_pickle",
    "ray",
    "raylet",
    "rays_pickle",
    "serialization",
    "services_module",
    "version",
    "worker_module",
]

SETUP_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Environment variable of a setup hook that another driver of the same job has chosen."""

FIRST_JOB: str = ray.JobID.from_int(1).hex()
"""The job, as `job` names it, of the driver that has started a cluster."""

raylet: Any = ray._raylet
_NAMES: dict[Any, str] = {
    RemoteFunction: "_remote",
    ActorClass: "_remote",
    ActorHandle: "_actor_method_call",
    SerializationContext: "add_contained_object_ref get_outer_object_ref is_in_band_serialization serialize",
    functions_module: "pickle_dumps",
    type(global_state): "disconnect",
    raylet: "inspect",
    raylet.CoreWorker: "add_object_out_of_scope_callback current_actor_is_asyncio get_all_reference_counts"
    " get_current_root_detached_actor_id get_current_task_id get_job_config get_owner_address"
    " serialize_actor_handle",
    services_module: "canonicalize_bootstrap_address",
    worker_module: "SCRIPT_MODE WORKER_MODE Worker connect disconnect global_worker",
    **dict.fromkeys(
        (our_pickle, rays_pickle),
        "_DYNAMIC_CLASS_TRACKER_BY_CLASS _DYNAMIC_CLASS_TRACKER_BY_ID _DYNAMIC_CLASS_TRACKER_LOCK"
        " _PICKLE_BY_VALUE_MODULES",
    ),
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
    RELEASES.check(release, _NAMES, newer=False)


version: str = ray.__version__

check_release(version)


def core() -> Any:
    """Ray's core in this process."""
    return worker_module.global_worker.core_worker  # type: ignore[attr-defined]


def serialization() -> Any:
    """Ray's `SerializationContext` in this process."""
    return worker_module.global_worker.get_serialization_context()
