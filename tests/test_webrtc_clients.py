"""An endpoint's clients that stop in the midst, go away, or are too many."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from endpoint_ends import End, comes, of_pair

from proxystore_core.connectors.base import USER_SESSION
from proxystore_core.connectors.webrtc import EndpointConnector
from proxystore_core.endpoint import clients as clients_module
from proxystore_core.endpoint.relay import Relay
from proxystore_core.endpoint.settings import DIRECTORY, ENDPOINT
from proxystore_core.endpoint.wire import CHUNK, Answer, Operation, Request
from proxystore_core.errors import FullError, StoreError
from proxystore_core.private import write_private


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path / "endpoints"))
    monkeypatch.setenv(ENDPOINT, "one")


@contextlib.asynccontextmanager
async def door(end: End) -> AsyncIterator[None]:
    """Let clients in."""
    write_private(end.settings.directory / "token", "token")
    server = await end.clients.listen()
    try:
        yield
    finally:
        server.close()
        await end.clients.close()


def ask(end: End, request: Request) -> socket.socket:
    """A client's connection, with a request to which it does not read the answer."""
    link = end.settings.connect(5)
    for each in (Request(Operation.HELLO, data=b"token"), request):
        message = each.encode()
        link.sendall(struct.pack("!I", len(message)) + message)
    return link


def test_clients_that_take_nothing_do_not_keep_others_from_fetching(monkeypatch):
    monkeypatch.setattr(clients_module, "_STALLED", 0.2, raising=False)

    async def test(one: End, two: End, relay: Relay) -> None:
        data = os.urandom(20 * CHUNK)
        key = two.put(data)
        with contextlib.ExitStack() as links:
            async with door(one):
                asked = Request(Operation.GET, key=key, seconds=60)
                for _ in range(clients_module._FETCHES):
                    links.enter_context(ask(one, asked))
                await comes(one.clients._fetches.locked)
                connector = EndpointConnector(deadline=10, direct=False)
                assert await asyncio.to_thread(connector.get, key) == data
                # Those who are in nobody's way may come back to it.
                assert len(one.clients._open) > 2
                connector.close()

    of_pair(test)


def test_clients_that_send_nothing_do_not_keep_others_from_putting(monkeypatch):
    monkeypatch.setattr(clients_module, "_STALLED", 0.2, raising=False)

    async def test(one: End, two: End, relay: Relay) -> None:
        most = one.settings.most
        async with door(one):
            with ask(one, Request(Operation.PUT, offset=most, seconds=60)) as link:
                await comes(lambda: one.clients._room < most)
                link.sendall(b"some of it")
                connector = EndpointConnector(deadline=10, direct=False)
                key = await asyncio.to_thread(connector.put, [b"data"])
                assert await asyncio.to_thread(connector.get, key) == b"data"
                connector.close()
        assert one.clients._room == most

    of_pair(test)


def test_what_a_client_stored_that_is_gone_goes_with_it():
    async def test(one: End, two: End, relay: Relay) -> None:
        stored = asyncio.Event()
        loop = asyncio.get_running_loop()
        put, held = one.objects.put, asyncio.Event()

        def put_slowly(data: bytes, session: str) -> str:
            key = put(data, session)
            loop.call_soon_threadsafe(stored.set)
            asyncio.run_coroutine_threadsafe(held.wait(), loop).result()
            return key

        one.objects.put = put_slowly
        async with door(one):
            with ask(one, Request(Operation.PUT, offset=4, seconds=60)) as link:
                link.sendall(b"data")
                await stored.wait()
            assert len(one.objects.store.keys(USER_SESSION)) == 1
            held.set()
            await comes(lambda: not one.clients._open)
            assert one.objects.store.keys(USER_SESSION) == []

    of_pair(test)


def test_more_clients_than_there_may_be():
    async def test(one: End, two: End, relay: Relay) -> None:
        one.clients._most_open = 3
        async with door(one):
            with contextlib.ExitStack() as links:
                for _ in range(3):
                    links.enter_context(ask(one, Request(Operation.INFO)))
                connector = EndpointConnector(direct=False)
                with pytest.raises(FullError, match=r"3 connections, all that it takes.*Raise ulimit -n"):
                    await asyncio.to_thread(connector.put, [b"data"])
            await comes(lambda: not one.clients._open)
            await asyncio.to_thread(connector.evict, await asyncio.to_thread(connector.put, [b"data"]))
            connector.close()

    of_pair(test)


def test_patience_without_end():
    async def test(one: End, two: End, relay: Relay) -> None:
        async with door(one):
            connector = EndpointConnector(deadline=math.inf, direct=False)
            for keep in (one, two):
                key = keep.put(b"data")
                assert await asyncio.to_thread(connector.get, key) == b"data"
            key = await asyncio.to_thread(connector.put, [b"data"])
            assert await asyncio.to_thread(connector.exists, key)
            assert EndpointConnector.from_url(connector.url).url == connector.url
            connector.close()

    of_pair(test)


def test_a_peer_that_announces_more_than_there_is_memory_for():
    async def test(one: End, two: End, relay: Relay) -> None:
        key, serve = two.put(bytes(CHUNK)), two.peers.serve

        async def boasting(request: Request) -> Answer:
            return dataclasses.replace(await serve(request), size=1 << 44)

        two.peers.serve = boasting
        async with door(one):
            connector = EndpointConnector(deadline=10, direct=False)
            with pytest.raises(StoreError, match="no memory for the 17592186044416 bytes"):
                await asyncio.to_thread(connector.get, key)
            key = await asyncio.to_thread(connector.put, [b"data"])
            assert await asyncio.to_thread(connector.get, key) == b"data"
            connector.close()

    of_pair(test)
