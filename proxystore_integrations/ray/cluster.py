"""A link that knows what plasma holds and where the nodes are; with public names of Ray alone."""

from __future__ import annotations

import itertools
import socket
import threading
import time
import weakref
from collections import OrderedDict
from typing import Any

import ray

from proxystore_core.sizeof import sizeof
from proxystore_integrations.link import Link
from proxystore_integrations.settings import Settings

__all__ = ["ClusterLink"]

_LOOK = 5.0  # seconds for which the nodes of the cluster are remembered
_REMEMBERED = 1024  # arguments
_SHARE = 0.25  # of plasma: what one object may fill before Ray starts to spill


class ClusterLink(Link):
    """A link of a process in a Ray cluster."""

    def __init__(self, settings: Settings, store: Any = None) -> None:
        super().__init__(settings, store, "ray")
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._seen: OrderedDict[int, Any] = OrderedDict()
        self._plasma = 0.0  # bytes that Ray's own store holds; 0 when unknown

    @property
    def reached(self) -> bool:
        if self.is_open and time.monotonic() > self._looked + _LOOK:
            self._looked = time.monotonic()
            self._look()
        return super().reached

    def _look(self) -> None:
        """Find out what plasma holds, and whether there are nodes that do not reach this host's memory."""
        try:
            self._plasma = _plasma()
            others = _hosts() - {socket.gethostname()} if self.place else set()
        except Exception:  # whatever Ray raises when it is about to disconnect
            return
        reason = (
            f"{self.url} is the memory of this host. Set store to one that all nodes reach, such as "
            '"redis://host:6379" or "file:///shared/directory"'
        )
        self.elsewhere = dict.fromkeys(others, reason)

    def leaves(self, value: Any) -> bool:
        """Whether a large argument is better left to Ray: its first time, where settings leave it to us.

        For an object that is passed once, plasma is the faster one; a store is from the second time on, and
        for what plasma would have to spill.
        """
        if self.settings.results != "auto":
            return False
        if sizeof(value) > self._plasma * _SHARE > 0:
            return False
        with self._lock:
            known = self._seen.pop(id(value), None)
            self._seen[id(value)] = mark = _mark(value)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        if isinstance(mark, weakref.ref):
            return not (isinstance(known, weakref.ref) and known() is value)
        return bool(known != mark)


def _hosts() -> set[str]:
    """Names of the hosts of all nodes that are alive."""
    return {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}


def _plasma() -> float:
    """Bytes that the object stores of all nodes hold; 0 when unknown."""
    return float(ray.cluster_resources().get("object_store_memory", 0))


def _mark(value: Any) -> Any:
    """What an object is recognized by, with its id, that another one at its place would not have."""
    try:
        return weakref.ref(value)
    except TypeError:
        if isinstance(value, bytes | str):
            return type(value), len(value), value[:: len(value) // 64 + 1]
        return type(value), len(value), [id(item) for item in itertools.islice(value, 64)]
