"""A real SSH server for tests: asyncssh's, in a process of its own, on loopback, with keys made for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
from mounts import on_tmpfs
from redis_servers import free_port
from waiting import until


class SFTPServer:
    """One server process; whoever has the key in its directory may log in as ``tests``.

    Args:
        directory: where its keys are.
        small: a directory that has a file system of its own for the server, of 4 MB.
        password: that lets in as well.
    """

    def __init__(self, directory: Path, small: Path | None = None, password: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        for name in ("host", "user", "stranger"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(str(directory / name))
            key.write_public_key(str(directory / f"{name}.pub"))
        public = (directory / "host.pub").read_text()
        (directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}")
        self.command = [sys.executable, __file__, str(directory), str(self.port), password]
        if small is not None:
            self.command = on_tmpfs(small, 4 << 20, self.command)
        self.start()

    def url(self, path: Path | str, *, identity: str = "user", user: str = "tests", more: str = "") -> str:
        keys = f"identity={self.directory / identity}&known_hosts={self.directory / 'known_hosts'}"
        return f"sftp://{user}@127.0.0.1:{self.port}{path}?{keys}{more}"

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        until(lambda: self.process.poll() is not None)


@contextlib.contextmanager
def serving(directory: Path, **options: Any) -> Iterator[SFTPServer]:
    server = SFTPServer(directory, **options)
    try:
        yield server
    finally:
        server.thaw()
        server.kill()


class _Passwords(asyncssh.SSHServer):
    def __init__(self, password: str) -> None:
        self.password = password

    def password_auth_supported(self) -> bool:
        return bool(self.password)

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("tests", self.password)


async def _serve(directory: str, port: int, password: str) -> None:
    await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=lambda: _Passwords(password),
        reuse_address=True,
        server_host_keys=[os.path.join(directory, "host")],
        authorized_client_keys=os.path.join(directory, "user.pub"),
        sftp_factory=True,
    )
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
