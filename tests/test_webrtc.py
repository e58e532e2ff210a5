"""Stores at endpoints: real daemons on loopback, real data channels, and what peers and relays do wrong."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import stat
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import endpoint_sites
import pytest
from endpoint_sites import RelayProcess, Sites, at
from hypothesis import given
from hypothesis import strategies as st
from mounts import mount_tmpfs, own_mounts
from waiting import until

from proxystore_core.connectors import shm
from proxystore_core.connectors.base import Connector, Key
from proxystore_core.connectors.webrtc import EndpointConnector
from proxystore_core.endpoint import daemon
from proxystore_core.endpoint.settings import DIRECTORY, EndpointSettings, relay_token
from proxystore_core.endpoint.wire import CHUNK, MOST, Answer, Operation, Request, Status, WireError
from proxystore_core.errors import (
    ConfigurationError,
    FullError,
    GoneError,
    RefusedError,
    UnreachableError,
)
from proxystore_core.recipe import open_connector
from proxystore_core.store import Store
from proxystore_core.testing import ConnectorContract, in_new_process

PROXYSTORE = [sys.executable, "-m", "proxystore_integrations"]


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    with endpoint_sites.sites() as sites:
        yield sites


@pytest.fixture
def here(sites: Sites) -> Iterator[EndpointConnector]:
    with at("here"):
        connector = EndpointConnector()
        connector.sessions()
    yield connector
    with at("here"):
        connector.close(clear=True)


@pytest.fixture
def there(sites: Sites) -> Iterator[EndpointConnector]:
    with at("there"):
        connector = EndpointConnector()
        connector.sessions()
    yield connector
    with at("there"):
        connector.close(clear=True)


class TestEndpointConnector(ConnectorContract):
    """Beside an endpoint, in its shared memory."""

    direct = True

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _pool(cls) -> Iterator[None]:
        # Two endpoints that do not know each other: to one, the other's store is another store.
        with endpoint_sites.sites(relay="") as sites:
            cls.pool = sites
            yield

    def make(self) -> EndpointConnector:
        made = list(self.pool.endpoints.values())[len(self._made) % 2]
        return EndpointConnector([made.id], direct=self.direct)

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        assert isinstance(connector, EndpointConnector)
        (name,) = connector._endpoints
        (settings,) = [each for each in self.pool.endpoints.values() if each.id == name]
        found = {}
        folder = Path("/dev/shm") / f"proxystore-{os.geteuid()}-{settings.shared}"
        for path in folder.glob("*/[0-9a-f]*"):
            with contextlib.suppress(FileNotFoundError):
                found[f"{name}.{path.parent.name}.{path.name}"] = path.read_bytes()
        return found

    def corrupt(self, connector: Connector, key: Key) -> bool:
        assert isinstance(connector, EndpointConnector)
        (settings,) = [each for each in self.pool.endpoints.values() if key.startswith(each.id)]
        folder = Path("/dev/shm") / f"proxystore-{os.geteuid()}-{settings.shared}"
        path = folder.joinpath(*key.split(".")[1:])
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return True


class TestThroughTheSocket(TestEndpointConnector):
    """From a container that has the endpoint's socket, but not its shared memory."""

    direct = False


# Two sites.


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 1_500_000])
def test_an_object_of_the_other_site(here, there, size):
    data = os.urandom(size)
    key = here.put([data])
    assert not there.holds(key)
    assert there.exists(key)
    assert there.get(key) == data
    there.evict(key)
    there.evict(key)
    assert not here.exists(key)
    assert not there.exists(key)
    assert there.get(key) is None


def test_both_ways_at_the_same_time(here, there):
    data = [os.urandom(300_000 + number) for number in range(3)]
    ours, theirs = [here.put([each]) for each in data], [there.put([each]) for each in data]
    with ThreadPoolExecutor(6) as executor:
        got = [executor.submit(there.get, key) for key in ours]
        got += [executor.submit(here.get, key) for key in theirs]
    assert [future.result() for future in got] == data * 2


def test_a_store_at_two_sites(sites, here):
    with Store("far-endpoints", here) as store:
        proxies = store.proxy_batch([list(range(50_000)), "text", b"x" * 1_200_000])

        def elsewhere(proxies: list[Any]) -> list[Any]:
            from proxystore_core.proxy import extract

            return [len(extract(proxy)) for proxy in proxies]

        with at("there"):
            assert in_new_process(elsewhere, proxies) == [50_000, 4, 1_200_000]


