"""Files that only their user may read: what is secret is in no other."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from proxystore_core.errors import ConfigurationError, RefusedError

__all__ = ["read_private", "write_private"]

_MOST = 64 << 10  # bytes of such a file


def read_private(path: str | os.PathLike[str], *, what: str = "secret", store: str | None = None) -> str:
    """The text of a file that nobody but this user and root can read or write.

    Args:
        path: of the file.
        what: is in it, for errors.
        store: the store concerned, for errors.

    Raises:
        ConfigurationError: there is no such file, or it holds no text.
        RefusedError: others can read or write it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid not in (os.geteuid(), 0):
                raise RefusedError(
                    f"the {what} in {path} can be used by others (mode {stat.filemode(status.st_mode)})",
                    store=store,
                    remedy=f"Run: chmod 600 {path}, and take another one if others may have seen it.",
                )
            return file.read(_MOST).strip()
    except RefusedError:
        raise
    except OSError as error:
        raise ConfigurationError(f"no {what} in {path}: {error.strerror}", store=store) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the {what} in {path} is no text", store=store) from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all.

    Args:
        path: of the file; one that is there is replaced.
        text: that it holds.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    os.rename(part, path)
