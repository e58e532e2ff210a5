"""A link that knows what plasma holds and where the nodes are; with public names of Ray alone."""

from __future__ import annotations

import itertools
import os
import socket
import time
import weakref
from collections import OrderedDict
from typing import Any

import ray

from proxystore_core import ConfigurationError, forks
from proxystore_core.sizeof import sizeof
from proxystore_integrations.link import Link
from proxystore_integrations.settings import Settings

__all__ = ["ClusterLink", "check_address", "settings_among"]

_SETTINGS = ("threshold", "store", "inputs", "results", "on_store_error", "lease")

_LOOK = 5.0  # seconds for which the nodes of the cluster are remembered
_REMEMBERED = 1024  # arguments
_SHARE = 0.9  # of plasma: what one object may fill and still fits


def settings_among(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Our settings among keywords for `ray.init`, which are taken out."""
    return {name: kwargs.pop(name) for name in _SETTINGS if name in kwargs}


def check_address(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that arguments for `ray.init` do not ask for Ray Client.

    Raises:
        ConfigurationError: they do.
    """
    address = args[0] if args else kwargs.get("address") or os.environ.get("RAY_ADDRESS") or ""
    if str(address).startswith("ray://"):
        raise ConfigurationError(
            "Ray Client (ray://) pickles by itself and keeps this integration out",
            remedy="Run the driver on a node of the cluster, or submit it as a job (ray job submit).",
        )


class ClusterLink(Link):
    """A link of a process in a Ray cluster."""

    def __init__(self, settings: Settings, store: Any = None) -> None:
        super().__init__(settings, store, "ray")
        self._lock = forks.lock()
        self._looked = float("-inf")
        self._seen: OrderedDict[int, Any] = OrderedDict()
        self._plasma = 0.0  # bytes that Ray's own store holds on every node; 0 when unknown

    @property
    def reached(self) -> bool:
        if self.is_open and time.monotonic() > self._looked + _LOOK:
            self._looked = time.monotonic()
            self._look()
        return super().reached

    def _look(self) -> None:
        """Find out what plasma holds, and whether there are nodes that do not reach this host's memory."""
        try:
            nodes = _nodes()
        except Exception:  # whatever Ray raises when it is about to disconnect
            return
        self._plasma = min((node["Resources"].get("object_store_memory", 0.0) for node in nodes), default=0.0)
        others = {node["NodeManagerHostname"] for node in nodes} - {socket.gethostname()}
        if not self.place:  # anywhere will do
            others.clear()
        reason = (
            f"{self.url} is the memory of this host. Set store to one that all nodes reach, such as "
            '"redis://host:6379" or "file:///shared/directory"'
        )
        self.elsewhere = dict.fromkeys(others, reason)

    def leaves(self, value: Any) -> bool:
        """Whether a large argument is better left to Ray: its first time, where settings leave it to us.

        For an object that is passed once, plasma is the faster one; a store is from the second time on, and
        for what does not fit into plasma.
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


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def _mark(value: Any) -> Any:
    """What an object is recognized by, with its id, that another one at its place would not have."""
    try:
        return weakref.ref(value)
    except TypeError:
        if isinstance(value, bytes | str):
            return type(value), len(value), value[:: len(value) // 64 + 1]
        return type(value), len(value), [id(item) for item in itertools.islice(value, 64)]
