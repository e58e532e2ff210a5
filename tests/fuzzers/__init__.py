"""Fuzzers of whatever reads what others send: ``python -m fuzzers NAME SECONDS [SEED]``.

Those of parsers run in this process; those of servers talk to a real one, which has to be there, unchanged in
size and with an empty log of troubles, whenever a batch is over.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given

from fuzzers.watching import Looking

__all__ = ["FUZZERS", "fuzz"]

BATCH = 200

FUZZERS = {
    "objects": "formats:of_objects",
    "messages": "formats:of_messages",
    "margo": "formats:of_margo",
    "nodes": "nodes:of_nodes",
    "zmq": "nodes:of_zmq",
    "ucx": "nodes:of_ucx",
    "ucx-told": "nodes:of_ucx_told",
    "streams": "streams:of_streams",
    "endpoint": "endpoint:of_endpoint",
    "relay": "relay:of_relay",
}


@dataclasses.dataclass
class Outcome:
    examples: int = 0


def fuzz(name: str, seconds: float, seed: int) -> int:
    """Run one fuzzer; how many inputs it tried. The first that is too much for the other side is shown."""
    outcome = Outcome()
    module, function = FUZZERS[name].split(":")
    begins = getattr(importlib.import_module(f"fuzzers.{module}"), function)
    with begins() as (strategy, check):
        until = time.monotonic() + seconds

        @hypothesis.settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def batch(value: Any) -> None:
            if time.monotonic() < until:
                outcome.examples += 1
                check(value)

        while time.monotonic() < until:
            hypothesis.seed(seed)(batch)()
            seed += 1
        if isinstance(check, Looking):
            check.watched.look()  # at what the last ones left
    return outcome.examples
