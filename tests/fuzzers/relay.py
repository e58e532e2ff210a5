"""A relay: its messages, its handshake, its page, and STUN over UDP."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzers.inputs import altered, json_values, text
from fuzzers.watching import Check, Looking, Watched, tell

__all__ = ["of_relay"]


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
