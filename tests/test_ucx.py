"""Nodes that talk UCX: real servers, two hosts, killed processes, forged requests."""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import struct

import pytest
from node_tasks import FarContract, NodeContract, NodeTests, TwoHostsTests, server_of
from ucx_tasks import FarUCX

from proxystore_core.connectors import ucx
from proxystore_core.connectors.node_place import Place
from proxystore_core.connectors.node_protocol import (
    LONGEST_REQUEST,
    REPLY_HEAD,
    Operation,
    Reply,
    Request,
    Status,
)
from proxystore_core.connectors.shm import node
from proxystore_core.connectors.ucx import UCXConnector
from proxystore_core.errors import RefusedError, UnreachableError
from proxystore_core.testing_processes import in_fork


class TestUCXConnector(NodeContract):  # type: ignore[misc]
    kind = UCXConnector


class TestFromAfar(FarContract):  # type: ignore[misc]
    kind = FarUCX


class TestUCXNodes(NodeTests):  # type: ignore[misc]
    kind = UCXConnector
    far = FarUCX


class TestTwoHosts(TwoHostsTests):  # type: ignore[misc]
    scheme = "ucx"


def test_messages_of_others() -> None:
    near, afar = UCXConnector(name=secrets.token_hex(4)), None
    key = near.put([b"data"])
    server, port = server_of(near), near._node.process.enter().port
    good = Request(Operation.EVICT, near.name, "user", key.rpartition(".")[2])
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


def test_a_fork_while_a_thread_opens_a_connection() -> None:
    near = UCXConnector(name=secrets.token_hex(4))
    key, afar = near.put([b"data" * (64 << 10)]), FarUCX(name=near.name)
    with ucx._lock:  # as that thread does while UCX makes its worker
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
