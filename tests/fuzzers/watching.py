"""A look at a server that is fuzzed: it has to be there, no bigger, with nothing to complain of."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Check", "Looking", "Watched", "tell"]

Check = Callable[[Any], object]
PATIENCE = 30.0  # seconds
DESCRIPTORS = 1500  # an endpoint has 512 clients at most, a relay 1024 of one address
LOOK = 200  # inputs between two looks
GROWTH = 100 << 20  # bytes that a server may grow by; what it maps for an object is 1 MB


def resident(process: int) -> int:
    """Bytes of memory of a process' own."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    return 0


class Watched:
    """A server that may neither end nor grow nor complain."""

    def __init__(self, process: int, log: Path, asks: Callable[[], object]) -> None:
        self.process = process
        self.log = log
        self.asks = asks
        self.asks()
        self.before = resident(process)

    def look(self) -> None:
        until = time.monotonic() + PATIENCE
        while True:  # one that has as many connections as it takes lets nobody in for a moment
            try:
                self.asks()
                break
            except Exception as error:
                if time.monotonic() > until:
                    error.add_note(self.log.read_text(errors="replace")[-3000:] if self.log.exists() else "")
                    raise
                time.sleep(0.1)
        grown = resident(self.process) - self.before
        assert grown < GROWTH, f"{grown} bytes more"
        held = len(os.listdir(f"/proc/{self.process}/fd"))
        assert held < DESCRIPTORS, f"{held} descriptors"
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        found = said.find("Traceback")
        assert found < 0, said[max(0, found - 1000) : found + 3000]


def tell(address: Any, message: bytes, answer: int = 0) -> bytes:
    """Connect, say something, and go; with ``answer`` bytes of what is said in return."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as wire, contextlib.suppress(OSError):
        wire.settimeout(5 if answer else 0.01)
        wire.connect(address)
        wire.sendall(message)
        return wire.recv(max(1, answer))
    return b""


class Looking:
    """A check, and a look at the server now and then."""

    def __init__(self, check: Check, watched: Watched) -> None:
        self.check = check
        self.watched = watched
        self.count = 0

    def __call__(self, value: Any) -> None:
        self.check(value)
        self.count += 1
        if self.count % LOOK == 0:
            self.watched.look()
