"""What arguments of connectors have to be: who gives something else is told which one, and what is right."""

from __future__ import annotations

import numbers
import os
from typing import Any

from proxystore_core.errors import ConfigurationError

__all__ = ["check_flag", "check_port", "check_seconds", "check_text"]

_LONGEST = 2e6  # seconds, 23 days: libraries count milliseconds in 32 bits


def check_seconds(name: str, value: Any) -> float:
    """A deadline as libraries can take it: a longer one than 23 days, also an infinite one, is so long.

    Raises:
        ConfigurationError: it is no number of seconds, or not more than 0.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not float(value) > 0:
        raise ConfigurationError(f"{name} is {value!r}: expected seconds, more than 0")
    return min(value, _LONGEST)  # type: ignore[return-value]


def check_port(value: Any, *, least: int = 1) -> None:
    """Raise a `ConfigurationError` unless an argument is a TCP port, or 0 where that is ``least``."""
    if type(value) is not int or not least <= value <= 65535:
        free = "" if least else ", or 0 for a free one"
        raise ConfigurationError(f"{value!r} is no port: expected 1 to 65535{free}")


def check_text(name: str, value: Any, *, path: bool = False, shown: bool = True) -> None:
    """Raise a `ConfigurationError` unless an argument is text.

    Args:
        name: of the argument.
        value: what was given.
        path: whether it may be a path.
        shown: False for a secret, which is in no message.
    """
    if not isinstance(value, str | os.PathLike if path else str):
        given = repr(value) if shown else f"of {type(value).__name__}"
        raise ConfigurationError(f"{name} is {given}: expected {'a path' if path else 'text'}")


def check_flag(name: str, value: Any) -> None:
    """Raise a `ConfigurationError` unless an argument is True or False."""
    if type(value) is not bool:
        raise ConfigurationError(f"{name} is {value!r}: expected True or False")
