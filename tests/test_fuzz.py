"""Nothing that others send crashes, swells or runs: every fuzzer for some time, side by side.

A minute each by default; ``make fuzz`` takes ten.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzers import FUZZERS, fuzz, swept

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
# Only in the full run, until they are mended: the endpoint's door fails for a reason that is not known yet,
# and UCX ends a server whose peer greets it, signed, with an address that UCX cannot read.
FAILING = {"endpoint", "ucx"}
NAMES = [name for name in FUZZERS if "FUZZ_SECONDS" in os.environ or name not in FAILING]
PROGRAM = str(Path(__file__).with_name("fuzzers.py"))


@pytest.mark.timeout(SECONDS + 300)
def test_fuzzers() -> None:
    """In processes of their own, which leave most of the processors to other tests."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with swept():
        running = {
            name: subprocess.Popen(
                ["nice", "-n", "10", sys.executable, PROGRAM, name, str(SECONDS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
            for name in NAMES
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
