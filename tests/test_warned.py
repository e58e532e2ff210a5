"""Where warnings stand: at the user's own line."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from proxystore_core.warned import warn
from proxystore_integrations.futures import StoreExecutor

DOWN = "redis://127.0.0.1:1?deadline=0.5"


def test_a_warning_stands_at_the_line_that_led_to_it() -> None:
    with pytest.warns(RuntimeWarning, match="proxystore: cannot work through the store") as caught:
        executor = StoreExecutor(ProcessPoolExecutor(1), DOWN)
    executor.shutdown()
    (one,) = caught
    assert one.filename == __file__
    assert "StoreExecutor(" in Path(__file__).read_text().splitlines()[one.lineno - 1]


def test_without_a_line_of_the_users_it_is_the_first_that_is_not_ours() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.warns(RuntimeWarning, match="nobody asked") as caught:
        threads.submit(warn, "nobody asked").result()
    assert Path(caught[0].filename).match("concurrent/futures/thread.py")


def test_code_of_a_command_line_is_the_users() -> None:
    code = (
        "from proxystore_core.warned import warn\nimport timeit as t\nt.repeat(lambda: warn('x'), number=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("<string>:3: RuntimeWarning: proxystore: x")
