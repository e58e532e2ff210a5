"""The short form of the matrix: each fault once, on an engine and a store that a seed chooses."""

from __future__ import annotations

import functools
import os
import random
import shlex
import subprocess

import pytest
from chaos.case import Case, Outcome
from chaos.scenarios import FAULTS
from chaos.stores import SlowNetwork

_SHARES = {"pool": 5, "dask": 2, "parsl": 2, "ray": 2}
"""How many faults each engine gets besides those that it alone has: some start faster than others."""


def selection(engine: str) -> list[Case]:
    """The cases of one engine; ``CHAOS_SEED`` chooses others."""
    seed = int(os.environ.get("CHAOS_SEED", "11"))
    choose = random.Random(seed)
    faults = [fault for fault in FAULTS if fault != "scheduler restarted"]
    choose.shuffle(faults)
    hands = {name: [faults.pop() for _ in range(share)] for name, share in _SHARES.items()}
    assert not faults, "a fault that nobody has"
    hands["dask"].append("scheduler restarted")
    stores = {
        fault: choose.choice([name for name in stores if name != "bare"])
        for fault, (_, stores) in FAULTS.items()
    }
    return [Case(fault, engine, stores[fault], seed, short=True) for fault in hands[engine]]


def check(case: Case) -> None:
    """Run a case, and fail where neither the answer came out nor what the bare engine does."""
    needed = SlowNetwork(30).commands if case.fault == "slow network" else []
    if not _allowed("ip link set lo up", *needed):
        pytest.skip("namespaces of processes and networks, or tc and nft in them, are not allowed here")
    outcome = case.run()
    bare: Outcome | None = None
    if outcome.faults() and "bare" in FAULTS[case.fault][1]:
        bare = Case(case.fault, case.engine, "bare", case.seed, case.short).run()
    assert not outcome.faults(bare), f"{case}\n{outcome.log}"


@functools.cache
def _allowed(*commands: str) -> bool:
    inside = " && ".join(shlex.join(command.split()) for command in commands)
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--mount", "--net", "sh", "-c", inside]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
