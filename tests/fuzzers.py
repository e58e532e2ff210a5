"""Fuzzers of whatever reads what others send: ``python tests/fuzzers.py NAME SECONDS [SEED]``.

Those of parsers run in this process; those of servers talk to a real one, which has to be there, unchanged in
size and with an empty log of troubles, whenever a batch is over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pickle
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import zmq
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from proxystore_core.connectors.node_protocol import (
    LONGEST_REQUEST,
    REPLY_HEAD,
    Guard,
    Operation,
    Reply,
    Request,
)
from proxystore_core.endpoint.wire import Answer
from proxystore_core.errors import StoreError

Check = Callable[[Any], object]
BATCH = 200
PATIENCE = 30.0  # seconds
DESCRIPTORS = 1500  # an endpoint has 512 clients at most, a relay 1024 of one address
GROWTH = 100 << 20  # bytes that a server may grow by; what it maps for an object is 1 MB
KEY = b"k" * 32
SHARED = Path("/dev/shm")

text = st.text(max_size=300)
ascii_text = st.text(st.characters(max_codepoint=127), max_size=255)
names = ascii_text | st.sampled_from(["user", "", "..", "../../etc", "a/b", "0" * 20, "x" * 64, "\0", "fuzz"])
u64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**20, 2**31, 2**63, 2**64 - 1])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=15,
)


@st.composite
def altered(draw: Any, whole: bytes) -> bytes:
    """Some bytes, and what faults and enemies make of them."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del data[place : place + draw(st.integers(1, 20))]
            case 2:
                data[place:place] = draw(st.binary(max_size=50))
            case _:
                data[place : place + 8] = draw(u64).to_bytes(8, "little")
    return bytes(data)


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


def signed(key: bytes, *, greets: bool = True) -> st.SearchStrategy[bytes]:
    """Requests of one who has the secret, of one who has another, and no requests.

    Without greetings for UCX, which ends the process over an address of a peer that is none: whoever has the
    secret, and only he, can do so.
    """
    own = requests if greets else requests.filter(lambda request: request.operation is not Operation.GREET)
    return (
        own.map(lambda request: packed(request, key))
        | requests.map(lambda request: packed(request, KEY))
        | st.binary(max_size=1500)
        | requests.flatmap(lambda request: altered(packed(request, key)))
    )


# Parsers.


@contextlib.contextmanager
def of_objects() -> Iterator[tuple[Any, Check]]:
    """What is read from a store: encrypted or not, compressed or not, without pickle."""
    import numpy as np

    from proxystore_core.encryption import decrypt, encrypt
    from proxystore_core.frames import unpack
    from proxystore_core.secret import Secret
    from proxystore_core.serialize import deserialize, serialize

    secret = Secret("s" * 32)
    obj = [1, "two", {"three": np.arange(2000)}, b"four" * 2000]
    plain = [
        b"".join(serialize(obj, allow_pickle=False, compression=codec)) for codec in (None, "lz4", "zstd")
    ]
    plain += [b"".join(serialize(obj)), bytes(encrypt([plain[0]], secret, "n" * 22)[0])]

    def check(data: bytes) -> None:
        for read in (unpack, lambda data: decrypt(data, secret, "n" * 22), restored):
            with contextlib.suppress(StoreError):
                read(data)

    def restored(data: bytes) -> None:
        deserialize(data, allow_pickle=False)

    yield st.binary(max_size=300) | st.sampled_from(plain).flatmap(altered), check


