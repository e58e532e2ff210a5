"""Hosts of a test's own: network namespaces joined by a cable, each with shared memory of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle
import pytest

_MAIN = """
import os, pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
answers = os.fdopen(int(sys.argv[1]), "wb")
while True:
    try:
        call = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    try:
        outcome = True, pickle.loads(call)()
    except BaseException as error:
        outcome = False, error
    pickle.dump(outcome, answers)
    answers.flush()
"""
_OWN_SHM = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]


class Remote:
    """A Python process that does what it is told, one call after another.

    Args:
        command: what to start the interpreter with.
        environment: variables that it has besides this process's.
    """

    def __init__(self, command: Sequence[str] = (), **environment: str) -> None:
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            [*command, sys.executable, "-c", _MAIN, str(writing)],
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            env={**os.environ, **environment},
        )
        os.close(writing)
        self._answers = os.fdopen(reading, "rb")
        self._send(sys.path)

    def _send(self, what: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(what, self._process.stdin)
        self._process.stdin.flush()

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Have a function called; `answer` waits for it."""
        module = sys.modules[function.__module__]
        cloudpickle.register_pickle_by_value(module)
        try:
            self._send(cloudpickle.dumps(functools.partial(function, *args)))
        finally:
            cloudpickle.unregister_pickle_by_value(module)

    def answer(self) -> Any:
        good, value = pickle.load(self._answers)
        if not good:
            raise value
        return value

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        self.start(function, *args)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Let it end as programs do."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._answers.close()
        self._process.wait(20)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[list[str], list[str]]]:
    """Commands that start a process on hosts 10.97.0.1 and 10.97.0.2, each at its interface ``cable``."""
    names = [f"ps-{secrets.token_hex(3)}-{side}" for side in "ab"]
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                _ip("netns", "add", name)
                stack.callback(_ip, "netns", "delete", name)
            _ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "cable", "netns", names[1])
            for number, name in enumerate(names, 1):
                _ip("-n", name, "address", "add", f"10.97.0.{number}/24", "dev", "cable")
                _ip("-n", name, "link", "set", "cable", "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        one, other = [["ip", "netns", "exec", name, *_OWN_SHM] for name in names]
        yield one, other


@contextlib.contextmanager
def cluster_elsewhere(elsewhere: Sequence[str], address: str) -> Iterator[Any]:
    """A Dask cluster with its scheduler on this host and two workers on another.

    Args:
        elsewhere: the command that starts a process there.
        address: of this host.
    """
    import distributed

    with distributed.LocalCluster(n_workers=0, host=address, dashboard_address=None) as cluster:
        command = [*elsewhere, sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        workers = subprocess.Popen(
            [*command, "--nworkers", "2", "--nthreads", "1", "--no-dashboard"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.DEVNULL,
        )
        try:
            with distributed.Client(cluster, set_as_default=False) as client:
                client.wait_for_workers(2, 60)
            yield cluster
        finally:
            workers.terminate()
            workers.wait(20)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
