"""Peers that are there and do not do what they are asked, and channels that end in the midst of it."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from endpoint_ends import SECRET, End, comes, of_pair

from proxystore_core.connectors import shm
from proxystore_core.connectors.base import USER_SESSION
from proxystore_core.endpoint import channel as channel_module
from proxystore_core.endpoint import daemon
from proxystore_core.endpoint import later as later_module
from proxystore_core.endpoint import objects as objects_module
from proxystore_core.endpoint.relay import Relay
from proxystore_core.endpoint.settings import DIRECTORY, sign
from proxystore_core.endpoint.wire import CHUNK, Answer, Operation, Request, Status
from proxystore_core.errors import DeadlineError, FullError, UnreachableError


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path / "endpoints"))


def test_a_peer_that_answers_pings_only(monkeypatch):
    """Who asks it waits as long as he said, and no longer; then it is asked over another channel."""
    monkeypatch.setattr(channel_module, "_STUCK", 0.2, raising=False)

    async def test(one: End, two: End, relay: Relay) -> None:
        key = two.put(b"data")
        serve, willing = two.peers.serve, False

        async def stuck(request: Request) -> Answer:
            if not willing and request.operation is not Operation.PING:
                await asyncio.Event().wait()
            return await serve(request)

        two.peers.serve = stuck
        asked = Request(Operation.EXISTS, key=key)
        for patience in (10.0, *[0.3] * 2):  # the first is for the introduction
            ping = await one.peers.ask(two.id, Request(Operation.PING), patience)
            assert ping.status is Status.OK
            waits = [one.peers.ask(two.id, asked, 0.3) for _ in range(60)]
            for outcome in await asyncio.gather(*waits, return_exceptions=True):
                assert isinstance(outcome, DeadlineError | UnreachableError)
        with pytest.raises(DeadlineError):
            await one.get(key, 0.3)
        willing = True
        assert await one.get(key) == b"data"

    of_pair(test)


def test_a_peer_that_takes_nothing():
    """What is to be sent waits for room no longer than its sender does for the answer."""

    async def test(one: End, two: End, relay: Relay) -> None:
        assert (await one.peers.ask(two.id, Request(Operation.PING), 10)).status is Status.OK
        (channel,) = one.peers._channels[two.id]

        class Full:
            readyState, bufferedAmount = "open", 2 * channel_module._HIGH  # noqa: N815

        real, channel._channel = channel._channel, Full()
        with pytest.raises(DeadlineError):
            await channel.ask(Request(Operation.EXISTS, key=f"{two.id}.x"), 0.2)
        channel._channel = real
        for _ in range(2 * channel_module._ASKED):
            await channel.ask(Request(Operation.PING), 10)

    of_pair(test)


def test_a_channel_that_ends_while_an_object_is_set():
    """The last chunk is sent again over another one, and finds what has become of the first."""

    async def test(one: End, two: End, relay: Relay) -> None:
        going_on, store = threading.Event(), two.objects.store
        key, began = two.objects.reserve(USER_SESSION), threading.Event()

        def slowly(*arguments: Any) -> None:
            began.set()
            assert going_on.wait(20)
            type(store).set(store, *arguments)

        store.set = slowly  # type: ignore[method-assign]
        data = os.urandom(CHUNK + 7)
        setting = asyncio.ensure_future(one.clients._later.set(key, data, 20, ours=False))
        await comes(began.is_set)
        for side, other in ((one, two), (two, one)):
            for channel in side.peers._channels[other.id]:
                channel.drop("a test pulled the plug")
        await comes(lambda: two.counters.get("channels", 0) > 1)
        going_on.set()
        await setting
        assert await one.get(key) == data

    of_pair(test)


def test_uploads_that_are_begun_and_left(monkeypatch):
    async def test(one: End, two: End, relay: Relay) -> None:
        key = two.objects.reserve(USER_SESSION)

        async def begin(number: int) -> None:
            data = number.to_bytes(16, "big") + (1).to_bytes(8, "big")
            await two.clients._later.write(Request(Operation.WRITE, key=key, data=data))

        for number in range(later_module._UPLOADS):
            await begin(number)
        with pytest.raises(FullError, match="on their way"):
            await begin(later_module._UPLOADS)
        monkeypatch.setattr(later_module, "_IDLE", 0.0)
        keeping = asyncio.ensure_future(daemon._keep(two.objects, two.clients))
        await comes(lambda: not two.clients._later._uploads)
        keeping.cancel()

    of_pair(test)


def test_an_answer_to_an_introduction_that_is_signed_nonsense():
    async def test(one: End, two: End, relay: Relay) -> None:
        async def answer(peer: str, kind: str, nonce: str, sdp: str) -> None:
            sdp = sdp.replace("a=setup:", "a=setup:never")
            mark = sign(SECRET, kind, two.id, peer, nonce, sdp)
            body = {"kind": kind, "ref": nonce, "sdp": sdp, "mark": mark}
            await two.peers.introductions.signal(peer, body)

        two.peers._say = answer  # type: ignore[method-assign]
        with pytest.raises(UnreachableError, match="answered nonsense: KeyError"):
            await one.get(two.put(b"data"))

    of_pair(test)


def test_an_introduction_that_is_signed_nonsense(monkeypatch):
    """Of a peer of another version, or a hostile one: nothing of it is left, and no trouble of asyncio's."""
    monkeypatch.setattr("proxystore_core.endpoint.peers._OPENING", 0.5)
    lines = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"
    nonsense = [
        "",
        "v",
        "m=",
        "a=",
        lines,
        lines + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n",
        lines + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=sctp-port:x\r\n",
        lines + "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n",
        lines + "m=video x y z\r\n",
        lines + "a=group:BUNDLE 0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:0\r\n",
        lines + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=candidate:1 1 udp x\r\n",
        lines + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=setup:never\r\na=fingerprint:\r\n",
    ]

    async def test(one: End, two: End, relay: Relay) -> None:
        troubles: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
        await comes(lambda: one.peers.introductions.connected and two.peers.introductions.connected)
        await asyncio.sleep(0)
        before = len(os.listdir("/proc/self/fd"))
        for number, sdp in enumerate(nonsense):
            nonce = f"{number:032x}"
            mark = sign(SECRET, "offer", two.id, one.id, nonce, sdp)
            await one.peers._heard(two.id, {"kind": "offer", "ref": nonce, "sdp": sdp, "mark": mark})
            await asyncio.wait(one.peers._tasks, timeout=5)
            assert not one.peers._tasks, sdp
        gc.collect()
        assert not troubles
        await comes(lambda: len(os.listdir("/proc/self/fd")) <= before)

    of_pair(test)


