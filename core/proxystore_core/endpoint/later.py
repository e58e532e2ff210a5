"""What an endpoint does for objects that are set later: takes them from peers, and wakes who waits."""

from __future__ import annotations

import asyncio
import functools
import secrets
import struct
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from proxystore_core.buffers import fresh_buffer
from proxystore_core.connectors.base import Buffer
from proxystore_core.endpoint.objects import Objects
from proxystore_core.endpoint.peers import Peers
from proxystore_core.endpoint.wire import CHUNK, LONGEST_WAIT, Answer, Operation, Request, Status, error_of
from proxystore_core.errors import FullError, RefusedError

__all__ = ["Later"]

_WAITERS = 128  # threads that wait for objects here
_ASKED = 24  # waits for a peer's objects at a time: the others take turns
_IDLE = 60.0  # seconds after which an object that is not sent any further is forgotten
_UPLOADS = 1024  # objects that peers may be sending at a time
_REMEMBERED = 512  # uploads whose last chunk may come twice
_HEAD = struct.Struct("!16sQ")  # of a chunk: the upload, and the object's bytes


class _Upload:
    def __init__(self, size: int) -> None:
        self.buffer = fresh_buffer(size)
        self.done = 0
        self.touched = time.monotonic()


class Later:
    """Sets objects later, and waits for them, here and at peers.

    Args:
        objects: the endpoint's own.
        peers: for those of others.
        most: bytes that may be on their way here from peers.
    """

    def __init__(self, objects: Objects, peers: Peers, most: int) -> None:
        self._objects = objects
        self._peers = peers
        self._most = most
        self._uploads: dict[bytes, _Upload] = {}
        self._setting: dict[bytes, asyncio.Task[None]] = {}
        self._finished: deque[bytes] = deque(maxlen=_REMEMBERED)
        self._threads: ThreadPoolExecutor | None = None
        self._waiting = 0
        self._asked = asyncio.Semaphore(_ASKED)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def wait(self, request: Request, *, ours: bool) -> Answer:
        """Whether an object is there, in the time that the request says."""
        seconds = min(request.seconds, LONGEST_WAIT)
        if not ours:
            async with self._asked:
                said = Request(Operation.WAIT, key=request.key, seconds=seconds)
                return await self._peers.ask(request.key.partition(".")[0], said, seconds + LONGEST_WAIT)
        if self._waiting >= _WAITERS:
            return Answer(Status.MISSING, request.number)  # it is asked for again
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_WAITERS, thread_name_prefix="proxystore-waits")
        self._waiting += 1
        try:
            key = self._objects.inner(request.key)
            waiting: Any = self._objects.store.wait
            there = await asyncio.get_running_loop().run_in_executor(self._threads, waiting, key, seconds)
        finally:
            self._waiting -= 1
        return Answer(Status.OK if there else Status.MISSING, request.number)

    async def set(self, key: str, data: Buffer, seconds: float, *, ours: bool) -> None:
        """Publish an object under a key that was reserved here, or at a peer."""
        if ours:
            await asyncio.to_thread(self._objects.store.set, self._objects.inner(key), [data])
            return
        view = memoryview(data)
        head = _HEAD.pack(secrets.token_bytes(16), view.nbytes)
        step = CHUNK - _HEAD.size
        peer = key.partition(".")[0]
        for start in range(0, max(1, view.nbytes), step):
            body = head + bytes(view[start : start + step])
            said = Request(Operation.WRITE, key=key, offset=start, seconds=seconds, data=body)
            error = error_of(await self._peers.ask(peer, said, seconds), "", key)
            if error is not None:
                raise error

    async def write(self, request: Request) -> Answer:
        """Take a chunk of an object from a peer; the last one sets it."""
        if len(request.data) < _HEAD.size:
            raise RefusedError("a chunk without its head")
        upload, size = _HEAD.unpack_from(request.data)
        body = memoryview(request.data)[_HEAD.size :]
        inner = self._objects.inner(request.key)
        self.forget_idle()
        if upload in self._finished:
            return Answer(Status.OK, request.number)  # again: its answer was lost
        if upload in self._setting:
            return await self._set(upload, request)
        state = self._uploads.get(upload)
        if state is None:
            if request.offset:
                raise RefusedError("the beginning of this object is not here (any more)", key=request.key)
            on_their_way = sum(len(memoryview(each.buffer)) for each in self._uploads.values())
            if size > self._most - on_their_way or len(self._uploads) >= _UPLOADS:
                raise FullError(f"{size} bytes more cannot be on their way to this endpoint ({self._most})")
            state = self._uploads[upload] = _Upload(size)
        if body.nbytes and request.offset + body.nbytes <= state.done:
            return Answer(Status.OK, request.number)  # again: its answer was lost
        if request.offset != state.done or state.done + body.nbytes > len(memoryview(state.buffer)):
            del self._uploads[upload]
            raise RefusedError("chunks of an object come one after another, and fit into it", key=request.key)
        memoryview(state.buffer)[state.done : state.done + body.nbytes] = body
        state.done += body.nbytes
        state.touched = time.monotonic()
        if state.done == len(memoryview(state.buffer)):
            del self._uploads[upload]
            setting = asyncio.to_thread(self._objects.store.set, inner, [state.buffer])
            self._setting[upload] = asyncio.ensure_future(setting)
            self._setting[upload].add_done_callback(functools.partial(self._has_set, upload))
            return await self._set(upload, request)
        return Answer(Status.OK, request.number)

    async def _set(self, upload: bytes, request: Request) -> Answer:
        # Goes on when the channel is lost, which cancels this: the last chunk comes again over another one.
        await asyncio.shield(self._setting[upload])
        return Answer(Status.OK, request.number)

    def _has_set(self, upload: bytes, setting: asyncio.Task[None]) -> None:
        del self._setting[upload]
        if not setting.cancelled() and setting.exception() is None:
            self._finished.append(upload)

    def forget_idle(self) -> None:
        """Let go of what is not sent any further."""
        now = time.monotonic()
        for upload, state in list(self._uploads.items()):
            if now - state.touched > _IDLE:
                del self._uploads[upload]
