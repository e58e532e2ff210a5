"""Files over SSH: the contract on a real server, and the hazards of servers and keys."""

from __future__ import annotations

import os
import pickle
import secrets
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from measures import peaks
from redis_servers import free_port
from sftp_servers import SFTPServer, serving
from waiting import until

from proxystore_core.connectors import sftp
from proxystore_core.connectors.base import Connector, Key
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.lapsed import LEASE
from proxystore_core.connectors.sftp import SFTPConnector
from proxystore_core.connectors.sftp_line import PASSWORD
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    RefusedError,
    UnreachableError,
)
from proxystore_core.recipe import open_connector
from proxystore_core.store import Store
from proxystore_core.testing import ConnectorContract, in_new_process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SFTPServer]:
    with serving(tmp_path_factory.mktemp("ssh")) as server:
        yield server


class TestSFTPConnector(ConnectorContract):
    @pytest.fixture(autouse=True)
    def on(self, server: SFTPServer) -> None:
        self.server = server

    def make(self) -> Connector:
        return SFTPConnector.from_url(self.server.url(self.place / secrets.token_hex(4)))

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        assert isinstance(connector, SFTPConnector)
        found = {}
        for path in Path(connector.store_dir).glob("*/*"):
            try:
                if path.name != ".lease":
                    found[f"{path.parent.name}.{path.name}"] = path.read_bytes()
            except FileNotFoundError:
                continue  # evicted while we look
        return found

    def corrupt(self, connector: Connector, key: Key) -> bool:
        assert isinstance(connector, SFTPConnector)
        path = Path(connector.store_dir, *key.split("."))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return True


@pytest.fixture
def connector(server: SFTPServer, tmp_path: Path) -> Iterator[SFTPConnector]:
    connector = SFTPConnector.from_url(server.url(tmp_path / "store"))
    yield connector
    for session in ["user", *connector.sessions()]:
        connector.end(session)
    connector.close()


@pytest.mark.parametrize("leased", [True, False])
def test_a_sweep_beside_a_renewal(
    connector: SFTPConnector, monkeypatch: pytest.MonkeyPatch, leased: bool
) -> None:
    """Which comes after the sweep has looked again: the session stays, or what is renewed is another one."""
    there = FileConnector(connector.store_dir)
    key = connector.put([b"data"], session="s")
    connector.renew("s", 0.01)
    until(lambda: connector.sessions()["s"] < 0)
    original = sftp._Files.lapse

    def look(files: sftp._Files, lease: str) -> float:
        found = original(files, lease)
        if lease == LEASE:
            if leased:
                there.renew("s", 600)
            else:
                there.end("s")
        return found

    seen = connector.sessions()
    monkeypatch.setattr(connector, "sessions", lambda: seen)
    monkeypatch.setattr(sftp._Files, "lapse", look)
    assert connector.sweep() == []
    monkeypatch.undo()
    if leased:
        assert connector.get(key) == b"data"
        assert connector.sessions()["s"] > 590
    else:
        assert connector.sessions() == {}
    there.close()


def test_it_is_the_file_store_of_its_host(connector: SFTPConnector) -> None:
    there = FileConnector(connector.store_dir)
    key, theirs = connector.put([b"over SSH"], session="s"), there.put([b"a file"], session="s")
    assert there.get(key) == b"over SSH"
    assert connector.get(theirs) == b"a file"
    there.renew("s", 100)
    assert 90 < connector.sessions()["s"] <= 100
    assert connector.end("s") == 2
    assert there.sessions() == {}
    assert os.stat(connector.store_dir).st_mode & 0o777 == 0o700
    there.close()


