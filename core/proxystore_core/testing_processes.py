"""Functions run in other processes, real ones, for tests; see `proxystore_core.testing`."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import cloudpickle

__all__ = ["in_fork", "in_new_process", "start", "until"]

T = TypeVar("T")

_registering = threading.Lock()
_MAIN = """
import pickle, sys
path, function = pickle.load(sys.stdin.buffer)
sys.path[:] = path
try:
    outcome = True, pickle.loads(function)()
except BaseException as error:
    outcome = False, error
sys.stdout.flush()
with open(int(sys.argv[1]), "wb") as answer:
    pickle.dump(outcome, answer)
"""


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.01)


def in_new_process(function: Callable[..., T], *args: object, command: Sequence[str] = ()) -> T:
    """What a function returns, or raises, in a fresh interpreter (which imports what the function names).

    Args:
        function: travels by value when it is a test module's.
        args: its arguments.
        command: what to start the interpreter with, for example ``["unshare", "--mount"]``.
    """
    module = sys.modules.get(function.__module__)  # none where the function itself came by value
    if module is not None and not module.__name__.startswith("proxystore_core."):
        with _registering:
            cloudpickle.register_pickle_by_value(module)
            try:
                call = cloudpickle.dumps(functools.partial(function, *args))
            finally:
                cloudpickle.unregister_pickle_by_value(module)
    else:
        call = cloudpickle.dumps(functools.partial(function, *args))
    reading, writing = os.pipe()
    with open(reading, "rb") as answer:
        try:
            process = start([*command, sys.executable, "-c", _MAIN, str(writing)], call, writing)
        finally:
            os.close(writing)
        text = answer.read()
        result: T = _outcome(text, process.wait())
        return result


def in_fork(function: Callable[[], T]) -> T:
    """What a function returns, or raises, in a forked child of this process."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of threads is what is tested
        child = os.fork()
    if not child:
        try:
            os.close(reading)
            outcome: tuple[bool, Any] = True, function()
        except BaseException as error:
            outcome = False, error
        with contextlib.suppress(BaseException), open(writing, "wb") as answer:
            pickle.dump(outcome, answer)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        text = answer.read()
    result: T = _outcome(text, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return result


def start(command: Sequence[str], call: bytes, writing: int) -> subprocess.Popen[bytes]:
    """Start an interpreter that inherits a descriptor, and send it a pickled call."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[writing])
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(pickle.dumps((sys.path, call)))
    return process


def _outcome(text: bytes, code: int) -> Any:
    assert text, f"the process died without an answer: exit status {code}"
    good, value = pickle.loads(text)
    if not good:
        raise value
    return value
