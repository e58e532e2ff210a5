"""The Globus store on the unmodified SDK and a local fake of the service that really copies files."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from globus_transfer_fake import CODE, GlobusFake, guard, now_is, serving_globus
from waiting import until

from proxystore_core.connectors import globus_login
from proxystore_core.connectors.base import Connector, Key
from proxystore_core.connectors.globus import GlobusConnector, GlobusEndpoint
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    RefusedError,
    UnreachableError,
)
from proxystore_core.moving import listening
from proxystore_core.recipe import open_connector
from proxystore_core.store import Store
from proxystore_core.testing import ConnectorContract, in_new_process
from proxystore_integrations.cli import stores

HERE = "PROXYSTORE_GLOBUS_ENDPOINT"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusFake]:
    with serving_globus() as fake, guard(fake.url, tmp_path_factory.mktemp("home")):
        yield fake


@pytest.fixture(autouse=True)
def _no_leftovers(service: GlobusFake) -> Iterator[None]:
    yield
    service.release()
    service.fail = None
    service.answers.clear()


class Sites:
    """Some sites with a collection each, and connectors as processes at each of them have."""

    def __init__(self, service: GlobusFake, place: Path, count: int = 2, **options: object) -> None:
        self.service = service
        self.options = options
        self.roots = [place / f"site{number}-{secrets.token_hex(3)}" for number in range(count)]
        self.ids = [service.collection(root) for root in self.roots]
        self.endpoints = [
            GlobusEndpoint(name, "/store", str(root / "store"), rf"site{number}.*")
            for number, (name, root) in enumerate(zip(self.ids, self.roots, strict=True))
        ]
        self.opened: list[GlobusConnector] = []

    def at(self, index: int) -> GlobusConnector:
        """A connector of a process at one of the sites."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(HERE, self.ids[index])
            connector = GlobusConnector(self.endpoints, **self.options)  # type: ignore[arg-type]
            connector.sessions()  # finds out where it is
        self.opened.append(connector)
        return connector

    def files(self, index: int) -> list[str]:
        """Objects at one site."""
        return sorted(path.name for path in (self.roots[index] / "store").glob("*/[0-9a-f]*"))


@pytest.fixture
def sites(service: GlobusFake, tmp_path: Path) -> Iterator[Sites]:
    sites = Sites(service, tmp_path)
    yield sites
    for connector in sites.opened:
        connector.close()


class TestGlobusConnector(ConnectorContract):
    """At the site where objects are put."""

    @pytest.fixture(autouse=True)
    def _service(self, service: GlobusFake, monkeypatch: pytest.MonkeyPatch) -> None:
        self.service = service
        self.monkeypatch = monkeypatch

    def make(self) -> GlobusConnector:
        sites = Sites(self.service, self.place)
        endpoints = [GlobusEndpoint(each.uuid, "/store", each.local_path) for each in sites.endpoints]
        return GlobusConnector(endpoints)  # every host is at the first

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes] | None:
        return None  # keys name tasks, which files do not

    def test_its_own_keys_are_kept_as_everywhere(self, connector: Connector) -> None:
        assert isinstance(connector, GlobusConnector)
        assert isinstance(
            connector._own, OwnKeys
        )  # so the contract looks whether those of the gone are forgotten

    def corrupt(self, connector: Connector, key: Key) -> bool:
        assert isinstance(connector, GlobusConnector)
        session, name, *_ = key.split(".")
        path = Path(connector.endpoints[0].local_path, session, name)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return True


def test_nothing_here_reaches_the_real_service(service):
    with pytest.raises(AssertionError, match=r"wanted to reach transfer\.api\.globus\.org"):
        socket.getaddrinfo("transfer.api.globus.org", 443)
    assert os.environ["HTTPS_PROXY"] == "http://127.0.0.1:9"
    import globus_sdk

    assert globus_sdk.TransferClient(authorizer=globus_sdk.NullAuthorizer()).base_url.startswith(service.url)


def test_a_batch_is_one_transfer_to_each_other_site(service, tmp_path):
    sites = Sites(service, tmp_path, 3)
    before = service.count("POST /v0.10/transfer")
    here = sites.at(0)
    keys = here.put_batch([[b"object", str(number).encode()] for number in range(1000)])
    assert service.count("POST /v0.10/transfer") - before == 2
    assert len(set(keys)) == 1000
    for index in (0, 1, 2):
        there = sites.at(index)
        asked = service.count("GET /v0.10/task/")
        assert [bytes(data or b"") for data in there.get_batch(keys)] == [
            b"object%d" % number for number in range(1000)
        ]
        assert service.count("GET /v0.10/task/") - asked == (
            index != 0
        )  # one look at the task that brought them
        there.close()
    deletes = service.count("POST /v0.10/delete")
    here.evict_batch(keys)
    here.close()
    assert service.count("POST /v0.10/delete") - deletes == 2
    assert [sites.files(index) for index in (0, 1, 2)] == [[], [], []]


