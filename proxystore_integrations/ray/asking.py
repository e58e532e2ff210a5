"""Values for a process that does not reach their store: another one loads them, and Ray carries them."""

from __future__ import annotations

import functools
import pickle
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from proxystore_core import Reference
from proxystore_integrations.ray.engine import our_pickle, ray
from proxystore_integrations.transfer import load

__all__ = ["asked_of"]


def asked_of(node: str, reference: Reference) -> Any:
    """A stored object; a node that joins late may get a task whose argument it cannot load.

    Args:
        node: ID of a node that reaches the store.
        reference: of the object.

    Raises:
        RayError: nobody can load it there either, or there is no such node any more.
    """
    # In this thread: Ray lets one at a time unpickle, and this may be done for that.
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return pickle.loads(ray.get(_task().options(scheduling_strategy=there).remote(reference)))


@functools.cache
def _task() -> Any:
    return ray.remote(num_cpus=0)(_pickled)


def _pickled(reference: Reference) -> Any:
    # Within one piece of bytes: what Ray has beside them cannot be written to.
    return our_pickle.dumps(load([reference])[0])
