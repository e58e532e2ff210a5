"""Streams over ZeroMQ among strangers: who has no secret neither hears, nor counts, nor disturbs."""

from __future__ import annotations

import os
import pickle
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zmq
from listening import listening

from proxystore_core.connectors.node_place import SECRET
from proxystore_core.errors import ConfigurationError, CorruptError, DeadlineError, RefusedError
from proxystore_core.stream.zmq import _LONGEST, ZeroMQPublisher, ZeroMQSubscriber, _pair

WAIT = 30.0
ONE, OTHER = "one secret of streams", "another secret of streams"


@pytest.fixture
def publisher() -> Iterator[ZeroMQPublisher]:
    with closing(ZeroMQPublisher(timeout=WAIT, secret=ONE)) as publisher:
        yield publisher


@pytest.fixture
def stranger() -> Iterator[Any]:
    """Makes bare sockets, of those who have a secret and of those who have none."""
    context: Any = zmq.Context()
    wires = []

    def made(kind: int, publisher: ZeroMQPublisher, secret: str | None = None) -> Any:
        wire = context.socket(kind)
        wires.append(wire)
        wire.linger, wire.rcvtimeo = 0, 500
        if secret is not None:
            wire.curve_publickey, wire.curve_secretkey = _pair(secret, b"client", "")
            wire.curve_serverkey, _ = _pair(secret, b"server", "")
        wire.connect(f"tcp://127.0.0.1:{publisher.port}")
        return wire

    yield made
    for wire in wires:
        wire.close()
    context.term()


def heard(publisher: ZeroMQPublisher, topic: str) -> bytes:
    """What one who has the secret hears."""
    with closing(ZeroMQSubscriber("127.0.0.1", publisher.port, topic, secret=ONE)) as subscriber:
        publisher.send(topic, b"data")
        message = subscriber.receive(WAIT)
        assert message is not None
        return message.data


def test_who_has_another_secret_is_told_so(publisher: ZeroMQPublisher) -> None:
    with closing(ZeroMQSubscriber("127.0.0.1", publisher.port, "t", secret=OTHER)) as subscriber:
        with pytest.raises(RefusedError, match="another secret") as caught:
            subscriber.receive(WAIT)
        assert caught.value.store == f"zmq://127.0.0.1:{publisher.port}"
        assert "PROXYSTORE_NODE_SECRET" in str(caught.value)
        assert OTHER not in str(caught.value)
        assert heard(publisher, "t") == b"data"


def test_who_has_none_neither_hears_nor_counts(stranger: Any) -> None:
    with closing(ZeroMQPublisher(timeout=1, secret=ONE)) as publisher:
        wires = [stranger(zmq.SUB, publisher), stranger(zmq.SUB, publisher, OTHER)]
        for wire in wires:
            wire.subscribe(b"")
        with pytest.raises(DeadlineError, match="0 of 1 subscribers"):
            publisher.send("t", b"data")
        publisher._timeout = WAIT  # one that has the secret may need longer to come, on a busy machine
        assert heard(publisher, "t") == b"data"
        for wire in wires:
            with pytest.raises(zmq.Again):
                wire.recv()


def test_a_publisher_with_another_secret_is_not_believed(stranger: Any) -> None:
    context: Any = zmq.Context()
    for secret in (None, OTHER):
        wire = context.socket(zmq.XPUB)
        wire.linger = 0
        if secret is not None:
            wire.curve_server = True
            wire.curve_publickey, wire.curve_secretkey = _pair(secret, b"server", "")
        port = wire.bind_to_random_port("tcp://127.0.0.1")
        with closing(ZeroMQSubscriber("127.0.0.1", port, "t", secret=ONE)) as subscriber:
            for _ in range(2):
                with pytest.raises(RefusedError, match="another secret"):
                    subscriber.receive(WAIT)
            assert not wire.poll(0)  # it does not even learn of the topic
        wire.close()
    context.term()


def test_a_silent_publisher_is_waited_for() -> None:
    """One that is not there yet is no error; one that takes its place later is heard."""
    with closing(ZeroMQPublisher(timeout=WAIT, secret=ONE)) as gone:
        port = gone.port
        subscriber = ZeroMQSubscriber("127.0.0.1", port, "t", secret=ONE)
        gone.send("t", b"first")
        assert subscriber.receive(WAIT).data == b"first"
    assert subscriber.receive(0.3) is None
    with closing(ZeroMQPublisher(port=port, timeout=WAIT, secret=ONE)) as back:
        back.send("t", b"second")
        assert subscriber.receive(WAIT).data == b"second"
    subscriber.close()


