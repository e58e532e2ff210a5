"""Sessions whose lease has lapsed, for connectors that look after leases themselves."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Protocol

__all__ = ["LEASE", "UNRENEWED", "SessionFiles", "end_files", "end_lapsed"]

LEASE = ".lease"
"""Of sessions that are directories: the file whose time of change is when the session lapses."""

UNRENEWED = 600.0
"""Seconds for a session that got objects before anyone renewed it, or after its end."""


def end_lapsed(
    sessions: Mapping[str, float],
    end: Callable[[str], object],
    lapse: Callable[[str], float | None] | None = None,
) -> list[str]:
    """End the sessions that have lapsed, each unless it has been renewed since somebody looked.

    Args:
        sessions: seconds that each one's lease had when somebody looked, as of `Leased.sessions`.
        end: ends one. Says False where it has found that it need not.
        lapse: when a session lapses by now, in seconds since the epoch; None where nobody can tell, or there
            is nothing of it. To be left out where ``end`` looks again in the same step: else who renews
            between the two steps comes too late.

    Returns:
        The names of those that have been ended.
    """
    ended = []
    for session in [session for session, left in sessions.items() if left < 0]:
        if lapse is not None:
            expiry = lapse(session)
            if expiry is None or expiry >= time.time():
                continue
        if end(session) is not False:
            ended.append(session)
    return ended


class SessionFiles(Protocol):
    """The files of one session, in a directory of its own, to whoever ends it.

    Each method raises FileNotFoundError where what it is about is missing.
    """

    def names(self) -> list[str]:
        """All files, also those of others."""
        ...

    def lapse(self, lease: str) -> float:
        """When the session lapses by a lease of that name, or without one; in seconds since the epoch."""
        ...

    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""
        ...

    def put_back(self, name: str, new: str) -> None:
        """Give a file another name, or remove it where there is one of that name by now."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file of the store, no other; a missing one is success."""
        ...

    def remove_directory(self) -> None:
        """Remove the directory unless there is something in it."""
        ...


def end_files(files: SessionFiles) -> bool:
    """End a session unless it has been renewed since somebody looked; whether it has ended."""
    taken = f".{secrets.token_hex(10)}"
    with contextlib.suppress(FileNotFoundError):  # somebody else has ended it
        names = files.names()  # what comes later is of one who has renewed it by then
        if files.lapse(LEASE) > time.time():
            return False
        if LEASE in names:
            # Until here who renews it extends this very file; from here on he begins anew.
            files.rename(LEASE, taken)
            if files.lapse(taken) > time.time():
                files.put_back(taken, LEASE)
                return False
        for name in (*names, taken):
            if name != LEASE:
                files.remove(name)
        files.remove_directory()
        return True
    return False
