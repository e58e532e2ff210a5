"""Faults under Parsl: the short form of `make chaos`."""

from __future__ import annotations

import pytest
from chaos.case import Case
from chaos.selection import check, selection


@pytest.mark.parametrize("case", selection("parsl"), ids=str)
def test_fault(case: Case) -> None:
    check(case)
