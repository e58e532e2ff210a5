"""Channels to other endpoints: opened when needed, opened again when lost, resumed where they broke off."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import logging
import secrets
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import aioice.ice
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

from proxystore_core.endpoint.channel import Channel, Counters, LostError
from proxystore_core.endpoint.introductions import Introductions
from proxystore_core.endpoint.settings import EndpointSettings, sign
from proxystore_core.endpoint.wire import Answer, Request, Status
from proxystore_core.errors import ConfigurationError, DeadlineError, StoreError, UnreachableError

__all__ = ["Peers"]

_OPENING = 20.0  # seconds for introduction and connection
_AGAIN = 10.0  # seconds for which a peer that was there is tried again
_TRIES = 6  # channels for one object, each of which got some of it
_MOST = 4  # channels of one peer
_ACCEPTED = 64  # offers at a time: the others take turns
_NONCES = 1024  # offers that are remembered: none is taken twice
_log = logging.getLogger("proxystore_core.endpoint")


class Peers:
    """All channels of one endpoint.

    Args:
        settings: the endpoint's.
        secret: its group's token, which signs introductions: the relay cannot put itself in between.
        counters: of the endpoint.

    Attributes:
        serve: answers a peer's request.
    """

    def __init__(self, settings: EndpointSettings, secret: str, counters: Counters) -> None:
        self._settings = settings
        self._secret = secret
        self.serve: Callable[[Request], Awaitable[Answer]] = _nothing
        self._counters = counters
        self._channels: dict[str, list[Channel]] = {}
        self._opening: dict[str, asyncio.Task[Channel]] = {}
        self._offers: dict[str, asyncio.Future[str]] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_ACCEPTED)
        self.introductions = Introductions(settings, secret, self._heard, self._refused)
        _use_addresses(settings.addresses)

    @property
    def connected(self) -> list[str]:
        """Ids of the peers that there is a channel to."""
        return [peer for peer in list(self._channels) if self._live(peer) is not None]

    async def close(self) -> None:
        for task in [*self._tasks, *self._opening.values()]:
            task.cancel()
        channels = [channel for channels in self._channels.values() for channel in channels]
        await asyncio.gather(*[channel.close() for channel in channels], return_exceptions=True)

    async def ask(self, peer: str, request: Request, patience: float) -> Answer:
        """A peer's answer. Raises as `fetch`."""
        until = time.monotonic() + patience
        while True:
            channel = await self._channel(peer, patience)
            try:
                return await channel.ask(request, patience)
            except LostError as error:
                if time.monotonic() > until:
                    raise UnreachableError(f"endpoint {peer} was lost: {error}") from error

    async def fetch(self, key: str, patience: float) -> AsyncGenerator[Answer]:
        """The bytes of a peer's object in order; a broken channel is replaced, and goes on where it broke.

        Args:
            key: the object's.
            patience: seconds to wait for each of the answers.

        Yields:
            Answers with bytes, or one that says why there are none.

        Raises:
            UnreachableError: the peer is not there, or the relay is not.
            DeadlineError: it does not answer in time.
            CorruptError: it contradicts itself.
        """
        peer = key.partition(".")[0]
        offset, size, tries = 0, None, 0
        while size is None or offset < size:
            channel = await self._channel(peer, patience, again=size is not None)
            begun = offset
            try:
                async for answer in channel.read(key, offset, size, patience):
                    offset, size = answer.offset + len(answer.data), answer.size
                    yield answer
                    if answer.status is not Status.OK:
                        return
            except LostError as error:
                tries = 0 if offset > begun else tries + 1
                if tries >= _TRIES:
                    raise UnreachableError(f"endpoint {peer} was lost again and again: {error}") from error
                self._counters.add("resumed")
                _log.info("lost the channel to %s at byte %d: %s", peer, offset, error)

    async def _channel(self, peer: str, patience: float, *, again: bool = False) -> Channel:
        """A channel to a peer, opened if need be; in one go for all who want it.

        Args:
            peer: its id.
            patience: seconds to wait.
            again: it was there a moment ago: try more than once.
        """
        until = time.monotonic() + (min(patience, _AGAIN) if again else 0)
        while True:
            live = self._live(peer)
            if live is not None:
                return live
            task = self._opening.get(peer)
            if task is None:
                task = self._opening[peer] = asyncio.ensure_future(self._open(peer))
                task.add_done_callback(functools.partial(self._opened, peer))
            try:
                async with asyncio.timeout(patience):
                    return await asyncio.shield(task)
            except UnreachableError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.2)
            except TimeoutError:
                raise DeadlineError(f"endpoint {peer} did not connect within {patience:g} s") from None

    def _opened(self, peer: str, task: asyncio.Future[Channel]) -> None:
        self._opening.pop(peer, None)
        # Whoever wanted it may have run out of patience: then the error is nobody's, and no trouble of ours.
        if not task.cancelled() and task.exception() is not None:
            _log.info("no channel to %s: %s", peer, task.exception())

    def _live(self, peer: str) -> Channel | None:
        channels = [channel for channel in self._channels.get(peer, ()) if channel.open]
        if not channels:
            self._channels.pop(peer, None)
            return None
        self._channels[peer] = channels
        return channels[0]

    def _keep(self, channel: Channel) -> None:
        channels = self._channels.setdefault(channel.peer, [])
        channels.append(channel)
        while len(channels) > _MOST:
            channels.pop(0).drop("there are newer ones")
        self._counters.add("channels")

    async def _open(self, peer: str) -> Channel:
        connection = RTCPeerConnection(self._configuration())
        opened = asyncio.Event()
        data = connection.createDataChannel("proxystore")
        data.on("open", opened.set)
        nonce = secrets.token_hex(16)
        self._offers[nonce] = answered = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_OPENING):
                await connection.setLocalDescription(await connection.createOffer())
                await self._say(peer, "offer", nonce, connection.localDescription.sdp)
                await connection.setRemoteDescription(RTCSessionDescription(await answered, "answer"))
                channel = self._watched(peer, connection, data)
                await opened.wait()
        except BaseException as error:
            await connection.close()
            if isinstance(error, TimeoutError):
                raise UnreachableError(
                    f"no way to endpoint {peer} was found within {_OPENING:g} s",
                    remedy="Does a firewall drop UDP between the hosts? See docs/behind-nat.md.",
                ) from error
            if isinstance(error, StoreError) or not isinstance(error, Exception):
                raise
            # What aiortc raises for a description that it does not expect is of any kind.
            raise UnreachableError(
                f"endpoint {peer} answered nonsense: {error!r}", remedy="Is it of the same version?"
            ) from error
        finally:
            del self._offers[nonce]
        self._keep(channel)
        return channel

    async def _accept_in_turn(self, peer: str, nonce: str, sdp: str) -> None:
        until = time.monotonic() + _OPENING  # then its peer has given up
        async with self._turns:
            if time.monotonic() < until:
                await self._accept(peer, nonce, sdp)

    async def _accept(self, peer: str, nonce: str, sdp: str) -> None:
        connection = RTCPeerConnection(self._configuration())
        opened = asyncio.Event()

        def taken(data: Any) -> None:
            self._keep(self._watched(peer, connection, data))
            opened.set()

        connection.on("datachannel", taken)

        try:
            async with asyncio.timeout(_OPENING):
                await connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
                await connection.setLocalDescription(await connection.createAnswer())
                await self._say(peer, "answer", nonce, connection.localDescription.sdp)
                await opened.wait()
        except BaseException as error:
            await connection.close()
            if not isinstance(error, Exception):
                raise
            _log.warning("no connection from %s: %r", peer, error)

    def _watched(self, peer: str, connection: Any, data: Any) -> Channel:
        channel = Channel(peer, connection, data, self.serve, self._counters)

        def changed() -> None:
            if connection.connectionState in ("failed", "closed"):
                channel.drop(f"the connection has {connection.connectionState}")

        connection.on("connectionstatechange", changed)
        return channel

    async def _say(self, peer: str, kind: str, nonce: str, sdp: str) -> None:
        mark = sign(self._secret, kind, self._settings.id, peer, nonce, sdp)
        body = {"kind": kind, "ref": nonce, "sdp": sdp, "mark": mark}
        await self.introductions.signal(peer, body)

    async def _heard(self, peer: str, body: dict[str, Any]) -> None:
        """What a peer says through the relay, or the relay for itself: nothing counts without the mark."""
        kind, nonce, sdp = str(body.get("kind")), str(body.get("ref")), str(body.get("sdp"))
        mark = sign(self._secret, kind, peer, self._settings.id, nonce, sdp)
        if not hmac.compare_digest(mark.encode(), str(body.get("mark")).encode()):
            self._counters.add("violations")
            _log.warning("what %s says is not signed with this group's token", peer)
            self._refused(nonce, "it does not have the same token as this endpoint")
            return
        if kind == "answer":
            waiting = self._offers.get(nonce)
            if waiting is not None and not waiting.done():
                waiting.set_result(sdp)
        elif kind == "offer":
            if nonce in self._seen or len(self._tasks) >= _NONCES:
                self._counters.add("violations")
                return
            self._seen[nonce] = None
            while len(self._seen) > _NONCES:
                self._seen.popitem(last=False)
            task = asyncio.ensure_future(self._accept_in_turn(peer, nonce, sdp))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _refused(self, nonce: str, reason: str) -> None:
        waiting = self._offers.get(nonce)
        if waiting is not None and not waiting.done():
            waiting.set_exception(
                UnreachableError(
                    f"no introduction: {reason}",
                    remedy="Does the other endpoint run, with the same relay and token?",
                )
            )

    def _configuration(self) -> RTCConfiguration:
        stun = self._settings.stun
        if stun == "relay":
            parts = urllib.parse.urlsplit(self._settings.relay)
            host = parts.hostname or ""
            stun = f"{host}:{parts.port or (443 if parts.scheme == 'wss' else 80)}" if host else ""
            if ":" in host:  # IPv6 has no need of it
                stun = ""
            with contextlib.suppress(ValueError):
                if ipaddress.ip_address(host).is_loopback:
                    stun = ""  # it would see what this host knows itself
            if host == "localhost":
                stun = ""
        return RTCConfiguration(iceServers=[RTCIceServer(f"stun:{stun}")] if stun else [])


async def _nothing(request: Request) -> Answer:
    return Answer(Status.MISSING, request.number)


def _use_addresses(addresses: tuple[str, ...]) -> None:
    """Let ICE offer these addresses of the host only; aioice asks one function which there are."""
    if not addresses:
        return
    if not hasattr(aioice.ice, "get_host_addresses"):
        raise ConfigurationError(
            "this version of aioice takes no list of addresses", remedy="Leave it empty."
        )

    def chosen(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return [each for each in addresses if (use_ipv6 if ":" in each else use_ipv4)]

    aioice.ice.get_host_addresses = chosen
