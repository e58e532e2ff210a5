"""Warnings that stand at the user's own line, not at one of ours or of an engine's."""

from __future__ import annotations

import os
import sys
import types
import warnings

__all__ = ["warn"]

_OURS = ("proxystore_core", "proxystore_integrations")
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_INSTALLED = ("site-packages", "dist-packages")


def warn(problem: str) -> None:
    """Warn of a problem at the user's line that led here; where none did, at the first that is not ours.

    Args:
        problem: one sentence or more, with what to do about it.
    """
    level = outside = 0
    frame: types.FrameType | None = sys._getframe()
    depth = 0
    while frame is not None and not level:
        depth += 1
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] not in _OURS:
            outside = outside or depth
            if _is_users(name, frame.f_code.co_filename):
                level = depth
        frame = frame.f_back
    warnings.warn(f"proxystore: {problem}", RuntimeWarning, stacklevel=level or outside or 1)


def _is_users(name: str, file: str) -> bool:
    if file.startswith("<"):
        return name == "__main__"  # python -c, a prompt
    return not file.startswith(_STDLIB) and not any(place in file for place in _INSTALLED)
