"""Peers and relays that lie, repeat themselves, flood, or vanish: both ends in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import websockets
from aioice import stun
from endpoint_ends import SECRET, End, comes, of_pair
from waiting import until
from websockets.asyncio.client import connect

from proxystore_core.connectors.base import USER_SESSION
from proxystore_core.endpoint import relay as relay_module
from proxystore_core.endpoint.channel import _HIGH, _SERVED
from proxystore_core.endpoint.introductions import MESSAGE
from proxystore_core.endpoint.relay import Relay, read_tokens
from proxystore_core.endpoint.settings import DIRECTORY, relay_token, sign
from proxystore_core.endpoint.wire import CHUNK, Answer, Operation, Request, Status
from proxystore_core.errors import ConfigurationError, CorruptError, DeadlineError, UnreachableError


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path / "endpoints"))


def violated(end: End, before: int = 0) -> bool:
    return end.counters.get("violations", 0) > before


def test_a_dropped_channel_is_resumed_where_it_broke():
    async def test(one: End, two: End, relay: Relay) -> None:
        data = os.urandom(40 * CHUNK + 7)
        key = one.put(data)
        found, drops = b"", 0
        async for answer in two.peers.fetch(key, 10):
            assert answer.offset == len(found)
            found += answer.data
            if drops < 2 and len(found) > (drops + 1) * 10 * CHUNK:
                drops += 1
                side = (one, two)[drops - 1]
                for channel in side.peers._channels[(two, one)[drops - 1].id]:
                    channel.drop("a test pulled the plug")
        assert found == data
        assert two.counters["resumed"] == 2
        # What it had was not fetched again, besides what was on its way.
        assert two.counters["bytes_received"] == len(data)
        assert one.counters["bytes_sent"] < len(data) + 2 * 48 * CHUNK

    of_pair(test)


def test_a_short_datagram_of_a_stranger_ends_no_channel():
    async def test(one: End, two: End, relay: Relay) -> None:
        key = one.put(b"x" * CHUNK)
        await two.get(key)
        (channel,) = two.peers._channels[one.id]
        (ends,) = channel._connection.sctp.transport.transport.iceGatherer.getLocalCandidates()
        # A record of the keys in use (epoch 1) that is too short for a tag (CVE-2026-75806).
        record = bytes.fromhex("17fefd0001000000ffffff0008") + os.urandom(8)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(record, (ends.ip, ends.port))
        assert await two.get(key, 5) == b"x" * CHUNK
        assert two.peers._channels[one.id] == [channel]

    of_pair(test)


Lie = Callable[[Request, Answer], Answer]
LIES: dict[str, Lie] = {
    "more than asked": lambda request, answer: Answer(
        Status.OK, answer.number, answer.size, answer.offset, answer.data + b"x"
    ),
    "less than asked": lambda request, answer: Answer(
        Status.OK, answer.number, answer.size, answer.offset, answer.data[:-1]
    ),
    "another place": lambda request, answer: Answer(
        Status.OK, answer.number, answer.size, answer.offset + 1, answer.data
    ),
    "it grows": lambda request, answer: Answer(
        Status.OK, answer.number, answer.size + (answer.offset > 0) * CHUNK, answer.offset, answer.data
    ),
    "endless": lambda request, answer: Answer(Status.OK, answer.number, 1 << 44, answer.offset, b""),
}


@pytest.mark.parametrize("name", LIES)
def test_a_peer_that_lies_about_sizes(name):
    async def test(one: End, two: End, relay: Relay) -> None:
        key = one.put(os.urandom(5 * CHUNK))
        honest = one.peers.serve

        async def lying(request: Request) -> Answer:
            return LIES[name](request, await honest(request))

        one.peers.serve = lying
        with pytest.raises(CorruptError, match=f"{one.id} contradicts itself"):
            await two.get(key)
        assert two.counters["violations"] == 1
        assert not two.peers.connected
        assert await one.get(two.put(b"still works")) == b"still works"

    of_pair(test)


def test_answers_that_are_repeated_or_unasked():
    async def test(one: End, two: End, relay: Relay) -> None:
        data = os.urandom(CHUNK)
        key = one.put(data)
        await two.get(key)
        for message in (Answer(Status.OK, 1, data=b"again").encode(), b"junk", b"", b"PQ", "words"):
            before = two.counters.get("violations", 0)
            one.peers._live(two.id)._channel.send(message)
            await comes(functools.partial(violated, two, before))
            assert not two.peers.connected
            assert await two.get(key) == data  # over another channel

    of_pair(test)


def test_a_flood_of_requests_closes_the_channel():
    async def test(one: End, two: End, relay: Relay) -> None:
        key = one.put(os.urandom(CHUNK))
        assert len(await two.get(key)) == CHUNK
        never = asyncio.Event()
        most = 0

        async def slow(request: Request) -> Answer:
            nonlocal most
            most = max(most, len(channel._serving))
            await never.wait()
            raise AssertionError

        channel = one.peers._live(two.id)
        channel._serve = slow
        flood = two.peers._live(one.id)
        for number in range(3 * _SERVED):
            flood._channel.send(Request(Operation.READ, 1000 + number, key, length=CHUNK).encode())
        await comes(lambda: one.counters.get("violations", 0))
        assert most <= _SERVED
        assert not channel.open

    of_pair(test)


def test_memory_is_bounded_both_ways():
    async def test(one: End, two: End, relay: Relay) -> None:
        data = os.urandom(64 * CHUNK)
        keys = [one.put(data), one.put(data)]
        await two.get(one.put(b"connect"))
        serving, asking = one.peers._live(two.id), two.peers._live(one.id)
        queued, waiting = [0], [0]
        send = serving._channel.send

        def watched(message: bytes) -> None:
            send(message)
            queued.append(serving._channel.bufferedAmount)
            waiting.append(len(asking._waiting))

        serving._channel.send = watched
        assert [len(each) for each in await asyncio.gather(*map(two.get, keys))] == [len(data)] * 2
        assert max(queued) <= _HIGH + 2 * CHUNK
        assert max(waiting) <= 48

    of_pair(test)


def test_what_is_not_for_peers():
    async def test(one: End, two: End, relay: Relay) -> None:
        key = one.put(b"data")
        for operation in (Operation.SESSIONS, Operation.SWEEP, Operation.INFO, Operation.PUT, Operation.GET):
            answer = await two.peers.ask(one.id, Request(operation, key=key), 10)
            assert answer.status is Status.REFUSED
        forged = Request(Operation.READ, key=f"{one.id}.user.../../etc/passwd", length=10)
        assert (await two.peers.ask(one.id, forged, 10)).status is Status.REFUSED
        beyond = Request(Operation.READ, key=key, offset=5, length=10)
        assert (await two.peers.ask(one.id, beyond, 10)).status is Status.REFUSED

    of_pair(test)


def test_a_peer_that_sets_an_object():
    async def test(one: End, two: End, relay: Relay) -> None:
        key = one.objects.reserve(USER_SESSION)

        async def told(offset: int, size: int, data: bytes, upload: bytes = b"u" * 16) -> Status:
            head = upload + size.to_bytes(8, "big")
            said = Request(Operation.WRITE, key=key, offset=offset, data=head + data)
            return (await two.peers.ask(one.id, said, 10)).status

        assert await told(5, 10, b"no beginning") is Status.REFUSED
        assert await told(0, 2, b"more than it said") is Status.REFUSED
        assert await told(0, 1 << 40, b"x") is Status.FULL
        short = await two.peers.ask(one.id, Request(Operation.WRITE, key=key, data=b"short"), 10)
        assert short.status is Status.REFUSED
        assert one.objects.read(key, 0, 10) is None
        for offset in (0, 0, 2, 2):  # answers get lost, and what was asked is asked again
            assert await told(offset, 4, b"data"[offset : offset + 2]) is Status.OK
        assert one.objects.read(key, 0, 10) == (4, b"data")
        assert await told(0, 4, b"late", b"v" * 16) is Status.REFUSED
        assert one.objects.read(key, 0, 10) == (4, b"data")

    of_pair(test)


def test_an_introduction_that_the_relay_altered_or_repeats():
    async def test(one: End, two: End, relay: Relay) -> None:
        said: list[dict[str, Any]] = []
        signal = two.peers.introductions.signal

        async def noted(to: str, body: dict[str, Any]) -> None:
            said.append(body)
            await signal(to, body)

        two.peers.introductions.signal = noted
        assert await two.get(one.put(b"data")) == b"data"
        (offer,) = said
        for altered in (
            {**offer, "sdp": offer["sdp"].replace("a=fingerprint:sha-256 ", "a=fingerprint:sha-256 00")},
            {**offer, "ref": "0" * 32},
            {**offer, "kind": "answer"},
            {},
        ):
            before = one.counters.get("violations", 0)
            await one.peers._heard(two.id, altered)
            assert one.counters["violations"] == before + 1
        await one.peers._heard("0" * 32, offer)  # as if it came from someone else
        await one.peers._heard(two.id, offer)  # a second time
        assert one.counters["violations"] == 6
        assert len(one.peers._channels[two.id]) == 1

    of_pair(test)


def test_a_peer_that_never_answers_the_introduction(monkeypatch):
    monkeypatch.setattr("proxystore_core.endpoint.peers._OPENING", 0.5)

    async def test(one: End, two: End, relay: Relay) -> None:
        async def deaf(peer: str, body: dict[str, Any]) -> None:
            pass

        one.peers.introductions._heard = deaf
        with pytest.raises(UnreachableError, match=r"no way to endpoint .* was found within 0\.5 s"):
            await two.get(one.put(b"data"))

    of_pair(test)


def test_nobody_waits_any_more_for_a_peer_that_is_not_there():
    """The error of opening a channel is then nobody's: it is no trouble that asyncio has to report."""

    async def test(one: End, two: End, relay: Relay) -> None:
        troubles: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
        await comes(lambda: one.peers.introductions.connected)
        with pytest.raises(DeadlineError):
            await one.get(f"{'0' * 32}.user.{'0' * 20}", 1e-9)
        await comes(lambda: not one.peers._opening)
        gc.collect()
        assert not troubles

    of_pair(test)


