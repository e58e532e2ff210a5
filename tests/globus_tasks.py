"""What the workers of Globus Compute tests run, and how some of them are crippled first."""

from __future__ import annotations

import importlib.abc
import os
import sys
from typing import Any

OURS = ("proxystore_core", "proxystore_integrations")


def length(data: Any) -> int:
    return len(data)


def double(data: Any) -> Any:
    return data + data


def text(size: int) -> bytes:
    return os.urandom(size)


def documented(value: Any) -> Any:
    """What the service shows."""
    return value


def configure(store: str) -> None:
    """Configure this process with a store."""
    os.environ["PROXYSTORE_STORE"] = store


def forget_us() -> None:
    """Make this process one in which our packages are not installed."""

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any, target: Any = None) -> None:
            if name.partition(".")[0] in OURS:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    sys.meta_path.insert(0, Finder())
