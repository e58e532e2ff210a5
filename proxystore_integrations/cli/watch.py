"""A run with a report: the script in a process of its own, whose fate this one shares."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

__all__ = ["run_and_report"]

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ENDED_BY = 128  # what a shell adds to a signal's number


def run_and_report(
    program: list[str], *, called: list[str], page: str = "", json: str = "", table: bool = False
) -> int:
    """Run a program, then report on standard error and into files.

    Args:
        program: what to execute, with its arguments.
        called: the same as the user called it.
        page: file of the HTML report; empty for none.
        json: file of the JSON report, ``-`` for standard output; empty for none.
        table: print a table.

    Returns:
        The program's exit code. A program that a signal ended takes this process with it.
    """
    directory = tempfile.mkdtemp(prefix="proxystore-run-")
    try:
        start = time.monotonic()
        code = _run(program, {**os.environ, "PROXYSTORE_RUN": directory})
        seconds = time.monotonic() - start
        try:
            _report(directory, called, code, seconds, page, json, table)
        except BrokenPipeError:  # nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            print(f"proxystore: error: the report cannot be written: {error}", file=sys.stderr)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        return _ENDED_BY - code
    return code


def _run(program: list[str], environment: dict[str, str]) -> int:
    before: dict[int, Any] = {}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # which the script is to inherit
        # A terminal sends its interrupts to both: the script decides what they mean.
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        child = subprocess.Popen(program, env=environment)
        for forwarded in _FORWARDED:
            before[forwarded] = signal.signal(forwarded, lambda number, frame: child.send_signal(number))
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(
    directory: str, called: list[str], code: int, seconds: float, page: str, json: str, table: bool
) -> None:
    import msgspec

    from proxystore_integrations.cli.advice import advise
    from proxystore_integrations.cli.report import collect

    report = collect(directory, called, code, seconds)
    report.advice = advise(report)
    if json:
        text = msgspec.json.format(msgspec.json.encode(report)) + b"\n"
        if json == "-":
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
        else:
            with open(json, "wb") as file:
                file.write(text)
    if page:
        from proxystore_integrations.cli.report_page import page_of

        with open(page, "w", encoding="utf-8") as text_file:
            text_file.write(page_of(report))
    if table:
        from proxystore_integrations.cli.report_table import print_report

        print_report(report)