def test_a_peer_that_falls_silent(monkeypatch):
    monkeypatch.setattr("proxystore_core.endpoint.channel._SILENCE", 0.2)

    async def test(one: End, two: End, relay: Relay) -> None:
        data = os.urandom(3 * CHUNK)
        key = one.put(data)
        await two.get(one.put(b"connect"))
        first = one.peers._live(two.id)
        first._channel.remove_all_listeners("message")  # as if its host slept
        assert await two.get(key) == data  # over a channel of its own
        assert two.counters["resumed"] == 1

    of_pair(test)


# The relay.


@contextlib.asynccontextmanager
async def line(port: int, **options: Any) -> AsyncIterator[Any]:
    async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None, **options) as opened:
        yield opened


async def pour(flood: Any) -> None:
    """Send without end; the other side closes."""
    for _ in range(500):
        await flood.send('{"type": "what"}')
        await asyncio.sleep(0)
    while True:
        await flood.recv()


def register(name: str = "a" * 32, secret: str = SECRET) -> str:
    return json.dumps({"type": "register", "id": name, "token": relay_token(secret)})


REGISTRATIONS = {
    "junk": ("\0", "no registration"),
    "list": ("[1]", "no registration"),
    "deep": ("[" * 20_000, "no registration"),
    "signal": ('{"type": "signal"}', "no registration"),
    "id": (register("../" * 8), "no registration"),
    "token": (register(secret="x" * 40), "does not know the token"),
}


