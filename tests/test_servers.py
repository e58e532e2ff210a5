"""Servers of ours, one by one: where they listen, and how much they take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import margo_tasks  # noqa: F401  which finds a fake of Margo
import pytest
from endpoint_sites import RelayProcess, Sites, sites
from listening import listening
from node_tasks import server_of
from websockets.asyncio.client import connect

from proxystore_core.connectors.node_place import LOOPBACK
from proxystore_core.connectors.node_protocol import CHUNK, LONGEST_REQUEST
from proxystore_core.endpoint import clients, introductions, relay, wire
from proxystore_core.endpoint.settings import relay_token
from proxystore_core.recipe import open_connector
from proxystore_core.stream import zmq as stream

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def at_home() -> Iterator[Sites]:
    with sites(["home"], pages=0) as found:
        yield found


@pytest.mark.parametrize("scheme", ["zmq", "ucx", "margo+tcp"])
def test_a_node_server_listens_on_loopback(scheme: str) -> None:
    connector: Any = open_connector(f"{scheme}://{secrets.token_hex(4)}")
    connector.evict(connector.put([b"data"]))
    directory = Path(connector._node.process.directory)
    assert {address for address, _ in listening(server_of(connector))} == {LOOPBACK}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "secret").stat().st_mode) == 0o600
    connector.close(clear=True)


def test_an_endpoint_listens_on_loopback(at_home: Sites) -> None:
    settings = at_home.endpoints["home"]
    process = int((settings.directory / "lock").read_text())
    found = listening(process)
    assert found, "its pages"
    assert {address for address, _ in found} == {LOOPBACK}


def test_a_relay_listens_on_loopback(tmp_path: Path) -> None:
    process = RelayProcess(tmp_path, {"group": relay_token("s" * 32)}, "--pages", "0")
    try:
        assert process.process is not None
        assert len(listening(process.process.pid)) == 2
        assert {address for address, _ in listening(process.process.pid)} == {LOOPBACK}
        assert listening(process.process.pid, "udp") == [(LOOPBACK, process.port)]
    finally:
        process.stop()


def test_a_relay_has_so_many_connections_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_ADDRESSES", 3)

    async def test() -> None:
        served = relay.Relay({"group": relay_token("s" * 32)})
        async with served.serving() as port, contextlib.AsyncExitStack() as stack:

            async def line() -> Any:
                opened = connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None)
                return await stack.enter_async_context(opened)

            for _ in range(3):
                await line()
            assert "full" in json.loads(await (await line()).recv())["reason"]

    asyncio.run(test())


def test_limits_are_those_that_the_documentation_names() -> None:
    text = (DOCS / "security.md").read_text()
    for limit in (
        "requests of 1 MiB and some",
        f"{wire.CHUNK // 1000} kB a request",
        f"{clients._CLIENTS} connections",
        f"{introductions.MESSAGE >> 10} KiB a message",
        f"{relay._ADDRESSES} connections an address",
        f"{stream._LONGEST[0] >> 10} KiB for a topic",
    ):
        assert limit in text
    assert CHUNK == 1 << 20
    assert CHUNK < LONGEST_REQUEST < 1.01 * CHUNK
