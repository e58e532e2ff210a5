"""A publisher of a stream over ZeroMQ: what subscribers say, with the secret and without, and other bytes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq
from hypothesis import strategies as st

from fuzzers.inputs import altered, ascii_text
from fuzzers.watching import Check, Looking, Watched, tell

__all__ = ["of_streams"]

SECRET = "a secret of fuzzers"
PUBLISHER = f"""
import time
from proxystore_core.stream.zmq import ZeroMQPublisher
publisher = ZeroMQPublisher(subscribers=0, secret={SECRET!r})
print(publisher.port, flush=True)
while True:
    publisher.send("topic", b"data")
    time.sleep(0.02)
"""


@contextlib.contextmanager
def of_streams() -> Iterator[tuple[Any, Check]]:
    """A publisher that says something to one topic again and again."""
    from proxystore_core.stream.zmq import ZeroMQSubscriber, _pair

    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        log = Path(place, "log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", PUBLISHER], stdout=subprocess.PIPE, stderr=output, text=True
            )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        port = int(process.stdout.readline())
        context: Any = zmq.Context()
        stack.callback(context.term)
        # Who has the secret says what he likes; with each of the last two, in a connection of his own.
        wires = {}
        for kind, secret in (("inside", SECRET), ("stranger", "another secret of fuzzers"), ("plain", "")):
            wire = wires[kind] = context.socket(zmq.XSUB)
            wire.linger = 0
            stack.callback(wire.close)
            if secret:
                wire.curve_publickey, wire.curve_secretkey = _pair(secret, b"client", "")
                wire.curve_serverkey, _ = _pair(secret, b"server", "")
            wire.connect(f"tcp://127.0.0.1:{port}")

        def asks() -> None:
            with contextlib.closing(
                ZeroMQSubscriber("127.0.0.1", port, "topic", secret=SECRET)
            ) as subscriber:
                message = subscriber.receive(60)
                assert message is not None
                assert message.data == b"data"

        def check(said: tuple[str, list[bytes]]) -> None:
            who, frames = said
            if who == "raw":
                tell(("127.0.0.1", port), b"".join(frames))
                return
            with contextlib.suppress(zmq.Again):
                wires[who].send_multipart(frames, zmq.NOBLOCK)
            while wires[who].poll(0):
                wires[who].recv_multipart()

        names = ascii_text.map(str.encode) | st.binary(max_size=300)
        words = st.sampled_from([b"\0", b"\1", b"\1topic", b""]).flatmap(lambda word: names.map(word.__add__))
        greetings = [b"\xff" + bytes(8) + b"\x7f\3\1" + kind.ljust(20, b"\0") for kind in (b"CURVE", b"NULL")]
        hello = [each + bytes(32) + b"\4\xc8\5HELLO\1\0" + bytes(192) for each in greetings]
        raw = st.binary(max_size=300) | st.sampled_from(hello).flatmap(altered)
        yield (
            (
                raw.map(lambda data: ("raw", [data]))
                | st.tuples(st.sampled_from(["inside", "stranger", "plain"]), words.map(lambda word: [word]))
                | st.tuples(st.just("inside"), st.lists(names, min_size=1, max_size=4))
            ),
            Looking(check, Watched(process.pid, log, asks)),
        )
