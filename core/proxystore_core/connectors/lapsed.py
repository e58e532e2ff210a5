"""Sessions whose lease has lapsed, for connectors that look after leases themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

__all__ = ["UNRENEWED", "end_lapsed"]

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
