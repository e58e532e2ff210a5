"""The examples of futures, streams and ownership, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("futures_pipeline.py", "same answer"),
        ("stream_dispatch.py", "12 frames of 2 MB analysed"),
        ("ownership_workflow.py", "no owner, no object"),
    ],
)
def test_example(script: str, said: str) -> None:
    command = [sys.executable, str(EXAMPLES / script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
    assert not done.stderr