def test_a_session_lives_and_ends_at_both_sites(here, there):
    session = secrets.token_hex(4)
    here.ping(there.health()["id"])
    here.renew(session, 600)
    result = there.put([b"result of a task"], session=session)
    there.renew(session, 5)
    here.renew(session, 600)
    until(lambda: there.sessions()[session] > 500)
    assert here.extend(session, 1000)
    until(lambda: there.sessions()[session] > 900)
    assert here.end(session) == 0
    until(lambda: not there.exists(result))
    assert session not in there.sessions()
    assert not here.extend(session, 600)
    assert not there.extend(session, 600)


def test_a_lease_does_not_travel_where_nobody_stored(here, there):
    session = secrets.token_hex(4)
    here.ping(there.health()["id"])
    here.renew(session, 600)
    assert here.extend(session, 600)
    here.end(session)
    assert session not in there.sessions()


@pytest.mark.parametrize("size", [0, 10, CHUNK, 1_000_000])
def test_an_object_that_the_other_site_sets(here, there, size):
    key, data = here.reserve(), os.urandom(size)
    assert there.get(key) is None
    assert not there.wait(key, 0)
    with ThreadPoolExecutor(2) as executor:
        waits = [executor.submit(site.wait, key, 30) for site in (here, there)]
        there.set(key, [data[:7], data[7:]])
        assert all(wait.result() for wait in waits)
    assert here.get(key) == there.get(key) == data
    with pytest.raises(RefusedError, match="nothing is reserved"):
        there.set(key, [data])
    there.evict(key)
    with pytest.raises(GoneError, match="will not come"):
        there.wait(key, 30)


def test_a_batch_from_the_other_site(sites, here, there):
    items = [os.urandom(size) for size in (*range(60), CHUNK, CHUNK + 1, 300_000)] * 10
    keys = here.put_batch([[data] for data in items], session="batch")
    mine = there.put([b"mine"], session="batch")
    gone = here.put([b"gone"])
    here.evict(gone)
    found = there.get_batch([*keys, mine, gone])
    assert found == [*items, b"mine", None]
    there.evict_batch([*keys, mine, keys[0]])
    assert here.get_batch(keys) == [None] * len(keys)
    with pytest.raises(UnreachableError):
        there.get_batch([mine, "0" * 32 + mine[32:]])
    with pytest.raises(RefusedError):
        there.get_batch(["../../etc/passwd"])


@pytest.mark.parametrize("connected", [False, True])
def test_no_such_endpoint(here, there, connected):
    if connected:
        here.ping(there.health()["id"])
    key = f"{'0' * 32}.user.0123456789abcdef0123"
    for method in (here.get, here.exists, here.evict):
        with pytest.raises(UnreachableError, match=r"no endpoint 0000.* is registered"):
            method(key)