@contextlib.contextmanager
def of_messages() -> Iterator[tuple[Any, Check]]:
    """What brokers, peers and clients say, and recipes."""
    from proxystore_core.endpoint.wire import Request as Asked
    from proxystore_core.endpoint.wire import WireError
    from proxystore_core.recipe import Recipe
    from proxystore_core.stream.events import decode
    from proxystore_core.urls import StoreURL

    def check(data: bytes) -> None:
        for read in (decode, lambda data: Recipe.parse(data.decode("latin-1")), Asked.decode, Answer.decode):
            with contextlib.suppress(StoreError, WireError):
                read(data)
        with contextlib.suppress(StoreError):
            StoreURL.parse(data.decode("latin-1"))

    event = json.dumps([1, "shm://", [["key", 1, "a:b", True, {}]]]).encode()
    whole = st.sampled_from([event, b"redis://me:word@[::1]:1,b:2/0?a=b#n&compression=lz4"])
    values = json_values.map(lambda value: json.dumps(value).encode())
    yield st.binary(max_size=300) | values | whole.flatmap(altered), check


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
def of_margo() -> Iterator[tuple[Any, Check]]:
    """What Margo is made to unpickle with: a real server of it is not to be had."""
    import margo_tasks  # noqa: F401  which finds the fake library

    from proxystore_core.connectors.margo import _Plain

    good = [pickle.dumps((b"request", "handle", 7), protocol) for protocol in range(6)]
    bombs = [
        b"\x80\x04Nr\xff\xff\xff\x7f.",
        b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
        b"cos\nsystem\n(S'true'\ntR.",
    ]

    def check(data: bytes) -> None:
        try:
            found = _Plain(io.BytesIO(data)).load()
        except Exception:  # the server's library answers with an error
            return
        assert type(found).__module__ == "builtins"

    yield st.binary(max_size=200) | st.sampled_from(good + bombs).flatmap(altered), check


# Servers.


def resident(process: int) -> int:
    """Bytes of memory of a process' own."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    return 0


class Watched:
    """A server that may neither end nor grow nor complain."""

    def __init__(self, process: int, log: Path, asks: Callable[[], object]) -> None:
        self.process = process
        self.log = log
        self.asks = asks
        self.asks()
        self.before = resident(process)

    def look(self) -> None:
        until = time.monotonic() + PATIENCE
        while True:  # one that has as many connections as it takes lets nobody in for a moment
            try:
                self.asks()
                break
            except Exception as error:
                if time.monotonic() > until:
                    error.add_note(self.log.read_text(errors="replace")[-3000:] if self.log.exists() else "")
                    raise
                time.sleep(0.1)
        grown = resident(self.process) - self.before
        assert grown < GROWTH, f"{grown} bytes more"
        held = len(os.listdir(f"/proc/{self.process}/fd"))
        assert held < DESCRIPTORS, f"{held} descriptors"
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        assert "Traceback" not in said, said[-3000:]


def tell(address: Any, message: bytes, answer: int = 0) -> bytes:
    """Connect, say something, and go; with ``answer`` bytes of what is said in return."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as wire, contextlib.suppress(OSError):
        wire.settimeout(5 if answer else 0.01)
        wire.connect(address)
        wire.sendall(message)
        return wire.recv(max(1, answer))
    return b""


@contextlib.contextmanager
def of_zmq() -> Iterator[tuple[Any, Check]]:
    """A node server of ZeroMQ: frames through a real socket, and bytes that are no ZeroMQ."""
    from proxystore_core.connectors.zmq import ZeroMQConnector

    with node(ZeroMQConnector) as (connector, watched):
        port = connector._node.process.enter().port
        context: Any = zmq.Context()
        wire = context.socket(zmq.DEALER)
        wire.linger, wire.rcvtimeo = 0, 60_000
        wire.connect(f"tcp://127.0.0.1:{port}")
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)

        def check(messages: list[bytes]) -> None:
            if messages[:1] == [b"raw"]:
                tell(("127.0.0.1", port), b"".join(messages[1:]))
                return
            wire.send_multipart(messages)
            head, *_ = wire.recv_multipart()
            assert len(head) >= REPLY_HEAD  # small data come in the same frame

        try:
            one = signed(connector._key()).map(lambda message: [message])
            raw = st.binary(max_size=200) | altered(greeting) | st.binary(max_size=50).map(greeting.__add__)
            many = st.lists(st.binary(max_size=50), min_size=2, max_size=5).filter(lambda x: x[0] != b"raw")
            yield one | one | many | raw.map(lambda data: [b"raw", data]), watched(check)
        finally:
            wire.close()
            context.term()


