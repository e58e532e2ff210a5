"""Is the store one that an endpoint's workers can reach?"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from proxystore_core import ConfigurationError

__all__ = ["check_reach"]

_LOCAL = {
    "memory": "the memory of this process",
    "shm": "the memory of this machine",
    "file": "a directory that may be on this machine only",
}


def check_reach(url: str, client: Any, endpoint_id: Any) -> None:
    """Check a store against where the service says that an endpoint runs; asks it for local stores only.

    Args:
        url: the store's.
        client: the SDK's.
        endpoint_id: the endpoint.

    Raises:
        ConfigurationError: its workers cannot reach the store, or nothing says that they can.
    """
    scheme = urlsplit(url).scheme
    what = _LOCAL.get(scheme)
    if what is None:
        return
    try:
        host = _hostname(client.get_endpoint_metadata(endpoint_id))
    except Exception as error:
        host, where = "", f"the service does not say where endpoint {endpoint_id} runs ({error})"
    else:
        where = f"endpoint {endpoint_id} runs on {host or 'a host that it does not name'}"
    here = {socket.gethostname(), socket.getfqdn()}
    if host in here and scheme != "memory":
        return
    remedy = 'Set store to one that both reach, such as "redis://host:6379"'
    if scheme != "memory":
        remedy += ", or reachable=True if they share this one"
    raise ConfigurationError(
        f"{where}, this is {socket.gethostname()}, and store = {url!r} is {what}", remedy=f"{remedy}."
    )


def _hostname(metadata: Mapping[str, Any]) -> str:
    inner = metadata.get("metadata")
    found = metadata.get("hostname") or (inner.get("hostname") if isinstance(inner, Mapping) else None)
    return str(found or "")