def test_pages(sites, here):
    port = here.health()["pages"]

    def page(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            content: bytes = answer.read()
        return content

    assert json.loads(page("/health"))["id"] == sites.endpoints["here"].id
    assert b"proxystore_endpoint_relay_connected 1\n" in page("/metrics")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        page("/secret")


# The door.


def test_only_its_user_gets_in(sites):
    settings = sites.endpoints["here"]
    assert stat.S_IMODE(os.stat(settings.directory).st_mode) == 0o700
    for name in ("socket", "token", "secret", "lock", "log"):
        assert stat.S_IMODE(os.stat(settings.directory / name).st_mode) == 0o600, name
    os.chmod(settings.directory / "token", 0o644)
    try:
        with pytest.raises(RefusedError, match="chmod 600"), at("here"):
            EndpointConnector().sessions()
    finally:
        os.chmod(settings.directory / "token", 0o600)


def test_a_wrong_token(sites, monkeypatch):
    monkeypatch.setattr(EndpointSettings, "token", lambda self: "wrong")
    with pytest.raises(RefusedError, match="stale"), at("here"):
        EndpointConnector().sessions()


def test_a_restart_makes_the_token_stale_and_keeps_the_objects(sites):
    settings = sites.add("restarted")
    with at("restarted"):
        connector = EndpointConnector(direct=False)
        before, key = settings.token(), connector.put([b"kept"])
        assert daemon.stop(settings)
        with pytest.raises(UnreachableError, match="proxystore endpoint start restarted"):
            connector.get(key)
        daemon.start(settings)
        assert settings.token() != before
        assert connector.get(key) == b"kept"
        with pytest.raises(ConfigurationError, match="runs already"):
            daemon.start(settings)
        sites.kill("restarted")
        with pytest.raises(UnreachableError, match="does not answer"):
            EndpointConnector().put([b"lost"])
        daemon.start(settings)
        assert connector.get(key) == b"kept"
        connector.close(clear=True)


HELLO = Request(Operation.SESSIONS).encode()
JUNK = {
    "nothing": b"",
    "half": struct.pack("!I", 100) + b"x",
    "long": struct.pack("!I", MOST + 1) + b"x" * 100,
    "pickle": struct.pack("!I", 20) + b"\x80\x05cos\nsystem\n" + b"x" * 9,
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "no hello": struct.pack("!I", len(HELLO)) + HELLO,
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_at_the_door(sites, here, name):
    with sites.endpoints["here"].connect(5) as link:
        link.sendall(JUNK[name])
        link.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := link.recv(1000):
                answer += data
    assert b"PA" not in answer or b"token" in answer
    assert here.health()["status"] == "ok"


def test_too_much_on_its_way(sites):
    settings = sites.add("narrow", most=1_000_000)
    with at("narrow"):
        connector = EndpointConnector(direct=False)
        with pytest.raises(FullError, match="2000000 bytes are more"):
            connector.put([bytes(2_000_000)])
        data = os.urandom(600_000)
        with ThreadPoolExecutor(4) as executor:  # they wait for each other
            keys = list(executor.map(lambda _: connector.put([data]), range(4)))
        assert [connector.get(key) == data for key in keys] == [True] * 4
        connector.close(clear=True)
    daemon.stop(settings)


def test_a_full_spill_directory(sites, here, tmp_path):
    key = here.put([b"kept"])

    def put_too_much(key: str, directory: str) -> bool:
        mount_tmpfs(directory, "size=1m,mode=0700")
        connector = EndpointConnector()
        connector.sessions()
        shm._LEFT_TO_OTHERS = 1.0  # no room in shared memory
        memory = connector._at_home().memory
        memory._stock.limit, memory._spill_dir = 0, directory
        import warnings

        warnings.simplefilter("ignore")
        spilled = connector.put([b"spilled"])
        try:
            connector.put([bytes(2_000_000)])
        except FullError as error:
            full = "webrtc://" in str(error)
        good = [connector.get(key), connector.get(spilled)] == [b"kept", b"spilled"]
        connector.evict(spilled)
        return full and good

    with at("here"):
        assert in_new_process(put_too_much, key, str(tmp_path), command=own_mounts())


def test_no_endpoint(tmp_path, monkeypatch):
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    with pytest.raises(UnreachableError, match="proxystore endpoint configure"):
        EndpointConnector().put([b"data"])
    EndpointSettings.create("one")
    with pytest.raises(UnreachableError, match="proxystore endpoint start one"):
        EndpointConnector().put([b"data"])
    EndpointSettings.create("two")
    with pytest.raises(UnreachableError, match=r"several endpoints.*one, two"):
        EndpointConnector().put([b"data"])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("webrtc://nonsense", "no endpoint's id"),
        ("webrtc://?deadline=0", "deadline"),
        ("webrtc://?direct=yes", "direct"),
        (f"webrtc://{'0' * 32}/path", "more than endpoints"),
    ],
)
def test_wrong_urls(url, words):
    with pytest.raises(ConfigurationError, match=words):
        open_connector(url)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("relay = 'http://x'", "expected wss://"),
        ("colour = 1", "unknown setting 'colour'"),
        ("id = 'x'", "32 hexadecimal digits"),
        ("id = ", "no TOML"),
        ("addresses = '10.0.0.1'", "addresses of endpoint 'one' is '10.0.0.1': expected a list"),
        ("addresses = ['eth0']", "IP addresses"),
        ("most = '1 GB'", "number of bytes"),
        ("pages = '80'", "expected a port"),
        ("relay = 5", "expected wss://"),
        ("spill = 5", "endpoint.toml: spill"),
    ],
)
def test_wrong_settings(tmp_path, monkeypatch, text, words):
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    path = EndpointSettings.create("one").directory / "endpoint.toml"
    kept = "" if text.startswith("id") else path.read_text().splitlines()[0]
    path.write_text(f"{kept}\n{text}\n")
    with pytest.raises(ConfigurationError, match=words):
        EndpointSettings.load("one")


# Relays that come and go, peers that die.


