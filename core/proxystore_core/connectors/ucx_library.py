"""What is asked of UCX's library, and when anything is: it lets in whoever reaches its ports.

UCX's own TCP transport listens at a port of its own and asks nobody who he is: what comes there is parsed,
and may end the process. So nothing is moved with it unless ``UCX_TLS`` names it. Without that variable UCX
is used where there are devices for RDMA, and opens no port.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")  # ucxx sets some itself

import ucxx._lib.libucxx as ucx
from ucxx.types import Tag

from proxystore_core import forks
from proxystore_core.connectors.node_place import LOOPBACK

__all__ = ["VERSION", "endpoint_to", "is_ours", "new_worker", "tag_of", "ucx"]

VERSION = ".".join(map(str, ucx.get_ucx_version()))
"""Addresses are read by the same version only: UCX ends a process over one that it cannot read."""

_DEVICES = "/sys/class/infiniband"
_context: Any = None  # never closed
_user = 0  # the process that used UCX first: a child finds its locks as another thread left them
_lock = forks.lock()


def new_worker(address: str) -> Any:
    """A UCX worker, which reaches no further than loopback if that is where it is to talk.

    None where UCX has nothing to move data with, and in a child that was forked after UCX was used.

    Args:
        address: of the node that is talked to, or at which this one listens.
    """
    global _context, _user
    told = "UCX_TLS" in os.environ
    if not told and (address == LOOPBACK or not _has_devices()):
        return None
    with _lock:
        _user = _user or os.getpid()
        if _user != os.getpid():
            return None
        if _context is None:
            options = {"RNDV_FRAG_MEM_TYPE": "host", "TLS": "^tcp"}
            if address == LOOPBACK:
                options["NET_DEVICES"] = "lo"
            given = {name: value for name, value in options.items() if f"UCX_{name}" not in os.environ}
            _context = ucx.UCXContext(given)
        worker = ucx.UCXWorker(_context)
        worker.init_blocking_progress_mode()
        return worker


def endpoint_to(worker: Any, address: bytes, version: str) -> Any:
    """An endpoint of a peer who has signed for his worker's address; None when UCX cannot reach it.

    Args:
        worker: of this side.
        address: of the peer's worker.
        version: of the peer's UCX.
    """
    if version != VERSION or not address or address[0] != bytes(memoryview(worker.address))[0]:
        return None
    with contextlib.suppress(ucx.UCXError, ValueError):
        return ucx.UCXEndpoint.create_from_worker_address(
            worker, ucx.UCXAddress.create_from_buffer(address), True
        )
    return None


def is_ours() -> bool:
    """Whether UCX's objects are this process's own, and no parent's."""
    return os.getpid() == _user


def tag_of(nonce: bytes) -> Any:
    """What tells a reply's data from those of others."""
    return Tag(int.from_bytes(nonce[:8], "big"))


def _has_devices() -> bool:
    try:
        return bool(os.listdir(_DEVICES))
    except OSError:
        return False