@contextlib.contextmanager
def of_ucx() -> Iterator[tuple[Any, Check]]:
    """A node server of UCX: its TCP connection, where all begins."""
    from proxystore_core.connectors.ucx import UCXConnector

    with node(UCXConnector) as (connector, watched):
        address = "127.0.0.1", connector._node.process.enter().port
        key = connector._key()
        hello = packed(Request(Operation.GREET), key)

        def check(messages: list[bytes]) -> None:
            tell(address, b"".join(struct.pack("!I", len(each)) + each for each in messages), 0)

        asked = signed(key, greets=False)
        greeted = st.lists(asked, max_size=5).map(lambda rest: [hello, *rest])
        lies = st.integers(LONGEST_REQUEST, 2**32 - 1).map(lambda size: [struct.pack("!I", size)])
        yield greeted | st.lists(asked, max_size=3) | lies, watched(check)


@contextlib.contextmanager
def node(kind: Any) -> Iterator[tuple[Any, Callable[[Check], Check]]]:
    from node_tasks import server_of

    connector = kind(name=f"f{secrets.token_hex(4)}")
    connector.put([b"data"])
    place = connector._node.process.enter()

    def asks() -> None:
        there = connector._connect("127.0.0.1", place.port, time.monotonic() + 60)
        try:
            request = Request(Operation.EXISTS, connector.name, "user", "0" * 20)
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


class Looking:
    """A check, and a look at the server now and then."""

    def __init__(self, check: Check, watched: Watched) -> None:
        self.check = check
        self.watched = watched
        self.count = 0

    def __call__(self, value: Any) -> None:
        self.check(value)
        self.count += 1
        if self.count % BATCH == 0:
            self.watched.look()


@contextlib.contextmanager
def of_endpoint() -> Iterator[tuple[Any, Check]]:
    """An endpoint's door, for clients with the token and without, and its page."""
    from endpoint_sites import sites

    from proxystore_core.endpoint.wire import MOST
    from proxystore_core.endpoint.wire import Operation as Op
    from proxystore_core.endpoint.wire import Request as Asked

    with sites(["fuzz"], pages=0) as found:
        settings = found.endpoints["fuzz"]
        hello = Asked(Op.HELLO, data=settings.token().encode()).encode()
        page = "127.0.0.1", health_of(settings, hello)["pages"]
        # What ends or waits is left out: END of the user session would end objects, SWEEP takes a while.
        ids = names | names.map(lambda name: f"{settings.id}.{name}"[:200]) | st.just("0" * 32 + ".x.y")
        asked = st.builds(
            Asked,
            st.sampled_from(
                [Op.INFO, Op.GET, Op.READ, Op.EXISTS, Op.EVICT, Op.RENEW, Op.SESSIONS, Op.KEYS, Op.HELLO]
            ),
            st.integers(0, 2**32 - 1),
            ids.map(lambda name: name[:200]),
            names.map(lambda name: name[:64]),
            st.integers(0, 1 << 44),
            st.integers(0, 64 << 10),
            st.floats(0, 0.01),
            st.binary(max_size=100),
        ).map(Asked.encode)
        put = st.binary(max_size=3000).map(lambda data: Asked(Op.PUT, 1, "", "fuzz", len(data)).encode())
        message = asked | put | st.binary(max_size=100) | asked.flatmap(altered)
        lies = st.integers(MOST, 2**32 - 1).map(lambda size: [b"raw" + struct.pack("!I", size)])
        http = st.sampled_from([b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])

        def check(messages: list[bytes] | bytes) -> None:
            if isinstance(messages, bytes):
                tell(page, messages)
            else:
                door(settings, messages)

        asks = partial(health_of, settings, hello)
        watched = Watched(int((settings.directory / "lock").read_text()), settings.directory / "log", asks)
        inside = st.lists(message, max_size=5).map(lambda rest: [hello, *rest])
        yield inside | st.lists(message, max_size=2) | lies | http.flatmap(altered), Looking(check, watched)


def door(settings: Any, messages: list[bytes]) -> None:
    """Say messages to an endpoint as a client does, and go."""
    with settings.connect(5.0) as wire, contextlib.suppress(OSError):
        wire.settimeout(0.01)
        for message in messages:
            wire.sendall(message[3:] if message[:3] == b"raw" else struct.pack("!I", len(message)) + message)
        wire.recv(1 << 16)


