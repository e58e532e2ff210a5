"""Waiting for what other processes do, and what they are told to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


def resolve_together(reference: Any, ready: Any, go: Any, sums: Any) -> None:
    """Load an array when told to, in a process of its own."""
    ready.release()
    go.wait()
    sums.put(int(reference().sum()))
