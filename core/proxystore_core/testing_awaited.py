"""What a connector that is `Awaited` has to do; part of `ConnectorContract`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from proxystore_core.connectors.base import Awaited, Buffer, Connector, awaited, leased, listed
from proxystore_core.errors import RefusedError, UnreachableError
from proxystore_core.moving import listening
from proxystore_core.testing_processes import in_fork

__all__ = ["AwaitedContract"]

T = TypeVar("T")

_BIG = 20_000_000
_SOON = 0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05  # seconds: whatever it is in the midst of


class AwaitedContract:
    """The tests; skipped where the connector declares no such ability."""

    @pytest.fixture
    def mover(self, connector: Connector) -> Awaited:
        able = awaited(connector)
        if able is None:
            pytest.skip("moves nothing from coroutines")
        return able

    @pytest.mark.parametrize("size", [0, 1, 100_000, 1 << 20, (8 << 20) + 1, _BIG])
    def test_await_round_trip(self, connector: Connector, mover: Awaited, size: int) -> None:
        data = os.urandom(size)
        cut: list[Buffer] = [
            data[: size // 3],
            memoryview(data)[size // 3 : size // 2],
            b"",
            bytearray(data[size // 2 :]),
        ]
        told: list[int] = []
        with listening(lambda nbytes, doing: told.append(nbytes)):
            key = asyncio.run(mover.put_async(cut))
            assert sum(told) <= max(size, 1)
            told.clear()
            got = asyncio.run(mover.get_async(key))
            assert sum(told) <= max(size, 1)
        assert got == data
        assert connector.get(key) == data
        assert asyncio.run(mover.get_async(connector.put(cut))) == data
        if not memoryview(got).readonly:
            memoryview(got)[:] = bytes(size)
        assert asyncio.run(mover.get_async(key)) == data
        connector.evict(key)
        assert asyncio.run(mover.get_async(key)) is None
        assert asyncio.run(mover.put_async([b"other"])) != key

    def test_await_in_a_session(self, connector: Connector, mover: Awaited, session: str) -> None:
        keys = [
            asyncio.run(mover.put_async([b"data"], session=session)),
            connector.put([b"data"], session=session),
        ]
        users = asyncio.run(mover.put_async([b"mine"]))
        lister, keeper = listed(connector), leased(connector)
        if lister is not None:
            assert sorted(lister.keys(session)) == sorted(keys)
        if keeper is not None:
            assert keeper.end(session) == 2
            assert asyncio.run(mover.get_async(keys[0])) is None
        for name in ("", "..", "a/b", "ü"):
            with pytest.raises(RefusedError):
                asyncio.run(mover.put_async([b"data"], session=name))
        other = self.open_again(connector)  # type: ignore[attr-defined]
        connector.close(clear=True)
        assert other.get(users) is None
        other.close()

    def test_await_with_forged_keys(self, connector: Connector, mover: Awaited) -> None:
        key = connector.put([b"mine"])
        for forged in ("", "..", "../../etc/passwd", "user.*", f"{key}/../x", f"{key}\0", key.upper() + "."):
            with pytest.raises((RefusedError, UnreachableError)):
                asyncio.run(mover.get_async(forged))

    def test_await_many_at_once(self, connector: Connector, mover: Awaited) -> None:
        data = [bytes([number]) * (1 + number * 3000) for number in range(50)]
        assert _together(mover, data) == data

    def test_await_in_loops_of_several_threads(self, connector: Connector, mover: Awaited) -> None:
        data = [[bytes([thread, number]) * 50_000 for number in range(10)] for thread in range(4)]
        with ThreadPoolExecutor(4) as executor:
            for _ in range(2):  # each time in other loops
                assert list(executor.map(lambda one: _together(mover, one), data)) == data

    def test_await_in_a_fork(self, connector: Connector, mover: Awaited) -> None:
        data = [b"a", b"b" * 3_000_000]

        async def main() -> Any:
            key = await mover.put_async([b"parent's"])
            return key, await asyncio.gather(*map(mover.get_async, [key, key]))

        key, got = asyncio.run(main())
        assert got == [b"parent's", b"parent's"]

        def child() -> bool:
            assert _together(mover, data) == data
            if not self.process_local:  # type: ignore[attr-defined]
                assert asyncio.run(mover.get_async(key)) == b"parent's"
            connector.close(clear=True)
            return True

        assert in_fork(child)
        assert _together(mover, data) == data
        assert asyncio.run(mover.get_async(key)) == b"parent's"

    @pytest.mark.parametrize("size", [1000, _BIG])
    def test_who_is_cancelled_has_stored_nothing(
        self, connector: Connector, mover: Awaited, session: str, size: int
    ) -> None:
        for seconds in _SOON:
            key = asyncio.run(_cancelled(mover.put_async([bytes(size)], session=session), seconds))
            if key is not None:  # it was done before
                connector.evict(key)
        lister = listed(connector)
        assert lister is None or not lister.keys(session)
        assert not self.raw_objects(connector)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("size", [1000, _BIG])
    def test_who_is_cancelled_spoils_nothing(self, connector: Connector, mover: Awaited, size: int) -> None:
        key = connector.put([bytes(size)])
        for seconds in _SOON:
            asyncio.run(_cancelled(mover.get_async(key), seconds))
        assert asyncio.run(mover.get_async(key)) == bytes(size)


def _together(mover: Awaited, data: Sequence[bytes]) -> list[Buffer | None]:
    """What is put, got: all of it at the same time, in an event loop of its own."""

    async def one(item: bytes) -> Buffer | None:
        return await mover.get_async(await mover.put_async([item]))

    async def main() -> list[Buffer | None]:
        return await asyncio.gather(*map(one, data))

    return asyncio.run(main())


async def _cancelled(work: Coroutine[Any, Any, T], seconds: float) -> T | None:
    """What some work gives that is cancelled after so many seconds, if it is done by then."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(seconds)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return None
