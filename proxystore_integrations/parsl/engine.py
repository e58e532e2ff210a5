"""What this integration takes from inside Parsl, in one place, checked against the version.

These names are not public: an update of Parsl may move them, and then this file changes.
"""

from __future__ import annotations

from proxystore_core import MissingExtraError
from proxystore_integrations.releases import Releases

try:
    from parsl.app.errors import RemoteExceptionWrapper
    from parsl.config import Config
    from parsl.dataflow.dependency_resolvers import deep_traverse_to_unwrap, shallow_traverse_to_unwrap
    from parsl.dataflow.dflow import DataFlowKernel
    from parsl.dataflow.futures import AppFuture
    from parsl.dataflow.memoization import BasicMemoizer, CheckpointCommand, id_for_memo
    from parsl.executors import ThreadPoolExecutor
    from parsl.executors.base import ParslExecutor
    from parsl.launchers import SimpleLauncher, SingleNodeLauncher
    from parsl.providers import LocalProvider
    from parsl.serialize.base import SerializerBase
    from parsl.serialize.facade import methods_for_data, register_method_for_data
    from parsl.version import VERSION
except ImportError as error:
    raise MissingExtraError(
        f"the Parsl integration did not load: {error}",
        remedy='Run: pip install --upgrade "proxystore-integrations[parsl]".',
    ) from error

__all__ = [
    "RELEASES",
    "AppFuture",
    "BasicMemoizer",
    "CheckpointCommand",
    "Config",
    "DataFlowKernel",
    "LocalProvider",
    "ParslExecutor",
    "RemoteExceptionWrapper",
    "SerializerBase",
    "SimpleLauncher",
    "SingleNodeLauncher",
    "ThreadPoolExecutor",
    "check_release",
    "deep_traverse_to_unwrap",
    "id_for_memo",
    "methods_for_data",
    "register_method_for_data",
    "shallow_traverse_to_unwrap",
    "version",
]

RELEASES = Releases("Parsl", "parsl", (2026, 10), (2026, 10))

_METHODS: dict[type, str] = {
    DataFlowKernel: (
        "_complete_task_exception _complete_task_result _unwrap_remote_exception_wrapper "
        "handle_exec_update handle_join_update launch_task"
    ),
    CheckpointCommand: "result",
    ParslExecutor: "shutdown start submit",
}


def check_release(release: str) -> None:
    """Check Parsl's release and the names that are used of its inside.

    Args:
        release: Parsl's version.

    Raises:
        MissingExtraError: it is too old, or a name is not there any more; says which.
    """
    RELEASES.check(release, _METHODS)


version: str = VERSION

check_release(version)
