"""File systems of a test's own, in a process that nobody else sees."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest


def own_mounts() -> list[str]:
    """The command that starts a process with mounts of its own."""
    command = (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    )
    try:
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    except FileNotFoundError:
        pass
    pytest.skip("mount namespaces are not allowed here")


def on_tmpfs(directory: Path, size: int, command: list[str]) -> list[str]:
    """A command that starts another with a small file system at a directory, which nobody else sees."""
    inside = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    return [*own_mounts(), "sh", "-c", inside, str(directory), *command]


def own_shared_memory() -> None:
    """Give this process, and those that it starts from now on, a /dev/shm of their own.

    Raises:
        OSError: the system does not allow it.
    """
    new_mounts = 0x00020000
    if ctypes.CDLL(None, use_errno=True).unshare(new_mounts):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)


def mount_tmpfs(directory: str, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
