"""Objects on Redis servers that are set after their keys were made, and waiting for them.

<prefix>:{<session>:<bucket>}       the session's hash, as in `proxystore_core.connectors.redis`
    <object>.-  -> ""               reserved; later "<name>.<size>", which is the object's ordinary name
<prefix>:set:<key>                  a channel: published when the object is set, or will never be
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import NoPermissionError

from proxystore_core.connectors.base import Key
from proxystore_core.connectors.redis_requests import Requests

__all__ = ["GIVE_UP", "LATER", "SET", "WAKE", "channel_of", "wait_for"]

LATER = ".-"
"""Ends the keys that were reserved."""

# A server that does not let a user publish still sets: those who wait look once in a while.
SET = (
    "local now=redis.call('HGET',KEYS[1],ARGV[1]) "
    "if now==ARGV[2] then return 1 end if now~='' then return 0 end "
    "redis.call('HSET',KEYS[1],ARGV[1],ARGV[2]) redis.pcall('PUBLISH',ARGV[3],'') return 1"
)
# What was set is evicted by who asked, the record last: its answer may be lost.
GIVE_UP = (
    "local was=redis.call('HGET',KEYS[1],ARGV[1]) if was=='' then "
    "redis.call('HDEL',KEYS[1],ARGV[1]) redis.pcall('PUBLISH',ARGV[2],'') end return was"
)
WAKE = "redis.pcall('PUBLISH',ARGV[1],'')"

_LOOK = 5.0  # seconds between two looks of one who is told: a message is lost with its connection
_POLL = 0.005, 0.1  # seconds between two looks of one who may not subscribe: first, and longest


def channel_of(prefix: str, key: Key) -> str:
    """The channel that tells of a key."""
    return f"{prefix}:set:{key}"


def wait_for(requests: Requests, channel: str, settled: Callable[[Any], bool], timeout: float | None) -> bool:
    """Wait until ``settled`` says so, asked again whenever the channel tells; False when time is over.

    Args:
        requests: to the servers.
        channel: see `channel_of`.
        settled: asks the server through the given client, and returns whether the waiting is over.
        timeout: seconds; None for no end.

    Raises:
        UnreachableError, DeadlineError, RefusedError: as `Requests.persist`, and what ``settled`` raises.
    """
    end = float("inf") if timeout is None else time.monotonic() + timeout

    def listen(client: Any) -> bool | None:
        with contextlib.closing(client.pubsub()) as pubsub:
            try:
                pubsub.subscribe(channel)
                # The server's answer first: what is set after it is told, what was set before it is seen.
                pubsub.get_message(timeout=_LOOK)
            except NoPermissionError:
                return None
            while not settled(client):
                left = end - time.monotonic()
                if left <= 0:
                    return False
                pubsub.get_message(timeout=min(left, _LOOK))
            return True

    if requests.persist(settled):
        return True
    told = requests.persist(listen, end)
    if told is not None:
        return told
    pause, longest = _POLL
    while not requests.persist(settled):
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, pause))
        pause = min(2 * pause, longest)
    return True
