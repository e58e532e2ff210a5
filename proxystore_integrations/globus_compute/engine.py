"""What this integration takes from inside the Globus Compute SDK, in one place, checked against the version.

The last three names are not public: an update of the SDK may move them, and then this file changes.
"""

from __future__ import annotations

import warnings

from proxystore_core import MissingExtraError

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
    "MINIMUM",
    "SELECTABLE_STRATEGIES",
    "TESTED",
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

MINIMUM = (4, 19)
TESTED = (4, 19)
"""The lowest and the highest release of the SDK that the tests ran on."""

_METHODS = "_submit_tasks _task_submitter_impl register_function reload_tasks submit_to_registered_function"


def check_release(release: str) -> None:
    """Check the SDK's release and the names that are used of its inside.

    Args:
        release: its version.

    Raises:
        MissingExtraError: it is too old, or a name is not there any more; says which.
    """
    numbers = tuple(int(part) for part in release.split(".")[:2])
    if numbers < MINIMUM:
        raise MissingExtraError(
            f"globus-compute-sdk {release} is too old for this integration",
            remedy='Run: pip install --upgrade "proxystore-integrations[globus-compute]".',
        )
    missing = [name for name in _METHODS.split() if not hasattr(ComputeExecutor, name)]
    if missing:
        raise MissingExtraError(
            f"globus-compute-sdk {release} has no Executor.{missing[0]}, which this integration needs",
            remedy=f"Use globus-compute-sdk {TESTED[0]}.{TESTED[1]}, or a newer proxystore-integrations.",
        )
    if numbers > TESTED:
        warnings.warn(
            f"proxystore-integrations was tested with globus-compute-sdk up to {TESTED[0]}.{TESTED[1]}, this"
            f" is {release}. All names that it uses are there.",
            RuntimeWarning,
            stacklevel=2,
        )


check_release(__version__)
