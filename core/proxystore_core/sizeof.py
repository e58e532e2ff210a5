"""How many bytes an object holds, estimated without serializing it.

An array counts its buffer, a string its characters, a number 8 bytes, a container 8 bytes an entry
plus what its entries hold. The cost is bounded: buffers are never read, big containers and columns
of Python objects are sampled evenly and extrapolated, nesting is followed to a bounded depth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from proxystore_core.insides import LEAVES, REFERENCE_BYTES, inside_of, register_sizeof, shallow, spread

__all__ = ["REFERENCE_BYTES", "register_sizeof", "sizeof"]

_SAMPLE = 256  # Entries of one container that are measured; one up to this size is measured whole.
_VISITS = 128  # Entries of nested containers that are measured in one call, about.
_WORDS = frozenset({float, bool, type(None)})  # They count 8 bytes each time: a pickle repeats them too.


_INTEGERS = frozenset({int})
_bit_length: Callable[[Any], int] = int.bit_length


def sizeof(obj: object, *, limit: int | None = None, depth: int = 4) -> int:
    """Estimate how many bytes an object holds, without serializing it or resolving a proxy.

    Exact for buffers (arrays, bytes, columns of numbers, Arrow data), an estimate for the rest.
    An object that occurs more than once counts once. An object whose code raises when it is looked
    at counts what `sys.getsizeof` says.

    Args:
        obj: any object.
        limit: bytes; once the sum exceeds it, the sum so far may be returned.
        depth: levels of nesting that are looked into. A container below counts 8 bytes an entry.

    Returns:
        Bytes. More than ``limit`` where the whole estimate would be.
    """
    try:
        leaf = LEAVES.get(type(obj))
        size = leaf(obj) if leaf is not None else -1
    except Exception:
        return shallow(obj)
    if size >= 0:
        return size
    return _Walk(obj).measure(obj, depth, _SAMPLE, math.inf if limit is None else limit)


class _Walk:
    """One call's memory of what it has seen, and how much it has looked at."""

    __slots__ = ("repeated", "seen", "sizes", "visits")

    def __init__(self, obj: object) -> None:
        self.seen: dict[int, object] = {id(obj): obj}  # Keeps temporaries alive, so that an id stays unique.
        self.sizes: dict[int, int] = {}
        self.repeated = 0  # Bytes of objects met more than once: they are never extrapolated.
        self.visits = 0

    def measure(self, obj: object, depth: int, share: int, room: float) -> int:
        """Bytes of an object that is no leaf; stops above ``room`` bytes or after about ``share`` visits."""
        try:
            own, count, sample = inside_of(type(obj))(obj, share if depth > 0 else 0)
            self.visits += 1 + len(sample)
            if not sample or own > room:
                return own
            return own + self.entries(sample, count, depth - 1, share, room - own)
        except Exception:
            return shallow(obj)

    def entries(self, sample: Sequence[object], count: int, depth: int, share: int, room: float) -> int:
        """Bytes that ``count`` entries hold, of which ``sample`` is a part or all."""
        kinds = set(map(type, sample))
        if kinds <= _WORDS or (kinds == _INTEGERS and max(map(_bit_length, sample)) < 64):
            return 8 * count
        numbers, held, before = 0, 0, self.repeated
        seen, sizes = self.seen, self.sizes
        shared: list[int] = []
        nested: list[object] = []
        for entry in sample:
            kind = type(entry)
            if kind in _WORDS:
                numbers += 8
                continue
            leaf = LEAVES.get(kind)
            if leaf is not None and kind is int:
                numbers += leaf(entry)
                continue
            key = id(entry)
            shared.append(key)
            if key in seen:
                self.repeated += sizes.pop(key, 0)
                continue
            seen[key] = entry
            try:
                size = leaf(entry) if leaf is not None else -1
            except Exception:
                size = shallow(entry)
            if size < 0:
                nested.append(entry)
                continue
            sizes[key] = size
            held += size
            if held > room:
                return held
        if nested:
            held += self.nested(nested, depth, min(share, _VISITS), room - held - numbers)
        scale = count / len(sample)
        if scale > 1:
            numbers = int(numbers * scale)
            held = _extrapolated(held, self.repeated - before, _distinct(shared, scale))
        return numbers + held

    def nested(self, entries: list[object], depth: int, share: int, room: float) -> int:
        """Bytes of containers: of all of them, or of as many as the share allows, extrapolated."""
        held, done, end, before = 0, 0, self.visits + share, self.repeated
        for index in spread(len(entries), len(entries)):
            part = max((end - self.visits) // (len(entries) - done), share // 8, 8)
            entry = entries[index]
            size = self.sizes[id(entry)] = self.measure(entry, depth, part, room - held)
            held += size
            done += 1
            if held > room:
                return held
            if self.visits >= end:
                break
        return _extrapolated(held, self.repeated - before, len(entries) / done)


def _extrapolated(held: int, repeated: int, factor: float) -> int:
    repeated = min(held, repeated)
    return int((held - repeated) * factor) + repeated


def _distinct(sample: list[int], scale: float) -> float:
    """By how much to multiply the bytes of what occurs once in a sample (Chao's estimator of unseen kinds).

    Objects that repeat within a small sample are few in the whole: a list of a million references
    to one array holds one array.
    """
    counts = Counter(Counter(sample).values())
    once = counts[1]
    if once == len(sample) or not once:
        return scale
    return min(1 + (once - 1) / (2 * (counts[2] + 1)), scale)
