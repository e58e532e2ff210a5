"""What a connector costs, and what goes over its network, seen from outside."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from proxystore_core.recipe import open_connector


def peaks(url: str, size: int) -> tuple[float, float]:
    """Memory that a put and a get need besides what is there, in sizes of the object."""

    def status(name: str) -> int:
        line = next(
            line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
        )
        return int(line.split()[1]) * 1024

    def peak(operation: Callable[[], Any]) -> tuple[float, Any]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        start = status("VmRSS")
        result = operation()
        return (status("VmHWM") - start) / size, result

    connector = open_connector(url)
    connector.evict(connector.put([b"warm"]))
    data = os.urandom(size)
    put, key = peak(lambda: connector.put([memoryview(data)[: size // 2], memoryview(data)[size // 2 :]]))
    get, got = peak(lambda: connector.get(key))
    assert got == data
    connector.evict(key)
    connector.close()
    return put, get


def files(directory: str, prefix: str = "", suffix: str = "") -> dict[str, bytes]:
    """All files of a file store but leases, as `ConnectorContract.raw_objects` wants them."""
    found = {}
    for path in Path(directory).glob("*/*"):
        try:
            if path.name != ".lease":
                found[f"{prefix}{path.parent.name}.{path.name}{suffix}"] = path.read_bytes()
        except FileNotFoundError:
            continue  # evicted while we look
    return found


def in_memory(process: int, word: bytes) -> bool:
    """Whether something is in a process's memory, or in its environment."""
    with Path(f"/proc/{process}/maps").open() as maps, Path(f"/proc/{process}/mem").open("rb", 0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            if not rights.startswith("rw"):
                continue
            start, _, end = place.partition("-")
            for begin in range(int(start, 16), int(end, 16), 1 << 24):
                try:
                    memory.seek(begin)
                    if word in memory.read(min((1 << 24) + len(word), int(end, 16) - begin)):
                        return True
                except (OSError, OverflowError):  # device memory and the like
                    break
    return False


class Relay:
    """Passes TCP connections on to a port of this host, and counts the bytes that come back.

    Args:
        port: where they go.
        own: where they come from; 0 for any that is free.
        instead: what is replaced in what goes there, and by what.
        answers: the same in what comes back.
    """

    def __init__(
        self,
        port: int,
        own: int = 0,
        instead: tuple[bytes, bytes] = (b"", b""),
        answers: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        self.received = 0
        self._instead = {False: instead, True: answers}
        self._target = port
        self._selector = selectors.DefaultSelector()
        self._listening = socket.create_server(("127.0.0.1", own))
        self.port: int = self._listening.getsockname()[1]
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._over = False
        self._thread = threading.Thread(target=self._turn)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all connections, and take no others. Idempotent."""
        if self._over:
            return
        self._over = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _turn(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listening:
                    client, _ = self._listening.accept()
                    server = socket.create_connection(("127.0.0.1", self._target))
                    self._selector.register(client, selectors.EVENT_READ, (server, False))
                    self._selector.register(server, selectors.EVENT_READ, (client, True))
                    continue
                other, is_answer = key.data
                source: Any = key.fileobj
                if source.fileno() < 0:  # closed a moment ago, with its other end
                    continue
                with contextlib.suppress(OSError):
                    data = source.recv(1 << 20)
                    if data:
                        if is_answer:
                            self.received += len(data)
                        if self._instead[is_answer][0]:
                            data = data.replace(*self._instead[is_answer])
                        other.sendall(data)
                        continue
                for each in (source, other):
                    self._selector.unregister(each)
                    each.close()