def test_get_waits_for_the_transfer(sites, service, caplog):
    service.hold = True
    here, there = sites.at(0), sites.at(1)
    with caplog.at_level("INFO", "proxystore_core.globus"):
        key = here.put([b"data"])
        assert there.exists(key)
        timer = threading.Timer(0.3, service.release)
        timer.start()
        told: list[tuple[int, str]] = []
        with listening(lambda nbytes, doing: told.append((nbytes, doing))):
            assert there.get(key) == b"data"
        timer.join()
    assert "0 of 1 files" in caplog.text
    assert sum(nbytes for nbytes, doing in told if doing == "transferring") == 4
    assert [nbytes for nbytes, doing in told if not doing] == [4]  # reading it here


def test_get_has_a_deadline(service, tmp_path):
    sites = Sites(service, tmp_path, deadline=0.1)
    service.hold = True
    key = sites.at(0).put([b"data"])
    with pytest.raises(DeadlineError, match="0 of 1 files"):
        sites.at(1).get(key)


FAILED = {
    "fatal": (
        {"status": "FAILED", "fatal_error": {"code": "PERMANENT", "description": "The disk is on fire"}},
        UnreachableError,
        "The disk is on fire",
    ),
    "quota": (
        {"status": "FAILED", "fatal_error": {"code": "QUOTA_EXCEEDED", "description": "No quota left"}},
        FullError,
        "No quota left",
    ),
    "expired": (
        {
            "status": "FAILED",
            "nice_status": "EXPIRED",
            "nice_status_details": "The task's deadline has passed",
        },
        UnreachableError,
        "deadline has passed",
    ),
    "credentials": (
        {"status": "INACTIVE", "nice_status": "CREDENTIALS", "nice_status_details": "Credentials expired"},
        RefusedError,
        "Credentials expired.*proxystore login globus",
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_a_failed_transfer_is_told_in_globus_own_words(sites, service, name):
    service.fail, kind, words = FAILED[name]
    key = sites.at(0).put([b"data"])
    with pytest.raises(kind, match=words) as caught:
        sites.at(1).get(key)
    assert caught.value.key == key
    assert sites.at(0).get(key) == b"data"  # nothing is lost where it was put


ERRORS = {
    "consent": (
        403,
        {
            "code": "ConsentRequired",
            "message": "Missing required data_access consent",
            "required_scopes": ["x[y]"],
        },
        RefusedError,
        r"Missing required data_access consent.*x\[y\].*login globus --collection",
    ),
    "denied": (403, {"code": "PermissionDenied", "message": "You may not"}, RefusedError, "You may not"),
    "wrong": (400, {"code": "ClientError.BadRequest", "message": "Bad path"}, RefusedError, "Bad path"),
    "unknown": (
        404,
        {"code": "EndpointNotFound", "message": "No such endpoint"},
        ConfigurationError,
        "No such",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_refused_transfer_leaves_nothing(sites, service, name):
    status, body, kind, words = ERRORS[name]
    service.answers.append(("/transfer", status, body))
    here = sites.at(0)
    with pytest.raises(kind, match=words):
        here.put_batch([[b"one"], [b"two"]])
    assert sites.files(0) == []


def test_a_service_that_stumbles_is_asked_again(sites, service):
    service.answers += [("/transfer", 503, {"code": "ServiceUnavailable", "message": "Come back"})]
    key = sites.at(0).put([b"data"])
    assert sites.at(1).get(key) == b"data"


def test_no_service(service, tmp_path, monkeypatch):
    sites = Sites(service, tmp_path)
    here = sites.at(0)
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_TRANSFER", "http://127.0.0.1:9")
    monkeypatch.setattr("proxystore_core.connectors.globus_tasks._TRIES", 0)
    with pytest.raises(UnreachableError, match="cannot be reached"):
        here.put([b"data"])
    assert sites.files(0) == []


def test_evicted_before_it_was_sent_is_sent_nowhere(sites, service):
    service.hold = True
    here, there = sites.at(0), sites.at(1)
    gone, kept = here.put_batch([[b"gone"], [b"kept"]])
    here.evict(gone)
    service.release()
    assert there.get(kept) == b"kept"
    assert there.get(gone) is None
    assert sites.files(1) == [kept.split(".")[1]]


@pytest.mark.parametrize("at", [0, 1])
def test_evicted_on_its_way(sites, service, at):
    service.hold = True
    here = sites.at(0)
    key = here.put([b"data"])
    path = next((sites.roots[0] / "store").glob("*/[0-9a-f]*"))
    evicting = sites.at(at)
    evicting.evict(key)
    if at == 0:
        path.write_bytes(b"data")  # Globus read it before it was evicted
    service.release()
    if at == 0:
        path.unlink()
    evicting.close()
    assert sites.files(1) == []
    assert sites.files(0) == []


def test_evictions_one_by_one_are_few_deletes(sites, service):
    here = sites.at(0)
    keys = here.put_batch([[b"data"]] * 50)
    before = service.count("POST /v0.10/delete")
    for key in keys:
        here.evict(key)
    until(lambda: not sites.files(1))
    assert service.count("POST /v0.10/delete") - before <= 2


def test_the_end_of_a_session_is_its_end_everywhere(sites, service):
    here, there = sites.at(0), sites.at(1)
    here.renew("one", 600)
    here.put([b"data"], session="one")
    there.put([b"result"], session="one")
    service.hold = True
    here.put([b"on its way"], session="one")
    kept = here.put([b"kept"], session="other")
    here.end("one")
    service.release()
    assert sites.files(0) == [kept.split(".")[1]]
    until(lambda: sites.files(1) == [kept.split(".")[1]])


def test_a_lease_counts_at_all_sites(sites):
    here, there = sites.at(0), sites.at(1)
    here.renew("one", 600)
    key = here.put([b"data"], session="one")
    assert there.sweep() == []  # has come without a lease: gets one
    lease = sites.roots[1] / "store" / "one" / ".lease"
    now_is(lease, -1)
    assert there.sweep() == []  # its client renews it at its own site
    assert there.sessions()["one"] > 500
    now_is(lease, -1)
    now_is(sites.roots[0] / "store" / "one" / ".lease", -1)
    assert there.sweep() == ["one"]
    assert there.get(key) is None
    assert here.get(key) is None


def test_what_came_without_its_lease_is_nobody_s_to_end(sites):
    """However long ago: `proxystore gc` would end it at all sites, its client's too."""
    here, there = sites.at(0), sites.at(1)
    here.renew("one", 600)
    key = here.put([b"data"], session="one")
    assert there.get(key) == b"data"
    now_is(sites.roots[1] / "store" / "one", -700)
    assert there.sessions() == {}
    assert there.sweep() == []
    assert there.get(key) == b"data"


def test_gc_asks_the_other_sites(sites, monkeypatch):
    here, there = sites.at(0), sites.at(1)
    keys = {}
    for session in ("live", "dead"):
        here.renew(session, 600)
        keys[session] = here.put([b"data"], session=session)
        there.put([b"result"], session=session)
    there.sweep()  # what came without a lease gets one
    for session in keys:
        now_is(sites.roots[1] / "store" / session / ".lease", -1)
    now_is(sites.roots[0] / "store" / "dead" / ".lease", -1)
    monkeypatch.setenv(HERE, sites.ids[1])
    monkeypatch.setattr(stores, "open_connector", lambda url: there)
    command = ["--store", there.url, "--json"]
    shown = CliRunner().invoke(stores.gc, [*command, "--dry-run"])
    assert json.loads(shown.stdout)["sessions"].keys() == {"live", "dead"}
    done = CliRunner().invoke(stores.gc, command)
    assert json.loads(done.stdout)["sessions"].keys() == {"dead"}
    assert "1 session not removed" in done.stderr
    assert "live" in done.stderr
    assert here.get(keys["live"]) == b"data"
    assert here.get(keys["dead"]) is None


def test_a_site_that_cannot_be_asked_keeps_its_sessions(sites, service):
    here, there = sites.at(0), sites.at(1)
    here.renew("one", 600)
    there.put([b"result"], session="one")
    now_is(sites.roots[1] / "store" / "one" / ".lease", -1)
    service.answers.append(("/ls", 403, {"code": "PermissionDenied", "message": "Not now"}))
    assert there.sweep() == []
    assert there.sessions()["one"] < 0


def test_equal_keys_hash_equal(sites):
    here = sites.at(0)
    key = here.put([b"data"])
    assert {key: 1}[str(key.encode(), "ascii")] == 1


def test_a_store_at_two_sites(sites, service):
    store = Store("globus-far", sites.at(0))
    proxy = store.proxy(list(range(10_000)))
    key = store.put_batch([["a"], ["b"]])
    elsewhere = sites.at(1)

    def at_the_other_site(url: str, keys: list[str]) -> list[object]:
        from proxystore_core.store import Store

        with Store.from_url(url, name="globus-far") as store:
            return store.get_batch(keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HERE, sites.ids[1])
        assert in_new_process(at_the_other_site, store.connector.url, key) == [["a"], ["b"]]
    assert sum(proxy) == sum(range(10_000))
    elsewhere.close()
    store.close()


# Where this process is, and as whom.


def test_hosts_find_their_endpoint(sites, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "site1-node7")
    connector = GlobusConnector(sites.endpoints)
    key = connector.put([b"data"])
    assert key.split(".")[3] == "1"
    connector.close()
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
    with pytest.raises(
        UnreachableError, match=r"laptop.*'site0\.\*', 'site1\.\*'.*PROXYSTORE_GLOBUS_ENDPOINT"
    ):
        GlobusConnector(sites.endpoints).put([b"data"])
    monkeypatch.setenv(HERE, str(uuid.uuid4()))
    with pytest.raises(ConfigurationError, match="no endpoint of this store"):
        GlobusConnector(sites.endpoints).put([b"data"])


ONE = "globus://6c54cade-bde5-45c1-bdea-f4bd71dba2cc"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("globus://", "1 to 16"),
        ("globus://nonsense?path1=/a", "no Globus endpoint"),
        (ONE, "lacks path1"),
        (f"{ONE}?path1=a", "absolute path"),
        (f"{ONE}?path1=/", "absolute path"),
        (f"{ONE}?path1=/a&path2=/b", "belongs to no endpoint"),
        (f"{ONE}?path1=/a&hosts1=(", "no regular expression"),
        (f"{ONE}?path1=/a&deadline=0", "deadline"),
        (f"{ONE}?path1=/a&encrypt=yes", "encrypt"),
        (f"{ONE}?path1=/a&access=x", "access"),
        (f"{ONE},{ONE[9:]}?path1=/a&path2=/b", "different endpoints"),
        (f"{ONE}/b?path1=/a", "more than endpoints"),
    ],
)
def test_wrong_urls(url, words):
    with pytest.raises(ConfigurationError, match=words):
        open_connector(url)


def test_options_survive_the_url(sites):
    access = [sites.ids[1]]
    connector = GlobusConnector(
        sites.endpoints, deadline=5.0, polling_interval=3, access=access, encrypt=True
    )
    assert GlobusConnector.from_url(connector.url).config() == connector.config()


def test_without_a_login(sites, monkeypatch):
    here = sites.at(0)
    monkeypatch.delenv("PROXYSTORE_GLOBUS_CLIENT_SECRET")
    with pytest.raises(RefusedError, match="proxystore login globus"):
        here.put([b"data"])
    monkeypatch.delenv("PROXYSTORE_GLOBUS_CLIENT_ID")
    with pytest.raises(ConfigurationError, match="--client-id"):
        sites.at(0).put([b"data"])


def test_a_service_account_logs_in_by_itself(service, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    before = service.count("POST /v2/oauth2/token")
    globus_login.log_in()
    assert service.count("POST /v2/oauth2/token") > before
    before = service.count("POST /v2/oauth2/token")
    assert not globus_login.log_in()
    assert service.count("POST /v2/oauth2/token") == before
    assert list(tmp_path.rglob("tokens.json"))


def test_a_client_id_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    client = os.environ["PROXYSTORE_GLOBUS_CLIENT_ID"]
    globus_login.log_in(client)
    monkeypatch.delenv("PROXYSTORE_GLOBUS_CLIENT_ID")
    assert globus_login.client_id() == client


def test_a_user_logs_in_once(service, sites, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PROXYSTORE_GLOBUS_CLIENT_SECRET")

    def login(*words: str, given: str = "") -> str:
        command = [sys.executable, "-m", "proxystore_integrations", "login", "globus", *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = login(given=f"{CODE}\n")
    assert f"{service.url}/v2/oauth2/authorize?client_id=" in shown
    assert "Logged in" in shown
    assert "already" in login()
    assert sites.at(1).get(sites.at(0).put([b"data"])) == b"data"  # with the tokens of the storage
    assert "Logged out" in login("--logout")
    with pytest.raises(RefusedError, match="proxystore login globus"):
        sites.at(0).put([b"data"])


def test_login_from_the_command_line(service, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = [sys.executable, "-m", "proxystore_integrations", "login", "globus"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "login at Globus" in done.stdout
    assert list(tmp_path.rglob("tokens.json"))
    monkeypatch.delenv("PROXYSTORE_GLOBUS_CLIENT_ID")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--client-id" in done.stderr


def test_the_sdk_is_loaded_for_its_scheme_only():
    script = "import sys, proxystore_core.recipe; assert 'globus_sdk' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
