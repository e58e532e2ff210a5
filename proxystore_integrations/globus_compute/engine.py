"""What this integration takes from inside the Globus Compute SDK, in one place, checked against the version.

The last three names are not public: an update of the SDK may move them, and then this file changes.
"""

from __future__ import annotations

from proxystore_core import MissingExtraError
from proxystore_integrations.releases import Releases

try:
    from globus_compute_sdk import Executor as ComputeExecutor
    from globus_compute_sdk import ShellFunction, __version__
    from globus_compute_sdk.errors import SerdeError, TaskExecutionFailed
    from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture
    from globus_compute_sdk.serialize import ComputeSerializer
    from globus_compute_sdk.serialize.base import SerializationStrategy
    from globus_compute_sdk.serialize.concretes import SELECTABLE_STRATEGIES
    from globus_sdk import GlobusAPIError
except ImportError as error:
    raise MissingExtraError(
        f"the Globus Compute integration did not load: {error}",
        remedy='Run: pip install --upgrade "proxystore-integrations[globus-compute]".',
    ) from error

__all__ = [
    "RELEASES",
    "SELECTABLE_STRATEGIES",
    "ComputeExecutor",
    "ComputeFuture",
    "ComputeSerializer",
    "GlobusAPIError",
    "SerdeError",
    "SerializationStrategy",
    "ShellFunction",
    "TaskExecutionFailed",
    "check_release",
]

RELEASES = Releases("globus-compute-sdk", "globus-compute", (4, 19), (4, 19))

_METHODS = "_submit_tasks _task_submitter_impl register_function reload_tasks submit_to_registered_function"


def check_release(release: str) -> None:
    """Check the SDK's release and the names that are used of its inside.

    Args:
        release: its version.

    Raises:
        MissingExtraError: it is too old, or a name is not there any more; says which.
    """
    RELEASES.check(release, {ComputeExecutor: _METHODS})


check_release(__version__)