def anonymous() -> int:
    """Bytes of memory of this process' own."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def test_what_is_on_disk_is_read_in_pieces(monkeypatch):
    """A daemon that read all of it for the first of them would not answer anybody meanwhile."""

    async def test(one: End, two: End, relay: Relay) -> None:
        with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="is full"):
            patch.setattr(shm, "_LEFT_TO_OTHERS", 1.0)  # no room in shared memory
            shm._say_once.cache_clear()
            keys = [two.put(bytes(64 << 20)), two.put(b"small")]
        assert all(key.endswith(".disk") for key in keys)
        before = anonymous()
        async for answer in one.peers.fetch(keys[0], 10):
            assert answer.size == 64 << 20
            assert answer.data == bytes(CHUNK)
            if answer.offset > 40 * CHUNK:
                break
        assert await one.get(keys[1]) == b"small"
        assert anonymous() - before < 32 << 20
        opened = two.objects._open
        assert len(opened) == 1
        assert two.objects.read(keys[0], 0, CHUNK) == (64 << 20, bytes(CHUNK))
        assert len(opened) == 1
        two.objects.store.evict(two.objects.inner(keys[0]))
        assert two.objects.read(keys[0], CHUNK, CHUNK) == (64 << 20, bytes(CHUNK))
        assert two.objects.read(keys[0], 0, CHUNK) is None
        monkeypatch.setattr(objects_module, "_IDLE", 0.0)
        two.clients.let_go()
        assert not opened
        assert two.objects.read(keys[0], CHUNK, CHUNK) is None

    of_pair(test)


def test_more_introductions_at_once_than_are_accepted_at_once():
    """When a hundred hosts begin to fetch from one."""

    async def test(one: End, two: End, relay: Relay) -> None:
        accepted: set[str] = set()
        go_on = asyncio.Event()

        async def accept(peer: str, nonce: str, sdp: str) -> None:
            accepted.add(nonce)
            await go_on.wait()

        one.peers._accept = accept  # type: ignore[method-assign]
        for number in range(100):
            nonce = f"{number:032x}"
            mark = sign(SECRET, "offer", two.id, one.id, nonce, "sdp")
            await one.peers._heard(two.id, {"kind": "offer", "ref": nonce, "sdp": "sdp", "mark": mark})
        await comes(lambda: len(accepted) >= 64)
        await asyncio.sleep(0)
        assert len(accepted) == 64
        go_on.set()
        await comes(lambda: len(accepted) == 100)
        assert "violations" not in one.counters

    of_pair(test)
