"""Where tables and progress go. rich itself sees to NO_COLOR and to what is no terminal."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from rich.console import Console

__all__ = ["console", "counted", "errors"]

_WIDE = 200


def console() -> Console:
    """Standard output as it is now."""
    return _console(sys.stdout)


def errors() -> Console:
    """Standard error as it is now: for what is not the answer itself."""
    return _console(sys.stderr)


def counted(number: int, noun: str) -> str:
    """``1 session``, ``2 sessions``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _console(file: TextIO) -> Console:
    # What is no terminal has no width: a table in a log or a pipe is not to be cut.
    wide = None if file.isatty() or "COLUMNS" in os.environ else _WIDE
    # No markup: `pip install "...[redis]"` and a task named f[0] are to be shown as they are.
    return Console(file=file, highlight=False, markup=False, width=wide)
