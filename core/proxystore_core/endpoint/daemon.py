"""The endpoint's daemon: started in the background, or run here; stopped by a signal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxystore_core.connectors.base import USER_SESSION
from proxystore_core.endpoint.channel import Counters
from proxystore_core.endpoint.clients import Clients
from proxystore_core.endpoint.objects import Objects, shared_memory
from proxystore_core.endpoint.pages import pages
from proxystore_core.endpoint.peers import Peers
from proxystore_core.endpoint.settings import EndpointSettings
from proxystore_core.errors import ConfigurationError, StoreError, UnreachableError
from proxystore_core.private import write_private

__all__ = ["run", "start", "stop"]

_SWEEP = 30.0  # seconds between two looks for dead sessions
_TICK = 5.0
_LOOKS = 0.5  # seconds in which those who only look at the lock have let go of it
_STARTS = 20.0  # seconds that a daemon has to be there
_children: list[subprocess.Popen[bytes]] = []  # daemons that this process has to wait for when they end
_log = logging.getLogger("proxystore_core.endpoint")


def run(settings: EndpointSettings, log: Path | None = None) -> None:
    """Run an endpoint until SIGTERM or SIGINT.

    Args:
        settings: which.
        log: the file that its output goes to, which becomes the endpoint's log when it is the one that runs.

    Raises:
        ConfigurationError: it runs already.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("aioice").setLevel(logging.WARNING)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # clients and peers have several each
    with _locked(settings):
        if log is not None:
            _name_log(settings, log)
        token = secrets.token_urlsafe(32)
        write_private(settings.directory / "token", token)
        asyncio.run(_run(settings, token))


async def _run(settings: EndpointSettings, token: str) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    counters = Counters()
    objects = Objects(settings)
    peers = Peers(settings, settings.secret(), counters)
    begun = time.time()

    def health() -> dict[str, Any]:
        line = peers.introductions
        return {
            "status": "ok",
            "id": settings.id,
            "name": settings.name,
            "process": os.getpid(),
            "node": objects.store.node,
            "relay": "connected" if line.connected else line.problem,
            "peers": peers.connected,
            "seconds": round(time.time() - begun, 1),
            "pages": page_port,
        }

    def metrics() -> dict[str, float]:
        line = peers.introductions
        gauges = {"relay_connected": int(line.connected), "peers_connected": len(peers.connected)}
        return {**counters, **gauges, "seconds": round(time.time() - begun, 1)}

    clients = Clients(settings, token, objects, peers, counters, health)
    peers.serve = clients.serve
    page_port = -1
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(objects.close)
        stack.push_async_callback(peers.close)
        stack.push_async_callback(clients.close)
        if settings.pages >= 0:
            server = await pages("proxystore_endpoint", settings.pages, health, metrics)
            stack.push_async_callback(_close, server)
            page_port = next(iter(server.sockets)).getsockname()[1]
        door = await clients.listen()
        stack.callback(door.close)
        _log.info("endpoint %s (%s) takes connections", settings.name, settings.id)
        others = [
            asyncio.ensure_future(peers.introductions.run()),
            asyncio.ensure_future(_keep(objects, clients)),
        ]
        others.append(asyncio.ensure_future(_until(stopped)))
        await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        for outcome in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
    with contextlib.suppress(FileNotFoundError):
        os.unlink(settings.directory / "socket")
    _log.info("endpoint %s has stopped", settings.name)


async def _until(stopped: asyncio.Event) -> None:
    await stopped.wait()


async def _close(server: Any) -> None:
    server.close()
    await server.wait_closed()


async def _keep(objects: Objects, clients: Clients) -> None:
    """End dead sessions, and let go of what nobody wants any more."""
    last = 0.0
    while True:
        clients.let_go()
        if time.monotonic() - last >= _SWEEP:
            last = time.monotonic()
            try:
                await asyncio.to_thread(objects.store.sweep)
            except StoreError as error:
                _log.warning("dead sessions were not swept: %s", error)
        await asyncio.sleep(_TICK)


def start(settings: EndpointSettings) -> int:
    """Start an endpoint in the background; its process id.

    Raises:
        ConfigurationError: it runs already.
        UnreachableError: it did not come up; says what its log says.
    """
    if settings.running:
        raise ConfigurationError(f"endpoint {settings.name!r} runs already")
    fd, path = tempfile.mkstemp(prefix="log.", dir=settings.directory)
    own, log = Path(path), settings.directory / "log"
    with open(fd, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxystore_core.endpoint.daemon", settings.name, path],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    _children[:] = [child for child in _children if child.poll() is None] + [process]
    until = time.monotonic() + _STARTS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), settings.connect(1.0):
            if _holder(settings) == process.pid:
                return process.pid
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    process.wait()
    if settings.running:  # somebody else started it at the same time
        own.unlink(missing_ok=True)
        raise ConfigurationError(f"endpoint {settings.name!r} runs already")
    with contextlib.suppress(FileNotFoundError):  # it came to name it
        _name_log(settings, own)
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise UnreachableError(
        f"endpoint {settings.name!r} did not start: {' '.join(last) or 'it says nothing'}",
        remedy=f"See {log}.",
    )


def _name_log(settings: EndpointSettings, log: Path) -> None:
    """Make a file the endpoint's log; the last one's is kept."""
    os.stat(log)
    named = settings.directory / "log"
    with contextlib.suppress(FileNotFoundError):
        os.replace(named, named.with_name("log.before"))
    os.replace(log, named)


def stop(settings: EndpointSettings, *, clear: bool = False, patience: float = 20.0) -> bool:
    """Stop an endpoint's daemon; tells whether it ran.

    Objects stay in shared memory, and are there again when the endpoint is started on the same host.

    Args:
        settings: which.
        clear: drop all of its objects.
        patience: seconds to wait.

    Raises:
        UnreachableError: it does not stop.
    """
    ran = settings.running
    if ran:
        lock, process = settings.directory / "lock", 0
        until = time.monotonic() + patience
        while settings.running:
            # Who has just locked it, maybe after another, has not written yet who he is; a signal to 0
            # is one to ourselves.
            if (holder := _holder(settings)) not in (0, process):
                process = holder
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
            if time.monotonic() > until:
                raise UnreachableError(
                    f"endpoint {settings.name!r} (process {process or 'unknown'}) does not stop",
                    remedy=f"kill -9 {process}" if process else f"See who has locked {lock}: fuser {lock}",
                )
            time.sleep(0.05)
        for child in _children:
            if child.pid == process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(patience)
    _children[:] = [child for child in _children if child.poll() is None]
    if clear:
        store = shared_memory(settings)
        for session in [USER_SESSION, *store.sessions()]:
            store.end(session)
        store.close()
    return ran


def _holder(settings: EndpointSettings) -> int:
    """The process that says, in the file of the lock, that it has it; 0 for none."""
    return int((settings.directory / "lock").read_text() or "0")


@contextlib.contextmanager
def _locked(settings: EndpointSettings) -> Iterator[None]:
    """Hold the lock that says that the daemon runs, with its process id in the file."""
    fd = os.open(settings.directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + _LOOKS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # or somebody looks whether it runs
                if time.monotonic() > until:
                    raise ConfigurationError(f"endpoint {settings.name!r} runs already") from None
                time.sleep(0.01)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


if __name__ == "__main__":
    run(EndpointSettings.load(sys.argv[1]), Path(sys.argv[2]))
