"""What several commands check of their options before they do anything. Loads no command-line framework."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from proxystore_core.errors import ConfigurationError

if TYPE_CHECKING:
    from proxystore_integrations.settings import Settings

__all__ = ["check_writable", "settings_given"]


def settings_given(**given: Any) -> Settings:
    """The settings with what options say; an error names the option.

    Raises:
        ConfigurationError: one is wrong, wherever it was found.
        MissingExtraError: the store's library is not installed.
    """
    from proxystore_integrations.settings import Settings

    try:
        return Settings.load(**given)
    except ConfigurationError as error:
        _, keyword, problem = error.problem.partition("keyword argument: ")
        if not keyword:
            raise
        raise type(error)(f"--{problem.replace('_', '-', 1)}", remedy=error.remedy) from error


def check_writable(option: str, path: str | None) -> None:
    """See that a file can be written, without touching it: what fills it may take hours.

    Args:
        option: that names it.
        path: its; None where it is not asked for, ``-`` for standard output.

    Raises:
        ConfigurationError: it cannot; says why.
    """
    if path in (None, "-"):
        return
    assert path is not None
    directory = os.path.dirname(os.path.abspath(path))
    if not path or os.path.isdir(path):
        problem = "is a directory" if path else "names no file"
    elif not os.path.isdir(directory):
        problem = f"there is no directory {directory}"
    elif not os.access(path if os.path.exists(path) else directory, os.W_OK):
        problem = "may not be written by this user"
    else:
        return
    raise ConfigurationError(f"{option} {path}: {problem}", remedy="Name a file that can be written.")
