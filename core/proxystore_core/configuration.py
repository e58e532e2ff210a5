"""The one file of settings that counts for this process: found, read, not judged."""

from __future__ import annotations

import functools
import os
from typing import Any

from proxystore_core.errors import ConfigurationError

__all__ = ["CONFIG", "allows_pickle", "boolean", "settings_file"]

CONFIG = "PROXYSTORE_CONFIG"
"""The environment variable that names the file."""


ALLOW_PICKLE = "PROXYSTORE_ALLOW_PICKLE"
"""The environment variable of the setting ``allow_pickle``."""


def allows_pickle() -> bool:
    """Whether this process may unpickle what it gets from a store: the setting ``allow_pickle``.

    Raises:
        ConfigurationError: it is neither true nor false.
    """
    if given := os.environ.get(ALLOW_PICKLE):
        return boolean(given, ALLOW_PICKLE)
    origin, table = settings_file()
    return boolean(table.get("allow_pickle", True), f"{origin}: allow_pickle")


def boolean(value: Any, origin: str) -> bool:
    """A setting that is on or off.

    Raises:
        ConfigurationError: it is neither.
    """
    found = _BOOLEANS.get(value.lower()) if isinstance(value, str) else value
    if type(found) is not bool:
        raise ConfigurationError(f"{origin} = {value!r}", remedy="Expected true or false.")
    return found


_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def settings_file() -> tuple[str, dict[str, Any]]:
    """Path and settings of the file; an empty table when there is none.

    It is the one that ``PROXYSTORE_CONFIG`` names, else the nearest ``proxystore.toml`` or ``pyproject.toml``
    with ``[tool.proxystore]`` from the working directory upwards.

    Raises:
        ConfigurationError: it cannot be read, or is no file of settings.
    """
    named = os.environ.get(CONFIG)
    if named:
        path = os.path.abspath(os.path.expanduser(named))
        table = _read(path)
        if table is None:
            remedy = "Expected a TOML file of settings, or a pyproject.toml with [tool.proxystore]."
            raise ConfigurationError(f"{CONFIG}={named!r} names no file with settings", remedy=remedy)
        return path, table
    try:
        directory = os.getcwd()
    except FileNotFoundError:  # Removed under our feet.
        return "", {}
    while True:
        for name in ("proxystore.toml", "pyproject.toml"):
            path = os.path.join(directory, name)
            table = _read(path) if os.path.isfile(path) else None
            if table is not None:
                return path, table
        parent = os.path.dirname(directory)
        if parent == directory:
            return "", {}
        directory = parent


def _read(path: str) -> dict[str, Any] | None:
    """Settings of one file; None when there is no such file or it is a pyproject.toml without any."""
    try:
        status = os.stat(path)
        return _parsed(path, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


@functools.lru_cache(maxsize=8)  # every store that is opened asks; a large pyproject.toml takes 10 ms
def _parsed(path: str, changed: int, size: int) -> dict[str, Any] | None:
    with open(path, "rb") as file:
        data = file.read()
    project = os.path.basename(path) == "pyproject.toml"
    if project and b"proxystore" not in data:  # Most are not ours: not parsed, whatever is in them.
        return None
    import tomllib

    try:
        table: Any = tomllib.loads(data.decode())
    except ValueError as error:  # Not TOML (with line and column), or not UTF-8.
        remedy = 'Text stands in quotes: store = "redis://host:6379".'
        raise ConfigurationError(f"{path} is not valid TOML: {error}", remedy=remedy) from error
    if project:
        table = table.get("tool", {}).get("proxystore")
        if table is not None and not isinstance(table, dict):
            raise ConfigurationError(f"{path}: tool.proxystore is {table!r}", remedy="Expected a table.")
        return table
    for name, inner in (("tool.proxystore", table.get("tool")), ("proxystore", table)):
        if isinstance(inner, dict) and isinstance(inner.get("proxystore"), dict):
            remedy = "Leave out that line: here settings need no table, as they do in pyproject.toml."
            raise ConfigurationError(f"{path} has its settings in a table [{name}]", remedy=remedy)
    return table  # type: ignore[no-any-return]
