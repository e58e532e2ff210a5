"""Objects in the shared memory of each node; other nodes fetch them through Mochi's Margo.

Requests and replies are those of `proxystore_core.connectors.node_protocol`, each request one remote
call with three arguments: the request, the caller's memory as a bulk handle in base 64, and that
memory's size. What fits is pushed there; the response is the reply's head, with the data when they
were not pushed.

Margo pickles the arguments of a call and its response, and would unpickle whatever comes from the other
side. Here a server and its callers take bytes, text and numbers only, as nothing else is ever sent.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, ClassVar

try:
    import mochi.margo as margo
    from mochi.margo import bulk
except ImportError as error:  # before 0.6
    try:
        import pymargo as margo
        from pymargo import bulk
    except ImportError:
        raise error from None

from proxystore_core import forks
from proxystore_core.connectors.base import Buffer
from proxystore_core.connectors.node import NodeConnector
from proxystore_core.connectors.node_protocol import REPLY_HEAD, count_of, guard_of
from proxystore_core.connectors.node_server import TICK, Respond
from proxystore_core.errors import ConfigurationError, DeadlineError, RefusedError, UnreachableError

__all__ = ["MargoConnector", "listen"]

_NAME = "proxystore_node"
_INLINE = 4 << 10  # bytes of data up to which they are part of the response
_Failed: Any = margo.MargoException
_engines: dict[int, Any] = {}  # by process: an engine does not survive a fork
_ours = threading.local()  # whether this thread waits for an answer to us, not to somebody else
_serves = False  # a server's process does nothing else
_lock = forks.lock()


class MargoConnector(NodeConnector):
    """Keeps objects on the node that stores them; ``margo+tcp://name:port?interface=eth0``.

    Args:
        port: of this node's server; by default one that is free.
        interface: network interface at which the server listens; loopback by default.
        address: instead, an address of this host or a network in which it has one (``10.0.0.0/8``).
        options: as `NodeConnector`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("margo+tcp",)
    _module: ClassVar[str] = __name__
    _protocol: ClassVar[str] = "tcp"  # as Mercury calls it

    def __init__(
        self, port: int = 0, interface: str | None = None, address: str | None = None, **options: Any
    ) -> None:
        super().__init__(port, interface, address, {}, **options)

    def _transport(self, address: str) -> dict[str, Any]:
        return {"protocol": self._protocol}

    def _connect(self, address: str, port: int, until: float) -> _Channel:
        engine, remote = _client(self._protocol)
        return _Channel(engine, remote.on(engine.lookup(f"{self._protocol}://{address}:{port}")))


def _client(protocol: str) -> tuple[Any, Any]:
    process = os.getpid()
    with _lock:
        if process not in _engines:
            _restrict()
            engine = margo.Engine(protocol, mode=margo.client, use_progress_thread=True)
            _engines[process] = engine, engine.register(_NAME)
        found: tuple[Any, Any] = _engines[process]
        return found


class _Channel:
    """See `node_client.Channel`. A request is sent when its reply is wanted: then it is known where to."""

    window = 1

    def __init__(self, engine: Any, call: Any) -> None:
        self._engine = engine
        self._call = call
        self._asked: collections.deque[bytes] = collections.deque()

    def send(self, message: Sequence[Buffer]) -> None:
        self._asked.append(b"".join(message))

    def receive(self, into: memoryview | None, until: float) -> tuple[Buffer, Buffer]:
        handle, size = "", 0
        if into is not None and into.nbytes > _INLINE:
            exposed = self._engine.create_bulk(into, bulk.write_only)
            handle, size = exposed.to_base64(), into.nbytes
        left = max(1.0, (until - time.monotonic()) * 1000)  # milliseconds
        try:
            with _answered():
                response = self._call(self._asked.popleft(), handle, size, timeout=left)
        except pickle.UnpicklingError as error:
            raise RefusedError("whoever answers there is no node server") from error
        except (_Failed, RuntimeError, TimeoutError) as error:
            if isinstance(error, TimeoutError) or "TIMEOUT" in str(error):
                raise DeadlineError("no answer in time") from error
            raise UnreachableError(f"no connection: {error}") from error
        if not isinstance(response, bytes) or len(response) < REPLY_HEAD:
            raise RefusedError("whoever answers there is no node server")
        head, data = response[:REPLY_HEAD], memoryview(response)[REPLY_HEAD:]
        if not data and into is not None and count_of(head)[0] == into.nbytes:
            return head, into
        if into is not None and data.nbytes == into.nbytes:
            into[:] = data
            return head, into
        return head, data

    def close(self) -> None:
        self._asked.clear()


