"""The endpoint's door for processes of its host: a unix socket (mode 0600), and a token."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import resource
import struct
from collections.abc import Callable
from typing import Any

from proxystore_core.buffers import fresh_buffer
from proxystore_core.connectors.base import USER_SESSION, Buffer, Key
from proxystore_core.endpoint.batches import answers_for
from proxystore_core.endpoint.channel import Counters
from proxystore_core.endpoint.later import Later
from proxystore_core.endpoint.objects import Objects
from proxystore_core.endpoint.peers import Peers
from proxystore_core.endpoint.settings import EndpointSettings
from proxystore_core.endpoint.wire import CHUNK, IF_KNOWN, MOST, Answer, Operation, Request, Status, WireError
from proxystore_core.errors import DeadlineError, FullError, RefusedError, StoreError

__all__ = ["Clients"]

_CLIENTS = 4096  # connections, each of some 20 kB; or half of the descriptors that there may be
_FETCHES = 32  # objects on their way from peers: each has up to 2 MiB of the endpoint's memory
_MAKES = (Operation.PUT, Operation.RESERVE)
_LISTS = (Operation.SESSIONS, Operation.SWEEP, Operation.KEYS, Operation.HELD)
_LENGTH = struct.Struct("!I")
_STALLED = (
    10.0  # seconds after which a client that neither takes nor sends makes way, if others wait for that
)
_ENDS = 2.0  # seconds that peers have to end a session that ends here
_log = logging.getLogger("proxystore_core.endpoint")


class Clients:
    """Serves local processes.

    Args:
        settings: the endpoint's.
        token: what clients have to show.
        objects: the endpoint's own.
        peers: for those of others.
        counters: of the endpoint.
        health: what the endpoint says of itself.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        token: str,
        objects: Objects,
        peers: Peers,
        counters: Counters,
        health: Callable[[], dict[str, Any]],
    ) -> None:
        self._settings = settings
        self._token = token
        self._objects = objects
        self._peers = peers
        self._counters = counters
        self._health = health
        self._fetches = asyncio.Semaphore(_FETCHES)
        self._later = Later(objects, peers, settings.most)
        self._room = settings.most
        self._room_changed = asyncio.Condition()
        self._room_wanted = 0  # by how many
        self._most_open = min(_CLIENTS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[Any]] = set()

    async def listen(self) -> asyncio.Server:
        """Begin to take connections."""
        with self._settings.address() as path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            before = os.umask(0o177)
            try:
                return await asyncio.start_unix_server(self._serve, path, limit=MOST + _LENGTH.size)
            finally:
                os.umask(before)

    async def close(self) -> None:
        """Let go of all connections."""
        for task in [*self._open, *self._background]:
            task.cancel()
        await asyncio.gather(*self._open, *self._background, return_exceptions=True)
        self._later.close()

    def let_go(self) -> None:
        """Let go of what nobody sends any further or reads."""
        self._later.forget_idle()
        self._objects.let_go()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        one_too_many = len(self._open) > self._most_open  # of those who come at once, the last
        try:
            async with asyncio.timeout(10):
                hello = await _request(reader)
            if hello.operation is not Operation.HELLO or not hmac.compare_digest(
                hello.data, self._token.encode()
            ):
                self._counters.add("violations")
                stale = RefusedError("the token is not this endpoint's, or a stale one")
                await _send(writer, Answer.of_error(stale, hello.number))
                return
            if one_too_many:
                full = FullError(
                    f"endpoint {self._settings.name!r} has {self._most_open} connections, all that it takes",
                    remedy="Raise ulimit -n where it is started, or let fewer processes of this host use it.",
                )
                await _send(writer, Answer.of_error(full, hello.number))
                return
            await _send(writer, Answer(Status.OK, data=json.dumps(self._health()).encode()[:CHUNK]))
            while True:
                await self._one(await _request(reader), reader, writer)
        except WireError as error:
            self._counters.add("violations")
            _log.warning("closed a client's connection: %s", error)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _one(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            if request.operation is Operation.GET:
                await self._get(request, writer)
                return
            if request.operation in (Operation.GETS, Operation.EVICTS):
                answers = answers_for(request, self._objects, self._peers)
                async with self._fetches, contextlib.aclosing(answers):
                    async for each in answers:
                        await self._pass_on(writer, each)
                return
            if request.operation in _LISTS:
                await _in_parts(writer, request.number, await asyncio.to_thread(self._list, request))
                return
            if request.operation in (Operation.PUT, Operation.SET):
                answer = await self._put(request, reader, writer)
            else:
                answer = await self._answer(request)
        except StoreError as error:
            answer = Answer.of_error(error, request.number)
        except TimeoutError:
            late = DeadlineError(f"no answer within {request.seconds:g} s")
            answer = Answer.of_error(late, request.number)
        except (ConnectionError, WireError, asyncio.IncompleteReadError):
            raise
        except Exception as error:
            _log.exception("a client's request failed")
            answer = Answer.of_error(error, request.number)
        try:
            await _send(writer, answer)
        except ConnectionError:
            if request.operation in _MAKES and answer.status is Status.OK:
                await asyncio.to_thread(self._take_back, answer.data.decode())
            raise

    def _take_back(self, key: Key) -> None:
        """Evict what nobody was told the key of."""
        with contextlib.suppress(StoreError):
            self._objects.store.evict(self._objects.inner(key))

    async def _pass_on(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        """As `_send`, from who holds one of the fetches."""
        _write(writer, answer)
        while True:
            try:
                async with asyncio.timeout(_STALLED):
                    await writer.drain()
                return
            except TimeoutError:
                if self._fetches.locked():
                    raise _let_go(writer, "does not take what it asked for") from None

    async def _get(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """Pass an object on as it comes: what the client does not take is not asked for."""
        if self._is_ours(request.key):
            offset, size = 0, 1
            while offset < size or not offset:
                found = self._objects.read(request.key, offset, CHUNK)
                if found is None:
                    await _send(writer, Answer(Status.MISSING, request.number))
                    return
                size, data = found
                await _send(writer, Answer(Status.OK, request.number, size, offset, data))
                offset += len(data)
                if not size:
                    return
            return
        async with (
            self._fetches,
            contextlib.aclosing(self._peers.fetch(request.key, request.seconds)) as parts,
        ):
            async for answer in parts:
                told = Answer(answer.status, request.number, answer.size, answer.offset, answer.data)
                await self._pass_on(writer, told)

    async def _put(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Answer:
        """Take an object's bytes once there is room for what is on its way; the client waits for the word."""
        size = request.offset
        if size > self._settings.most:
            raise FullError(
                f"{size} bytes are more than a client may have on their way ({self._settings.most})",
                remedy="Let the client see this host's shared memory (/dev/shm), or raise the setting most.",
            )
        async with self._room_changed:
            self._room_wanted += 1
            try:
                async with asyncio.timeout(request.seconds):
                    await self._room_changed.wait_for(lambda: size <= self._room)
            finally:
                self._room_wanted -= 1
            self._room -= size
        try:
            await _send(writer, Answer(Status.OK, request.number))
            buffer = fresh_buffer(size)
            view = memoryview(buffer)
            done = 0
            while done < size:
                try:
                    async with asyncio.timeout(_STALLED):
                        data = await reader.read(min(size - done, 1 << 20))
                except TimeoutError:
                    if self._room_wanted:
                        raise _let_go(writer, "does not send what it announced") from None
                    continue
                if not data:
                    raise asyncio.IncompleteReadError(b"", size)
                view[done : done + len(data)] = data
                done += len(data)
            if request.operation is Operation.SET:
                ours = self._is_ours(request.key)
                await self._later.set(request.key, buffer, request.seconds, ours=ours)
                return Answer(Status.OK, request.number, size)
            key = await self._store(buffer, request.session or USER_SESSION)
        finally:
            async with self._room_changed:
                self._room += size
                self._room_changed.notify_all()
        return Answer(Status.OK, request.number, size, data=key.encode())

    async def _store(self, buffer: Buffer, session: str) -> Key:
        storing = asyncio.ensure_future(asyncio.to_thread(self._objects.put, buffer, session))
        try:
            return await asyncio.shield(storing)
        except asyncio.CancelledError:  # the endpoint stops
            with contextlib.suppress(StoreError):
                self._take_back(await storing)
            raise

    def _list(self, request: Request) -> bytes:
        """What there is, as JSON."""
        store = self._objects.store
        found: Any
        match request.operation:
            case Operation.SESSIONS:
                found = store.sessions()
            case Operation.SWEEP:
                found = store.sweep()
            case Operation.HELD:
                found = store.held()
            case _:
                found = [
                    self._objects.outer(key)
                    for key in store.keys(request.session, reserved=bool(request.data))
                ]
        return json.dumps(found).encode()

    async def _answer(self, request: Request) -> Answer:
        number, patience = request.number, request.seconds
        match request.operation:
            case Operation.INFO:
                return Answer(Status.OK, number, data=json.dumps(self._health()).encode()[:CHUNK])
            case Operation.EXISTS | Operation.EVICT | Operation.PING if not self._is_ours(request.key):
                return await self._peers.ask(request.key.partition(".")[0], request, patience)
            case Operation.WAIT if not self._is_ours(request.key):
                return await self._later.wait(request, ours=False)
            case Operation.RESERVE:
                key = await asyncio.to_thread(self._objects.reserve, request.session or USER_SESSION)
                return Answer(Status.OK, number, data=key.encode())
            case Operation.RENEW if request.data == IF_KNOWN:
                answer = await self.serve(request)
                if answer.status is Status.OK:
                    await self._to_peers(request)
                return answer
            case Operation.RENEW | Operation.END:
                await self._to_peers(request)
        return await self.serve(request)

    async def serve(self, request: Request) -> Answer:
        """The answer to a request about objects and sessions of this endpoint; a peer's, too."""
        number, store = request.number, self._objects.store
        match request.operation:
            case Operation.READ:
                found = self._objects.read(request.key, request.offset, request.length)
                if found is None:
                    return Answer(Status.MISSING, number)
                return Answer(Status.OK, number, found[0], request.offset, found[1])
            case Operation.EXISTS:
                there = store.exists(self._objects.inner(request.key))
                return Answer(Status.OK if there else Status.MISSING, number)
            case Operation.EVICT:
                store.evict(self._objects.inner(request.key))
            case Operation.RENEW if request.data == IF_KNOWN:
                there = store.extend(request.session, request.seconds)
                return Answer(Status.OK if there else Status.MISSING, number)
            case Operation.RENEW:
                store.renew(request.session, request.seconds)
            case Operation.WAIT:
                return await self._later.wait(request, ours=True)
            case Operation.WRITE:
                return await self._later.write(request)
            case Operation.END:
                return Answer(Status.OK, number, await asyncio.to_thread(store.end, request.session))
            case Operation.PING:
                pass
            case _:
                raise RefusedError(f"{request.operation.name} is not for peers")
        return Answer(Status.OK, number)

    async def _to_peers(self, request: Request) -> None:
        """Let peers do the same for what tasks stored there for this session.

        An end waits for them, but not long; a lease goes on its way.
        """
        said = Request(request.operation, session=request.session, seconds=request.seconds, data=IF_KNOWN)
        tasks = [asyncio.ensure_future(self._peers.ask(peer, said, _ENDS)) for peer in self._peers.connected]
        for task in tasks:
            self._background.add(task)
            task.add_done_callback(self._forget)
        if tasks and request.operation is Operation.END:
            await asyncio.wait(tasks, timeout=_ENDS)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.info("a peer did not hear of a session: %s", task.exception())

    def _is_ours(self, key: str) -> bool:
        where = key.partition(".")[0]
        if len(where) != 32 or not all(letter in "0123456789abcdef" for letter in where):
            raise RefusedError("not a key of an endpoint", key=key[:200])
        return where == self._settings.id


async def _in_parts(writer: asyncio.StreamWriter, number: int, data: bytes) -> None:
    """Send something of any length as if it were an object."""
    for start in range(0, len(data), CHUNK):
        await _send(writer, Answer(Status.OK, number, len(data), start, data[start : start + CHUNK]))


async def _request(reader: asyncio.StreamReader) -> Request:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MOST:
        raise WireError(f"a request of {length} bytes: {MOST} at most")
    return Request.decode(await reader.readexactly(length))


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    _write(writer, answer)
    await writer.drain()


def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    message = answer.encode()
    writer.write(_LENGTH.pack(len(message)))
    writer.write(message)


def _let_go(writer: asyncio.StreamWriter, reason: str) -> ConnectionAbortedError:
    """End a connection, with what is still to be sent; the error to raise."""
    _log.warning("closed the connection of a client that %s", reason)
    writer.transport.abort()
    return ConnectionAbortedError(reason)