def test_a_file_that_shrinks_while_it_is_read(
    connector: SFTPConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = connector.put([b"x" * 2_000_000], session="s")
    stat = asyncssh.SFTPClientFile.stat

    async def before_it_shrank(file: asyncssh.SFTPClientFile) -> asyncssh.SFTPAttrs:
        found = await stat(file)
        found.size = 3_000_000
        return found

    monkeypatch.setattr(asyncssh.SFTPClientFile, "stat", before_it_shrank)
    with pytest.raises(CorruptError, match="2000000 bytes came of a file of 3000000"):
        connector.get(key)


@pytest.mark.parametrize("lost", ["write", "rename"])
def test_a_put_that_is_made_again_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    kind: type = asyncssh.SFTPClientFile if lost == "write" else asyncssh.SFTPClient
    do, losses = getattr(kind, lost), []
    with serving(tmp_path / "ssh") as server:
        connector = SFTPConnector.from_url(server.url(tmp_path / "store"))
        first = connector.put([b"data"])

        async def do_and_lose(*args: object) -> object:
            done = await do(*args)
            if not losses:
                losses.append(lost)
                server.kill()
                server.start()
                raise asyncssh.ConnectionLost("as the answer was on its way")
            return done

        monkeypatch.setattr(kind, lost, do_and_lose)
        key = connector.put([b"x" * 3_000_000])
        assert connector.get(key) == b"x" * 3_000_000
        there = os.listdir(tmp_path / "store" / "user")
        assert sorted(f"user.{name}" for name in there) == sorted([first, key])
        connector.close(clear=True)


def test_a_put_that_fails_leaves_nothing_once_the_server_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = asyncssh.SFTPClientFile.write
    with serving(tmp_path / "ssh") as server:
        connector = SFTPConnector.from_url(server.url(tmp_path / "store"))

        async def write_and_lose(*args: Any) -> object:
            done = await write(*args)
            server.kill()
            return done

        with monkeypatch.context() as patch:
            patch.setattr(asyncssh.SFTPClientFile, "write", write_and_lose)
            with pytest.raises(UnreachableError):
                connector.put([b"x" * 3_000_000])
        assert os.listdir(tmp_path / "store" / "user")
        server.start()
        key = connector.put([b"data"])
        assert [f"user.{name}" for name in os.listdir(tmp_path / "store" / "user")] == [key]
        connector.close(clear=True)


def test_a_session_that_ends_while_an_object_is_put(
    connector: SFTPConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, ends = asyncssh.SFTPClient.rename, iter([True])
    there = FileConnector(connector.store_dir)

    async def after_the_end(*args: object) -> None:
        if not str(args[2]).endswith(".lease") and next(ends, False):
            there.end("s")
        await rename(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncssh.SFTPClient, "rename", after_the_end)
    key = connector.put([b"data"], session="s")
    assert connector.get(key) == b"data"
    assert connector.end("s") == 1


def test_memory(server: SFTPServer, tmp_path: Path) -> None:
    put, get = in_new_process(peaks, server.url(tmp_path / "store"), 100_000_000)
    assert put < 0.2
    assert get < 1.2


def test_who_is_not_let_in(server: SFTPServer, tmp_path: Path) -> None:
    stranger = open_connector(server.url(tmp_path / "store", identity="stranger"))
    with pytest.raises(RefusedError, match="identity"):
        stranger.put([b"data"])
    with pytest.raises(ConfigurationError, match="key"):
        open_connector(server.url(tmp_path / "store", identity="nowhere")).put([b"data"])
    assert not (tmp_path / "store").exists()
    stranger.close()


def test_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word, wrong = secrets.token_hex(8), secrets.token_hex(8)
    with serving(tmp_path / "ssh", password=word) as server:
        url = server.url(tmp_path / "store", identity="stranger")
        monkeypatch.setenv(PASSWORD, word)
        with Store.from_url(url, name="locked", near=False) as store:
            proxy = store.proxy([1, 2], populate_target=False)
            shown = [repr(store), repr(store.connector), store.recipe, repr(store.config())]
            assert not [text for text in shown if word in text]
            assert word.encode() not in pickle.dumps(proxy)
            assert in_new_process(_total, pickle.dumps(proxy)) == 3  # which has it in its environment
            store.close(clear=True)
        for given in (wrong, ""):
            monkeypatch.setenv(PASSWORD, given)
            stranger = open_connector(url)
            with pytest.raises(RefusedError, match=PASSWORD) as caught:
                stranger.put([b"data"])
            assert caught.value.store == stranger.url
            assert wrong not in str(caught.value)
            with pytest.raises(RefusedError, match=PASSWORD):
                stranger.get(f"s.{'0' * 20}")
            stranger.close()
        assert server.process.poll() is None


def _total(pickled: bytes) -> int:
    return sum(pickle.loads(pickled))


def test_where_nobody_can_write(server: SFTPServer) -> None:
    with pytest.raises((RefusedError, ConfigurationError)) as caught:
        open_connector(server.url("/proc/proxystore")).put([b"data"])
    assert "/proc" in str(caught.value)


def test_a_port_that_speaks_no_ssh(server: SFTPServer, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        url = server.url(tmp_path / "store", more="&connect_timeout=1").replace(
            f":{server.port}/", f":{other.server_port}/"
        )
        try:
            with pytest.raises((UnreachableError, RefusedError)):
                open_connector(url).put([b"data"])
        finally:
            other.shutdown()
            thread.join()


def test_a_server_that_nobody_knows(server: SFTPServer, tmp_path: Path) -> None:
    (tmp_path / "hosts").touch()
    url = f"sftp://tests@127.0.0.1:{server.port}{tmp_path}/store?identity={server.directory}/user"
    unknown = open_connector(f"{url}&known_hosts={tmp_path}/hosts")
    with pytest.raises(RefusedError, match="known_hosts"):
        unknown.put([b"data"])
    unknown.close()


def test_nobody_is_there(server: SFTPServer, tmp_path: Path) -> None:
    port = free_port()
    url = server.url(tmp_path / "store", more="&connect_timeout=0.5").replace(f":{server.port}/", f":{port}/")
    connector = open_connector(url)
    for use in (lambda: connector.put([b"data"]), lambda: connector.get(f"s.{'0' * 20}")):
        with pytest.raises(UnreachableError, match="Check host and port") as caught:
            use()
        assert caught.value.store == connector.url
    connector.close()


def test_the_server_stops_and_dies_and_comes_back(tmp_path: Path) -> None:
    with serving(tmp_path / "ssh") as server:
        connector = open_connector(server.url(tmp_path / "store", more="&deadline=0.5"))
        key = connector.put([b"data"])
        server.freeze()
        with pytest.raises(DeadlineError, match="deadline"):
            connector.get(key)
        server.thaw()
        assert connector.get(key) == b"data"
        server.kill()
        with pytest.raises(UnreachableError):
            connector.get(key)
        server.start()
        assert connector.get(key) == b"data"
        connector.close(clear=True)


def test_urls(server: SFTPServer) -> None:
    for url, words in (
        ("sftp://host", "directory"),
        ("sftp:///directory", "host"),
        ("sftp://me:word@host/directory", "password"),
        ("sftp://host/d?deadline=0", "deadline"),
        ("sftp://host/d?idnetity=x", "idnetity"),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            open_connector(url)
        assert "word@" not in str(caught.value)
    again = open_connector("sftp://me@host:2222/a%20b?identity=/k")
    assert again.url == "sftp://me@host:2222/a%20b?identity=/k"
    assert again.config()["store_dir"] == "/a b"
