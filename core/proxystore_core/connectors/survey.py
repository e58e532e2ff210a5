"""What a directory of sessions holds: for people who look, never on a task's way."""

from __future__ import annotations

import contextlib
import os
import re

from proxystore_core.connectors.base import Held

__all__ = ["held_in", "room_at", "tally"]


def tally(found: dict[str, Held], session: str, objects: int, nbytes: int) -> None:
    """Add to what a session holds.

    Args:
        found: by session, so far.
        session: whose.
        objects: how many more.
        nbytes: of them, bytes.
    """
    held = found.get(session, Held(0, 0))
    found[session] = Held(held.objects + objects, held.nbytes + nbytes)


def held_in(directory: str, session: re.Pattern[str], obj: re.Pattern[str]) -> dict[str, Held]:
    """The objects of each session that is a directory in ``directory``.

    Args:
        directory: the store's.
        session: matches sessions' names.
        obj: matches objects' names.
    """
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if not session.fullmatch(entry.name):
                continue
            count = nbytes = 0
            # It may end while we look.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(entry.path) as files:
                for file in files:
                    if obj.fullmatch(file.name):
                        with contextlib.suppress(FileNotFoundError):
                            nbytes += file.stat(follow_symlinks=False).st_size
                            count += 1
            found[entry.name] = Held(count, nbytes)
    return found


def room_at(directory: str) -> int | None:
    """Bytes that this user may still write to a file system; None where it has no bound.

    Args:
        directory: on it, or missing below one that is.
    """
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize if status.f_blocks else None
