"""What ``proxystore tune`` measured, by machine, store and engine: for ``threshold = "auto"`` and advice."""

from __future__ import annotations

import bisect
import contextlib
import os
import secrets
import socket
from typing import Any, NamedTuple

import msgspec

from proxystore_core.urls import redact

__all__ = ["POOLS", "Measured", "Point", "measured", "path", "remember", "threshold_for"]

POOLS = 1_500_000
"""Default threshold of pools in bytes, the largest of any engine.

From there on the store takes no longer than their own pipes, one call or eight at a time, in processes
whose heap has grown (measured on two cores).
"""

_FILE = "tuned.json"


class Point(NamedTuple):
    """What was measured of one size.

    Attributes:
        size: bytes.
        bare: seconds of a call by value.
        stored: seconds of a call through the store.
    """

    size: int
    bare: float
    stored: float


class Measured(msgspec.Struct):
    """What was measured of one engine with one store.

    Attributes:
        threshold: size in bytes from which the store is the faster way; None if at none that was measured.
        points: for ``"arguments"``, and for ``"results"``; ascending.
    """

    threshold: int | None = None
    points: dict[str, list[Point]] = {}

    @property
    def from_size(self) -> int | None:
        """The threshold; beyond all that was measured where the store won at none of it."""
        if self.threshold is not None or not self.largest:
            return self.threshold
        return max(2 * self.largest, POOLS)

    @property
    def largest(self) -> int:
        """The largest size that was measured, bytes; 0 if none was."""
        return max((point.size for points in self.points.values() for point in points), default=0)

    def seconds(self, size: float, *, stored: bool) -> float:
        """What a value of this size takes on one of its ways, on average.

        Linear between the sizes that were measured, and beyond the largest as between the last two.
        """
        ways = [_at(points, size, stored) for points in self.points.values() if points]
        return sum(ways) / len(ways)


def path() -> str:
    """The file with this user's measurements: in ``XDG_CACHE_HOME``, ``~/.cache`` by default."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "proxystore", _FILE)


def measured(store: str, engine: str) -> Measured | None:
    """What was measured of an engine with a store on this machine; None if nothing was.

    Args:
        store: its URL.
        engine: the engine's name.
    """
    return _read().get(_place(store), {}).get(engine)


def threshold_for(store: str, engine: str = "") -> int | None:
    """The size from which a store won on this machine; None if that was not measured.

    Args:
        store: its URL.
        engine: with this engine; where it was not measured, or none is named, with each that was.
    """
    found = _read().get(_place(store), {})
    if engine in found:
        found = {engine: found[engine]}
    return max((size for one in found.values() if (size := one.from_size) is not None), default=None)


def remember(
    store: str, engine: str, threshold: int | None, points: dict[str, list[Point]] | None = None
) -> None:
    """Keep what was measured.

    Args:
        store: URL of the store.
        engine: the engine's name.
        threshold: bytes; None where the store won at no size.
        points: as in `Measured`.
    """
    known = _read()
    known.setdefault(_place(store), {})[engine] = Measured(threshold, points or {})
    file = path()
    os.makedirs(os.path.dirname(file), exist_ok=True)
    part = f"{file}.{secrets.token_hex(4)}"
    with open(part, "wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(known)))
    os.replace(part, file)


def _at(points: list[Point], size: float, stored: bool) -> float:
    seconds = [point.stored if stored else point.bare for point in points]
    place = bisect.bisect_left([point.size for point in points], size)
    if not place:
        return seconds[0]
    if place == len(points):
        place -= 1  # on along the last line
        if not place:
            return seconds[0]
    low, below = points[place - 1].size, seconds[place - 1]
    return below + (size - low) / (points[place].size - low) * (seconds[place] - below)


def _place(store: str) -> str:
    return f"{socket.gethostname()} {redact(store)}"


def _read() -> dict[str, dict[str, Measured]]:
    found: dict[str, dict[str, Measured]] = {}
    with contextlib.suppress(OSError, msgspec.MsgspecError), open(path(), "rb") as file:
        for place, engines in msgspec.json.decode(file.read(), type=dict[str, dict[str, Any]]).items():
            for engine, one in engines.items():
                with contextlib.suppress(msgspec.ValidationError):  # another release wrote it
                    found.setdefault(place, {})[engine] = msgspec.convert(one, Measured)
    return found
