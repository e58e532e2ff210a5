"""A command in a terminal of its own, as a person sees it."""

from __future__ import annotations

import os
import pty
from pathlib import Path


def at_terminal(
    *words: str, cwd: Path | None = None, keys: tuple[str, str] | None = None, **variables: str
) -> tuple[int, str]:
    """Run a command in a terminal of 100 columns; its exit code and all that the terminal showed.

    Args:
        words: the command.
        cwd: where.
        keys: a text, and what is typed once it is shown.
        variables: for its environment.
    """
    process, terminal = pty.fork()
    if not process:
        try:
            if cwd is not None:
                os.chdir(cwd)
            os.environ.update({"TERM": "xterm-256color", "COLUMNS": "100", **variables})
            os.execv(words[0], words)
        finally:
            os._exit(127)
    shown = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # closed
            break
        if not data:
            break
        shown += data
        if keys is not None and keys[0].encode() in shown:
            os.write(terminal, keys[1].encode())
            keys = None
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), shown.decode().replace("\r\n", "\n")
