"""Gives a worker a /dev/shm of its own where the environment says so, as if it were on another host.

Also a preload module of Dask's workers.
"""

from __future__ import annotations

import os
import subprocess

from mounts import own_shared_memory

SIZE = "CHAOS_OWN_SHM"
"""Environment variable: bytes; empty: share it with everybody."""


def separate() -> None:
    """Leave this process's shared memory for one of its own, if it is to."""
    size = os.environ.get(SIZE)
    if size:
        own_shared_memory()
        subprocess.run(["mount", "-o", f"remount,size={size}", "/dev/shm"], check=True)


def dask_setup(worker: object) -> None:
    separate()
