"""Objects that backends keep in parts, put together for the contract of connectors."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["wholes"]


def wholes(parts: Mapping[str, Mapping[int, bytes]]) -> dict[str, bytes]:
    """Each object's bytes by its name, which ends in its size; one that lacks a part is called unfinished.

    An m behind the size says that the object is one part, however big.
    """
    found = {}
    for name, those in parts.items():
        data = b"".join(those[part] for part in sorted(those))
        whole = len(data) == int(name.rpartition(".")[2].removesuffix("m"), 16)
        found[name if whole else f"unfinished {name}"] = data
    return found
