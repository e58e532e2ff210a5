"""Nothing that others send crashes, swells or runs: every fuzzer for some time, side by side.

A minute each by default; ``make fuzz`` takes ten. ``FUZZ_NAMES`` names those that are to run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzers import FUZZERS, fuzz

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
SHARED = Path("/dev/shm")


@contextlib.contextmanager
def swept() -> Iterator[None]:
    """Remove what requests that are signed have made, sessions of any name, once no fuzzer runs any more."""
    before = set(SHARED.glob("proxystore-*/*"))
    yield
    for path in set(SHARED.glob("proxystore-*/*")) - before:
        shutil.rmtree(path, ignore_errors=True)
    for path in SHARED.glob("proxystore-*"):
        with contextlib.suppress(OSError):
            path.rmdir()


@pytest.mark.timeout(SECONDS + 300)
def test_fuzzers() -> None:
    """In processes of their own, which leave most of the processors to other tests."""
    names = os.environ.get("FUZZ_NAMES", "").split() or FUZZERS
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with swept():
        running = {
            name: subprocess.Popen(
                ["nice", "-n", "10", sys.executable, "-m", "fuzzers", name, str(SECONDS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
            for name in names
        }
        said = {name: process.communicate()[0] for name, process in running.items()}
    failed = {name: text for name, text in said.items() if running[name].returncode}
    assert not failed, "\n\n".join(failed.values())
    for text in said.values():
        sys.stdout.write(text)


def test_a_fuzzer_finds_what_is_there_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxystore_core.recipe.Recipe.parse", lambda text: 1 // (len(text) % 7))
    with pytest.raises(ZeroDivisionError):
        fuzz("messages", 20, 1)


def test_a_server_is_looked_at_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzzers.watching.Watched.look", lambda self: 1 // 0)
    monkeypatch.setattr("fuzzers.watching.LOOK", 1 << 60)
    with pytest.raises(ZeroDivisionError):
        fuzz("streams", 0.2, 1)