@pytest.mark.parametrize("name", REGISTRATIONS)
def test_who_is_not_let_in(name):
    async def test() -> None:
        relay = Relay({"group": relay_token(SECRET)})
        async with relay.serving() as port, line(port) as other:
            text, words = REGISTRATIONS[name]
            await other.send(text)
            assert words in json.loads(await other.recv())["reason"]
            with pytest.raises(websockets.ConnectionClosed):
                await other.recv()
            assert relay.registered == 0

    asyncio.run(test())


def test_groups_rates_and_sizes():
    async def test() -> None:
        theirs = "y" * 40
        relay = Relay({"ours": relay_token(SECRET), "theirs": relay_token(theirs)}, most=3)
        async with relay.serving() as port, line(port) as ours, line(port) as stranger, line(port) as flood:
            for each, text in (
                (ours, register()),
                (stranger, register("b" * 32, theirs)),
                (flood, register("c" * 32)),
            ):
                await each.send(text)
                assert json.loads(await each.recv()) == {"type": "registered"}
            async with line(port) as late:
                assert "full" in json.loads(await late.recv())["reason"]
            # Another group's endpoint looks as if it were not there.
            await stranger.send(json.dumps({"type": "signal", "to": "a" * 32, "body": {"ref": "7"}}))
            refused = json.loads(await stranger.recv())
            assert (refused["type"], refused["ref"]) == ("refused", "7")
            assert "no endpoint" in refused["reason"]
            await flood.send(json.dumps({"type": "signal", "to": "a" * 32, "body": {"x": 1}}))
            assert json.loads(await ours.recv()) == {"type": "signal", "from": "c" * 32, "body": {"x": 1}}
            with pytest.raises(websockets.ConnectionClosed, match="too many messages"):
                await pour(flood)
            await stranger.send("x" * (MESSAGE + 1))
            with pytest.raises(websockets.ConnectionClosed, match="1009"):
                await stranger.recv()
            await ours.send(json.dumps({"type": "signal", "to": "c" * 32, "body": {}}))
            assert "no endpoint" in json.loads(await ours.recv())["reason"]
            assert relay.counters["flooded"] == 1

    asyncio.run(test())


