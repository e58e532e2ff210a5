"""Stores, and what can be done to them: killed, emptied, frozen, full, slow."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from chaos.own_memory import SIZE
from mounts import mount_tmpfs
from redis_servers import VALKEY, Server
from waiting import until

from proxystore_core.connectors.node_place import SECRET
from proxystore_core.recipe import open_connector

ROOM = 12_000_000
"""Bytes that fit into a full store."""

_SHM = Path("/dev/shm")
_DEADLINES = "deadline=3&connect_timeout=2"


class Stored:
    """One store, in this process's own /dev/shm.

    Args:
        place: directory for its files.
        full: it has room for `ROOM` bytes only.
    """

    far: ClassVar[bool] = False
    """Whether workers are to have another /dev/shm than the client."""

    url: str

    def __init__(self, place: Path, full: bool) -> None:
        self.place = place
        self.spill = place / "spill"
        self.spill.mkdir()
        self.full = full
        self.start()

    def start(self) -> None:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What processes need to know besides the URL."""
        return {}

    # What others do to it.

    def restart(self) -> None:
        """Kill its servers; they come back with what they had."""
        raise NotImplementedError

    def wipe(self) -> None:
        """Kill its servers; they come back empty."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Nobody answers any more."""
        raise NotImplementedError

    def thaw(self) -> None:
        raise NotImplementedError

    def destroy(self) -> None:
        """It is gone for good."""
        raise NotImplementedError

    # In the end.

    def left(self) -> list[str]:
        """What is in it, whoever put it there."""
        raise NotImplementedError

    def sweep(self) -> None:
        """What the next session that starts does, on each node."""
        connector = open_connector(self.url)
        connector.sweep()  # type: ignore[attr-defined]
        connector.close()

    def close(self) -> None:
        pass


class Shm(Stored):
    def start(self) -> None:
        if self.full:
            subprocess.run(["mount", "-o", f"remount,size={ROOM}", _SHM], check=True)
            mount_tmpfs(str(self.spill), "size=1m")
        self.url = f"shm://chaos?spill={self.spill}"

    def wipe(self) -> None:
        for root in _SHM.glob("proxystore-*"):
            shutil.rmtree(root)

    def destroy(self) -> None:
        for directory in (_SHM, self.spill):
            mount_tmpfs(str(directory), "ro")

    def left(self) -> list[str]:
        return [*_files(_SHM), *_files(self.spill)]


class Redis(Stored):
    def start(self) -> None:
        room = ["--maxmemory", str(ROOM)] if self.full else []
        self.server = Server(self.place / "redis", "--appendonly", "yes", *room, kind=VALKEY)
        self.url = f"redis://{self.server.address}?{_DEADLINES}"

    def restart(self) -> None:
        self.server.kill()
        self.server.start()

    def wipe(self) -> None:
        self.server.kill()
        shutil.rmtree(self.place / "redis" / "appendonlydir")
        self.server.start()

    def freeze(self) -> None:
        self.server.freeze()

    def thaw(self) -> None:
        self.server.thaw()

    def destroy(self) -> None:
        self.server.kill()

    def left(self) -> list[str]:
        with contextlib.suppress(ConnectionError):
            return [key.decode() for key in self.server.witness.keys("*")]
        return []

    def sweep(self) -> None:
        pass  # its keys expire

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.server.stop()


class Zmq(Stored):
    """Nodes at a cable of their own: one of the client, one of each worker or their host."""

    far = True

    def start(self) -> None:
        for command in (
            "link add cable type veth peer name end",
            "address add 10.98.0.1/24 dev cable",
            "link set cable up",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        self.own_size = 64_000_000
        if self.full:
            self.own_size = ROOM
            subprocess.run(["mount", "-o", f"remount,size={ROOM}", _SHM], check=True)
            mount_tmpfs(str(self.spill), "size=1m")
        self.url = f"zmq://chaos?interface=cable&spill={self.spill}&{_DEADLINES}"

    def environment(self) -> dict[str, str]:
        return {SECRET: "a secret for everybody here", SIZE: str(self.own_size)}

    def restart(self) -> None:
        killed = set(_servers())
        for server in killed:
            os.kill(server, signal.SIGKILL)
        until(lambda: not killed & set(_servers()))  # whoever uses the node starts another

    def wipe(self) -> None:
        roots = {Path(f"/proc/{server}/root/dev/shm") for server in _servers()}
        emptied = [
            root for root in roots for root in root.glob("proxystore-*") if not list(root.glob("live"))
        ]
        for root in emptied:
            shutil.rmtree(root)
        self.restart()

    def freeze(self) -> None:
        for server in _servers():
            os.kill(server, signal.SIGSTOP)

    def thaw(self) -> None:
        for server in _servers():
            os.kill(server, signal.SIGCONT)

    def destroy(self) -> None:
        for root in {Path(f"/proc/{server}/root/dev/shm") for server in _servers()}:
            namespace = ["nsenter", "--mount", f"--target={root.parts[2]}"]
            subprocess.run([*namespace, "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/dev/shm"], check=True)
        self.restart()

    def sweep(self) -> None:
        for server in [os.getpid(), *_servers()]:
            code = f"from proxystore_core.recipe import open_connector; open_connector({self.url!r}).sweep()"
            command = ["nsenter", "--mount", f"--target={server}", sys.executable, "-c", code]
            subprocess.run(command, check=False)

    def left(self) -> list[str]:
        shms = {Path(f"/proc/{server}/root/dev/shm") for server in _servers()} | {_SHM}
        return [file for shm in shms for file in _files(shm)] + _files(self.spill)


def _files(shm: Path) -> list[str]:
    """Objects and leases, but not what a running node server has."""
    return [
        str(path)
        for root in shm.glob("proxystore-*")
        if not (root / "live").exists()
        for path in root.rglob("*")
    ] + ([str(path) for path in shm.rglob("*") if path.is_file()] if shm.name == "spill" else [])


def _servers() -> Iterator[int]:
    """Process ids of node servers."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"proxystore_core.connectors.node_server" in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


class Nothing(Stored):
    """No store: the engine is bare."""

    url = ""

    def start(self) -> None:
        pass

    def left(self) -> list[str]:
        return []

    def sweep(self) -> None:
        pass


STORES: dict[str, type[Stored]] = {"bare": Nothing, "shm": Shm, "redis": Redis, "zmq": Zmq}


class SlowNetwork:
    """A loopback of 40 Mbit/s that loses every so many packets. For one case, in a namespace of its own."""

    def __init__(self, every: int) -> None:
        self.commands = [
            "ip link set lo mtu 1500",
            "tc qdisc add dev lo root tbf rate 40mbit burst 16kb latency 50ms",
            "nft add table inet chaos",
            "nft add chain inet chaos input { type filter hook input priority 0 ; }",
            f"nft add rule inet chaos input meta l4proto tcp numgen inc mod {every} 0 drop",
        ]

    def begin(self) -> None:
        """Raises CalledProcessError where the system has no such thing."""
        for command in self.commands:
            subprocess.run(command.split(), check=True, capture_output=True)
