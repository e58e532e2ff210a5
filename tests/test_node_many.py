"""Nodes of a big cluster: more connections, waiters and uploads than a process has room for."""

from __future__ import annotations

import os
import resource
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from node_tasks import server_of
from ucx_tasks import FarUCX
from zmq_tasks import FarZeroMQ

from proxystore_core.connectors import node_client
from proxystore_core.connectors.node_place import LOOPBACK, Place
from proxystore_core.connectors.ucx import UCXConnector
from proxystore_core.connectors.zmq import ZeroMQConnector

KINDS = [(ZeroMQConnector, FarZeroMQ), (UCXConnector, FarUCX)]


@pytest.fixture(params=KINDS, ids=["zmq", "ucx"])
def kinds(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def near(kinds: Any) -> Iterator[Any]:
    connector = kinds[0](name=secrets.token_hex(4))
    yield connector
    connector.end("user")
    connector.close()


@pytest.fixture
def afar(kinds: Any, near: Any) -> Iterator[Any]:
    connector = kinds[1](name=near.name, deadline=20)
    yield connector
    connector.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_more_nodes_than_connections_are_kept(near: Any, afar: Any) -> None:
    """A client of ZeroMQ has a thousand sockets, three of which each connection takes."""
    key = near.put([b"data"])
    port, name = near._node.process.enter().port, key.rpartition(".")[2]
    nodes = [Place(f"127.0.{number >> 8}.{number & 255}", port) for number in range(2, 402)]

    def connect(address: str, *where: Any) -> Any:
        """This host's node is each of them."""
        return afar._connect(LOOPBACK, *where)

    client = node_client.NodeClient(afar.url, connect, afar._key, 20.0, 5.0)
    for place in nodes * 2:
        assert client.fetch(place, near._node.memory.name, "user", name) == b"data"
        assert sum(map(len, client._idle.values())) <= node_client._KEPT
    assert client._idle[os.getpid(), nodes[-1]]
    assert not client._idle[os.getpid(), nodes[0]]
    client.close()


def test_more_connections_than_whoever_starts_a_server_may_have(near: Any, afar: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = descriptors() + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        key = near.put([b"x" * 3_000_000])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    assert resource.prlimit(server_of(near), resource.RLIMIT_NOFILE) == (hard, hard)
    port, until = near._node.process.enter().port, time.monotonic() + 20
    others = [afar._connect(LOOPBACK, port, until) for _ in range(few)]
    try:
        assert afar.get(key) == b"x" * 3_000_000
    finally:
        for other in others:
            other.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_waiters_than_a_server_has_threads_for(near: Any, afar: Any) -> None:
    key = near.reserve()
    with ThreadPoolExecutor(280) as executor:
        waiting = [executor.submit(afar.wait, key, 60) for _ in range(280)]
        time.sleep(1)
        near.set(key, [b"data"])
        assert all(future.result() for future in waiting)


def test_who_is_not_let_wait_asks_again(monkeypatch: pytest.MonkeyPatch, near: Any, afar: Any) -> None:
    key = near.reserve()
    asked: list[float] = []
    ask = afar._client.ask

    def count(place: Place, request: Any, *, seconds: float = 0.0) -> Any:
        asked.append(seconds)
        request.seconds = 0.0  # as of a server that has no room for one more
        return ask(place, request)

    monkeypatch.setattr(afar._client, "ask", count)
    assert not afar.wait(key, 0.5)
    assert 3 < len(asked) < 12


def test_as_many_uploads_as_workers(near: Any, afar: Any) -> None:
    keys = [near.reserve() for _ in range(90)]
    together = threading.Barrier(90)

    def upload(key: str) -> None:
        together.wait()
        afar.set(key, [b"x" * 4_000_000])

    with ThreadPoolExecutor(90) as executor:
        list(executor.map(upload, keys))
    assert all(near.get(key) == b"x" * 4_000_000 for key in keys)
