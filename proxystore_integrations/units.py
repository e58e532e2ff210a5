"""Sizes and durations as people write them."""

from __future__ import annotations

import math
import re

from proxystore_core.errors import ConfigurationError

__all__ = ["format_size", "parse_duration", "parse_size"]

_NUMBER = re.compile(
    r"\s*([+-]?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-zµ]*)\s*", re.IGNORECASE
)

_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB")
_BINARY = ("KiB", "MiB", "GiB", "TiB", "PiB")
_BYTES = {unit.lower(): 1000**i for i, unit in enumerate(_DECIMAL)} | {
    unit.lower(): 1024**i for i, unit in enumerate(_BINARY, 1)
}
_SECONDS = {
    unit: seconds
    for units, seconds in (
        ("us µs", 1e-6),
        ("ms", 1e-3),
        ("s sec secs second seconds", 1.0),
        ("min mins minute minutes", 60.0),
        ("h hr hour hours", 3600.0),
        ("d day days", 86400.0),
    )
    for unit in units.split()
}
_SIZE = 'bytes as an integer, or text such as "100 kB", "1.5 GB", "64 MiB"'
_DURATION = 'seconds as a number, or text such as "500 ms", "30 s", "10 min", "1 h"'


def parse_size(value: float | str) -> int:
    """Bytes of a size such as ``"100 kB"`` (1000s), ``"1 MiB"`` (1024s), ``"4096"`` or ``4096``.

    Raises:
        ConfigurationError: not a size, or a negative one.
    """
    size = _quantity(value, _BYTES, ", ".join((*_DECIMAL, *_BINARY)), _SIZE)
    if type(value) is not str and size != int(size):
        raise ConfigurationError(f"{value!r} is not a whole number of bytes", remedy=f"Expected {_SIZE}.")
    return round(size)


def parse_duration(value: float | str) -> float:
    """Seconds of a duration such as ``"10 min"``, ``"500 ms"``, ``"30"`` or ``30``.

    Raises:
        ConfigurationError: not a duration, or a negative one.
    """
    return float(_quantity(value, _SECONDS, "us, ms, s, min, h, d", _DURATION))


def format_size(size: int) -> str:
    """A size in bytes to three digits: ``100_000`` is ``"100 kB"``, ``1_234_567`` is ``"1.23 MB"``."""
    number, power = float(size), 0
    while power + 1 < len(_DECIMAL) and float(f"{number:.3g}") >= 1000:
        number, power = number / 1000, power + 1
    text = f"{number:.3g}" if number < 1000 else f"{number:.0f}"
    return f"{text} {_DECIMAL[power]}"


def _quantity(value: object, units: dict[str, int] | dict[str, float], names: str, expected: str) -> float:
    number: float
    if type(value) is int or type(value) is float:
        number = value
    elif type(value) is str and (match := _NUMBER.fullmatch(value)):
        digits, unit = match.groups()
        if unit and unit.lower() not in units:
            problem = f"{value!r} has the unknown unit {unit!r}"
            raise ConfigurationError(problem, remedy=f"Known units: {names}.")
        whole = digits.lstrip("+-").replace("_", "").isdigit()
        number = (int(digits) if whole else float(digits)) * (units[unit.lower()] if unit else 1)
    else:
        raise ConfigurationError(f"cannot read {value!r}", remedy=f"Expected {expected}.")
    if not math.isfinite(number):
        raise ConfigurationError(f"{value!r} is not finite", remedy=f"Expected {expected}.")
    if number < 0:
        raise ConfigurationError(f"{value!r} is negative", remedy=f"Expected {expected}.")
    return number