def test_what_is_no_stream(publisher: ZeroMQPublisher, stranger: Any) -> None:
    for text in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(10_000), pickle.dumps([1])):
        with socket.create_connection(("127.0.0.1", publisher.port)) as other:
            other.sendall(text)
    inside = stranger(zmq.XSUB, publisher, ONE)
    inside.send(b"\0never subscribed")
    inside.send(b"no word at all")
    inside.send_multipart([b"\1many", b"frames"])
    inside.send(b"\1" + bytes(_LONGEST[0]))  # ends the connection
    assert heard(publisher, "t") == b"data"
    assert all(count > 0 for count in publisher._there.values())
    assert not any(len(name) > 100 for name in publisher._there)


@pytest.mark.parametrize("frames", [[b"t\0"], [b"t\0", b"1", b"2"], [b"t\0\xff\0", b"data"]])
def test_messages_of_other_parts(publisher: ZeroMQPublisher, frames: list[bytes]) -> None:
    with closing(ZeroMQSubscriber("127.0.0.1", publisher.port, "t", secret=ONE)) as subscriber:
        publisher.send("t", b"data")
        publisher._socket.send_multipart(frames)
        assert subscriber.receive(WAIT).data == b"data"
        with pytest.raises(CorruptError, match="none of a stream"):
            subscriber.receive(WAIT)


def test_a_topic_waits_for_all_its_subscribers() -> None:
    """Also when some of them came while something was sent to another topic."""
    with closing(ZeroMQPublisher(timeout=WAIT, secret=ONE, subscribers=2)) as publisher:
        where = "127.0.0.1", publisher.port
        both = [ZeroMQSubscriber(*where, ["a", "b"], secret=ONE), ZeroMQSubscriber(*where, "a", secret=ONE)]
        publisher.send("a", b"data")
        sender = threading.Thread(target=publisher.send, args=("b", b"for two"))
        sender.start()
        assert both[0].receive(WAIT).data == b"data"
        assert both[0].receive(0.3) is None
        both.append(ZeroMQSubscriber(*where, "b", secret=ONE))
        sender.join()
        assert [each.receive(WAIT).data for each in (both[0], both[2])] == [b"for two"] * 2
        for each in both:
            each.close()


def test_who_is_dropped_does_not_wait_for_ever() -> None:
    program = """
import gc
from proxystore_core.stream.zmq import ZeroMQPublisher, ZeroMQSubscriber

def dropped():
    publisher = ZeroMQPublisher(secret="one secret of streams")
    subscriber = ZeroMQSubscriber("127.0.0.1", publisher.port, "t", secret="one secret of streams")
    publisher.cycle = subscriber.cycle = [publisher, subscriber]

dropped()
gc.collect()
print("dropped")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["dropped"]


def test_a_publisher_that_is_closed_says_so() -> None:
    publisher = ZeroMQPublisher(secret=ONE)
    publisher.close()
    publisher.close()
    with pytest.raises(ConfigurationError, match="closed"):
        publisher.send("t", b"data")


def test_it_listens_on_loopback(publisher: ZeroMQPublisher) -> None:
    assert ("127.0.0.1", publisher.port) in listening(os.getpid())
    assert not [address for address, port in listening(os.getpid()) if port == publisher.port][1:]


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    with closing(ZeroMQPublisher(timeout=WAIT)) as publisher:
        path = tmp_path / "configuration" / "proxystore" / "node.secret"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with closing(ZeroMQSubscriber("127.0.0.1", publisher.port, "t")) as subscriber:
            publisher.send("t", b"data")
            assert subscriber.receive(WAIT).data == b"data"
    path.chmod(0o644)
    with pytest.raises(RefusedError, match="chmod 600"):
        ZeroMQPublisher()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="PROXYSTORE_NODE_SECRET"):
        ZeroMQSubscriber("127.0.0.1", 1, "t")
    monkeypatch.setenv(SECRET, "short")
    with pytest.raises(ConfigurationError, match="at least 16"):
        ZeroMQPublisher()
