"""Coroutines and stores: what is awaited is what is got otherwise, whether a connector can await or not."""

from __future__ import annotations

import asyncio
import gc
import secrets
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from waiting import until

from proxystore_core.connectors.base import USER_SESSION, Awaited, Buffer, Key, awaited
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.errors import CorruptError, GoneError, RefusedError, UnreachableError
from proxystore_core.flight import LoopFlights
from proxystore_core.near import NEAR_FROM
from proxystore_core.proxy import Proxy, extract, is_resolved, resolve_async
from proxystore_core.recipe import open_connector
from proxystore_core.reference import Reference
from proxystore_core.secret import Secret
from proxystore_core.store import Store
from proxystore_core.testing import in_fork


class FarMemory(MemoryConnector):
    """Memory that takes its time, and notes how it is asked."""

    cheap_get: ClassVar[bool] = False
    checksum: ClassVar[bool] = True
    far: ClassVar[bool] = True

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.barrier: asyncio.Barrier | None = None
        self.calls: list[str] = []
        self.fails: Exception | None = None

    def get(self, key: Key) -> bytearray | None:
        self.calls.append("get")
        return super().get(key)

    async def get_async(self, key: Key) -> bytearray | None:
        self.calls.append("get_async")
        if self.barrier is not None:
            await self.barrier.wait()
        await asyncio.sleep(0.001)
        if self.fails is not None:
            raise self.fails
        return super().get(key)

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        self.calls.append("put")
        return super().put(data, session=session)

    async def put_async(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        self.calls.append("put_async")
        await asyncio.sleep(0.001)
        return super().put(data, session=session)


class SlowToPut(MemoryConnector):
    """Memory that cannot be awaited, and stores when it is told to."""

    get_async: Any = property()  # so that it has none

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun, self.go = threading.Event(), threading.Event()

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        self.begun.set()
        assert self.go.wait(20)
        return super().put(data, session=session)


@pytest.fixture
def far() -> Iterator[FarMemory]:
    connector = FarMemory(secrets.token_hex(4))
    yield connector
    connector.close(clear=True)


@pytest.fixture
def store(far: FarMemory) -> Iterator[Store[FarMemory]]:
    with Store("awaited", far, populate_target=False, register=True) as store:
        yield store


def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    async def main() -> list[Any]:
        return await asyncio.gather(*work)

    return asyncio.run(main())


async def of(proxy: Any) -> Any:
    return await proxy


# Which can.


def test_who_can_be_awaited(far: FarMemory) -> None:
    assert isinstance(far, Awaited)
    assert awaited(far) is far
    assert awaited(open_connector("shm://")) is None
    for options in (
        {"metrics": True},
        {"secret": Secret("s" * 32)},
        {"metrics": True, "secret": Secret("s" * 32)},
    ):
        with Store("a", far, **options) as store:  # type: ignore[arg-type]
            assert awaited(store.connector) is not None
        with Store("b", open_connector("shm://"), **options) as store:  # type: ignore[arg-type]
            assert awaited(store.connector) is None
            assert not hasattr(store.connector, "put_async")


# Proxies.


def test_fifty_wait_without_a_thread(store: Store[FarMemory]) -> None:
    proxies = [store.proxy([number] * 10) for number in range(50)]
    store.connector.barrier = asyncio.Barrier(50)  # more than there are threads for coroutines
    store.connector.calls.clear()
    assert together(*map(of, proxies)) == [[number] * 10 for number in range(50)]
    assert store.connector.calls == ["get_async"] * 50
    assert all(map(is_resolved, proxies))


def test_one_fetch_for_who_awaits_the_same(store: Store[FarMemory]) -> None:
    proxy = store.proxy([1, 2, 3])
    other = Proxy(Reference(store.put([1, 2, 3]), store.recipe))
    twins = [Proxy(Reference(proxy.__proxy_factory__.key, store.recipe)) for _ in range(5)]
    store.connector.calls.clear()
    found = together(*[of(proxy) for _ in range(20)], *map(of, twins), of(other))
    assert found == [[1, 2, 3]] * 26
    assert store.connector.calls == ["get_async"] * 2
    assert all(one is found[0] for one in found[:20])
    assert len(set(map(id, found[19:]))) == 7  # each proxy has an object of its own


def test_what_is_too_big_to_share_is_fetched_by_each() -> None:
    far = FarMemory(secrets.token_hex(4))
    with Store("uncached", far, cache_size=0, register=True) as store:
        key = store.put([1, 2, 3])
        assert together(*[store.get_async(key) for _ in range(3)]) == [[1, 2, 3]] * 3
        assert far.calls.count("get_async") == 3


def test_one_object_in_loops_and_threads(store: Store[FarMemory]) -> None:
    for evict in (False, True):
        for _ in range(20):
            proxy = store.proxy({"a": [1]}, evict=evict)
            start = threading.Barrier(5)

            def awaits(proxy: Any = proxy, start: threading.Barrier = start) -> list[Any]:
                start.wait()
                return together(of(proxy), of(proxy), resolve_async(proxy))

            def extracts(proxy: Any = proxy, start: threading.Barrier = start) -> list[Any]:
                start.wait()
                return [extract(proxy)]

            with ThreadPoolExecutor(5) as executor:
                asked = [executor.submit(do) for do in (awaits, extracts, awaits, extracts, awaits)]
                found = [one for each in asked for one in each.result()]
            assert found == [{"a": [1]}] * 11
            assert all(one is found[0] for one in found)
            assert store.exists(proxy.__proxy_factory__.key) is not evict


def test_used_beside_its_await(store: Store[FarMemory]) -> None:
    async def main(evict: bool) -> None:
        proxy = store.proxy([1, 2], evict=evict)
        task = asyncio.ensure_future(of(proxy))
        await asyncio.sleep(0)
        assert proxy == [1, 2]  # in the thread of the loop, while the bytes are under way
        assert await task is extract(proxy)

    asyncio.run(main(False))
    asyncio.run(main(True))


def test_cancelled(store: Store[FarMemory]) -> None:
    async def main() -> None:
        proxy = store.proxy([1, 2], evict=True)
        key = proxy.__proxy_factory__.key
        first, second = asyncio.ensure_future(of(proxy)), asyncio.ensure_future(of(proxy))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == [1, 2]
        assert first.cancelled() or first.cancelling()

        proxy = store.proxy([3], evict=True)
        key = proxy.__proxy_factory__.key
        store.connector.barrier = asyncio.Barrier(100)
        tasks = [asyncio.ensure_future(of(proxy)) for _ in range(2)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [asyncio.CancelledError] * 2
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        assert not is_resolved(proxy)
        assert store.exists(key)
        store.connector.barrier = None
        assert await proxy == [3]

    asyncio.run(main())


def test_errors(store: Store[FarMemory]) -> None:
    proxy, key = store.proxy([1]), store.put([2])
    gone = store.proxy([3])
    store.evict(gone.__proxy_factory__.key)
    with pytest.raises(GoneError, match="list") as caught:
        asyncio.run(of(gone))
    assert caught.value.key == gone.__proxy_factory__.key
    assert asyncio.run(store.get_async(gone.__proxy_factory__.key, "default")) == "default"
    with pytest.raises(RefusedError):
        asyncio.run(store.get_async("../../etc/passwd"))
    store.connector.fails = UnreachableError("nobody there")
    for again in (of(proxy), store.get_async(key)):
        with pytest.raises(UnreachableError, match="nobody"):
            asyncio.run(again)
    store.connector.fails = None
    assert asyncio.run(of(proxy)) == [1]
    space = store.connector._space.objects
    space[key] = space[key][:-1] + bytes([space[key][-1] ^ 1])
    with pytest.raises(CorruptError) as corrupt:
        asyncio.run(store.get_async(key))
    assert corrupt.value.key == key


def test_of_large_objects_each_host_keeps_one(store: Store[FarMemory]) -> None:
    large = store.proxy(bytes(NEAR_FROM))
    evicted = store.proxy(bytes(NEAR_FROM), evict=True)
    again = Proxy(large.__proxy_factory__)
    store.connector.calls.clear()
    assert together(of(large), of(evicted)) == [bytes(NEAR_FROM)] * 2
    assert asyncio.run(of(again)) == bytes(NEAR_FROM)
    assert sorted(store.connector.calls) == ["get", "get_async"]


def test_futures_and_owned_proxies(store: Store[FarMemory]) -> None:
    async def main() -> None:
        future = store.future()
        proxy = future.proxy()
        task, other = asyncio.ensure_future(of(proxy)), asyncio.ensure_future(of(future))
        await asyncio.sleep(0.01)
        future.set_result([1])
        assert await task == [1]
        assert await other == [1]
        owned = store.owned_proxy([2])
        assert await owned == [2]

    asyncio.run(main())


def test_a_store_that_is_not_open_here_is_opened(tmp_path: Path) -> None:
    with Store.from_url(f"file://{tmp_path}/store", name="elsewhere") as store:
        recipe, key = store.recipe, store.put([1])

        def child() -> Any:
            return asyncio.run(of(Proxy(Reference(key, recipe.replace("elsewhere", "anew")))))

        assert in_fork(child) == [1]
        store.close(clear=True)


def test_factories_of_others() -> None:
    assert asyncio.run(of(Proxy(lambda: 5))) == 5


def test_in_a_fork(store: Store[FarMemory]) -> None:
    async def main() -> list[int]:
        proxy = store.proxy([5])
        task = asyncio.ensure_future(of(proxy))
        await asyncio.sleep(0)

        def child() -> Any:  # forked in mid-flight; its objects are its own
            own = store.proxy([6])
            return together(of(own), of(own))

        assert in_fork(child) == [[6], [6]]
        return await task  # type: ignore[no-any-return]

    # Forking in a coroutine is what this is about; the loop is no more the child's.
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(asyncio.run, main()).result() == [5]


# Objects by key.


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("secret", [None, Secret("s" * 32)])
@pytest.mark.parametrize("metrics", [False, True])
def test_put_and_get(far: FarMemory, compression: str | None, secret: Secret | None, metrics: bool) -> None:
    options: dict[str, Any] = {"compression": compression, "secret": secret, "metrics": metrics}
    with Store("awaited", far, cache_size=0, **options) as store:
        obj = {"text": "a" * 100_000, "number": 5}

        async def main() -> list[Any]:
            keys = await asyncio.gather(*[store.put_async(obj) for _ in range(5)])
            return [keys, await asyncio.gather(*map(store.get_async, keys))]

        keys, found = asyncio.run(main())
        assert found == [obj] * 5
        assert far.calls == ["put_async"] * 5 + ["get_async"] * 5
        assert [store.get(key) for key in keys] == [obj] * 5
        assert asyncio.run(store.get_async(store.put(obj))) == obj
        if store.metrics is not None:
            counted = {name: one.count for name, one in store.metrics.as_dict().items()}
            assert counted == {"serialize": 6, "put": 6, "get": 11, "deserialize": 11}
            assert store.metrics["get"].nbytes == 11 * store.metrics["put"].nbytes / 6
            with pytest.raises(RefusedError):
                asyncio.run(store.connector.get_async("../x"))
            assert store.metrics["get"].errors == 1
        if secret is not None:
            with Store("other", far, secret=Secret("o" * 32)) as other, pytest.raises(RefusedError):
                asyncio.run(other.get_async(keys[0]))
            with Store("plain", far) as plain, pytest.raises(RefusedError):
                asyncio.run(plain.get_async(keys[0]))


@pytest.mark.parametrize("url", ["memory://fallback", "shm://", "multi://a?a=memory://part"])
def test_stores_that_take_a_thread(url: str) -> None:
    with Store.from_url(url, name="threads", register=True) as store:
        keys = together(*[store.put_async([number]) for number in range(20)])
        assert together(*map(store.get_async, keys)) == [[number] for number in range(20)]
        proxies = [store.proxy([number], populate_target=False) for number in range(20)]
        assert together(*map(of, proxies)) == [[number] for number in range(20)]
        store.close(clear=True)


def test_own_serializers_and_sessions(store: Store[FarMemory]) -> None:
    key = asyncio.run(store.put_async("text", serializer=lambda text: text.encode(), session="other"))
    assert asyncio.run(store.get_async(key, deserializer=lambda data: bytes(data).decode())) == "text"
    assert store.connector.keys("other") == [key]
    store.connector.end("other")


def test_a_put_that_is_cancelled_in_its_thread_is_taken_back() -> None:
    connector = SlowToPut(secrets.token_hex(4))
    with Store("slow", connector) as store:

        async def main() -> None:
            task = asyncio.ensure_future(store.put_async([1]))
            await asyncio.to_thread(connector.begun.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            connector.go.set()

        asyncio.run(main())  # which waits for its threads
        until(lambda: not connector._space.objects)
        assert store.get(asyncio.run(store.put_async([1]))) == [1]
        connector.close(clear=True)


def test_a_proxy_that_is_awaited_leaves_no_garbage(store: Store[FarMemory]) -> None:
    together(*[of(store.proxy([number])) for number in range(5)])
    gc.collect()
    assert not store._loop_flights._air
    assert not store._loop_flights._waiting


# Flights.


def test_the_flights_of_a_loop() -> None:
    flights = LoopFlights()
    flown: list[int] = []

    async def fly() -> list[int]:
        flown.append(len(flown))
        await asyncio.sleep(0.001)
        return flown

    async def main() -> None:
        found = await asyncio.gather(*[flights.run("a", fly) for _ in range(10)], flights.run("b", fly))
        assert all(one is flown for one in found)
        assert len(flown) == 2
        await flights.run("a", fly)
        assert len(flown) == 3

        async def fail() -> None:
            await asyncio.sleep(0.001)
            raise KeyError("x")

        errors = await asyncio.gather(*[flights.run("a", fail) for _ in range(3)], return_exceptions=True)
        assert [type(error) for error in errors] == [KeyError] * 3

    asyncio.run(main())
    asyncio.run(main_again(flights, fly))


async def main_again(flights: LoopFlights, fly: Any) -> None:
    """In another loop; the last to be cancelled takes the flight with it, the first does not."""
    tasks = [asyncio.ensure_future(flights.run("a", fly)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert await tasks[1] is await tasks[2]

    async def never() -> None:
        await asyncio.sleep(600)

    tasks = [asyncio.ensure_future(flights.run("a", never)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await flights.run("a", fly)
    assert len(asyncio.all_tasks()) == 1
