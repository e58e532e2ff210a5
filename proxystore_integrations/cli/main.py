"""Where ``proxystore`` begins: ``run`` at once, everything else through click."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["DEBUG", "main", "report_error"]

DEBUG = "PROXYSTORE_DEBUG"
"""The environment variable that is the same as ``--debug`` where it is not empty."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what the console script ``proxystore`` calls.

    Args:
        arguments: of the command line, without the program's name; those of this process by default.

    Returns:
        The exit code: 0 for success, 1 where a command failed, 2 where it was called wrongly.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    while words and words[0] == "--debug":
        os.environ[DEBUG] = words.pop(0)
    try:
        if words and words[0] == "run":
            from proxystore_integrations.cli.run import run

            return run(words[1:])
        return _command(words)
    except Exception as error:
        return report_error(error)


def report_error(error: Exception) -> int:
    """Say in one line what is wrong, with the traceback where debugging; the exit code.

    Args:
        error: any; one that is neither ours (see `proxystore_core.errors`) nor the system's is a defect.
    """
    from proxystore_core.errors import ConfigurationError, StoreError
    from proxystore_core.urls import redact_all

    if os.environ.get(DEBUG):
        raise error
    text = str(error)
    if not isinstance(error, StoreError | OSError):
        text = f"{type(error).__name__}: {error} (--debug shows where; please report it)"
    print(f"proxystore: error: {redact_all(text)}", file=sys.stderr)
    return 2 if isinstance(error, ConfigurationError) else 1


def _command(words: list[str]) -> int:
    try:
        from proxystore_integrations.cli.commands import proxystore
    except ImportError as error:
        if error.name is None or not error.name.startswith(("click", "rich")):
            raise
        from proxystore_core.errors import MissingExtraError

        raise MissingExtraError(
            f"this command needs {error.name}, which is not installed",
            remedy='Run: pip install "proxystore-integrations[cli]".',
        ) from error
    return proxystore.main(words, prog_name="proxystore", standalone_mode=False) or 0
