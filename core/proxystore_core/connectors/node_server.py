"""The node server: answers other nodes' requests for what is in this node's shared memory.

Started by `node_process`, one for each user, host, transport and address. It knows no object: it moves
chunks of files, and nothing of a request is unpickled. In the node's directory it keeps

    members.<memory>.<session>    other nodes, one a line, that have objects of a session at home here

so that whoever renews or ends the session reaches them.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import faulthandler
import fcntl
import functools
import importlib
import json
import math
import mmap
import os
import re
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from proxystore_core.connectors.base import USER_SESSION, Buffer, check_lease, check_session
from proxystore_core.connectors.node_later import Later
from proxystore_core.connectors.node_place import Place
from proxystore_core.connectors.node_process import LIVE, SERVER, WHERE, places_of, remove
from proxystore_core.connectors.node_protocol import (
    CHUNK,
    ForgedError,
    Guard,
    MalformedError,
    Operation,
    Reply,
    Request,
    Status,
    parse_request,
)
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import ConfigurationError, FullError, GoneError, RefusedError, StoreError
from proxystore_core.locks import OPEN, is_at

__all__ = ["Listener", "NodeServer", "Respond", "Responding", "main", "members_of"]

Peer = TypeVar("Peer")

Respond = Callable[[bytes, Buffer], None]
"""Sends a reply's head and data to whoever asked; a listener's own, called once, from any thread."""

TICK = 5.0  # seconds between two looks at what has become old
_SWEEP = 60.0  # seconds between two looks for lapsed sessions
_LINGER = 1.0  # seconds without a user after which the server stops
_MAPS = 64  # objects that are mapped while others read them
_FORMER = 100  # places that a node remembers to have listened at
_SPACE = re.compile(r"[A-Za-z0-9_-]{0,64}")


class Listener(Protocol):
    """A transport's side of the server: it receives messages and sends replies."""

    port: int
    guard: Guard
    """What tells that data were altered on their way."""

    def serve(
        self,
        handle: Callable[[Buffer, Respond], None],
        tick: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        """Receive until ``stop()``, which is asked at least every `TICK` seconds, as ``tick`` is called."""
        ...

    def wake(self) -> None:
        """Have ``stop`` asked now; called from another thread."""
        ...


class Responding(abc.ABC, Generic[Peer]):
    """A `Listener` of whose connections one thread alone makes use: replies of others wait for that one."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()  # the one that serves
        self._late: collections.deque[tuple[Peer, bytes, Buffer]] = collections.deque()

    @abc.abstractmethod
    def wake(self) -> None:
        """See `Listener`."""

    @abc.abstractmethod
    def _send(self, peer: Peer, head: bytes, data: Buffer) -> None:
        """Send a reply; called by the thread that serves."""

    def _respond(self, peer: Peer, head: bytes, data: Buffer) -> None:
        if threading.get_ident() == self._thread:
            self._send(peer, head, data)
        else:
            self._late.append((peer, head, data))
            self.wake()

    def _send_late(self) -> None:
        while self._late:
            self._send(*self._late.popleft())


class NodeServer:
    """What a node does with requests; knows no transport.

    Args:
        directory: the node's, see `node_process`.
        prefix: what the names of its shared memory begin with.
        key: of the MACs.
        guard: see `Listener`.
        options: of `ShmConnector`.
    """

    def __init__(
        self, directory: str, prefix: str, key: bytes, guard: Guard, options: dict[str, Any] | None = None
    ) -> None:
        self.directory = directory
        self.prefix = prefix
        self.key = key
        self.guard = guard
        self._options = {"stock": 0, **(options or {})}
        self._spaces: dict[str, ShmConnector] = {}
        self._maps: dict[tuple[str, str, str], tuple[memoryview, float]] = {}
        self._later = Later(lambda request: (self._space(request), self._key_of(request)))
        self._swept = time.monotonic()
        self._handlers: dict[Operation, Callable[[Request], tuple[Status, int, Buffer]]] = {
            Operation.GET: self._get,
            Operation.EXISTS: self._exists,
            Operation.EVICT: self._evict,
            Operation.RENEW: self._renew,
            Operation.END: self._end,
            Operation.JOIN: self._join,
            Operation.MEMBERS: self._tell_members,
            Operation.WAIT: self._later.wait,
            Operation.SET: self._later.set,
        }

    def handle(self, message: Buffer, respond: Respond) -> None:
        """Answer one message, whatever it is; waiting is left to a thread."""
        try:
            request = parse_request(message, self.key)
        except (MalformedError, ForgedError) as error:
            self._respond(respond, bytes(16), Status.REFUSED, 0, str(error).encode())
            return

        if request.operation is not Operation.WAIT:
            self._answer(request, respond)
        elif not self._later.start(functools.partial(self._answer, request, respond)):
            request.seconds = 0.0  # too many others wait here already: this one asks again
            self._answer(request, respond)

    def tick(self) -> None:
        """Let go of what nobody has asked for lately, and of sessions whose lease has lapsed."""
        now = time.monotonic()
        for chunk, (_, used) in list(self._maps.items()):
            if now - used > TICK:
                self._maps.pop(chunk, None)
        self._later.tick()
        if now - self._swept > _SWEEP:
            self._swept = now
            self._sweep()

    def is_needed(self) -> bool:
        """Whether a session that lives, wherever its owner is, has objects here; lapsed ones go first."""
        return self._sweep()

    def _sweep(self) -> bool:
        """End sessions that have lapsed, of all stores; whether any is left that has objects."""
        found = False
        for space in self._all_spaces():
            with contextlib.suppress(StoreError):
                for session in space.sweep():
                    self._drop_members(space.name, session)
                found |= any(_has_objects(space, session) for session in space.sessions())
            space.close()  # if it has become empty it goes
        return found

    # Requests.

    def _answer(self, request: Request, respond: Respond) -> None:
        self._respond(respond, request.nonce, *self._carry_out(request))

    def _carry_out(self, request: Request) -> tuple[Status, int, Buffer]:
        try:
            handler = self._handlers.get(request.operation)
            if handler is None:
                raise MalformedError("nothing that is asked of a node")
            # Before either is part of any path, whoever signed the request.
            if not _SPACE.fullmatch(request.space):
                raise MalformedError("not the name of a store")
            if request.space != self.prefix and not request.space.startswith(f"{self.prefix}-"):
                return Status.ELSEWHERE, 0, b""
            if request.session:
                check_session(request.session, request.space)
            return handler(request)
        except FullError as error:
            return Status.FULL, 0, error.problem.encode()
        except GoneError:
            return Status.MISSING, 0, b""
        except (ConfigurationError, RefusedError, MalformedError) as error:
            return Status.REFUSED, 0, str(getattr(error, "problem", error)).encode()
        except Exception as error:
            traceback.print_exc()  # into the node's log
            return Status.FAILED, 0, f"{type(error).__name__}: {error}"[:500].encode()

    def _respond(self, respond: Respond, nonce: bytes, status: Status, size: int, data: Buffer) -> None:
        respond(Reply.pack(self.key, nonce, status, size, data, self.guard), data)

    def _get(self, request: Request) -> tuple[Status, int, Buffer]:
        if request.length > CHUNK:
            raise MalformedError(f"at most {CHUNK} bytes at a time")
        known = request.space, request.session, request.name
        found = self._maps.get(known) if request.offset else None
        if found is None:
            fd = self._space(request).open_file(request.session, request.name)
            if fd is None:
                return Status.MISSING, 0, b""
            try:
                size = os.fstat(fd).st_size
                if size <= request.length and not request.offset:
                    return Status.CONTENT, size, os.pread(fd, size, 0)
                view = memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ)) if size else memoryview(b"")
            finally:
                os.close(fd)
        else:
            view = found[0]
        if request.offset > view.nbytes:
            raise MalformedError(f"the object has {view.nbytes} bytes")
        chunk = view[request.offset : request.offset + request.length]
        if request.offset + chunk.nbytes >= view.nbytes:
            self._maps.pop(known, None)
        else:
            if len(self._maps) >= _MAPS:
                self._maps.pop(next(iter(self._maps)))
            self._maps[known] = view, time.monotonic()
        return Status.CONTENT, view.nbytes, chunk

    def _exists(self, request: Request) -> tuple[Status, int, Buffer]:
        there = self._space(request).exists(self._key_of(request))
        return (Status.CONTENT if there else Status.MISSING), 0, b""

    def _evict(self, request: Request) -> tuple[Status, int, Buffer]:
        self._space(request).evict(self._key_of(request))
        self._maps.pop((request.space, request.session, request.name), None)
        return Status.DONE, 0, b""

    def _renew(self, request: Request) -> tuple[Status, int, Buffer]:
        check_lease(request.session, request.seconds, request.space)
        space = self._space(request)
        if not request.text:
            space.renew(request.session, request.seconds)
        elif not space.extend(request.session, request.seconds):
            return Status.MISSING, 0, b""
        return Status.DONE, 0, self._members(request)

    def _end(self, request: Request) -> tuple[Status, int, Buffer]:
        members = self._members(request)
        count = self._space(request).end(request.session)
        self._drop_members(request.space, request.session)
        return Status.DONE, count, members

    def _join(self, request: Request) -> tuple[Status, int, Buffer]:
        if Place.parse(request.text) is None or request.session == USER_SESSION:
            raise MalformedError(f"{request.text!r} is no node")
        left = self._space(request).sessions().get(request.session, 0.0)
        if left <= 0:
            return Status.MISSING, 0, b""
        if request.text.encode() not in self._members(request).split():
            with open(self._members_at(request.space, request.session), "ab") as file:
                file.write(request.text.encode() + b"\n")
        return Status.DONE, math.ceil(left * 1000), b""

    def _tell_members(self, request: Request) -> tuple[Status, int, Buffer]:
        return Status.DONE, 0, self._members(request)

    # Where things are.

    def _space(self, request: Request) -> ShmConnector:
        space = self._spaces.get(request.space)
        if space is None:
            if len(self._spaces) >= _MAPS:
                self._spaces.pop(next(iter(self._spaces))).close()
            space = self._spaces[request.space] = ShmConnector(request.space, **self._options)
        return space

    def _all_spaces(self) -> list[ShmConnector]:
        found = []
        uid = os.geteuid()
        root = f"proxystore-{uid}-{self.prefix}"
        parent = os.path.dirname(self.directory)
        for name in os.listdir(parent):
            if name == root or name.startswith(f"{root}-"):
                with contextlib.suppress(StoreError):
                    found.append(ShmConnector(name.removeprefix(f"proxystore-{uid}-"), **self._options))
        return found

    def _key_of(self, request: Request) -> str:
        return f"{self._space(request).node}.{request.session}.{request.name}"

    def _members_at(self, space: str, session: str) -> str:
        return os.path.join(self.directory, f"members.{space}.{session}")

    def _members(self, request: Request) -> bytes:
        return members_of(self.directory, request.space, request.session)

    def _drop_members(self, space: str, session: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._members_at(space, session))


def store_name(prefix: str, space: str) -> str:
    """The name of the shared memory that a node keeps a store's objects in."""
    return f"{prefix}-{space}" if space else prefix


def members_of(directory: str, space: str, session: str) -> bytes:
    """The nodes, one a line, that a node knows to have objects of a session, besides itself."""
    try:
        return Path(directory, f"members.{space}.{session}").read_bytes()
    except FileNotFoundError:
        return b""


def _has_objects(space: ShmConnector, session: str) -> bool:
    with contextlib.suppress(OSError):
        return any(not name.startswith(".") for name in os.listdir(os.path.join(space.store_dir, session)))
    return False


# The process.


def main() -> None:
    """Read the order from standard input, listen in a process of its own, and serve until nobody is left."""
    faulthandler.enable()  # into the node's log
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every user's thread may have a connection
    order = json.load(sys.stdin)
    if os.fork():
        os._exit(0)  # nobody has to wait for the server, or to know it
    directory = order["directory"]
    try:
        transport = importlib.import_module(order["module"])
        key = bytes.fromhex(order["key"])
        listener: Listener = transport.listen(order["address"], order["ports"], key, order["options"])
        server = _take_over(directory, Place.at(order["address"], listener.port))
    except Exception as error:
        refused = isinstance(error, StoreError)
        print("refuses" if refused else "fails", error if refused else repr(error), flush=True)  # noqa: T201
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a transport's threads are waited for by nobody
    node = NodeServer(directory, order["prefix"], key, listener.guard, order["storage"])
    over = threading.Event()
    live = os.open(os.path.join(directory, LIVE), OPEN)
    threading.Thread(target=_await_last, args=(live, node, listener, over), daemon=True).start()
    print("listens", flush=True)  # noqa: T201
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    listener.serve(node.handle, node.tick, over.is_set)
    if over.is_set():
        with contextlib.suppress(OSError):
            remove(directory, live)
    os.close(server)
    sys.stderr.flush()
    os._exit(0)


def _take_over(directory: str, place: Place) -> int:
    """Say where the node listens from now on, and lock a file in the place of the last server's.

    Whoever has that one open sees at his next look that its server is over, and asks where this one is.

    Raises:
        RuntimeError: there is a server already.
    """
    path = os.path.join(directory, SERVER)
    last = os.open(path, OPEN | os.O_CREAT, 0o600)
    try:
        for _ in range(200):
            try:
                fcntl.flock(last, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # somebody looks at this moment whether there is a server
                time.sleep(0.005)
        else:
            raise RuntimeError("there is a server already")
        if not is_at(last, path):
            raise RuntimeError("there has been another server meanwhile")
        former = [earlier for earlier in places_of(directory) if earlier != place]
        _write(os.path.join(directory, WHERE), "\n".join(map(str, [place, *former[:_FORMER]])))
        own = os.open(f"{path}.part", OPEN | os.O_CREAT, 0o600)
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(f"{path}.part", path)
        return own
    finally:
        os.close(last)


def _write(path: str, text: str) -> None:
    part = f"{path}.part"
    Path(part).write_text(text, "ascii")
    os.rename(part, path)


def _await_last(live: int, node: NodeServer, listener: Listener, over: threading.Event) -> None:
    """Return when nobody uses the node: the kernel wakes whoever waits for the lock."""
    lingered = False
    while True:
        fcntl.flock(live, fcntl.LOCK_EX)
        needed = True
        with contextlib.suppress(OSError):
            needed = node.is_needed()
        if lingered and not needed:
            over.set()
            listener.wake()
            return
        fcntl.flock(live, fcntl.LOCK_UN)
        time.sleep(_LINGER)
        lingered = True
        try:
            fcntl.flock(live, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lingered = False  # somebody has come


if __name__ == "__main__":
    main()
