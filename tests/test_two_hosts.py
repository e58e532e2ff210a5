"""An engine whose workers are on another host than its client: only the store's network joins the two.

Small on purpose. All of the contract: make contracts ARGS="dask zmq-hosts ucx-hosts"
"""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts import passes_on_two_hosts


@pytest.mark.parametrize("scheme", ["zmq", "ucx"])
def test_dask_on_two_hosts(scheme: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if scheme == "ucx":
        pytest.importorskip("ucxx")
    some = "many_calls or goes_on_as_a_reference or stored_while or (without_us and array)"
    assert passes_on_two_hosts(scheme, tmp_path, some), capfd.readouterr().out
