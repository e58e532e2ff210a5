"""One data channel to a peer: requests and answers, with bounds on all that waits, in either direction."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from proxystore_core.endpoint.wire import CHUNK, Answer, Operation, Request, Status, WireError
from proxystore_core.errors import CorruptError, DeadlineError, StoreError

__all__ = ["Channel", "Counters", "LostError"]

_HIGH, _LOW = 1 << 20, 256 << 10  # bytes queued for sending at which a sender stops, and goes on
_ASKED = 48  # requests under way at a time
_SERVED = 64  # a peer that has more of them waiting floods
_WINDOW = 32  # of them for one object
_SILENCE = 3.0  # seconds after which a peer is asked whether it is still there; twice that, and it is not
_STUCK = 20.0  # seconds that a peer has for one of as many requests as it may have; nothing takes it so long
_log = logging.getLogger("proxystore_core.endpoint")


class LostError(Exception):
    """The channel is gone; another one may do."""


class Counters(dict[str, int]):
    """What an endpoint has counted since it began."""

    def add(self, name: str, amount: int = 1) -> None:
        self[name] = self.get(name, 0) + amount


class Channel:
    """An open data channel.

    Args:
        peer: the other endpoint's id.
        connection: of aiortc; closed with the channel.
        channel: of aiortc.
        serve: answers a request of the peer.
        counters: of the endpoint.
    """

    def __init__(
        self,
        peer: str,
        connection: Any,
        channel: Any,
        serve: Callable[[Request], Awaitable[Answer]],
        counters: Counters,
    ) -> None:
        self.peer = peer
        self._connection = connection
        self._channel = channel
        self._serve = serve
        self._counters = counters
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._asked = asyncio.Semaphore(_ASKED)
        self._serving: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._heard = time.monotonic()
        self._full: float | None = (
            None  # since when all requests that may be under way are, without an answer
        )
        self._pinged = False
        self._closing: asyncio.Task[None] | None = None
        self.reason = ""
        channel.bufferedAmountLowThreshold = _LOW
        channel.on("bufferedamountlow", self._room.set)
        channel.on("message", self._received)
        channel.on("close", lambda: self.drop("the peer closed the channel"))

    @property
    def open(self) -> bool:
        return self._closing is None and self._channel.readyState == "open"

    def drop(self, reason: str) -> None:
        """Close the channel; whoever waits for an answer is told."""
        if self._closing is not None:
            return
        self.reason = reason
        self._closing = asyncio.ensure_future(self._connection.close())
        self._room.set()
        for task in self._serving:
            task.cancel()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LostError(reason))
                future.exception()  # nobody may be waiting any more
        self._waiting.clear()

    async def close(self) -> None:
        """Close the channel and wait until it is."""
        self.drop("the endpoint stops")
        if self._closing is not None:
            await self._closing

    async def ask(self, request: Request, patience: float) -> Answer:
        """The answer to a request.

        Args:
            request: its number does not matter.
            patience: seconds to wait.

        Raises:
            LostError: the channel is gone.
            DeadlineError: no answer in time.
        """
        until = time.monotonic() + patience
        return await self._answer(await self._begin(request, patience), until - time.monotonic())

    async def read(self, key: str, offset: int, size: int | None, patience: float) -> AsyncGenerator[Answer]:
        """The bytes of an object in order, several requests ahead of what is taken.

        Args:
            key: the object's.
            offset: where to begin.
            size: of the whole object, where it is known.
            patience: seconds to wait for each of the answers.

        Yields:
            Answers with bytes, or one that says why there are none.

        Raises:
            CorruptError: the peer contradicts itself.
            LostError, DeadlineError: as `ask`.
        """
        begun: deque[tuple[int, asyncio.Future[Answer]]] = deque()
        ahead = offset
        while size is None or offset < size:
            while len(begun) < (1 if size is None else _WINDOW) and (size is None or ahead < size):
                request = Request(Operation.READ, key=key, offset=ahead, length=CHUNK, seconds=patience)
                begun.append((ahead, await self._begin(request, patience)))
                ahead += CHUNK
            offset, future = begun.popleft()
            answer = await self._answer(future, patience)
            if answer.status is not Status.OK:
                yield answer
                return
            known, size = size, answer.size
            if answer.offset != offset or len(answer.data) != min(CHUNK, max(0, size - offset)):
                raise self._lies("bytes that were not asked for", key)
            if known is not None and known != size:
                raise self._lies(f"the object has {known} bytes, then {size}", key)
            self._counters.add("bytes_received", len(answer.data))
            offset += len(answer.data)
            yield answer

    async def _begin(self, request: Request, patience: float) -> asyncio.Future[Answer]:
        """Send a request once there is room for it, here and at the peer; a future of its answer."""
        if self._asked.locked():
            self._full = self._full or time.monotonic()
        try:
            async with asyncio.timeout(patience):
                await self._asked.acquire()
        except TimeoutError:
            if self._full is not None and time.monotonic() - self._full > _STUCK:
                self.drop(f"the peer answers none of {_ASKED} requests")
            raise self._late(patience) from None
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._asked.release())
        number = next(self._numbers) & 0xFFFFFFFF
        try:
            async with asyncio.timeout(patience):
                if self.open:
                    self._waiting[number] = future
                await self._send(Request(**{**request.__dict__, "number": number}).encode())
        except BaseException as error:
            self._waiting.pop(number, None)
            future.cancel()
            raise self._late(patience) from None if isinstance(error, TimeoutError) else error
        return future

    async def _answer(self, future: asyncio.Future[Answer], patience: float) -> Answer:
        until = time.monotonic() + patience
        while True:
            left = until - time.monotonic()
            done, _ = await asyncio.wait({future}, timeout=max(0.0, min(left, _SILENCE)))
            if done:
                return future.result()
            silent = time.monotonic() - self._heard
            if silent > 2 * _SILENCE:
                self.drop("the peer fell silent")
            elif left <= 0:
                raise self._late(patience)
            elif silent > _SILENCE and not self._pinged and not self._asked.locked():
                self._pinged = True
                if self._channel.bufferedAmount <= _HIGH:  # what waits is as good as a ping
                    await self._begin(Request(Operation.PING), _SILENCE)

    def _late(self, patience: float) -> DeadlineError:
        return DeadlineError(f"endpoint {self.peer} did not answer within {patience:g} s")

    async def _send(self, message: bytes) -> None:
        while self.open and self._channel.bufferedAmount > _HIGH:
            self._room.clear()
            await self._room.wait()
        if not self.open:
            raise LostError(self.reason or "the channel is closed")
        self._channel.send(message)

    def _received(self, message: bytes | str) -> None:
        self._heard, self._pinged = time.monotonic(), False
        try:
            if isinstance(message, str):
                raise WireError("words instead of bytes")
            if message[:2] == b"PQ":
                request = Request.decode(message)
                if len(self._serving) >= _SERVED:
                    raise WireError("more requests than a peer may have waiting")
                task = asyncio.ensure_future(self._serve_one(request))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
                return
            answer = Answer.decode(message)
            self._full = None
            future = self._waiting.pop(answer.number, None)
            if future is None:
                raise WireError("an answer to nothing that was asked, or a second one")
            if not future.done():
                future.set_result(answer)
        except WireError as error:
            self._violated(str(error))

    async def _serve_one(self, request: Request) -> None:
        try:
            answer = await self._serve(request)
        except StoreError as error:
            answer = Answer.of_error(error, request.number)
        except Exception as error:
            _log.exception("a request of %s failed", self.peer)
            answer = Answer.of_error(error, request.number)
        try:
            await self._send(answer.encode())
        except LostError:
            return
        self._counters.add("requests_served")
        self._counters.add("bytes_sent", len(answer.data))

    def _lies(self, what: str, key: str) -> CorruptError:
        self._violated(what)
        return CorruptError(
            f"endpoint {self.peer} contradicts itself: {what}",
            key=key,
            remedy="It is broken, of another version, or hostile: look at it before you use it again.",
        )

    def _violated(self, what: str) -> None:
        self._counters.add("violations")
        _log.warning("closed the channel to %s: it sent %s", self.peer, what)
        self.drop(f"the peer sent {what}")
