"""What pytest says of a contract is told as it was."""

from __future__ import annotations

import json
from pathlib import Path

from contract_results import Results, line, outcome

SAID = """\
....F.E
FAILED tests/test_dask_contract.py::TestDask::test_a_result[many ints] - AssertionError: 1 - 2
ERROR tests/test_dask_contract.py::TestDask::test_a_killed_worker - RuntimeError
SKIPPED [3] proxystore_integrations/testing/contract.py:22: this store sets no object later
1 failed, 76 passed, 3 skipped, 1 error in 94.02s (0:01:34)
"""


def test_what_failed_and_what_was_skipped() -> None:
    found = outcome(SAID, 1, 95.2)
    assert line(found) == "76 passed, **2 failed**, 3 skipped; 95 s"
    assert found["failures"] == ["TestDask::test_a_killed_worker", "TestDask::test_a_result[many ints]"]
    assert found["reasons"] == ["this store sets no object later"]


def test_a_run_that_is_killed_did_not_pass() -> None:
    found = outcome("....", -11, 4)
    assert line(found) == "0 passed, **did not end**; 4 s"
    assert found["failures"] == ["it ended with -11"]


def test_pairs_are_kept_beside_earlier_ones(tmp_path: Path) -> None:
    results = Results(tmp_path, ["kafka", "zmq-hosts"])
    results.add("dask", "kafka", outcome(SAID, 1, 95))
    results.add("ray", "kafka", outcome("162 passed in 3.00s", 0, 3))
    results.add("dask", "kafka", outcome("=== 81 passed in 3.00s ===", 0, 3))
    assert sorted(json.loads((tmp_path / "contracts.json").read_text())) == ["dask/kafka", "ray/kafka"]
    table = (tmp_path / "contracts.md").read_text()
    assert "| kafka | not run | 81 passed; 3 s | not run | 162 passed; 3 s | not run |" in table
    assert "| zmq-hosts |  | not run |  |  |  |" in table
    assert "2 pairs, 0 of them with failures." in table
