"""A node that takes itself for another one; other processes import this, and so it needs no pytest."""

from __future__ import annotations

from proxystore_core.connectors.base import Key
from proxystore_core.connectors.node_place import Place


class AsFromAfar:
    """Makes a connector get its own node's objects as those of another node."""

    def _look_here(self, place: Place, session: str, name: str) -> tuple[bool, Key | None]:
        return False, None

    def holds(self, key: Key) -> bool:
        return False
