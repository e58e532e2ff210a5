"""Endpoints' daemons at their start and end, and when others are slow, gone, or not what they seem."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from endpoint_sites import at
from waiting import until
from websockets.sync.server import ServerConnection, serve

from proxystore_core.connectors.webrtc import EndpointConnector
from proxystore_core.endpoint import daemon
from proxystore_core.endpoint.settings import DIRECTORY, EndpointSettings, configured
from proxystore_core.errors import ConfigurationError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    return tmp_path


STOP = """
import sys
from proxystore_core.endpoint import daemon
from proxystore_core.endpoint.settings import EndpointSettings
daemon.stop(EndpointSettings.load("one"), patience=0.3)
"""


def test_who_stops_a_daemon_that_has_just_locked_is_not_stopped_himself(place):
    settings = EndpointSettings.create("one")
    with open(settings.directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = subprocess.run(
            [sys.executable, "-c", STOP], check=False, capture_output=True, text=True, start_new_session=True
        )
    assert ended.returncode == 1
    assert "process unknown) does not stop" in ended.stderr


def test_settings_are_there_whole_or_not_at_all(place, monkeypatch):
    EndpointSettings.create("one", spill="/päth/\N{PILE OF POO}/\x7f")
    assert EndpointSettings.load("one").spill == "/päth/\N{PILE OF POO}/\x7f"

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        EndpointSettings.create("one", relay="ws://127.0.0.1:1")
    with pytest.raises(KeyboardInterrupt):
        EndpointSettings.create("two")
    assert EndpointSettings.load("one").relay == ""
    assert [each.name for each in configured()] == ["one"]


@pytest.mark.parametrize("answer", ["[]", '"registered"', "5", "null", "[" * 30_000, "{}"])
def test_a_relay_that_is_none(place, answer):
    def say(line: ServerConnection) -> None:
        line.recv()
        line.send(answer)

    with serve(say, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        relay = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        settings = EndpointSettings.create("one", relay=relay)
        daemon.start(settings)
        try:
            with at("one"):
                connector = EndpointConnector()
                until(lambda: "cannot be reached" in connector.health()["relay"])
                until(lambda: (settings.directory / "log").read_text().count("trying again") > 1)
                assert connector.health()["status"] == "ok"
        finally:
            daemon.stop(settings, clear=True)
            server.shutdown()


def test_who_starts_one_at_the_same_time_as_others(place):
    """One of them has started it; and it stops, whoever of them waits to be the next."""
    settings = EndpointSettings.create("one")
    with ThreadPoolExecutor(4) as executor:
        starting = [executor.submit(daemon.start, settings) for _ in range(4)]
        until(lambda: settings.running and any(each.done() for each in starting))
        outcomes = [each.exception() or each.result() for each in starting]
    started = [each for each in outcomes if not isinstance(each, ConfigurationError)]
    assert started == [int((settings.directory / "lock").read_text())], outcomes
    # The others leave the log of the one that runs as it is, and none of their own.
    assert "takes connections" in (settings.directory / "log").read_text()
    assert [path.name for path in settings.directory.glob("log*")] == ["log"]
    assert daemon.stop(settings, clear=True)


def test_who_stops_one_that_another_waits_for(place):
    """Then the other has it at once, and is stopped, too."""
    settings = EndpointSettings.create("one")
    with open(settings.directory / "lock", "w") as lock, ThreadPoolExecutor(1) as executor:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stopping = None
        for _ in range(2):
            with subprocess.Popen(["sleep", "100"]) as holder:
                lock.seek(0)
                lock.truncate()
                lock.write(str(holder.pid))
                lock.flush()
                stopping = stopping or executor.submit(daemon.stop, settings, patience=10)
                try:
                    assert holder.wait(20) == -signal.SIGTERM
                finally:
                    holder.kill()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert stopping.result()
