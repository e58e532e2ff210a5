"""Part of a fake: see `mochi.margo`."""

from __future__ import annotations

import base64
import json
from typing import Any

read_only, write_only, read_write = "read_only", "write_only", "read_write"
push, pull = "push", "pull"


class Bulk:
    def __init__(self, engine: Any, number: int) -> None:
        self._engine = engine
        self.number = number

    def to_base64(self, eager: bool = False) -> str:
        return base64.b64encode(json.dumps(self.number).encode()).decode()

    @staticmethod
    def from_base64(engine: Any, text: str) -> Bulk:
        return Bulk(engine, int(json.loads(base64.b64decode(text))))
