"""Ray objects that this process owns: when nobody refers to one any more, and who owns another's."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from proxystore_integrations.ray.engine import (
    Address,
    SerializationContext,
    core,
    ray,
    serialization,
    worker_module,
)

__all__ = [
    "contain",
    "empty_object",
    "has_lent",
    "outer",
    "owner_lives",
    "owner_of",
    "referred_to",
    "watch",
    "watch_actor",
    "watch_lending",
]

_MOST = 100_000  # references that are remembered, of 100 B each
_lent: set[bytes] = set()


def empty_object() -> Any:
    """ObjectRef of an empty object that this process owns.

    Where an async actor's results are pickled, Ray numbers what is put by whichever of its tasks began or
    ended last: two objects may get one number, and the process dies. A thread has numbers of its own.
    """
    if core().current_actor_is_asyncio():
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
    try:
        return bool(core().add_object_out_of_scope_callback(reference, lambda _: gone()))
    except ValueError:
        return False


def watch_actor(handle: Any, gone: Callable[[], None]) -> bool:
    """`watch` for an actor that this process has made: nobody has a handle of it or waits for a call."""
    return watch(core().serialize_actor_handle(handle._ray_actor_id)[1], gone)


def outer() -> Any:
    """ObjectRef of the object that this thread is unpickling; None if it is an argument by value."""
    found = serialization().get_outer_object_ref()
    return None if found is None or found.is_nil() else found


def contain(reference: Any) -> bool:
    """Let what this thread pickles keep an object, as if there were an ObjectRef of it in it.

    To pickle one, to unpickle it and to tell its owner of a borrower costs a call some 0.1 ms.

    Args:
        reference: ObjectRef of the object.

    Returns:
        Whether it does: Ray must be pickling a value or an argument.
    """
    context = serialization()
    if not context.is_in_band_serialization():
        return False
    add = type(context).add_contained_object_ref
    # Nobody is lent what he does not know of.
    getattr(add, "__wrapped__", add)(context, reference, allow_out_of_band_serialization=False)
    return True


@functools.cache
def watch_lending() -> None:
    """Let `has_lent` know: Ray is told of each ObjectRef that is pickled in a value."""
    context: Any = SerializationContext
    add = context.add_contained_object_ref

    @functools.wraps(add)
    def lend(self: Any, object_ref: Any, **how: Any) -> None:
        if len(_lent) < _MOST:
            _lent.add(object_ref.binary())
        add(self, object_ref, **how)

    context.add_contained_object_ref = lend


def has_lent(name: bytes) -> bool:
    """Whether another process may have got a reference to an object from this one.

    Args:
        name: of the object's ObjectRef, binary.
    """
    return name in _lent or len(_lent) >= _MOST


def owner_of(reference: Any) -> bytes:
    """Address of the process that owns an object; empty for this one, and where Ray does not know."""
    try:
        address: bytes = core().get_owner_address(reference)
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


def referred_to() -> set[str]:
    """Names, hexadecimal, of the objects that this process refers to, or a task that it submitted."""
    return {name.decode() for name in core().get_all_reference_counts()}
