"""One node server for all processes of a user that share a node: started by the first, gone with the last.

<shared memory>/proxystore-<uid>.<node>/    mode 0700; goes with the server
    live        share-locked by every process that uses the node; the server waits to lock it alone
    server      locked by the server as long as it lives; each has its own
    start       locked by the one process that starts it
    address     where it listens, also when it was killed: for its successor; below, where others did before
    secret      of nodes on loopback for which the user has named none
    log         what the server had to say
    members.*   see `proxystore_core.connectors.node_server`

Locks are the kernel's: a killed process leaves none, and whoever comes next takes over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import proxystore_core
from proxystore_core import forks
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.node_place import Place
from proxystore_core.errors import ConfigurationError, DeadlineError, StoreError, UnreachableError
from proxystore_core.locks import OPEN, is_at, locked

__all__ = ["LIVE", "SERVER", "WHERE", "NodeProcess", "is_running", "places_of", "remove"]

LIVE, SERVER, START, WHERE = "live", "server", "start", "address"
_TRIES = 200
_PAUSES = 0.002, 0.02  # seconds between two looks of one who waits: first, and longest
_STARTING = 30.0  # seconds that a server may take to start, on a machine that is very busy
_instances: weakref.WeakSet[NodeProcess] = weakref.WeakSet()


class NodeProcess:
    """This process's use of a node, and the server that it has.

    Args:
        directory: see above.
        store: the connector's URL, for messages.
        order: what the server is told when it has to be started, as `node_server.main` reads it.
    """

    def __init__(self, directory: str, store: str, order: Callable[[], dict[str, Any]]) -> None:
        self.directory = directory
        self.store = store
        self._order = order
        self._held: list[int] = []  # descriptors: of `live`, share-locked, and of `server`
        self._place: Place | None = None
        self._former: frozenset[Place] = frozenset()
        self.key: bytes | None = None  # that the directory keeps, as long as it is used
        self._entering = forks.rlock()
        self._leave = weakref.finalize(self, leave, directory, self._held)  # at exit, too
        _instances.add(self)

    def enter(self) -> Place:
        """Use the node from now on, and see to it that its server runs; returns where.

        Costs one call of the system when it does.

        Raises:
            UnreachableError, DeadlineError: it cannot be started.
            StoreError: the server cannot listen as it is told to.
        """
        held, place = self._held, self._place
        if place is not None and len(held) == 2 and is_running(held[1]):
            return place
        with self._entering:
            self._place = self._enter()
            return self._place

    def was_at(self, place: Place) -> bool:
        """Whether the node of the last `enter` listened there before, at another port than it does now."""
        return place in self._former

    def use(self) -> None:
        """Use the node's directory from now on, whether or not its server runs."""
        if not self._held:
            with self._entering:
                self._use()

    def close(self) -> None:
        """Use the node no longer; its server stops when nobody else does. The next `enter` begins anew."""
        with self._entering:
            self._place = None
            leave(self.directory, self._held)

    def _use(self) -> None:
        for _ in range(_TRIES):
            if self._held:
                return
            try:
                FileConnector(self.directory, grace=0)  # makes the directory, or refuses it
            except StoreError as error:
                error.store = self.store
                raise
            with contextlib.suppress(FileNotFoundError):
                live = locked(os.path.join(self.directory, LIVE), fcntl.LOCK_SH)
                if live is not None:
                    self.key = None
                    self._held.append(live)
                    self._held.append(_open_server(self.directory))
                    # multiprocessing ends forked children in its own way, past atexit.
                    util = sys.modules.get("multiprocessing.util")
                    if util is not None:
                        util.Finalize(self, leave, (self.directory, self._held), exitpriority=0)
                    return
            time.sleep(_PAUSES[1])
        raise UnreachableError(f"{self.directory} is being removed for ever", store=self.store)

    def _enter(self) -> Place:
        until, pause = time.monotonic() + _STARTING, _PAUSES[0]
        while True:
            try:
                if self._held and not is_at(self._held[0], os.path.join(self.directory, LIVE)):
                    leave(self.directory, self._held)  # somebody removed the directory
                self._use()
                if _is_served(self.directory, self._held):
                    places = places_of(self.directory)
                    if places:
                        self._former = frozenset(places[1:])
                        return places[0]
                else:
                    lock = locked(os.path.join(self.directory, START), fcntl.LOCK_EX)
                    if lock is not None:
                        try:
                            if not _is_served(self.directory, self._held):
                                self._start(until)
                        finally:
                            # A child being forked right now has the descriptor, too: closing would not do.
                            fcntl.flock(lock, fcntl.LOCK_UN)
                            os.close(lock)
                        continue
            except FileNotFoundError:
                pass  # removed beside us
            if time.monotonic() > until:
                raise DeadlineError(
                    f"the node server did not start within {_STARTING:g} s",
                    store=self.store,
                    remedy=f"See {self.directory}/log.",
                )
            time.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])

    def _start(self, until: float) -> None:
        """Start the server, and return when it listens."""
        package = str(Path(proxystore_core.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        order = self._order() | {"directory": self.directory}
        # Not multiprocessing: a worker of Dask's nanny may have no such children.
        with (
            open(os.path.join(self.directory, "log"), "ab") as log,
            subprocess.Popen(
                [sys.executable, "-P", "-m", "proxystore_core.connectors.node_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(json.dumps(order).encode())  # secrets are never on a command line
                answer = _read_all(process.stdout.fileno(), until)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        kind, _, text = answer.partition(" ")
        if kind == "listens":
            return
        if kind == "refuses":
            raise ConfigurationError(text, store=self.store, remedy="Name another port or address.")
        raise UnreachableError(
            "the node server does not start", store=self.store, remedy=f"See {self.directory}/log: {text}"
        )


def places_of(directory: str) -> list[Place]:
    """Where a node's server listens, or did last, and where it did before; nothing before it first does."""
    try:
        lines = Path(directory, WHERE).read_text("ascii").split()
    except FileNotFoundError:
        return []
    return [place for place in map(Place.parse, lines) if place is not None]


def is_running(server: int) -> bool:
    """Whether the server lives, given a descriptor of the file that it locks."""
    try:
        fcntl.flock(server, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(server, fcntl.LOCK_UN)
    return False


def _open_server(directory: str) -> int:
    return os.open(os.path.join(directory, SERVER), OPEN | os.O_CREAT, 0o600)


def _is_served(directory: str, held: list[int]) -> bool:
    """Whether the node's latest server lives; from now on its file is what is held."""
    if not is_at(held[1], os.path.join(directory, SERVER)):
        old, held[1] = held[1], _open_server(directory)
        os.close(old)
    return is_running(held[1])


def leave(directory: str, held: list[int]) -> None:
    """Let go of a node: its server stops when nobody else has it, or else its directory goes right here."""
    with contextlib.suppress(OSError):
        if (
            len(held) == 2
            and is_at(held[0], os.path.join(directory, LIVE))
            and not _is_served(directory, held)
        ):
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(directory, held[0])
    _close(held)


def remove(directory: str, live: int) -> None:
    """Remove a node's directory, its `live` locked by the caller alone.

    Raises:
        OSError: it cannot be removed.
    """
    if is_at(live, os.path.join(directory, LIVE)) and os.stat(directory).st_uid == os.geteuid():
        for name in sorted(os.listdir(directory), key=LIVE.__eq__):  # whoever enters waits for the last
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


def _close(held: list[int]) -> None:
    while held:
        with contextlib.suppress(OSError, IndexError):
            os.close(held.pop())


def _read_all(fd: int, until: float) -> str:
    data = b""
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise DeadlineError(f"no sign of the node server within {_STARTING:g} s")
        more = os.read(fd, 4096)
        if not more:
            return data.decode(errors="replace").strip()
        data += more


@forks.in_child
def _after_fork() -> None:
    # The child's descriptors share the parent's locks: they would keep the server after the parent's end.
    for process in list(_instances):
        process._place = None
        _close(process._held)
