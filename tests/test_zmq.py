"""Nodes that talk ZeroMQ: real servers, two hosts, killed processes, forged requests."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import zmq
from node_tasks import (
    FarContract,
    NodeContract,
    NodeTests,
    TwoHostsTests,
    server_of,
)
from zmq_tasks import FarZeroMQ

from proxystore_core.connectors.node_place import Place, name_of_session
from proxystore_core.connectors.node_protocol import (
    LONGEST_REQUEST,
    REPLY_HEAD,
    Operation,
    Reply,
    Request,
    Status,
)
from proxystore_core.connectors.shm import node
from proxystore_core.connectors.zmq import _USER, ZeroMQConnector, _password
from proxystore_core.errors import RefusedError, UnreachableError


class TestZeroMQConnector(NodeContract):  # type: ignore[misc]
    kind = ZeroMQConnector


class TestFromAfar(FarContract):  # type: ignore[misc]
    kind = FarZeroMQ
    options: ClassVar = {"curve": True}


class TestZeroMQNodes(NodeTests):  # type: ignore[misc]
    kind = ZeroMQConnector
    far = FarZeroMQ


def test_a_first_put_while_the_session_s_home_is_out_of_reach() -> None:
    connector = ZeroMQConnector(name=secrets.token_hex(4), deadline=2, connect_timeout=0.3)
    session = name_of_session(Place("192.0.2.1", 9), connector._mark)
    connector.put([b"data"], session=session)
    memory = connector._node.memory
    assert 500 < memory.sessions()[session] <= 600
    memory.end(session)
    connector.close()


# Messages of others.


class TestMessagesOfOthers:
    @pytest.fixture
    def near(self) -> Iterator[ZeroMQConnector]:
        connector = ZeroMQConnector(name=secrets.token_hex(4))
        yield connector
        connector.end("user")
        connector.close()

    @pytest.fixture
    def stranger(self, near: ZeroMQConnector) -> Iterator[Any]:
        """A bare socket of somebody without the secret, who has listened to what lets him in."""
        context: Any = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.linger = 0
        stranger.rcvtimeo = 10_000
        stranger.plain_username, stranger.plain_password = _USER, _password(near._key())
        stranger.connect(f"tcp://127.0.0.1:{near._node.process.enter().port}")
        yield stranger
        stranger.close()
        context.term()

    def test_random_bytes_and_pickles(self, near: ZeroMQConnector, stranger: Any, tmp_path: Path) -> None:
        key = near.put([b"data"])
        server = server_of(near)
        good = Request(Operation.EVICT, near.name, "user", key.rpartition(".")[2])
        witness = tmp_path / "ran"
        messages = [
            b"",
            os.urandom(50),
            os.urandom(1000),
            pickle.dumps(Opener(str(witness))),
            good.pack(os.urandom(32)),
            good.pack(near._key())[:-1],
            dataclasses.replace(good, length=2**63, offset=2**63).pack(os.urandom(32)),
        ]
        for message in messages:
            stranger.send(message)
            head = stranger.recv()[:REPLY_HEAD]
            assert Reply.parse(head, near._key(), bytes(16)).status is Status.REFUSED
        stranger.send_multipart([b"many", b"frames"])
        assert Reply.parse(stranger.recv()[:REPLY_HEAD], near._key(), bytes(16)).status is Status.REFUSED
        assert near.get(key) == b"data"
        assert server_of(near) == server
        assert not witness.exists()

    def test_a_message_without_an_end(self, near: ZeroMQConnector) -> None:
        """Its frames are kept until the last has come: nobody without the secret gets that far."""
        key = near.put([b"data"])

        def held() -> int:
            status = Path(f"/proc/{server_of(near)}/status").read_text()
            return int(status.partition("VmRSS:")[2].split()[0]) << 10

        before = held()
        kind = b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        word = b"\x04node\x05guess"
        for mechanism, command in ((b"NULL", b"\x05READY" + kind), (b"PLAIN", b"\x05HELLO" + word)):
            greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)
            place = "127.0.0.1", near._node.process.enter().port
            with socket.create_connection(place) as stranger:
                with contextlib.suppress(OSError):
                    stranger.settimeout(10)
                    stranger.sendall(greeting)
                    stranger.recv(64, socket.MSG_WAITALL)
                    stranger.sendall(bytes([4, len(command)]) + command)
                    for _ in range(100):
                        stranger.sendall(b"\x03" + (1 << 20).to_bytes(8, "big") + bytes(1 << 20))
                assert held() - before < 50 << 20
        afar = FarZeroMQ(name=near.name)
        assert afar.get(key) == b"data"
        afar.close()

    def test_a_message_that_is_too_long(self, near: ZeroMQConnector, stranger: Any) -> None:
        key = near.put([b"data"])
        server = server_of(near)
        stranger.rcvtimeo = 300
        stranger.send(bytes(LONGEST_REQUEST + 1))
        with pytest.raises(zmq.Again):  # the connection is gone
            stranger.recv()
        afar = FarZeroMQ(name=near.name)
        assert afar.get(key) == b"data"
        assert server_of(near) == server
        afar.close()

    def test_what_is_no_zeromq(self, near: ZeroMQConnector) -> None:
        key = near.put([b"data"])
        port = near._node.process.enter().port
        for text in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(10_000)):
            with socket.create_connection(("127.0.0.1", port)) as stranger, contextlib.suppress(OSError):
                stranger.sendall(text)
                stranger.settimeout(0.3)
                stranger.recv(100)
        afar = FarZeroMQ(name=near.name)
        assert afar.get(key) == b"data"
        afar.close()

    def test_a_server_that_is_no_node(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            afar = FarZeroMQ(deadline=2, connect_timeout=0.5)
            place = Place(node(), other.getsockname()[1])
            with pytest.raises((UnreachableError, RefusedError), match=str(place)):
                afar.get(f"{place}.user.{'0' * 20}")
            afar.close()

    def test_a_curve_server_and_a_client_without(self) -> None:
        near = ZeroMQConnector(name=secrets.token_hex(4), curve=True, secret="a secret of 16 characters")
        plain = FarZeroMQ(name=near.name, secret="a secret of 16 characters", deadline=3)
        key = near.put([b"data"])
        with pytest.raises(RefusedError, match="no handshake"):
            plain.get(key)
        near.evict(key)
        near.close()
        plain.close()

    def test_a_wrong_curve_key(self) -> None:
        near = ZeroMQConnector(name=secrets.token_hex(4), curve=True, secret="a secret of 16 characters")
        other = FarZeroMQ(name=near.name, curve=True, secret="another of 16 characters", deadline=3)
        key = near.put([b"data"])
        with pytest.raises(RefusedError, match="another secret"):
            other.get(key)
        near.evict(key)
        near.close()
        other.close()


class Opener:
    """What runs when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


class TestTwoHosts(TwoHostsTests):  # type: ignore[misc]
    scheme = "zmq"


# Dask.


def test_dask_with_nannies() -> None:
    import distributed
    import numpy as np

    from proxystore_integrations.dask import Client

    array = np.arange(1_000_000)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster, store="zmq://dask", results="always") as client:
            doubled = client.submit(np.multiply, array, 2)
            assert client.submit(np.sum, doubled).result() == array.sum() * 2
            assert np.array_equal(doubled.result(), array * 2)
            session = client._link.session
            assert session in ZeroMQConnector(name="dask").sessions()
    left = ZeroMQConnector(name="dask")
    assert left.sessions() == {}
    left.close()