def health_of(settings: Any, hello: bytes) -> dict[str, Any]:
    """What an endpoint says to a client that it lets in."""
    with settings.connect(60.0) as wire:
        wire.settimeout(60)
        wire.sendall(struct.pack("!I", len(hello)) + hello)
        (length,) = struct.unpack("!I", wire.recv(4, socket.MSG_WAITALL))
        found: dict[str, Any] = json.loads(Answer.decode(wire.recv(length, socket.MSG_WAITALL)).data)
        return found


@contextlib.contextmanager
def of_relay() -> Iterator[tuple[Any, Check]]:
    """A relay: its messages, its handshake, its page, and STUN over UDP."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    from proxystore_core.endpoint.settings import relay_token

    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        tokens = Path(place, "tokens")
        token = relay_token("s" * 32)
        tokens.write_text(f"group {token}\n")
        log = Path(place, "log")
        command = [
            sys.executable,
            "-m",
            "proxystore_integrations",
            "relay",
            "--tokens",
            str(tokens),
            "--port",
            "0",
        ]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True)
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        stack.callback(process.stdout.close)
        address = "127.0.0.1", port
        register = {"type": "register", "id": "0" * 32, "token": token}
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

        def asks() -> None:
            with connect(f"ws://127.0.0.1:{port}", compression=None) as other:
                other.send(json.dumps({**register, "id": "1" * 32}))
                assert json.loads(other.recv(60))["type"] == "registered"

        def check(message: Any) -> None:
            if isinstance(message, bytes):
                tell(address, message)
                with contextlib.suppress(OSError):
                    udp.sendto(message, address)
                return
            with (
                contextlib.suppress(ConnectionClosed, TimeoutError),
                connect(f"ws://127.0.0.1:{port}", compression=None, close_timeout=0.1) as wire,
            ):
                for each in message:
                    wire.send(each)
                wire.recv(5)

        stun = b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12)
        http = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        bare = st.sampled_from([stun, http, http + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"])
        to = st.sampled_from(["0" * 32, "1" * 32]) | text
        signal = st.fixed_dictionaries({"type": st.just("signal"), "to": to, "body": json_values})
        token_like = st.fixed_dictionaries({"type": st.just("register"), "id": text, "token": json_values})
        said = (signal | json_values | token_like).map(json.dumps) | text.filter(bool)
        yield (
            (
                st.lists(said, max_size=4).map(lambda rest: [json.dumps(register), *rest])
                | st.lists(said | st.binary(min_size=1, max_size=50), min_size=1, max_size=2)
                | bare.flatmap(altered)
            ),
            Looking(check, Watched(process.pid, log, asks)),
        )


FUZZERS: dict[str, Callable[[], Any]] = {
    "objects": of_objects,
    "messages": of_messages,
    "nodes": of_nodes,
    "margo": of_margo,
    "zmq": of_zmq,
    "ucx": of_ucx,
    "endpoint": of_endpoint,
    "relay": of_relay,
}


@contextlib.contextmanager
def swept() -> Iterator[None]:
    """Remove what requests that are signed have made, sessions of any name, once no fuzzer runs any more."""
    before = set(SHARED.glob("proxystore-*/*"))
    yield
    for path in set(SHARED.glob("proxystore-*/*")) - before:
        shutil.rmtree(path, ignore_errors=True)
    for path in SHARED.glob("proxystore-*"):
        with contextlib.suppress(OSError):
            path.rmdir()


@dataclasses.dataclass
class Outcome:
    examples: int = 0


def fuzz(name: str, seconds: float, seed: int) -> int:
    """Run one fuzzer; how many inputs it tried. The first that is too much for the other side is shown."""
    outcome = Outcome()
    with FUZZERS[name]() as (strategy, check):
        until = time.monotonic() + seconds

        @hypothesis.settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def batch(value: Any) -> None:
            if time.monotonic() < until:
                outcome.examples += 1
                check(value)

        while time.monotonic() < until:
            hypothesis.seed(seed)(batch)()
            seed += 1
    return outcome.examples


if __name__ == "__main__":
    given_seed = int(sys.argv[3]) if len(sys.argv) > 3 else secrets.randbits(32)
    sys.stdout.write(f"{sys.argv[1]}: seed {given_seed}\n")
    sys.stdout.flush()
    sys.stdout.write(f"{sys.argv[1]}: {fuzz(sys.argv[1], float(sys.argv[2]), given_seed)} inputs\n")
