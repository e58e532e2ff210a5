"""What a node server does for objects that are set later: it takes them in chunks, and wakes who waits."""

from __future__ import annotations

import collections
import dataclasses
import math
import mmap
import os
import threading
import time
from collections.abc import Callable

from proxystore_core.connectors.base import Buffer, Key
from proxystore_core.connectors.node_protocol import MalformedError, Request, Status
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import FullError

__all__ = ["LONGEST_WAIT", "Later"]

LONGEST_WAIT = 20.0
"""Seconds; whoever waits longer asks again, so that nobody waits for those who are gone."""

_WAITERS = 256  # threads that wait for objects at the same time
_UPLOADS = 1024  # each has a descriptor
_IDLE = 60.0  # seconds after which an object that is not sent any further is forgotten
_REMEMBERED = 512  # uploads whose last chunk may come twice, because its answer was lost

Find = Callable[[Request], tuple[ShmConnector, Key]]
"""Where the object of a request is, and its key there."""


@dataclasses.dataclass
class _Upload:
    file: int
    size: int
    done: int
    touched: float


class Later:
    """Requests that set objects later, and that wait for them.

    Args:
        find: see `Find`.
    """

    def __init__(self, find: Find) -> None:
        self._find = find
        self._uploads: dict[str, _Upload] = {}
        self._done: collections.deque[str] = collections.deque(maxlen=_REMEMBERED)
        self._waiters = threading.BoundedSemaphore(_WAITERS)

    def tick(self) -> None:
        """Forget what is not sent any further."""
        now = time.monotonic()
        for upload, state in list(self._uploads.items()):
            if now - state.touched > _IDLE:
                self._forget(upload)

    def wait(self, request: Request) -> tuple[Status, int, Buffer]:
        """Wait for an object; in a thread of the caller's that `start` has started.

        Raises:
            GoneError: it will never come.
        """
        space, key = self._find(request)
        seconds = request.seconds if math.isfinite(request.seconds) else LONGEST_WAIT
        there = space.wait(key, min(max(0.0, seconds), LONGEST_WAIT))
        return (Status.CONTENT if there else Status.DONE), 0, b""

    def start(self, waiting: Callable[[], None]) -> bool:
        """Run something that waits in a thread of its own; False when there are too many."""
        if not self._waiters.acquire(blocking=False):
            return False

        def run() -> None:
            try:
                waiting()
            finally:
                self._waiters.release()

        threading.Thread(target=run, name="proxystore-waits", daemon=True).start()
        return True

    def set(self, request: Request) -> tuple[Status, int, Buffer]:
        """Take a chunk of an object; the last one sets it."""
        if request.text in self._done:
            return Status.DONE, 0, b""
        state = self._upload(request)
        body = memoryview(request.body)
        if request.offset != state.done or state.done + body.nbytes > state.size:
            self._forget(request.text)
            raise MalformedError("chunks of an object to be set come one after another")
        state.touched = time.monotonic()
        while body:
            count = os.write(state.file, body)
            state.done += count
            body = body[count:]
        if state.done < state.size:
            return Status.DONE, 0, b""
        try:
            space, key = self._find(request)
            whole = mmap.mmap(state.file, state.size, access=mmap.ACCESS_READ) if state.size else b""
            space.set(key, [memoryview(whole)])
        finally:
            self._forget(request.text)
        self._done.append(request.text)
        return Status.DONE, state.size, b""

    def _upload(self, request: Request) -> _Upload:
        upload = request.text
        if request.offset == 0:
            self._forget(upload)
            if len(self._uploads) >= _UPLOADS:
                raise FullError(f"{_UPLOADS} objects are being sent here already")
            # Without a name until it is whole: nothing is left of it, whatever happens to this process.
            memory = os.memfd_create("proxystore", os.MFD_CLOEXEC)
            self._uploads[upload] = _Upload(memory, request.length, 0, time.monotonic())
        elif upload not in self._uploads:
            raise MalformedError("the beginning of this object is not here (any more)")
        return self._uploads[upload]

    def _forget(self, upload: str) -> None:
        state = self._uploads.pop(upload, None)
        if state is not None:
            os.close(state.file)
