"""What redis-py raises, as this package's errors, each with whether and how long another try makes sense."""

from __future__ import annotations

import enum
from typing import NamedTuple

from redis import exceptions as said

from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)

__all__ = ["FAILURES", "Again", "Diagnosis", "diagnosis"]

FAILURES = (said.RedisError, said.RedisClusterException, OSError)
"""All that redis-py raises when something went wrong outside of this process."""

_REFUSED = (said.AuthenticationError, said.AuthorizationError, said.NoPermissionError)
_NOT_READY = (said.BusyLoadingError, said.ClusterDownError, said.ReadOnlyError, said.TryAgainError)
_NOT_READY_TEXTS = ("BUSY ", "NOREPLICAS ", "UNBLOCKED ", "max number of clients", "slots are not covered")


class Again(enum.Enum):
    """Whether the same request may fare better in a moment."""

    NEVER = enum.auto()
    WHEN_READY = enum.auto()  # the server is there, and said that it is not ready
    WHEN_BACK = enum.auto()  # it may be restarting


class Diagnosis(NamedTuple):
    """A typed error to be: its class, what happened, what to do about it, and whether to try again."""

    kind: type[StoreError]
    problem: str
    remedy: str
    again: Again = Again.NEVER


def diagnosis(error: BaseException, tls: bool) -> Diagnosis:
    """What an error of redis-py means.

    Args:
        error: one of `FAILURES`.
        tls: whether the connection was to be encrypted.
    """
    if isinstance(error, said.RedisClusterException) and isinstance(error.__cause__, FAILURES):
        return diagnosis(error.__cause__, tls)  # of the last server that was asked about the cluster
    text = str(error)
    server = f"the server says: {text}"
    if "maxmemory" in text:
        return Diagnosis(FullError, server, "Evict objects, or give the server more memory (maxmemory).")
    if "MISCONF" in text:
        remedy = "The server cannot write its snapshots: make room on its disk, or see its log."
        return Diagnosis(FullError, server, remedy)
    if isinstance(error, _REFUSED) or "AUTH" in text or text.startswith("DENIED"):
        remedy = "Set PROXYSTORE_REDIS_PASSWORD, or PROXYSTORE_STORE with the password in its URL; see also"
        return Diagnosis(RefusedError, server, f"{remedy} the user's rights (docs/redis.md).")
    if isinstance(error, said.MovedError) or text.startswith("MOVED "):
        return Diagnosis(
            ConfigurationError, server, "It is one server of a cluster: expected redis+cluster://."
        )
    if "Cluster mode" in text or "cluster support" in text:
        problem = f"the server has no cluster support: {text}"
        return Diagnosis(ConfigurationError, problem, "It is a single server: expected redis://.")
    if "DB index" in text or "SELECT" in text or "unknown command" in text:
        return Diagnosis(ConfigurationError, server, "Check the database's number and the scheme of the URL.")
    if isinstance(error, _NOT_READY) or any(words in text for words in _NOT_READY_TEXTS):
        remedy = "The server is there but not ready: look at its log, or wait."
        return Diagnosis(UnreachableError, server, remedy, Again.WHEN_READY)
    if isinstance(error, said.InvalidResponse):
        return Diagnosis(UnreachableError, f"this is no Redis server: {text}", "Check the port.")
    if isinstance(error, said.ResponseError):
        return Diagnosis(StoreError, server, "See the server's log.")
    return _no_answer(error, text, tls)


def _no_answer(error: BaseException, text: str, tls: bool) -> Diagnosis:
    if isinstance(error, said.TimeoutError) and "connecting" not in text:
        remedy = "Look at the server's load and the network, or name a longer ?deadline= (seconds)."
        return Diagnosis(DeadlineError, f"no answer in time: {text}", remedy)
    if "CERTIFICATE_VERIFY_FAILED" in text or ("SSL" in text and "ALERT" in text):
        remedy = "Name the authority's certificate with ?ca=, and your own with &cert= and &key=."
        return Diagnosis(RefusedError, f"no trust between this process and the server: {text}", remedy)
    if tls and "while writing" in text and "EOF" in text:
        # A server that wants a certificate says so after the handshake, and a write may miss it.
        remedy = "It may want a certificate: &cert= and &key=. Else look at the server's log."
        problem = f"the server ended an encrypted connection: {text}"
        return Diagnosis(RefusedError, problem, f"See also ?ca=. {remedy}", Again.WHEN_BACK)
    if "Permission denied" in text:
        remedy = "Have the server make its socket for you (unixsocketperm), or use another address."
        return Diagnosis(RefusedError, f"the socket is not for this user: {text}", remedy)
    if "No such file" in text:
        remedy = "Check the socket's path, and that the server runs on this host."
        return Diagnosis(UnreachableError, f"no connection: {text}", remedy, Again.WHEN_BACK)
    remedy = "Check host and port, and that the server runs and is reachable from this host."
    remedy += (
        " Does this port speak TLS? Without it: redis://." if tls else " If the port speaks TLS: rediss://."
    )
    again = Again.NEVER if isinstance(error, said.TimeoutError) else Again.WHEN_BACK
    return Diagnosis(UnreachableError, f"no connection: {text}", remedy, again)
