"""A fake of py-mochi-margo 0.6, which no package of pip or Debian brings, with its calls over plain TCP.

As there, arguments and responses are pickled, a server unpickles them before it calls anyone, handlers
run one at a time, timeouts are in milliseconds, and errors are `MargoException`. Not as there, one call
is one connection, and an engine's memory is pushed through it.
"""

from __future__ import annotations

import pickle
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from typing import Any

from mochi.margo import bulk
from mochi.margo.bulk import Bulk

client, server = "client", "server"
_HEAD = struct.Struct("!BQ")
_CALL, _PUSH, _RESPOND = range(3)


class MargoException(Exception):  # noqa: N818
    """As the library's."""


def _write(wire: socket.socket, kind: int, data: Any) -> None:
    wire.sendall(_HEAD.pack(kind, memoryview(data).nbytes))
    wire.sendall(data)


def _read(wire: socket.socket) -> tuple[int, bytes]:
    kind, length = _HEAD.unpack(_exactly(wire, _HEAD.size))
    return kind, _exactly(wire, length)


def _exactly(wire: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = wire.recv_into(view)
        if not count:
            raise MargoException("HG_DISCONNECT")
        view = view[count:]
    return bytes(data)


class Address:
    def __init__(self, text: str, wire: socket.socket | None = None) -> None:
        self._text = text
        self.wire = wire

    def __str__(self) -> str:
        return self._text


class Handle:
    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self.done = threading.Event()

    def get_addr(self) -> Address:
        return Address("", self._wire)

    def respond(self, data: Any = None, blocking: bool = True) -> None:
        try:
            _write(self._wire, _RESPOND, pickle.dumps(data))
        except OSError as error:
            raise MargoException("HG_DISCONNECT") from error
        finally:
            self.done.set()


class Call:
    def __init__(self, engine: Engine, name: str, address: Address, provider_id: int) -> None:
        self._engine, self._name, self._address, self._provider = engine, name, address, provider_id

    def __call__(self, *args: Any, timeout: float = 0.0, blocking: bool = True, **kwargs: Any) -> Any:
        host, _, port = str(self._address).rpartition("://")[2].rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout / 1000 or None) as wire:
                wire.settimeout(timeout / 1000 or None)
                raw = pickle.dumps({"args": args, "kwargs": kwargs})
                name = f"{self._name} {self._provider}\n".encode()
                _write(wire, _CALL, name + raw)
                while True:
                    kind, data = _read(wire)
                    if kind == _RESPOND:
                        return pickle.loads(data)
                    number, offset = struct.unpack_from("!QQ", data)
                    self._engine.memory[number][offset : offset + len(data) - 16] = data[16:]
        except TimeoutError as error:
            raise MargoException("margo_provider_forward_timed() returned HG_TIMEOUT") from error
        except OSError as error:
            raise MargoException(f"margo_provider_forward_timed() returned HG_FAULT: {error}") from error


class RemoteFunction:
    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name

    def on(self, address: Address, provider_id: int = 0) -> Call:
        return Call(self._engine, self._name, address, provider_id)


class Engine:
    def __init__(
        self,
        addr: str,
        mode: str = server,
        use_progress_thread: bool = False,
        num_rpc_threads: int = 0,
        config: Any = "",
    ) -> None:
        self.memory: dict[int, memoryview] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._one_at_a_time = threading.Lock()
        self._finalized = threading.Event()
        self._addr = addr
        self._server: socketserver.ThreadingTCPServer | None = None
        if mode == server:
            host, _, port = addr.rpartition("://")[2].rpartition(":")
            engine = self

            class Handler(socketserver.BaseRequestHandler):
                def handle(self) -> None:
                    engine._carry_out(self.request)

            class Server(socketserver.ThreadingTCPServer):
                allow_reuse_address = True
                daemon_threads = True

                def handle_error(self, request: Any, client_address: Any) -> None:
                    pass

            try:
                self._server = Server((host or "127.0.0.1", int(port or 0)), Handler)
            except OSError as error:
                raise RuntimeError("margo_init() returned MARGO_INSTANCE_NULL") from error
            place = self._server.server_address
            self._addr = f"tcp://{place[0]!s}:{place[1]}"
            threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _carry_out(self, wire: socket.socket) -> None:
        _, data = _read(wire)
        name, _, raw = data.partition(b"\n")
        function = self._functions[name.decode()]
        handle = Handle(wire)
        with self._one_at_a_time:
            asked = pickle.loads(raw)
            function(handle, *asked["args"], **asked["kwargs"])
        handle.done.wait(60)

    def addr(self) -> Address:
        return Address(self._addr)

    def lookup(self, text: str) -> Address:
        return Address(text)

    def register(
        self,
        rpc_name: str,
        func: Callable[..., Any] | None = None,
        provider_id: int = 0,
        disable_response: bool = False,
    ) -> RemoteFunction:
        if func is not None:
            self._functions[f"{rpc_name} {provider_id}"] = func
        return RemoteFunction(self, rpc_name)

    def create_bulk(self, buffer: Any, mode: str) -> Bulk:
        number = id(buffer)
        self.memory[number] = memoryview(buffer)
        return Bulk(self, number)

    def transfer(
        self,
        op: str,
        origin_addr: Address,
        origin_handle: Bulk,
        origin_offset: int,
        local_handle: Bulk,
        local_offset: int,
        size: int,
        blocking: bool = True,
    ) -> None:
        assert op == bulk.push, "this fake only pushes"
        assert origin_addr.wire is not None
        local = self.memory[local_handle.number][local_offset : local_offset + size]
        try:
            head = struct.pack("!QQ", origin_handle.number, origin_offset)
            _write(origin_addr.wire, _PUSH, head + bytes(local))
        except OSError as error:
            raise MargoException("HG_DISCONNECT") from error

    def finalize(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._finalized.set()

    def wait_for_finalize(self) -> None:
        self._finalized.wait()