def test_who_registers_again_replaces_himself():
    async def test() -> None:
        relay = Relay({"ours": relay_token(SECRET), "theirs": relay_token("y" * 40)})
        serving = relay.serving()
        async with serving as port, line(port) as first, line(port) as second, line(port) as thief:
            await first.send(register())
            await first.recv()
            await thief.send(register(secret="y" * 40))
            assert "another group" in json.loads(await thief.recv())["reason"]
            await second.send(register())
            await second.recv()
            with pytest.raises(websockets.ConnectionClosed, match="registered again"):
                await first.recv()
            assert relay.registered == 1

    asyncio.run(test())


def test_who_has_to_go_is_gone_at_once():
    """Also those who do not answer when they are told to."""

    async def test() -> None:
        relay = Relay({"ours": relay_token(SECRET)})
        async with relay.serving() as port, contextlib.AsyncExitStack() as stack:
            lines = [await stack.enter_async_context(line(port)) for _ in range(3)]
            for number, each in enumerate(lines):
                await each.send(register(f"{number:032x}"))
                await each.recv()
            for each in lines[:2]:
                each.transport.pause_reading()
            going = asyncio.ensure_future(relay.let_in({"ours": relay_token("y" * 40)}))
            await asyncio.sleep(0)
            assert relay.registered == 0
            async with line(port) as late:
                await late.send(register("2".zfill(32), "y" * 40))
                assert json.loads(await late.recv()) == {"type": "registered"}
            for each in lines[:2]:
                each.transport.resume_reading()
            await going
            with pytest.raises(websockets.ConnectionClosed, match="any more"):
                await lines[2].recv()

    asyncio.run(test())


def test_who_does_not_listen_holds_up_nobody():
    async def test() -> None:
        relay = Relay({"ours": relay_token(SECRET)})
        async with relay.serving() as port, line(port) as one, line(port) as deaf, line(port) as other:
            for each, letter in ((one, "a"), (deaf, "b"), (other, "c")):
                await each.send(register(letter * 32))
                await each.recv()
            deaf.transport.pause_reading()
            for its, size in (
                (relay._registered["b" * 32][1].transport, socket.SO_SNDBUF),
                (deaf.transport, socket.SO_RCVBUF),
            ):
                its.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, size, 4096)
            for to in (*["b"] * 60, "c"):
                body = {"ref": "1", "sdp": "x" * (MESSAGE - 200)}
                await one.send(json.dumps({"type": "signal", "to": to * 32, "body": body}))
            async with asyncio.timeout(15):
                assert json.loads(await other.recv())["from"] == "a" * 32
                assert "does not listen" in json.loads(await one.recv())["reason"]
            deaf.transport.abort()
            one.transport.abort()

    asyncio.run(test())


