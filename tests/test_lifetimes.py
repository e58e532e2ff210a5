"""Sessions: renewed while their owner lives, ended by it, and swept when it was killed."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxystore_core.connectors.base import Connector, Leased, leased
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import ConfigurationError, RefusedError
from proxystore_core.lifetimes import Session
from proxystore_core.recipe import open_connector
from proxystore_core.testing import in_fork, in_new_process, until

LEASE = 0.4


@pytest.fixture(params=["memory", "file", "shm"])
def connector(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connector]:
    name = secrets.token_hex(4)
    connector: Connector
    if request.param == "memory":
        connector = MemoryConnector(name)
    elif request.param == "file":
        connector = FileConnector(tmp_path / name)
    else:
        connector = ShmConnector(name, spill=tmp_path / "spill")
    yield connector
    for session in keeper(connector).sessions():
        keeper(connector).end(session)
    connector.close(clear=True)


@pytest.fixture
def shm(tmp_path: Path) -> Iterator[ShmConnector]:
    connector = ShmConnector(secrets.token_hex(4), spill=tmp_path / "spill")
    yield connector
    for session in connector.sessions():
        connector.end(session)
    connector.close(clear=True)


def keeper(connector: Connector) -> Leased:
    found = leased(connector)
    assert found is not None
    return found


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "proxystore-lease"]


def test_a_session_outlives_its_lease_while_its_owner_lives(connector: Connector) -> None:
    session = Session(connector, lease=LEASE)
    key = connector.put([b"data"], session=session.name)
    first = keeper(connector).sessions()[session.name]
    assert 0 < first <= LEASE
    until_then = time.monotonic() + 2 * LEASE
    while time.monotonic() < until_then:
        assert session.name not in keeper(connector).sweep()
        time.sleep(0.02)
    assert connector.get(key) == b"data"
    assert session.end() == 1


def test_end(connector: Connector) -> None:
    session, other = Session(connector), Session(connector)
    keys = [connector.put([b"data"], session=session.name) for _ in range(3)]
    kept, mine = connector.put([b"kept"], session=other.name), connector.put([b"mine"])
    connector.evict(keys[0])
    assert session.end() == 2
    assert session.end() == 0
    assert [connector.get(key) for key in keys] == [None] * 3
    assert connector.get(kept) == b"kept"
    assert other.end() == 1
    assert connector.get(mine) == b"mine"
    assert keeper(connector).sessions() == {}
    assert "over" in repr(session)
    until(lambda: not threads())


class SlowToRenew(FileConnector):
    """Its second renewal is held up until the test lets it go on."""

    def __init__(self, store_dir: Path) -> None:
        super().__init__(store_dir)
        self.renewals = 0
        self.renewing, self.go = threading.Event(), threading.Event()

    def renew(self, session: str, seconds: float) -> None:
        self.renewals += 1
        if self.renewals == 2:
            self.renewing.set()
            self.go.wait(20)
        super().renew(session, seconds)


def test_an_ended_session_is_not_renewed_again(tmp_path: Path) -> None:
    connector = SlowToRenew(tmp_path / "store")
    session = Session(connector, lease=LEASE)
    connector.put([b"data"], session=session.name)
    assert connector.renewing.wait(20)
    threading.Timer(0.2, connector.go.set).start()
    assert session.end() == 1
    until(lambda: not threads())
    assert connector.sessions() == {}


def test_release_leaves_the_objects_to_the_lease(connector: Connector) -> None:
    session = Session(connector, lease=LEASE)
    key = connector.put([b"data"], session=session.name)
    session.release()
    assert connector.get(key) == b"data"
    until(lambda: keeper(connector).sessions()[session.name] < 0)
    assert keeper(connector).sweep() == [session.name]
    assert connector.get(key) is None


def test_release_leaves_the_objects_to_others_who_renew(connector: Connector) -> None:
    session = Session(connector, lease=LEASE)
    worker = Session(connector, lease=LEASE, name=session.name)
    key = connector.put([b"data"], session=session.name)
    session.release()
    until_then = time.monotonic() + 2 * LEASE
    while time.monotonic() < until_then:
        assert keeper(connector).sweep() == []
        time.sleep(0.02)
    assert connector.get(key) == b"data"
    worker.end()


def test_a_fork_owns_nothing(connector: Connector) -> None:
    session = Session(connector, lease=LEASE)
    key = connector.put([b"data"], session=session.name)

    def child() -> tuple[bool, int, int]:
        return session.owned, session.end(), len(threads())

    assert session.owned
    assert in_fork(child) == (False, 0, 0)
    assert connector.get(key) == b"data"
    assert session.end() == 1


def test_a_fork_renews_nothing(shm: ShmConnector) -> None:
    session = Session(shm, lease=LEASE)
    reading, writing = os.pipe()

    def child() -> None:
        os.close(writing)
        os.read(reading, 1)  # until the parent has seen the lease lapse, or is gone

    forked = threading.Thread(target=lambda: in_fork(child))
    forked.start()
    session.release()
    until(lambda: shm.sessions()[session.name] < 0)
    os.close(writing)
    forked.join()
    os.close(reading)


def hold_for_ever(url: str, directory: str) -> None:
    connector = open_connector(url)
    session = Session(connector, lease=LEASE, name="killed")
    for _ in range(3):
        connector.put([b"x" * 2_000_000], session=session.name)
    Path(directory, "starting").write_text(str(os.getpid()))
    Path(directory, "starting").rename(Path(directory, "owner"))
    while True:
        time.sleep(1)


@pytest.mark.parametrize("kind", ["file", "shm"])
def test_what_a_killed_owner_held_is_swept_by_the_next_session(kind: str, tmp_path: Path) -> None:
    if kind == "file":
        connector = FileConnector(tmp_path / "store")
    else:
        connector = ShmConnector(secrets.token_hex(4), spill=tmp_path / "spill")

    def owner() -> None:
        with pytest.raises(AssertionError, match="died without an answer"):
            in_new_process(hold_for_ever, connector.url, str(tmp_path))

    waiting = threading.Thread(target=owner)
    waiting.start()
    until((tmp_path / "owner").exists)
    # It is alive: its lease is renewed.
    until_then = time.monotonic() + 2 * LEASE
    while time.monotonic() < until_then:
        assert connector.sweep() == []
        time.sleep(0.02)
    os.kill(int((tmp_path / "owner").read_text()), signal.SIGKILL)
    waiting.join()
    until(lambda: connector.sessions()["killed"] < 0)
    session = Session(connector)
    until(lambda: list(connector.sessions()) == [session.name])
    assert [path.name for path in Path(connector.store_dir).rglob("*")] == [session.name, ".lease"]
    assert session.end() == 0
    connector.close(clear=True)
    assert not list(Path(connector.store_dir).rglob("*"))


def test_an_unreachable_store_for_a_while(tmp_path: Path) -> None:
    connector = FileConnector(tmp_path / "store")
    session = Session(connector, lease=LEASE)
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").touch()
    time.sleep(LEASE)
    assert threads()
    (tmp_path / "store").unlink()
    (tmp_path / "away").rename(tmp_path / "store")
    until(lambda: connector.sessions()[session.name] > 0)
    session.end()


def test_the_thread_goes_with_the_connector() -> None:
    connector = MemoryConnector(secrets.token_hex(4))
    session = Session(connector, lease=0.1)
    assert threads()
    session.connector = MemoryConnector("other")
    session.connector.close()
    connector.close()
    del connector
    until(lambda: not threads())


@pytest.mark.parametrize("lease", [0, -1, float("nan")])
def test_wrong_leases(lease: float) -> None:
    connector = MemoryConnector(secrets.token_hex(4))
    with pytest.raises(ConfigurationError, match="lease"):
        Session(connector, lease=lease)
    connector.close()


def test_wrong_names(connector: Connector) -> None:
    for name in ("user", "a/b", "..", "x" * 65):
        with pytest.raises(RefusedError):
            Session(connector, name=name)
    assert not threads()


def test_names_are_made_up() -> None:
    connector = MemoryConnector(secrets.token_hex(4))
    sessions = [Session(connector) for _ in range(20)]
    assert len({session.name for session in sessions}) == 20
    for session in sessions:
        session.end()
    connector.close()


class Plain:
    """A connector without leases: the part of one that a session touches."""

    schemes = ("plain",)


def test_a_connector_without_leases() -> None:
    session = Session(Plain())  # type: ignore[arg-type]
    assert not threads()
    assert session.end() == 0


def test_a_connector_with_a_defect_does_not_end_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = MemoryConnector(secrets.token_hex(4))
    sweep = connector.sweep
    monkeypatch.setattr(threading, "excepthook", lambda told: seen.append(told.exc_type))
    seen: list[Any] = []

    def fails() -> list[str]:
        if not seen:
            raise TypeError("a defect")
        return sweep()

    monkeypatch.setattr(connector, "sweep", fails)
    session = Session(connector, lease=0.2)
    until(lambda: seen == [TypeError])
    key = connector.put([b"data"], session=session.name)
    renewed: list[float] = []
    renew = connector.renew

    def noted(name: str, seconds: float) -> None:
        renew(name, seconds)
        renewed.append(seconds)

    monkeypatch.setattr(connector, "renew", noted)
    until(lambda: len(renewed) > 3)
    assert connector.exists(key)
    session.end()
    connector.close()
