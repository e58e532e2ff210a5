"""Endpoints and a relay in one event loop, for tests of what they say to each other."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from proxystore_core.connectors.base import USER_SESSION
from proxystore_core.endpoint.channel import Counters
from proxystore_core.endpoint.clients import Clients
from proxystore_core.endpoint.objects import Objects
from proxystore_core.endpoint.peers import Peers
from proxystore_core.endpoint.relay import Relay
from proxystore_core.endpoint.settings import EndpointSettings, relay_token
from proxystore_core.endpoint.wire import Status

SECRET = secrets.token_urlsafe(32)


class End:
    """One endpoint, without its daemon."""

    def __init__(self, name: str, relay: str, **settings: Any) -> None:
        self.settings = EndpointSettings.create(
            name, SECRET, relay=relay, addresses=("127.0.0.1",), stun="", **settings
        )
        self.counters = Counters()
        self.objects = Objects(self.settings)
        self.peers = Peers(self.settings, SECRET, self.counters)
        self.clients = Clients(self.settings, "token", self.objects, self.peers, self.counters, self._health)
        self.peers.serve = self.clients.serve
        self.task = asyncio.ensure_future(self.peers.introductions.run())

    def _health(self) -> dict[str, Any]:
        return {"id": self.id, "node": self.objects.store.node}

    @property
    def id(self) -> str:
        return self.settings.id

    def put(self, data: bytes) -> str:
        return self.objects.put(data, USER_SESSION)

    async def get(self, key: str, patience: float = 10.0) -> bytes:
        found = b""
        async for answer in self.peers.fetch(key, patience):
            assert answer.status is Status.OK, answer
            assert answer.offset == len(found)
            found += answer.data
        return found

    async def close(self) -> None:
        self.task.cancel()
        try:
            await self.peers.close()
            await asyncio.sleep(0.05)
        finally:
            self.objects.store.end(USER_SESSION)
            self.objects.close()


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[End, End, Relay]]:
    relay = Relay({"group": relay_token(SECRET)})
    async with relay.serving() as port:
        ends = [End(name, f"ws://127.0.0.1:{port}") for name in ("one", "two")]
        try:
            yield ends[0], ends[1], relay
        finally:
            for end in ends:
                await end.close()


async def comes(condition: Callable[[], object]) -> None:
    """Wait for a condition, within the test's own time."""
    while not condition():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)


def of_pair(test: Callable[[End, End, Relay], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), pair() as ends:
            await test(*ends)

    asyncio.run(run())