def test_tls(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "relay.pem")
    )

    async def test() -> None:
        relay = Relay({"group": relay_token(SECRET)})
        async with relay.serving("localhost", cert=str(tmp_path / "relay.pem")) as port:
            good = End("good", f"wss://localhost:{port}", relay_ca=str(tmp_path / "ca.pem"))
            other = End("other", f"wss://localhost:{port}", relay_ca=str(tmp_path / "ca.pem"))
            wary = End("wary", f"wss://localhost:{port}")
            try:
                assert await good.get(other.put(b"data")) == b"data"
                with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
                    await wary.get(other.put(b"data"))
            finally:
                for end in (good, other, wary):
                    await end.close()
            with pytest.raises((ssl.SSLError, websockets.InvalidHandshake, OSError)):
                async with line(port):
                    pass

    asyncio.run(test())


def test_no_relay_for_others_without_tls():
    async def test() -> None:
        with pytest.raises(ConfigurationError, match=r"needs TLS.*--plain"):
            async with Relay({"group": "0" * 64}).serving("0.0.0.0"):
                pass
        with pytest.raises(ConfigurationError, match="certificate cannot be read"):
            async with Relay({"group": "0" * 64}).serving(cert="/nowhere.pem"):
                pass

    asyncio.run(test())
    with pytest.raises(ConfigurationError, match="lets nobody in"):
        Relay({})


def test_tokens_file():
    digest = relay_token(SECRET)
    assert read_tokens(f"# groups\n\nours {digest}  # since May\n") == {"ours": digest}
    with pytest.raises(ConfigurationError, match="line 2"):
        read_tokens(f"ours {digest}\ntheirs {SECRET}\n")


def test_the_relay_follows_its_tokens_file(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(relay_module, "_LOOKS", 0.01)
    file, theirs = tmp_path / "groups.txt", "y" * 40
    file.write_text(f"ours {relay_token(SECRET)}\n")

    async def test() -> None:
        relay = Relay(read_tokens(file.read_text()))
        async with relay.serving() as port, line(port) as ours, line(port) as late:
            following = asyncio.ensure_future(relay.follow(file))
            await ours.send(register())
            assert json.loads(await ours.recv()) == {"type": "registered"}
            await asyncio.sleep(0)
            with caplog.at_level("WARNING"):
                file.write_text("what is this?\n")  # by accident: nobody has to go
                await asyncio.to_thread(until, lambda: "stay as they were" in caplog.text)
            assert relay.registered == 1
            file.write_text(f"theirs {relay_token(theirs)}\n")
            with pytest.raises(websockets.ConnectionClosed, match="any more"):
                await ours.recv()
            await late.send(register("b" * 32, theirs))
            assert json.loads(await late.recv()) == {"type": "registered"}
            following.cancel()

    asyncio.run(test())


def test_stun():
    async def test() -> None:
        async with Relay({"group": "0" * 64}).serving() as port:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.bind(("127.0.0.1", 0))
                asking.settimeout(5)
                asking.sendto(b"junk", ("127.0.0.1", port))
                asked = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
                asking.sendto(bytes(asked), ("127.0.0.1", port))
                answer = stun.parse_message(await asyncio.to_thread(asking.recv, 1000))
                assert answer.attributes["XOR-MAPPED-ADDRESS"] == asking.getsockname()
                assert answer.transaction_id == asked.transaction_id

    asyncio.run(test())


def test_signatures_tell_directions_and_groups_apart():
    marks = {
        sign(secret, *words)
        for secret in ("a", "b")
        for words in (("offer", "x", "y"), ("offer", "y", "x"), ("answer", "x", "y"), ("offer", "xy", ""))
    }
    assert len(marks) == 8
    assert relay_token("a") not in marks