def test_relay_down_at_the_start_and_later(sites):
    tokens = {"group": relay_token(sites.secret)}
    relay = RelayProcess(sites.endpoints["here"].directory, tokens)
    relay.stop()
    try:
        for name in ("early", "bird"):
            sites.add(name, relay=relay.url)
        with at("early"):
            early = EndpointConnector()
            key = early.put([b"local"])
            assert early.get(key) == b"local"
        with at("bird"):
            bird = EndpointConnector()
            with pytest.raises(UnreachableError, match=f"no introduction.*{relay.url}.*cannot be reached"):
                bird.get(key)
        relay.start()
        until(lambda: "connected" == bird.health()["relay"] == early.health()["relay"])
        assert bird.get(key) == b"local"
        relay.stop(signal.SIGKILL)
        until(lambda: bird.health()["relay"] != "connected")
        other = early.put([b"without a relay"])
        assert bird.get(other) == b"without a relay"  # who is connected does without
        early.close(clear=True)
        bird.close()
    finally:
        relay.stop()


def test_a_killed_peer(sites, here):
    settings = sites.add("mortal")
    with at("mortal"):
        mortal = EndpointConnector()
        key = mortal.put([os.urandom(100_000)])
    until(lambda: mortal.health()["relay"] == "connected")
    data = here.get(key)
    assert data == mortal.get(key)
    sites.kill("mortal")
    with pytest.raises(UnreachableError):
        here.get(key)
    daemon.start(settings)
    until(lambda: mortal.health()["relay"] == "connected")
    assert here.get(key) == data  # what was acknowledged is there
    mortal.close(clear=True)


def test_another_group_is_not_introduced(sites, here):
    secret = secrets.token_urlsafe(32)
    settings = sites.add("stranger", secret=secret)
    with at("stranger"):
        stranger = EndpointConnector()
        assert "does not know the token" in str(until_said(stranger))
        with pytest.raises(UnreachableError, match="does not know the token"):
            stranger.get(here.put([b"not yours"]))
    assert settings.secret() == secret


def until_said(connector: EndpointConnector) -> str:
    until(lambda: "relay" in connector.health()["relay"])
    found: str = connector.health()["relay"]
    return found


# The command line.


def test_from_the_command_line(sites, here, tmp_path):
    def run(*words: str, **variables: str) -> str:
        done = subprocess.run(
            [*PROXYSTORE, "endpoint", *words],
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ["--relay", sites.settings["relay"], "--address", "127.0.0.1"]
    assert "has the id" in run("configure", "typed", *options, PROXYSTORE_ENDPOINT_SECRET=sites.secret)
    try:
        assert "stopped" in run("list")
        assert "runs as process" in run("start", "typed")
        assert "typed" in run("list")
        with at("typed"):
            until(lambda: EndpointConnector().health()["relay"] == "connected")
        peer = sites.endpoints["here"].id
        assert f"{peer}: connected in" in run("test", "typed", "--to", peer)
        assert run("token", "typed") == f"typed {relay_token(sites.secret)}\n"
        assert run("token", "typed", "--secret").strip() == sites.secret
    finally:
        assert "has stopped" in run("stop", "typed", "--clear")
    assert "did not run" in run("stop", "typed")
    done = subprocess.run(
        [*PROXYSTORE, "endpoint", "start", "nobody"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "configure nobody" in done.stderr


# The wire.

requests = st.builds(
    Request,
    operation=st.sampled_from(Operation),
    number=st.integers(0, 2**32 - 1),
    key=st.text(st.characters(codec="ascii"), max_size=200),
    session=st.text(st.characters(codec="ascii"), max_size=64),
    offset=st.integers(0, 2**44),
    length=st.integers(0, CHUNK),
    seconds=st.floats(0, 1e9),
    data=st.binary(max_size=500),
)
answers = st.builds(
    Answer,
    status=st.sampled_from(Status),
    number=st.integers(0, 2**32 - 1),
    size=st.integers(0, 2**44),
    offset=st.integers(0, 2**44),
    data=st.binary(max_size=500),
)


@given(requests)
def test_requests_survive_the_wire(request_):
    assert Request.decode(request_.encode()) == request_


@given(answers)
def test_answers_survive_the_wire(answer):
    assert Answer.decode(answer.encode()) == answer


@given(st.one_of(requests, answers), st.data())
def test_any_bytes_are_a_message_or_a_typed_error(message, data):
    text = bytearray(message.encode())
    for _ in range(data.draw(st.integers(0, 5))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.integers(0, 255))
    text = text[: data.draw(st.integers(0, len(text)))] + data.draw(st.binary(max_size=50))
    for kind in (Request, Answer):
        with contextlib.suppress(WireError):
            found = kind.decode(bytes(text))
            assert kind.decode(found.encode()) == found


def test_messages_are_bounded():
    for kind in (Request, Answer):
        with pytest.raises(WireError, match="at most"):
            kind.decode(bytes(MOST + 1))
