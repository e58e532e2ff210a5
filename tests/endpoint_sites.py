"""Relays and endpoints for tests: real daemons, each in a process of its own, on loopback only."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from proxystore_core.endpoint import daemon
from proxystore_core.endpoint.settings import DIRECTORY, ENDPOINT, EndpointSettings, relay_token

RELAY = [sys.executable, "-m", "proxystore_integrations", "relay"]


class RelayProcess:
    """A relay that can be killed and started again at the same port."""

    def __init__(
        self, place: Path, tokens: dict[str, str], *options: str, port: int = 0, scheme: str = "ws"
    ) -> None:
        self.file = place / f"relay-{secrets.token_hex(4)}"
        self.file.write_text("".join(f"{group} {token}\n" for group, token in tokens.items()))
        self.options = options
        self.scheme = scheme
        self.port = port
        self.process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [*RELAY, "--tokens", str(self.file), "--port", str(self.port), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("relay at "):
            self.stop()
        assert line.startswith("relay at "), line
        self.port = int(line.rsplit(":", 1)[1])

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


class Sites:
    """Endpoints of this host that stand for those of several."""

    def __init__(self, relay: str, secret: str, **settings: Any) -> None:
        self.secret = secret
        self.endpoints: dict[str, EndpointSettings] = {}
        self.settings = {"relay": relay, "addresses": ("127.0.0.1",), "pages": 0, **settings}

    def add(self, name: str, **settings: Any) -> EndpointSettings:
        """Another endpoint, started."""
        secret = settings.pop("secret", self.secret)
        made = EndpointSettings.create(name, secret, **{**self.settings, **settings})
        self.endpoints[name] = made
        daemon.start(made)
        return made

    def kill(self, name: str) -> None:
        """Kill an endpoint's daemon; its directory stays as it was."""
        settings = self.endpoints[name]
        os.kill(int((settings.directory / "lock").read_text()), signal.SIGKILL)
        until(lambda: not settings.running)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    def close(self) -> None:
        for settings in self.endpoints.values():
            daemon.stop(settings, clear=True)


@contextlib.contextmanager
def at(name: str) -> Iterator[None]:
    """Let this process, and those it starts, be at one of the endpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENDPOINT, name)
        yield


@contextlib.contextmanager
def sites(names: Sequence[str] = ("here", "there"), **settings: Any) -> Iterator[Sites]:
    """A relay, and endpoints that are registered at it."""
    with tempfile.TemporaryDirectory(prefix="e") as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv(DIRECTORY, str(Path(place) / "endpoints"))
        secret = secrets.token_urlsafe(32)
        relay = RelayProcess(Path(place), {"group": relay_token(secret)})
        found = Sites(**{"relay": relay.url, "secret": secret, **settings})
        try:
            for name in names:
                found.add(name)
            yield found
        finally:
            found.close()
            relay.stop()
