"""Where a process listens."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

__all__ = ["listening"]


def listening(process: int, kind: str = "tcp") -> list[tuple[str, int]]:
    """The addresses and ports at which a process listens.

    Args:
        process: its id.
        kind: ``tcp``, or ``udp``.
    """
    state = {"tcp": "0A", "udp": "07"}[kind]
    files = set()
    for fd in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            files.add(os.readlink(fd))
    found = []
    for family, table in ((socket.AF_INET, kind), (socket.AF_INET6, f"{kind}6")):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and f"socket:[{fields[9]}]" in files:
                address, _, port = fields[1].partition(":")
                words = bytes.fromhex(address)
                packed = b"".join(
                    struct.pack("=I", word) for word in struct.unpack(f">{len(words) // 4}I", words)
                )
                found.append((socket.inet_ntop(family, packed), int(port, 16)))
    return found
