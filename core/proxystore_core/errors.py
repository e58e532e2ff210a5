"""What can go wrong with a store, as types that name the store, the key and the remedy.

Every error of this package derives from `StoreError`, so one ``except`` catches them all. The
subclasses say which story it is: the object is *gone*, the store is *unreachable* or *full*, the
bytes are *corrupt*, the request was *refused*, or it took too long.
"""

from __future__ import annotations

__all__ = [
    "ConfigurationError",
    "CorruptError",
    "DeadlineError",
    "FullError",
    "GoneError",
    "MissingExtraError",
    "RefusedError",
    "SerializationError",
    "StoreError",
    "UnreachableError",
]


class StoreError(Exception):
    """Base of all errors of a store.

    Args:
        problem: what happened, one sentence without a full stop.
        store: name or (redacted) URL of the store.
        key: key of the object concerned.
        remedy: what the reader can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        store: str | None = None,
        key: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.store = store
        self.key = key
        self.remedy = remedy
        super().__init__(problem)

    def __str__(self) -> str:
        where = [
            f"{noun} {value!r}"
            for noun, value in (("store", self.store), ("key", self.key))
            if value is not None
        ]
        text = self.problem + (f" ({', '.join(where)})" if where else "")
        if not self.remedy:
            return text
        return f"{text}{'' if text.endswith(('?', '.')) else '.'} {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross processes inside task results: keyword arguments must survive pickling.
        return _rebuild, (type(self), self.problem, self.store, self.key, self.remedy)


def _rebuild(
    kind: type[StoreError], problem: str, store: str | None, key: object, remedy: str | None
) -> StoreError:
    return kind(problem, store=store, key=key, remedy=remedy)


class GoneError(StoreError, LookupError):
    """The object is not in the store: evicted, expired, or it never was there."""


class UnreachableError(StoreError, ConnectionError):
    """The store cannot be reached from this process (host, server or process is elsewhere or down)."""


class CorruptError(StoreError, ValueError):
    """The bytes under the key are not what was stored: truncated, altered, or of another version."""


class RefusedError(StoreError, PermissionError):
    """The request is not allowed: a forged key, another user's store, wrong credentials."""


class DeadlineError(StoreError, TimeoutError):
    """The store did not answer within the deadline."""


class FullError(StoreError, MemoryError):
    """The store has no room for the object."""


class SerializationError(StoreError, TypeError):
    """The object cannot be turned into bytes, or the bytes cannot be turned into an object."""


class ConfigurationError(StoreError, ValueError):
    """A setting, URL or argument is wrong; the message names it and what was expected."""


class MissingExtraError(ConfigurationError, ImportError):
    """A backend's or an engine's library is not installed; the message has the ``pip install`` line."""
