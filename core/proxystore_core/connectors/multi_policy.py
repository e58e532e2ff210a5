"""What a store among several takes."""

from __future__ import annotations

import dataclasses
import fnmatch
import socket
from collections.abc import Collection, Mapping
from typing import Any

from proxystore_core.errors import ConfigurationError

__all__ = ["Policy", "host"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a part of a `MultiConnector` takes; nothing said, it takes all.

    Attributes:
        priority: of the parts that take an object the one with the highest gets it, then the first.
        min_size: bytes from which it takes an object.
        max_size: bytes up to which it takes an object.
        hosts: patterns of the names of hosts that may put into it, such as ``"node*"``.
        kinds: patterns of classes that it takes, such as ``"numpy:*"`` (module:name).
        tags: it takes only objects that are put with one of these.
    """

    priority: int = 0
    min_size: int = 0
    max_size: int | None = None
    hosts: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("hosts", "kinds", "tags"):
            value = getattr(self, name)
            words = value.split(",") if isinstance(value, str) else value
            several = words if isinstance(words, Collection) else [words]
            if not all(isinstance(word, str) and word and "," not in word for word in several):
                raise ConfigurationError(f"{name} is {value!r}: expected texts without commas")
            object.__setattr__(self, name, tuple(words))
        for name in ("priority", "min_size", "max_size"):
            value = getattr(self, name)
            if type(value) is not int and (name, value) != ("max_size", None):
                raise ConfigurationError(f"{name} is {value!r}: expected a whole number")
        if self.min_size < 0 or (self.max_size is not None and self.max_size < self.min_size):
            raise ConfigurationError(
                f"min_size is {self.min_size!r} and max_size {self.max_size!r}: nothing has such a size"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any], part: str) -> Policy:
        """A policy from its attributes, numbers perhaps as text.

        Raises:
            ConfigurationError: an unknown name or a bad value; says which part's.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in options:
            if name not in known:
                expected = ", ".join(sorted(known))
                raise ConfigurationError(
                    f"unknown parameter {name!r} of the store {part!r}; known: url, {expected}"
                )
        numbers = {}
        for name in options.keys() & {"priority", "min_size", "max_size"}:
            try:
                numbers[name] = int(options[name])
            except (TypeError, ValueError):
                raise ConfigurationError(
                    f"{name} of the store {part!r} is {options[name]!r}: expected a number"
                ) from None
        return cls(**{**options, **numbers})

    def given(self) -> dict[str, Any]:
        """What is no default; plain values only."""
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    @property
    def is_here(self) -> bool:
        """Whether this host may put there."""
        return not self.hosts or _matches(host(), self.hosts)

    def takes(self, size: int, kind: str, tags: Collection[str]) -> bool:
        """Whether an object of this size, class and tags, put by this host, may go there."""
        return (
            size >= self.min_size
            and (self.max_size is None or size <= self.max_size)
            and self.is_here
            and (not self.kinds or _matches(kind, self.kinds))
            and (not self.tags or not set(self.tags).isdisjoint(tags))
        )


def host() -> str:
    """What policies call the host of this process."""
    return socket.gethostname()


def _matches(text: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
