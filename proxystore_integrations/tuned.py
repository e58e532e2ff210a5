"""Thresholds that ``proxystore tune`` found: per machine and store, for ``threshold = "auto"``."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from typing import Any

import msgspec

from proxystore_core.urls import redact

__all__ = ["path", "remember", "threshold_for"]

_FILE = "tuned.json"


def path() -> str:
    """The file with this user's measurements: in ``XDG_CACHE_HOME``, ``~/.cache`` by default."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "proxystore", _FILE)


def threshold_for(store: str) -> int | None:
    """The size from which a store won on this machine, with every engine that was measured; None if none was.

    Args:
        store: its URL.
    """
    found = _read().get(_place(store), {})
    sizes = [size for size in found.values() if isinstance(size, int)]
    return max(sizes, default=None)


def remember(store: str, engine: str, threshold: int) -> None:
    """Keep what was measured.

    Args:
        store: URL of the store.
        engine: the engine's name.
        threshold: bytes.
    """
    known = _read()
    known.setdefault(_place(store), {})[engine] = threshold
    file = path()
    os.makedirs(os.path.dirname(file), exist_ok=True)
    part = f"{file}.{secrets.token_hex(4)}"
    with open(part, "wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(known)))
    os.replace(part, file)


def _place(store: str) -> str:
    return f"{socket.gethostname()} {redact(store)}"


def _read() -> dict[str, Any]:
    with contextlib.suppress(OSError, msgspec.DecodeError), open(path(), "rb") as file:
        found = msgspec.json.decode(file.read())
        if isinstance(found, dict):
            return {place: sizes for place, sizes in found.items() if isinstance(sizes, dict)}
    return {}
