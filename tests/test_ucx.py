"""Nodes that talk UCX: real servers, two hosts, killed processes, forged requests."""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from listening import listening
from node_tasks import FarContract, NodeContract, NodeTests, TwoHostsTests, server_of
from ucx_tasks import FarUCX

from proxystore_core.connectors import ucx_library
from proxystore_core.connectors.node_place import LOOPBACK, SECRET, Place
from proxystore_core.connectors.node_protocol import (
    CHUNK,
    LONGEST_REQUEST,
    REPLY_HEAD,
    Operation,
    Reply,
    Request,
    Status,
)
from proxystore_core.connectors.shm import node
from proxystore_core.connectors.ucx import Channel, UCXConnector
from proxystore_core.errors import DeadlineError, RefusedError, UnreachableError
from proxystore_core.testing_processes import in_fork


class TestUCXConnector(NodeContract):  # type: ignore[misc]
    kind = UCXConnector


class TestFromAfar(FarContract):  # type: ignore[misc]
    kind = FarUCX


class TestUCXNodes(NodeTests):  # type: ignore[misc]
    kind = UCXConnector
    far = FarUCX


class OverUCX:
    """Has UCX move the data of a class's tests, which without devices for RDMA it does when it is told to."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _told(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UCX_TLS", "tcp,sm")
            patch.setenv(SECRET, secrets.token_hex(32))  # a node, and a server, of its own
            yield

    @pytest.fixture
    def moved_by_ucx(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Bytes of each piece of data that comes by UCX."""
        found: list[int] = []
        receive = Channel._receive

        def watched(channel: Channel, view: memoryview, *others: Any) -> None:
            receive(channel, view, *others)
            found.append(view.nbytes)

        monkeypatch.setattr(Channel, "_receive", watched)
        return found


class TestFromAfarOverUCX(OverUCX, FarContract):  # type: ignore[misc]
    kind = FarUCX

    def test_big_objects_come_by_ucx(self, moved_by_ucx: list[int]) -> None:
        connector = self.make()
        data = os.urandom(3 * CHUNK + 5)
        assert connector.get(connector.put([data])) == data
        assert moved_by_ucx == [CHUNK, CHUNK, CHUNK]
        connector.close(clear=True)

    def test_greetings_that_ucx_cannot_read(self) -> None:
        """UCX ends a process over an address of another version; who has the secret may well run one."""
        connector = self.make()
        connector.put([b"data"])
        server, port = server_of(connector), connector._node.process.enter().port
        mine = bytes(memoryview(ucx_library.new_worker(LOOPBACK).address))
        bodies = [b"", b"no address", os.urandom(200), mine[:1], bytes([mine[0] ^ 1]) + mine[1:]]
        for version, body in [(ucx_library.VERSION, body) for body in bodies] + [("1.0.0", mine), ("", mine)]:
            greeting = Request(Operation.GREET, text=version, body=body)
            message = greeting.pack(connector._key()) + body
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.settimeout(10)
                peer.sendall(struct.pack("!I", len(message)) + message)
                head = peer.recv(REPLY_HEAD, socket.MSG_WAITALL)
            reply = Reply.parse(head, connector._key(), greeting.nonce)
            assert (reply.status, reply.size) == (Status.DONE, 0), "data come by TCP"
        assert server_of(connector) == server
        connector.close(clear=True)


class TestUCXNodesOverUCX(OverUCX, NodeTests):  # type: ignore[misc]
    kind = UCXConnector
    far = FarUCX


class TestTwoHosts(TwoHostsTests):  # type: ignore[misc]
    scheme = "ucx"


def test_messages_of_others() -> None:
    near, afar = UCXConnector(name=secrets.token_hex(4)), None
    key = near.put([b"data"])
    server, port = server_of(near), near._node.process.enter().port
    good = Request(Operation.EVICT, near._node.memory.name, "user", key.rpartition(".")[2])
    greeting = Request(Operation.GREET, body=b"no address of a worker")
    framed = [
        os.urandom(100),
        pickle.dumps([1, 2, 3]),
        good.pack(near._key()),  # without a greeting
        good.pack(os.urandom(32)),
        greeting.pack(os.urandom(32)) + bytes(greeting.body),
    ]
    messages = [struct.pack("!I", len(message)) + message for message in framed]
    long = struct.pack("!I", LONGEST_REQUEST)  # for a greeting
    for message in [*messages, long, struct.pack("!I", LONGEST_REQUEST + 1), struct.pack("!I", 2**32 - 1)]:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.settimeout(10)
            stranger.sendall(message)
            answer = stranger.recv(1000)
            if len(answer) == REPLY_HEAD:
                assert Reply.parse(answer, near._key(), bytes(16)).status is Status.REFUSED
                answer = stranger.recv(1000)
            assert answer == b""
    afar = FarUCX(name=near.name)
    assert afar.get(key) == b"data"
    assert server_of(near) == server
    afar.evict(key)
    afar.close()
    near.close()


def test_nothing_else_listens() -> None:
    """UCX's own port lets in anybody."""
    connector = UCXConnector(name=secrets.token_hex(4))
    port = connector._node.process.enter().port
    assert listening(server_of(connector)) == [(LOOPBACK, port)]
    connector.close()


def test_a_fork_while_a_thread_opens_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp,sm")
    near = UCXConnector(name=secrets.token_hex(4))
    key, afar = near.put([b"data" * (64 << 10)]), FarUCX(name=near.name)
    with ucx_library._lock:  # as that thread does while UCX makes its worker
        assert in_fork(lambda: afar.get(key)) == b"data" * (64 << 10)
    afar.evict(key)
    afar.close()
    near.close()


def test_a_server_that_is_no_node() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        afar = FarUCX(deadline=2, connect_timeout=0.5)
        place = Place(node(), other.getsockname()[1])
        with pytest.raises((UnreachableError, RefusedError), match=str(place)):
            afar.get(f"{place}.user.{'0' * 20}")
        afar.close()


def test_a_server_that_trickles() -> None:
    """What it says in time is never enough: the deadline holds all the same."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        channel = Channel(socket.create_connection(door.getsockname()))
        wire, _ = door.accept()
    with wire:
        wire.sendall(b"1")
        with pytest.raises(DeadlineError):
            channel.receive(None, time.monotonic() - 1)
        channel.close()
