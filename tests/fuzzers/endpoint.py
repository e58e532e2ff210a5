"""An endpoint's door and its page."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

from hypothesis import strategies as st

from fuzzers.inputs import altered, names
from fuzzers.watching import Check, Looking, Watched, tell
from proxystore_core.endpoint.wire import MOST, Answer, Operation, Request

__all__ = ["of_endpoint"]

# What ends or waits is left out: END of the user session would end objects, SWEEP takes a while.
ASKED = [
    Operation.INFO,
    Operation.GET,
    Operation.READ,
    Operation.EXISTS,
    Operation.EVICT,
    Operation.RENEW,
    Operation.SESSIONS,
    Operation.KEYS,
    Operation.HELLO,
]


@contextlib.contextmanager
def of_endpoint() -> Iterator[tuple[Any, Check]]:
    """An endpoint's door, for clients with the token and without, and its page."""
    from endpoint_sites import sites

    with sites(["fuzz"], pages=0) as found:
        settings = found.endpoints["fuzz"]
        hello = Request(Operation.HELLO, data=settings.token().encode()).encode()
        page = "127.0.0.1", health_of(settings, hello)["pages"]
        ids = names | names.map(lambda name: f"{settings.id}.{name}"[:200]) | st.just("0" * 32 + ".x.y")
        asked = st.builds(
            Request,
            st.sampled_from(ASKED),
            st.integers(0, 2**32 - 1),
            ids.map(lambda name: name[:200]),
            names.map(lambda name: name[:64]),
            st.integers(0, 1 << 44),
            st.integers(0, 64 << 10),
            st.floats(0, 0.01),
            st.binary(max_size=100),
        ).map(Request.encode)
        put = st.binary(max_size=3000).map(
            lambda data: Request(Operation.PUT, 1, "", "fuzz", len(data)).encode()
        )
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
