"""Where tables and progress go. rich itself sees to NO_COLOR and to what is no terminal."""

from __future__ import annotations

import sys

from rich.console import Console

__all__ = ["console", "errors"]


def console() -> Console:
    """Standard output as it is now."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def errors() -> Console:
    """Standard error as it is now: for what is not the answer itself."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=not sys.stderr.isatty())
