"""Nodes that talk through Margo: on a fake of `mochi.margo`, or the real one when it is installed."""

from __future__ import annotations

import pickle
import secrets
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from margo_tasks import FarMargo
from node_tasks import FarContract, NodeContract, NodeTests, TwoHostsTests, server_of

from proxystore_core.connectors.margo import MargoConnector, _plain
from proxystore_core.connectors.node_protocol import REPLY_HEAD, Operation, Reply, Request, Status
from proxystore_core.errors import RefusedError


class TestMargoConnector(NodeContract):  # type: ignore[misc]
    kind = MargoConnector


class TestFromAfar(FarContract):  # type: ignore[misc]
    kind = FarMargo


class TestMargoNodes(NodeTests):  # type: ignore[misc]
    kind = MargoConnector
    far = FarMargo


class TestTwoHosts(TwoHostsTests):  # type: ignore[misc]
    scheme = "margo+tcp"


class Opener:
    """What runs when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_messages_of_others(tmp_path: Path) -> None:
    import mochi.margo as margo

    near = MargoConnector(name=secrets.token_hex(4))
    key = near.put([b"data"])
    place, server = near._node.process.enter(), server_of(near)
    engine = margo.Engine("tcp", mode=margo.client)
    call = engine.register("proxystore_node").on(engine.lookup(f"tcp://127.0.0.1:{place.port}"))
    good = Request(Operation.EVICT, near._node.memory.name, "user", key.rpartition(".")[2])
    for arguments in ((b"random", "", 0), (good.pack(bytes(32)), "", 0), ("text", 5, "x"), ()):
        head = call(*arguments, timeout=5000)
        assert Reply.parse(head[:REPLY_HEAD], near._key(), bytes(16)).status is Status.REFUSED
    witness = tmp_path / "ran"
    with pytest.raises(margo.MargoException):
        call(Opener(str(witness)), "", 0, timeout=5000)
    assert not witness.exists()
    afar = FarMargo(name=near.name)
    assert afar.get(key) == b"data"
    assert server_of(near) == server
    afar.evict(key)
    afar.close()
    near.close()


def test_a_server_that_is_none(tmp_path: Path) -> None:
    """Its answers are not unpickled as they come; those that somebody else waits for are his own affair."""
    import mochi.margo as margo

    witness = tmp_path / "ran"
    engine = margo.Engine("tcp://127.0.0.1:0", mode=margo.server)
    engine.register("proxystore_node", lambda handle, *args: handle.respond(Opener(str(witness))))
    name = secrets.token_hex(4)
    near, far = MargoConnector(name=name), FarMargo(name=name)
    key = near.put([b"data"])
    try:
        assert far.get(key) == b"data"
        channel = far._connect("127.0.0.1", int(str(engine.addr()).rpartition(":")[2]), 0.0)
        channel.send([b"anything"])
        with pytest.raises(RefusedError, match="no node server"):
            channel.receive(None, time.monotonic() + 5)
        assert not witness.exists()
        user = margo.Engine("tcp", mode=margo.client)
        user.register("proxystore_node").on(user.lookup(str(engine.addr())))(timeout=5000).close()
        assert witness.exists()
    finally:
        engine.finalize()
        near.evict(key)
        far.close()
        near.close()


def test_a_short_request_that_takes_years() -> None:
    """A dict with a key that is a tuple of twice a tuple of twice a tuple ..."""
    bomb = b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"}h<Ns."
    with pytest.raises(pickle.UnpicklingError):
        _plain(bomb)
    with pytest.raises(pickle.UnpicklingError):
        _plain(b"")
    sent = {"args": (b"request" * 99, "handle", 1 << 40, -1, None, True, 0.5), "kwargs": {}}
    assert _plain(pickle.dumps(sent)) == sent


def test_a_short_request_that_asks_for_much_memory() -> None:
    tracemalloc.start()
    try:
        assert _plain(b"\x80\x04Nr\xff\xff\xff\x7f.") is None  # entry 2**31 of the memo
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
