"""Node servers, of each transport and without any: for those who have the secret, and others."""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import strategies as st

from fuzzers.inputs import altered, names, u64
from fuzzers.watching import Check, Looking, Watched, tell
from proxystore_core.connectors.node_place import LOOPBACK, SECRET
from proxystore_core.connectors.node_protocol import (
    LONGEST_REQUEST,
    REPLY_HEAD,
    Guard,
    Operation,
    Reply,
    Request,
)

__all__ = ["of_nodes", "of_ucx", "of_ucx_told", "of_zmq"]

KEY = b"k" * 32
SHARED = Path("/dev/shm")

requests = st.builds(
    Request,
    st.sampled_from(Operation).filter(lambda one: one is not Operation.WAIT),
    names,
    names,
    names,
    names,
    u64,
    u64,
    st.floats(),
    st.binary(max_size=2000),
)


def packed(request: Request, key: bytes) -> bytes:
    return request.pack(key) + bytes(request.body)


def signed(key: bytes) -> st.SearchStrategy[bytes]:
    """Requests of one who has the secret, of one who has another, and no requests."""
    return (
        requests.map(lambda request: packed(request, key))
        | requests.map(lambda request: packed(request, KEY))
        | st.binary(max_size=1500)
        | requests.flatmap(lambda request: altered(packed(request, key)))
    )


@contextlib.contextmanager
def of_nodes() -> Iterator[tuple[Any, Check]]:
    """A node's own part, without any transport: requests that are signed go all the way."""
    from proxystore_core.connectors.node_server import NodeServer

    with tempfile.TemporaryDirectory(dir=SHARED, prefix="fuzz-") as place:
        node = NodeServer(place, f"fuzz-{secrets.token_hex(4)}", KEY, Guard.SUM)
        before = set(os.listdir(place))

        def check(message: bytes) -> None:
            replies: list[bytes] = []
            node.handle(message, lambda head, data: replies.append(head))
            assert len(replies) == 1
            assert len(replies[0]) == REPLY_HEAD
            assert all(name.startswith("members.") for name in set(os.listdir(place)) - before)

        yield signed(KEY), check


@contextlib.contextmanager
def of_zmq() -> Iterator[tuple[Any, Check]]:
    """A node server of ZeroMQ: frames through a real socket, and bytes that are no ZeroMQ."""
    from proxystore_core.connectors.zmq import _USER, ZeroMQConnector, _password

    with node(ZeroMQConnector) as (connector, watched):
        port = connector._node.process.enter().port
        context: Any = zmq.Context()
        wire = context.socket(zmq.DEALER)
        wire.linger, wire.rcvtimeo = 0, 60_000
        wire.plain_username, wire.plain_password = _USER, _password(connector._key())
        wire.connect(f"tcp://{LOOPBACK}:{port}")
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01PLAIN" + bytes(47)
        hello = greeting + b"\x04\x11\x05HELLO\x04node\x05guess"

        def check(messages: list[bytes]) -> None:
            if messages[:1] == [b"raw"]:
                tell((LOOPBACK, port), b"".join(messages[1:]))
                return
            wire.send_multipart(messages)
            head, *_ = wire.recv_multipart()
            assert len(head) >= REPLY_HEAD  # small data come in the same frame

        try:
            one = signed(connector._key()).map(lambda message: [message])
            more = st.binary(max_size=50)
            raw = (
                st.binary(max_size=200)
                | altered(hello)
                | more.map(greeting.__add__)
                | more.map(hello.__add__)
            )
            many = st.lists(st.binary(max_size=50), min_size=2, max_size=5).filter(lambda x: x[0] != b"raw")
            yield one | one | many | raw.map(lambda data: [b"raw", data]), watched(check)
        finally:
            wire.close()
            context.term()


@contextlib.contextmanager
def of_ucx() -> Iterator[tuple[Any, Check]]:
    """A node server of UCX: its TCP connection, where all begins."""
    from proxystore_core.connectors.ucx import UCXConnector
    from proxystore_core.connectors.ucx_library import VERSION, new_worker

    with node(UCXConnector) as (connector, watched):
        address = LOOPBACK, connector._node.process.enter().port
        key = connector._key()
        worker = new_worker(LOOPBACK)
        mine = bytes(memoryview(worker.address)) if worker is not None else b""
        hello = packed(Request(Operation.GREET, text=VERSION, body=mine), key)

        def check(messages: list[bytes]) -> None:
            tell(address, b"".join(struct.pack("!I", len(each)) + each for each in messages), 0)

        greeted = st.lists(signed(key), max_size=5).map(lambda rest: [hello, *rest])
        nearly = altered(hello).map(lambda greeting: [greeting])
        lies = st.integers(LONGEST_REQUEST, 2**32 - 1).map(lambda size: [struct.pack("!I", size)])
        yield greeted | nearly | st.lists(signed(key), max_size=3) | lies, watched(check)


@contextlib.contextmanager
def of_ucx_told() -> Iterator[tuple[Any, Check]]:
    """The same where UCX moves data: what it parses is signed, or never comes near it.

    What comes to UCX's own port is not tried: UCX does not survive it, so it opens none unless told to.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCX_TLS", "tcp,sm")
        patch.setenv(SECRET, secrets.token_hex(32))  # a server of its own
        with of_ucx() as found:
            yield found


@contextlib.contextmanager
def node(kind: Any) -> Iterator[tuple[Any, Callable[[Check], Check]]]:
    from node_tasks import server_of

    connector = kind(name=f"f{secrets.token_hex(4)}")
    connector.put([b"data"])
    place = connector._node.process.enter()

    def asks() -> None:
        there = connector._connect(LOOPBACK, place.port, time.monotonic() + 60)
        try:
            request = Request(Operation.EXISTS, connector._node.memory.name, "user", "0" * 20)
            there.send([request.pack(connector._key())])
            head, _ = there.receive(None, time.monotonic() + 60)
            Reply.parse(head, connector._key(), request.nonce)
        finally:
            there.close()

    log = Path(connector._node.process.directory, "log")
    watching = Watched(server_of(connector), log, asks)
    yield connector, lambda check: Looking(check, watching)
    connector.end("user")
    connector.close()
