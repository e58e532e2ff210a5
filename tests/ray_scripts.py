"""Scripts with a Ray of their own, for the tests of Ray."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_LISTENING = """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
import gc, numpy as np, ray, ray_tasks as work
from proxystore_integrations.ray import init, link
for line in sys.stdin:
    said = None
    try:
        said = eval(line)
    except SyntaxError:
        exec(line)
    print("said", repr(said), flush=True)
"""


def script(text: str, **variables: str) -> str:
    """What a script prints, which runs in a process of its own.

    Args:
        text: of the script; the tests' folder is in its variable ``TESTS``.
        **variables: of its environment.
    """
    done = subprocess.run(
        [sys.executable, "-c", text],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "TESTS": str(Path(__file__).parent), **variables},
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Driver:
    """A driver in a process of its own, which does what it is told and then ends in order.

    Args:
        start: starts its Ray.
        **variables: of its environment.
    """

    def __init__(self, start: str, **variables: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LISTENING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TESTS": str(Path(__file__).parent), **variables},
        )
        try:
            self(f"_ = {start}")
        except BaseException:
            self.kill()
            raise

    def __call__(self, line: str) -> Any:
        """The value of an expression, or None after a statement."""
        pipes = self._process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        print(line, file=pipes.stdin, flush=True)
        for answer in pipes.stdout:
            if answer.startswith("said "):
                return ast.literal_eval(answer.removeprefix("said "))
        raise AssertionError(f"the driver ended at: {line}")

    def end(self) -> None:
        """Let it end as a script does. Idempotent."""
        self._process.communicate(timeout=60)

    def kill(self) -> None:
        """Give it no time to end."""
        self._process.kill()
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Driver]:
    """The driver that has started a cluster for the tests of one module, and does nothing else in it."""
    first = Driver("ray.init(**work.OPTIONS)")
    try:
        yield first
    finally:
        first.end()


@pytest.fixture(scope="module")
def joining(cluster: Driver) -> dict[str, str]:
    """Variables with which drivers join that cluster.

    What a driver that starts one sets for its children, others have to set.
    """
    address = cluster("ray.get_runtime_context().gcs_address")
    return {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