def listen(address: str, ports: Sequence[int], key: bytes, options: dict[str, Any]) -> _Listener:
    """Listen at an address, at the first of some ports that is free (0: at any).

    Raises:
        ConfigurationError: none of them is.
    """
    return _Listener(address, ports, options["protocol"])


class _Listener:
    """See `node_server.Listener`."""

    def __init__(self, address: str, ports: Sequence[int], protocol: str) -> None:
        global _serves
        _restrict()
        _serves = True
        self.guard = guard_of(address)
        problem: Exception | None = None
        for port in ports:
            try:
                self._engine = margo.Engine(f"{protocol}://{address}:{port}", mode=margo.server)
                break
            except (_Failed, RuntimeError) as error:
                problem = error
        else:
            raise ConfigurationError(f"cannot listen at {address}:{ports[-1]}: {problem}")
        self.port = int(str(self._engine.addr()).rpartition(":")[2])
        self._bell = threading.Event()

    def wake(self) -> None:
        self._bell.set()

    def serve(
        self,
        handle: Callable[[Buffer, Respond], None],
        tick: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        def answer(call: Any, message: object = b"", memory: object = "", size: object = 0) -> None:
            if not isinstance(message, bytes) or not isinstance(memory, str) or type(size) is not int:
                message, memory, size = b"", "", 0
            handle(message, lambda head, data: self._respond(call, memory, size, head, data))

        def watch() -> None:
            while not stop():
                self._bell.wait(TICK)
                tick()
            self._engine.finalize()

        self._engine.register(_NAME, answer)
        threading.Thread(target=watch, daemon=True).start()
        self._engine.wait_for_finalize()

    def _respond(self, call: Any, memory: str, size: int, head: bytes, data: Buffer) -> None:
        count = memoryview(data).nbytes
        try:
            if memory and _INLINE < count <= size:
                # Mercury registers memory as writable, whatever it is for.
                local = self._engine.create_bulk(bytearray(data), bulk.read_only)
                remote = bulk.Bulk.from_base64(self._engine, memory)
                self._engine.transfer(bulk.push, call.get_addr(), remote, 0, local, 0, count)
                data = b""
            call.respond(head + bytes(data))
        except (_Failed, RuntimeError, ValueError) as error:
            print(f"no answer to a request: {error}", file=sys.stderr)  # noqa: T201


class _Plain(pickle._Unpickler):  # the C one takes gigabytes for a memo of two billion entries
    # What refers back to what was there makes a tuple of 2**60 from 200 bytes: it takes years to hash.
    dispatch: ClassVar[dict[int, Any]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.MEMOIZE, pickle.BINPUT),
            *(pickle.LONG_BINPUT, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
            *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.LONG4),
            *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
            *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
            *(pickle.TUPLE, pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
            *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
        )
    }


def _plain(data: bytes) -> Any:
    try:
        return _Plain(io.BytesIO(data)).load()
    except Exception as error:
        raise pickle.UnpicklingError(f"not bytes, text and numbers: {error!r}") from None


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    _ours.here = True
    try:
        yield
    finally:
        _ours.here = False


@functools.cache
def _restrict() -> None:
    """Have Margo unpickle dicts, tuples, bytes, text and numbers only: for us; in a server, for everybody.

    Raises:
        ConfigurationError: this version of Margo unpickles elsewhere than is known here.
    """

    def loads(data: bytes, **options: Any) -> Any:
        return _plain(data) if _serves or getattr(_ours, "here", False) else pickle.loads(data, **options)

    plain = ModuleType("pickle")
    plain.__dict__.update(vars(pickle))
    plain.__dict__["loads"] = loads
    family = (margo.__name__, "pymargo")
    found = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(family) and getattr(module, "pickle", None) is pickle
    ]
    if not found:
        raise ConfigurationError(
            "this version of Margo unpickles what others send in a way that cannot be restricted",
            remedy="Use py-mochi-margo 0.6, or zmq:// or ucx:// instead.",
        )
    for module in found:
        vars(module)["pickle"] = plain
