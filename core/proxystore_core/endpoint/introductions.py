"""An endpoint's line to the relay: it registers, and exchanges with others what a connection needs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection, connect

from proxystore_core.endpoint.settings import EndpointSettings, relay_token
from proxystore_core.errors import UnreachableError

__all__ = ["MESSAGE", "Introductions"]

MESSAGE = 32 << 10
"""Bytes of a message to or from a relay at most."""

_PATIENCE = 3.0  # seconds that a signal waits for the relay to be there
_OPENING = 10.0  # seconds for connecting and registering
_PAUSES = 0.2, 30.0  # seconds between two tries: first, and longest
_log = logging.getLogger("proxystore_core.endpoint")


class Introductions:
    """Keeps one websocket to the relay open, again and again. Peers that are connected do without.

    Args:
        settings: the endpoint's.
        secret: its group's token; the relay is shown a digest of it.
        heard: called with a peer's id and what it says.
        refused: called with the reference of a signal that the relay could not deliver, and why.

    Attributes:
        problem: why there is no line, or empty.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        secret: str,
        heard: Callable[[str, dict[str, Any]], Awaitable[None]],
        refused: Callable[[str, str], None],
    ) -> None:
        self._settings = settings
        self._secret = secret
        self._heard = heard
        self._refused = refused
        self._line: ClientConnection | None = None
        self._there = asyncio.Event()
        self.problem = "" if settings.relay else "the endpoint has no relay"

    @property
    def connected(self) -> bool:
        return self._line is not None

    async def run(self) -> None:
        """Hold the line until cancelled."""
        if not self._settings.relay:
            await asyncio.Event().wait()
        pause = _PAUSES[0]
        while True:
            try:
                async with await self._register() as line:
                    pause = _PAUSES[0]
                    self._line, self.problem = line, ""
                    self._there.set()
                    _log.info("registered at %s", self._settings.relay)
                    await self._listen(line)
                    self.problem = f"the relay {self._settings.relay} closed the line"
            except (OSError, ValueError, RecursionError, websockets.WebSocketException) as error:
                said = str(error) or type(error).__name__
                self.problem = f"the relay {self._settings.relay} cannot be reached: {said}"
            finally:
                self._line = None
                self._there.clear()
            _log.warning("%s; trying again in %.1f s", self.problem, pause)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, _PAUSES[1])

    async def signal(self, to: str, body: dict[str, Any]) -> None:
        """Say something to another endpoint through the relay.

        Raises:
            UnreachableError: the relay is not there.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE if self._settings.relay else 0):
                await self._there.wait()
        line = self._line
        try:
            if line is None:
                raise UnreachableError(
                    f"no introduction to endpoint {to}: {self.problem}",
                    remedy="Start the relay (proxystore relay), or check the endpoint's relay setting.",
                )
            await line.send(json.dumps({"type": "signal", "to": to, "body": body}))
        except websockets.WebSocketException as error:
            raise UnreachableError(f"the relay {self._settings.relay} went away: {error}") from error

    async def _register(self) -> ClientConnection:
        context = None
        if self._settings.relay.startswith("wss:"):
            context = ssl.create_default_context(cafile=self._settings.relay_ca or None)
        async with asyncio.timeout(_OPENING):
            # Straight to it: what a proxy in the environment is for is another network.
            line = await connect(
                self._settings.relay,
                ssl=context,
                compression=None,
                max_size=MESSAGE,
                max_queue=16,
                proxy=None,
            )
            try:
                hello = {"type": "register", "id": self._settings.id, "token": relay_token(self._secret)}
                await line.send(json.dumps(hello))
                answer = json.loads(await line.recv())
                if not isinstance(answer, dict):
                    raise ValueError("who listens there is no relay")
                if answer.get("type") != "registered":
                    raise ValueError(str(answer.get("reason", "it does not say why"))[:200])
            except BaseException:
                await line.close()
                raise
            return line

    async def _listen(self, line: ClientConnection) -> None:
        async for text in line:
            try:
                said = json.loads(text)
                kind, ref = said["type"], str(said.get("ref", ""))
                if kind == "signal":
                    await self._heard(str(said["from"]), dict(said["body"]))
                elif kind == "refused":
                    self._refused(ref, str(said.get("reason", ""))[:200])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                _log.warning("the relay says something odd: %r", error)
