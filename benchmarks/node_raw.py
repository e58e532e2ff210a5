"""The bare libraries under the node servers: what one socket, or one endpoint, moves without us.

``python -m benchmarks.node_raw zmq|curve|ucx SIZE`` serves until it is terminated: it keeps the last
message that it got, and sends it back when asked. Its first line says where it listens.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["RawUCX", "RawZeroMQ", "serving"]

os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")

# Not in the environment: it is not only this library's that has UCX in this process.
_OPTIONS = {"TLS": "tcp,sm", "NET_DEVICES": "lo", "RNDV_FRAG_MEM_TYPE": "host"}
_SERVER, _CLIENT = b"\1" * 32, b"\2" * 32  # secret keys of CURVE


@contextmanager
def serving(kind: str, size: int) -> Iterator[int]:
    """Run a bare server; yields its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, kind, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.terminate()
        process.wait()


def _curve(socket: Any, mine: bytes, server: bytes | None = None) -> None:
    import zmq
    from zmq.utils import z85

    secret = z85.encode(mine)
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_public(secret), secret
    if server is None:
        socket.curve_server = True
    else:
        socket.curve_serverkey = zmq.curve_public(z85.encode(server))


class RawZeroMQ:
    """A DEALER that sends one message as it is, and receives one into memory of its own."""

    def __init__(self, port: int, curve: bool) -> None:
        import zmq

        self._context: Any = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        if curve:
            _curve(self._socket, _CLIENT, _SERVER)
        self._socket.connect(f"tcp://127.0.0.1:{port}")

    def put(self, data: Any) -> None:
        self._socket.send(data, copy=False)
        self._socket.recv()

    def get(self) -> Any:
        self._socket.send(b"")
        return self._socket.recv(copy=False).buffer

    def close(self) -> None:
        self._context.destroy(0)


class RawUCX:
    """An endpoint of ucxx, used as its guide does: buffers are there before they are received."""

    def __init__(self, port: int, size: int) -> None:
        import asyncio

        import ucxx

        self._loop = asyncio.new_event_loop()
        self._size = size
        self._ucxx = ucxx

        async def connect() -> Any:
            ucxx.init(_OPTIONS, progress_mode="blocking")
            return await ucxx.create_endpoint("127.0.0.1", port)

        self._endpoint = self._loop.run_until_complete(connect())

    def put(self, data: Any) -> None:
        async def put() -> None:
            await self._endpoint.send(b"\1")
            await self._endpoint.send(data)
            await self._endpoint.recv(bytearray(1))

        self._loop.run_until_complete(put())

    def get(self) -> Any:
        from proxystore_core.buffers import fresh_buffer

        async def get() -> Any:
            await self._endpoint.send(b"\2")
            data = fresh_buffer(self._size)
            await self._endpoint.recv(data)
            return data

        return self._loop.run_until_complete(get())

    def close(self) -> None:
        self._loop.run_until_complete(self._endpoint.close())
        self._endpoint = None
        self._ucxx.reset()
        self._loop.close()


def _serve_zeromq(curve: bool) -> None:
    import zmq

    context: Any = zmq.Context()
    router = context.socket(zmq.ROUTER)
    if curve:
        _curve(router, _SERVER)
    print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    kept: Any = b""
    while True:
        peer, message = router.recv_multipart(copy=False)
        if len(message):
            kept = message
            router.send_multipart([peer, b"ok"])
        else:
            router.send_multipart([peer, kept], copy=False)


def _serve_ucx(size: int) -> None:
    import asyncio

    import ucxx

    async def serve() -> None:
        async def answer(endpoint: Any) -> None:
            kept, order = bytearray(size), bytearray(1)
            while True:
                try:
                    await endpoint.recv(order)
                    if order == b"\1":
                        await endpoint.recv(kept)
                        await endpoint.send(order)
                    else:
                        await endpoint.send(kept)
                except ucxx.exceptions.UCXError:
                    return

        ucxx.init(_OPTIONS, progress_mode="blocking")
        listener = ucxx.create_listener(answer)
        print(listener.port, flush=True)
        await asyncio.sleep(3600)

    asyncio.run(serve())


if __name__ == "__main__":
    if sys.argv[1] == "ucx":
        _serve_ucx(int(sys.argv[2]))
    else:
        _serve_zeromq(sys.argv[1] == "curve")
