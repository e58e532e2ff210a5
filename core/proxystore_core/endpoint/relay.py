"""The relay: introduces endpoints to each other, and never sees what they exchange.

    an endpoint says                               and the relay
    {"type": "register", "id": ..., "token": ...}  answers {"type": "registered"} or {"type": "refused", ...}
    {"type": "signal", "to": ..., "body": {...}}   tells the other {"type": "signal", "from": ..., ...
                                                   or answers {"type": "refused", "ref": ..., "reason": ...}

A token stands for a group of endpoints; nobody is introduced to another group's. What endpoints say to each
other is signed with what the relay does not know. It also answers STUN (RFC 8489) on the same port over UDP,
so that an endpoint behind NAT learns its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.server import Server, ServerConnection, serve

from proxystore_core.endpoint.introductions import MESSAGE
from proxystore_core.endpoint.pages import pages
from proxystore_core.errors import ConfigurationError

__all__ = ["Relay", "read_tokens"]

_ID = re.compile(r"[0-9a-f]{32}")
_TOKEN = re.compile(r"[0-9a-f]{64}")
_OPENING = 10.0  # seconds for TLS, the handshake and registering
_RATE, _BURST = 20.0, 100.0  # messages a second of one endpoint, and at once
_STUN_RATE, _STUN_BURST = 200.0, 400.0  # answers a second to all
_LOOKS = 1.0  # seconds between two looks at the file of tokens
_ADDRESSES = 1024  # connections from one address
_log = logging.getLogger("proxystore_core.relay")
_lines = logging.getLogger("proxystore_core.relay.lines")
# Whoever hangs up while his handshake is refused makes websockets fail an assertion: that is no error.
_lines.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], AssertionError)))


class Relay:
    """A relay's state.

    Args:
        tokens: what groups of endpoints are let in with, by the group's name (see `settings.relay_token`).
        most: endpoints at a time.
    """

    def __init__(self, tokens: Mapping[str, str], *, most: int = 10_000) -> None:
        self._tokens = _some(tokens)
        self._most = most
        self._registered: dict[str, tuple[str, ServerConnection]] = {}  # by id: group, line
        self._by_address: dict[str, int] = {}
        self.counters: dict[str, int] = dict.fromkeys(
            ("registered_ever", "introduced", "refused", "flooded"), 0
        )

    @property
    def registered(self) -> int:
        """Endpoints now."""
        return len(self._registered)

    async def let_in(self, tokens: Mapping[str, str]) -> None:
        """Let in these groups from here on; who is registered with a token that is not among them has to go.

        Raises:
            ConfigurationError: there is none. All stays as it was.
        """
        self._tokens, before = _some(tokens), self._tokens
        gone = {group for group, token in before.items() if self._tokens.get(group) != token}
        lines = {name: line for name, (group, line) in self._registered.items() if group in gone}
        for name in lines:
            del self._registered[name]  # at once: who is told to go may take his time
        if self._tokens != before:
            _log.info("%d groups are let in, %d endpoints had to go", len(self._tokens), len(lines))
        reason = "the relay does not know the token of this group any more"
        await asyncio.gather(*[line.close(4401, reason) for line in lines.values()])

    async def follow(self, path: Path) -> None:
        """`let_in` what a file says whenever it changes, for ever. A file that is wrong changes nothing."""
        seen = None  # it may have changed since it was read
        while True:
            await asyncio.sleep(_LOOKS)
            now = _look(path)
            if now is None or now == seen:
                continue
            seen = now
            try:
                await self.let_in(read_tokens(await asyncio.to_thread(path.read_text, "utf-8")))
            except (ConfigurationError, OSError, UnicodeDecodeError) as error:
                _log.warning("the relay's tokens stay as they were: %s", error)

    @contextlib.asynccontextmanager
    async def serving(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        cert: str | None = None,
        key: str | None = None,
        plain: bool = False,
        stun: bool = True,
        pages_port: int = -1,
    ) -> AsyncIterator[int]:
        """Serve until the block ends.

        Args:
            host: address to listen at.
            port: 0 for any.
            cert: path of the certificate (chain) of the relay, for TLS.
            key: path of its private key; by default it is in ``cert``.
            plain: allow that there is no TLS although others than this host can connect.
            stun: answer STUN on the same port, over UDP.
            pages_port: port on loopback of the health and metrics pages; 0 for any, -1 for none.

        Yields:
            The port.

        Raises:
            ConfigurationError: no TLS, or its files cannot be read.
        """
        context = _tls(host, cert, key, plain)
        async with contextlib.AsyncExitStack() as stack:
            server: Server = await stack.enter_async_context(
                serve(
                    self._serve,
                    host,
                    port,
                    ssl=context,
                    open_timeout=_OPENING,
                    close_timeout=2.0,  # who is told to go and does not answer is gone
                    # Each endpoint costs memory for as long as it is there, and says next to nothing.
                    compression=None,
                    max_size=MESSAGE,
                    max_queue=4,
                    write_limit=6 * MESSAGE,  # more than `_signal` lets pile up: nobody waits for another
                    server_header=None,
                    logger=_lines,
                )
            )
            bound: int = next(iter(server.sockets)).getsockname()[1]
            if stun:
                transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    _Stun, local_addr=(host, bound)
                )
                stack.callback(transport.close)
            if pages_port >= 0:
                shown = await pages("proxystore_relay", pages_port, self.health, self.metrics)
                stack.callback(shown.close)
                self.pages_port: int = next(iter(shown.sockets)).getsockname()[1]
            _log.info("relay at %s port %d, %s", host, bound, "with TLS" if context else "without TLS")
            yield bound

    def health(self) -> dict[str, Any]:
        return {"status": "ok", "endpoints": self.registered}

    def metrics(self) -> dict[str, float]:
        return {**self.counters, "endpoints": self.registered}

    async def _serve(self, line: ServerConnection) -> None:
        address = str((line.remote_address or ("?",))[0])
        self._by_address[address] = self._by_address.get(address, 0) + 1
        name = ""
        try:
            if self._by_address[address] > _ADDRESSES or self.registered >= self._most:
                await self._refuse(line, "the relay is full")
                return
            async with asyncio.timeout(_OPENING):
                name = await self._register(line)
            if name:
                await self._listen(name, line)
        except (websockets.ConnectionClosed, TimeoutError):
            pass
        finally:
            if self._registered.get(name, ("", None))[1] is line:
                del self._registered[name]
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    async def _register(self, line: ServerConnection) -> str:
        said = _parsed(await line.recv())
        name, token = str(said.get("id")), str(said.get("token"))
        shown = token.encode("utf-8", "replace")  # JSON has halves of characters, UTF-8 has not
        groups = [
            group for group, known in self._tokens.items() if hmac.compare_digest(known.encode(), shown)
        ]
        if said.get("type") != "register" or not _ID.fullmatch(name):
            await self._refuse(line, "this is no registration")
            return ""
        if not groups:
            await self._refuse(line, "the relay does not know the token of this group of endpoints")
            return ""
        before = self._registered.get(name)
        if before is not None and before[0] != groups[0]:
            await self._refuse(line, "an endpoint of another group has this id")
            return ""
        self._registered[name] = groups[0], line
        if before is not None:  # its old line is one that nobody has noticed the end of
            await before[1].close(4409, "registered again")
        self.counters["registered_ever"] += 1
        await line.send('{"type": "registered"}')
        return name

    async def _listen(self, name: str, line: ServerConnection) -> None:
        allowance, last = _BURST, time.monotonic()
        async for text in line:
            now = time.monotonic()
            allowance, last = min(_BURST, allowance + (now - last) * _RATE), now
            if allowance < 1:
                self.counters["flooded"] += 1
                await line.close(4429, "too many messages")
                return
            allowance -= 1
            await self._signal(name, line, _parsed(text))

    async def _signal(self, name: str, line: ServerConnection, said: dict[str, Any]) -> None:
        to, body = str(said.get("to")), said.get("body")
        ref = str(body.get("ref", ""))[:64] if isinstance(body, dict) else ""
        if said.get("type") != "signal" or not isinstance(body, dict) or not _ID.fullmatch(to):
            await self._say(line, "refused", ref=ref, reason="this is no signal")
            return
        ours, registered = self._registered.get(name, ("", None))
        if registered is not line:  # replaced, or told to go
            await self._say(line, "refused", ref=ref, reason="this line is registered no more")
            return
        group, other = self._registered.get(to, ("", None))
        if other is None or group != ours:
            self.counters["refused"] += 1
            await self._say(line, "refused", ref=ref, reason=f"no endpoint {to} is registered")
            return
        self.counters["introduced"] += 1
        # One that does not read its messages must not hold up the others.
        if other.transport.get_write_buffer_size() > 4 * MESSAGE:
            await self._say(line, "refused", ref=ref, reason=f"endpoint {to} does not listen")
            return
        with contextlib.suppress(websockets.ConnectionClosed):
            await self._say(other, "signal", **{"from": name, "body": body})

    async def _refuse(self, line: ServerConnection, reason: str) -> None:
        self.counters["refused"] += 1
        await self._say(line, "refused", reason=reason)
        await line.close(4401, reason)

    async def _say(self, line: ServerConnection, kind: str, **rest: Any) -> None:
        await line.send(json.dumps({"type": kind, **rest}))


class _Stun(asyncio.DatagramProtocol):
    """Tells who asks the address that it was seen with."""

    def __init__(self) -> None:
        self._allowance, self._last = _STUN_BURST, time.monotonic()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        from aioice import stun

        now = time.monotonic()
        self._allowance = min(_STUN_BURST, self._allowance + (now - self._last) * _STUN_RATE)
        self._last = now
        if len(data) > 512 or self._allowance < 1:
            return
        try:
            asked = stun.parse_message(data)
        except ValueError:
            return
        if asked.message_method != stun.Method.BINDING or asked.message_class != stun.Class.REQUEST:
            return
        self._allowance -= 1
        answer = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, transaction_id=asked.transaction_id)
        answer.attributes["XOR-MAPPED-ADDRESS"] = address[:2]
        self._transport.sendto(bytes(answer), address)


def _some(tokens: Mapping[str, str]) -> dict[str, str]:
    if not tokens:
        raise ConfigurationError(
            "a relay without tokens lets nobody in",
            remedy="Name a file with a line for each group: GROUP DIGEST (proxystore endpoint token).",
        )
    return dict(tokens)


def _look(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def read_tokens(text: str) -> dict[str, str]:
    """Groups and their digests, one a line; ``#`` begins a comment.

    Raises:
        ConfigurationError: a line is something else.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not _TOKEN.fullmatch(words[1]):
            raise ConfigurationError(
                f"line {number} of the relay's tokens: expected GROUP DIGEST",
                remedy="The digest is what `proxystore endpoint token` prints.",
            )
        found[words[0]] = words[1]
    return found


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _tls(host: str, cert: str | None, key: str | None, plain: bool) -> ssl.SSLContext | None:
    if cert is None:
        try:
            loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not (loopback or plain):
            raise ConfigurationError(
                f"a relay at {host} needs TLS",
                remedy="Name --cert and --key, or say --plain if something else does it.",
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise ConfigurationError(f"the relay's certificate cannot be read: {error}") from error
    return context
