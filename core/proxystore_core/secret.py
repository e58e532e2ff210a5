"""The secret that objects are encrypted with: each process reads its own, and it never leaves the process.

It is looked for, first found wins, in

1. ``PROXYSTORE_SECRET``: the secret itself,
2. ``PROXYSTORE_SECRET_FILE``: the path of a file of mode 0600 that holds it,
3. the setting ``secret`` of the file of settings (see `proxystore_core.configuration`): ``{env = "NAME"}``,
   ``{file = "path"}``, or a list of those.

Of several (words of a variable, lines of a file, items of the list), the first one writes and all
are accepted: that is how a secret is replaced by another while objects of the old one are still there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from proxystore_core.configuration import settings_file
from proxystore_core.errors import ConfigurationError, RefusedError, SerializationError
from proxystore_core.private import read_private

__all__ = ["FILE_VARIABLE", "SHORTEST", "VARIABLE", "Secret", "lacking", "sources_of"]

VARIABLE = "PROXYSTORE_SECRET"
"""The environment variable that holds the secret."""

FILE_VARIABLE = "PROXYSTORE_SECRET_FILE"
"""The environment variable that names the file that holds it."""

SHORTEST = 32
"""Characters of a secret at least: whoever has an encrypted object may guess for as long as he likes."""

_MAKE = 'Make one: python -c "import secrets; print(secrets.token_hex(32))".'
_SOURCE = 'Expected {env = "NAME"} or {file = "path"}, or a list of those: never the secret itself.'
_SET = (
    f"Set {VARIABLE} or {FILE_VARIABLE} in the environment of this process, or the setting secret in its "
    "proxystore.toml, as where the object was stored (docs/security.md)."
)


class Secret:
    """The secrets of one process. It cannot be pickled, and shows nothing.

    Args:
        texts: as the user has them, the one to write with first; each of at least `SHORTEST` characters.
        origin: where they were found, for errors.

    Raises:
        ConfigurationError: one is too short, or there is none.
    """

    __slots__ = ("_keys", "origin")

    def __init__(self, *texts: str, origin: str = "a keyword argument") -> None:
        if not texts:
            raise ConfigurationError(f"there is no secret in {origin}", remedy=_MAKE)
        for text in texts:
            if len(text) < SHORTEST:
                raise ConfigurationError(
                    f"a secret in {origin} has {len(text)} characters: expected at least {SHORTEST}",
                    remedy=_MAKE,
                )
        self.origin = origin
        self._keys = {_number(key): key for key in map(_master, texts)}

    def __repr__(self) -> str:
        return f"Secret({len(self._keys)} from {self.origin})"

    def __reduce__(self) -> NoReturn:
        raise SerializationError(
            "a secret is never pickled", remedy="Each process reads its own (docs/security.md)."
        )

    @classmethod
    def of_process(cls, needed: bool) -> Secret | None:
        """What this process is configured with; for a store that needs one, at least one that `check` misses.

        Raises:
            ConfigurationError, RefusedError: as `configured`.
        """
        return cls.configured() or (cls.missing() if needed else None)

    @classmethod
    def missing(cls) -> Secret:
        """What a process without a secret has for encrypted objects: whoever uses it is told."""
        secret = cls.__new__(cls)
        secret.origin = ""
        secret._keys = {}
        return secret

    @classmethod
    def configured(cls) -> Secret | None:
        """What this process is told to encrypt with; None where nothing says so.

        Raises:
            ConfigurationError: what is named is not there, or no secret.
            RefusedError: others can read the file.
        """
        if text := os.environ.get(VARIABLE):
            return cls(*text.split(), origin=VARIABLE)
        if path := os.environ.get(FILE_VARIABLE):
            return cls.of([("file", path)], FILE_VARIABLE)
        origin, table = settings_file()
        given = table.get("secret")
        return None if given is None else cls.of(sources_of(given, origin), origin)

    @classmethod
    def of(cls, sources: Iterable[tuple[str, str]], origin: str) -> Secret:
        """The secrets that a setting names.

        Args:
            sources: what `sources_of` returned.
            origin: where the setting was found; a path in it is relative to that file's directory.

        Raises:
            ConfigurationError, RefusedError: as `configured`.
        """
        texts: list[str] = []
        for kind, name in sources:
            if kind == "env":
                found = os.environ.get(name, "").split()
                if not found:
                    raise ConfigurationError(
                        f"secret = {{env = {name!r}}} in {origin}: {name} is not set in this process "
                        f"on {os.uname().nodename}",
                        remedy=f"Set {name} in the environment of every worker, too.",
                    )
                texts += found
            else:
                path = os.path.expanduser(name)
                if os.path.isabs(origin):
                    path = os.path.join(os.path.dirname(origin), path)
                texts += read_private(path).split()
        return cls(*texts, origin=origin)

    def check(self) -> None:
        """Check that there is one.

        Raises:
            RefusedError: this process has no secret.
        """
        if not self._keys:
            raise lacking()

    def writing(self, salt: bytes) -> tuple[bytes, bytes]:
        """Name of the secret that is written with, and the key of one object.

        Raises:
            RefusedError: this process has no secret.
        """
        self.check()
        number, master = next(iter(self._keys.items()))
        return number, _key(master, salt)

    def reading(self, number: bytes, salt: bytes) -> bytes:
        """The key of an object that was written with the secret of this name.

        Raises:
            RefusedError: this process does not have that secret.
        """
        master = self._keys.get(number)
        if master is None:
            if not self._keys:
                raise lacking()
            raise RefusedError(
                f"the object is encrypted with another secret than this process on {os.uname().nodename} has "
                f"({self.origin})",
                remedy=_SET,
            )
        return _key(master, salt)


def lacking() -> RefusedError:
    """The error of a process that has no secret and needs one."""
    return RefusedError(
        f"the object is encrypted, and this process on {os.uname().nodename} has no secret", remedy=_SET
    )


def sources_of(given: Any, origin: str) -> tuple[tuple[str, str], ...]:
    """A setting ``secret``, checked. What is wrong is never shown: it may be the secret.

    Raises:
        ConfigurationError: it is not ``{env = "NAME"}``, ``{file = "path"}`` or a list of those.
    """
    items = given if isinstance(given, list) else [given]
    pairs = [pair for item in items if isinstance(item, Mapping) and len(item) == 1 for pair in item.items()]
    sound = [kind in ("env", "file") and isinstance(name, str) and name != "" for kind, name in pairs]
    if sound and all(sound) and len(sound) == len(items):
        return tuple(pairs)
    raise ConfigurationError(f"{origin}: secret is not what was expected", remedy=_SOURCE)


def _master(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=32, person=b"object secret").digest()


def _number(master: bytes) -> bytes:
    return hashlib.blake2b(key=master, digest_size=8, person=b"object number").digest()


def _key(master: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(salt, key=master, digest_size=32, person=b"object key").digest()
