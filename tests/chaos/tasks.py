"""What the tasks of broken workflows do, and what kills their workers; workers import them by name.

A process that kills itself does so once: whoever takes the file that arms a death dies of it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SPARED = "CHAOS_SPARED"
"""Environment variable of processes that never kill themselves: Dask's scheduler unpickles graphs."""

_WRITES = {"writev", "sendall", "sendmsg", "send"}
_client = 0  # process id


def spare_this_process() -> None:
    """It is the client, and a child that it forks is not."""
    global _client
    _client = os.getpid()


def die_once(armed: str) -> None:
    """Kill this process if nobody has died of this yet."""
    if os.getpid() == _client or os.environ.get(SPARED):
        return
    try:
        Path(armed).rename(f"{armed}.died")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def content(seed: int, size: int) -> Any:
    """An array of so many bytes that nobody guesses; sums of it are exact."""
    return np.random.default_rng(seed).integers(0, 1000, size // 8).astype(float)


def total(*arrays: Any) -> float:
    return float(sum(array.sum() for array in arrays))


def add(array: Any, by: float) -> Any:
    return array + by


def wait_for(path: str, array: Any) -> float:
    """The array's sum, once there is a file."""
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return total(array)


def begin_and_wait(begun: str, path: str, array: Any) -> float:
    """As `wait_for`, with a file to say that the task runs."""
    Path(begun).touch()
    return wait_for(path, array)


def stay(path: str, seed: int, size: int) -> Any:
    """An array; the file says which process made it."""
    Path(f"{path}.new").write_text(str(os.getpid()))
    Path(f"{path}.new").rename(path)
    return content(seed, size)


def visit(path: str, armed: str) -> None:
    """Die in the process that a file names."""
    time.sleep(0.1)  # so that two visits meet two workers
    if os.getpid() == int(Path(path).read_text()):
        die_once(armed)


@dataclasses.dataclass
class Fragile:
    """An array whose way into a worker, or out of one, kills it once.

    Args:
        array: the array.
        armed: file of the death.
        out: it is the way out.
    """

    array: Any
    armed: str
    out: bool

    def __reduce__(self) -> Any:
        if self.out:
            die_once(self.armed)
        return _arrived, (self.array, self.armed, self.out)


def _arrived(array: Any, armed: str, out: bool) -> Fragile:
    if not out:
        die_once(armed)
    return Fragile(array, armed, out)


def total_of_fragile(fragile: Any) -> float:
    return total(fragile.array)


def die_sending(armed: str, seed: int, size: int) -> Any:
    """A result that kills its worker when the engine pickles it."""
    return Fragile(content(seed, size), armed, out=True)


def die_putting(armed: str, seed: int, size: int, writes: int) -> Any:
    """An array; the next put of this process kills it after so many writes, at the end if they are fewer."""
    for module, name in (("shm", "ShmConnector"), ("redis", "RedisConnector"), ("zmq", "ZeroMQConnector")):
        kind = getattr(importlib.import_module(f"proxystore_core.connectors.{module}"), name)
        kind.put = _dying(kind.put, armed, writes)
    return content(seed, size)


def _dying(put: Callable[..., Any], armed: str, writes: int) -> Callable[..., Any]:
    @functools.wraps(put)
    def dying(*args: Any, **kwargs: Any) -> Any:
        left = writes

        def watch(_: Any, event: str, called: Any) -> None:
            nonlocal left
            if event == "c_return" and getattr(called, "__name__", "") in _WRITES:
                left -= 1
                if not left:
                    die_once(armed)

        sys.setprofile(watch)
        try:
            key = put(*args, **kwargs)
        finally:
            sys.setprofile(None)
        die_once(armed)
        return key

    return dying
