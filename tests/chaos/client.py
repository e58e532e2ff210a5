"""The client of one case: ``python -m chaos.client CASE SOCKET PLACE STORE``."""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from chaos import tasks
from chaos.case import LEASE, Case
from chaos.engines import ENGINES
from chaos.scenarios import FAULTS, World


class _Outside:
    """What can be asked for."""

    def __init__(self, descriptor: int) -> None:
        self._file = socket.socket(fileno=descriptor).makefile("rw")
        self._lock = threading.Lock()

    def __call__(self, what: str) -> None:
        with self._lock:
            self.tell({"ask": what})
            assert self._file.readline() == "done\n"

    def tell(self, message: dict[str, Any]) -> None:
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    outside, place, url = _Outside(int(sys.argv[2])), Path(sys.argv[3]), sys.argv[4]
    tasks.spare_this_process()
    settings: dict[str, Any] = {}
    if case.store != "bare":
        raising = case.fault == "store gone, an error"
        settings = {
            "store": url,
            "threshold": "100 kB",
            # While nobody can renew it, it is to outlast what keeps them from it.
            "lease": 60.0 if case.fault == "store unreachable for a while" else LEASE,
            "on_store_error": "raise" if raising else "fallback",
        }
    engine = ENGINES[case.engine](settings, place, far=case.store == "zmq" and case.engine != "ray")
    world = World(engine, outside, f"{case.seed} {case.fault}", place, case.short)
    try:
        FAULTS[case.fault][0](world)
    finally:
        outside.tell({"probes": [dataclasses.asdict(probe) for probe in world.probes]})
    engine.close()


if __name__ == "__main__":
    main()
