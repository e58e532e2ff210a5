"""What a connector that is `Deferred` or `Waiting` has to do; part of `ConnectorContract`."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from proxystore_core import testing_elsewhere
from proxystore_core.connectors import own
from proxystore_core.connectors.base import (
    Connector,
    Deferred,
    Key,
    Waiting,
    deferred,
    leased,
    waiting,
)
from proxystore_core.errors import GoneError, RefusedError, UnreachableError
from proxystore_core.testing_processes import in_fork, in_new_process, start, until

__all__ = ["DeferredContract"]


class DeferredContract:
    """The tests; skipped where the connector declares no such ability."""

    process_local: ClassVar[bool] = False
    """Whether other processes cannot reach the objects at all."""

    @pytest.fixture
    def setter(self, connector: Connector) -> Deferred:
        able = deferred(connector)
        if able is None:
            pytest.skip("sets no object later")
        return able

    @pytest.fixture
    def waiter(self, connector: Connector, setter: Deferred) -> Waiting:
        able = waiting(connector)
        if able is None:
            pytest.skip("waits for no object")
        return able

    # Set later.

    @pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
    def test_set_later(self, connector: Connector, setter: Deferred, size: int) -> None:
        key = setter.reserve()
        assert key.isascii()
        assert key.isprintable()
        assert " " not in key
        assert len(key) <= 80
        assert not connector.exists(key)
        assert connector.get(key) is None
        data = os.urandom(size)
        setter.set(key, [data[: size // 2], memoryview(data)[size // 2 :]])
        assert connector.exists(key)
        assert connector.get(key) == data
        assert connector.put([b"other"]) != key
        connector.evict(key)
        connector.evict(key)
        assert not connector.exists(key)
        assert connector.get(key) is None

    @pytest.mark.parametrize("size", [10, 3_000_000])
    def test_set_once(self, connector: Connector, setter: Deferred, size: int) -> None:
        key, ordinary = setter.reserve(), connector.put([b"ordinary"])
        assert key != setter.reserve()
        setter.set(key, [b"a" * size])
        for taken in (key, ordinary):
            with pytest.raises(RefusedError):
                setter.set(taken, [b"b" * size])
        assert connector.get(key) == b"a" * size
        assert connector.get(ordinary) == b"ordinary"
        connector.evict(key)
        with pytest.raises(RefusedError):
            setter.set(key, [b"c" * size])
        assert connector.get(key) is None

    def test_set_what_is_not_reserved(self, connector: Connector, setter: Deferred) -> None:
        key = setter.reserve()
        elsewhere = self._fresh()  # type: ignore[attr-defined]
        flipped = [key[:place] + ("0" if key[place] != "0" else "1") + key[place + 1 :] for place in (-3, -6)]
        forged = ["", "..", "../../etc/passwd", "user.0123456789abcdef0123", f"{key}/../x", f"{key}\0"]
        for wrong in [*flipped, *forged, key.upper() + ".", deferred(elsewhere).reserve()]:  # type: ignore[union-attr]
            with pytest.raises((RefusedError, UnreachableError)):
                setter.set(wrong, [b"data"])
        setter.set(key, [b"mine"])
        assert connector.get(key) == b"mine"

    def test_evicting_takes_a_reservation_back(self, connector: Connector, setter: Deferred) -> None:
        key = setter.reserve()
        connector.evict(key)
        with pytest.raises(RefusedError):
            setter.set(key, [b"data"])
        assert connector.get(key) is None
        assert not self.raw_objects(connector)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("size", [10, 3_000_000])
    def test_one_of_many_sets_it(self, connector: Connector, setter: Deferred, size: int) -> None:
        for _ in range(5):
            key = setter.reserve()
            together = threading.Barrier(4)

            def attempt(number: int, key: Key = key, together: threading.Barrier = together) -> int | None:
                together.wait()
                with contextlib.suppress(RefusedError):
                    setter.set(key, [bytes([number]) * size])
                    return number
                return None

            with ThreadPoolExecutor(4) as executor:
                winners = [number for number in executor.map(attempt, range(4)) if number is not None]
            assert len(winners) == 1
            assert connector.get(key) == bytes(winners) * size
            connector.evict(key)
        assert not self.raw_objects(connector)  # type: ignore[attr-defined]

    def test_set_by_another_process(self, connector: Connector, setter: Deferred) -> None:
        keys = [setter.reserve() for _ in range(3)]
        call = type(connector), connector.url, keys[0], [b"theirs", b"+" * 2_000_000]
        if self.process_local:
            with pytest.raises(UnreachableError):
                in_new_process(testing_elsewhere.set_once, *call)
            return
        in_new_process(testing_elsewhere.set_once, *call)
        assert connector.get(keys[0]) == b"theirs" + b"+" * 2_000_000
        assert in_fork(lambda: setter.set(keys[1], [b"child's"])) is None
        assert connector.get(keys[1]) == b"child's"
        assert connector.get(keys[2]) is None

    def test_a_session_ends_with_its_reservations(
        self, connector: Connector, setter: Deferred, session: str
    ) -> None:
        keeper = leased(connector)
        if keeper is None:
            pytest.skip("keeps no leases")
        unset, done = setter.reserve(session=session), setter.reserve(session=session)
        kept = setter.reserve()
        assert session in keeper.sessions()  # and so it does not stay for ever
        setter.set(done, [b"x" * 2_000_000])
        assert keeper.end(session) >= 1
        assert connector.get(done) is None
        with pytest.raises(RefusedError):
            setter.set(unset, [b"data"])
        setter.set(kept, [b"kept"])
        assert connector.get(kept) == b"kept"
        connector.evict(kept)
        assert not self.raw_objects(connector)  # type: ignore[attr-defined]
        for name in ("", "..", "a/b", "ü"):
            with pytest.raises(RefusedError):
                setter.reserve(session=name)

    def test_close_clears_what_it_reserved_for_the_user(
        self, connector: Connector, setter: Deferred, session: str
    ) -> None:
        other = self.open_again(connector)  # type: ignore[attr-defined]
        mine, sessions = setter.reserve(), setter.reserve(session=session)
        connector.close(clear=True)
        with pytest.raises(RefusedError):
            other.set(mine, [b"data"])
        other.set(sessions, [b"data"])
        assert other.get(sessions) == b"data"
        other.evict(sessions)
        other.close(clear=True)

    def test_reservations_are_cleared_whatever_others_evicted(
        self, connector: Connector, setter: Deferred, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(own, "_MANY", 8)
        known = getattr(connector, "_own", None)
        if isinstance(known, own.OwnKeys):
            known._limit = own._MANY
        other = self.open_again(connector)  # type: ignore[attr-defined]
        waited, done = setter.reserve(), setter.reserve()
        other.set(done, [b"data"])
        for _ in range(30):
            other.evict(setter.reserve())
        if isinstance(known, own.OwnKeys):
            assert len(known) <= 8
        connector.close(clear=True)
        assert other.get(done) is None
        with pytest.raises(RefusedError):
            other.set(waited, [b"data"])
        other.close()

    def test_a_killed_setter_leaves_all_or_nothing(
        self, connector: Connector, setter: Deferred, session: str
    ) -> None:
        if self.process_local:
            pytest.skip("the objects die with the process")
        size = 8 << 20
        whole = b"".join(bytes([part]) * (size // 16) for part in range(16))
        keys = [setter.reserve(session=session) for _ in range(5)]
        reading, writing = os.pipe()
        call = pickle.dumps((type(connector), connector.url, keys, size, writing))
        child = start([sys.executable, "-c", testing_elsewhere.main("set_for_ever")], call, writing)
        os.close(writing)
        assert os.read(reading, 1) == b"."
        os.close(reading)
        time.sleep(0.003)  # whatever it is in the midst of
        child.send_signal(signal.SIGKILL)
        child.wait()
        for key in keys:
            if not connector.exists(key):
                setter.set(key, [whole])
            assert connector.get(key) == whole
            with pytest.raises(RefusedError):
                setter.set(key, [whole])
        keeper = leased(connector)
        if keeper is not None:
            keeper.end(session)
            assert not self.raw_objects(connector)  # type: ignore[attr-defined]

    # Waiting.

    def test_wait_for_what_is_there(self, connector: Connector, waiter: Waiting, setter: Deferred) -> None:
        key = setter.reserve()
        assert waiter.wait(key, 0) is False
        assert waiter.wait(key, 0.05) is False
        setter.set(key, [b"data"])
        assert waiter.wait(key, 0)
        assert waiter.wait(key)
        assert waiter.wait(connector.put([b"ordinary"]), 0)

    def test_wait_is_woken(self, connector: Connector, waiter: Waiting, setter: Deferred) -> None:
        keys = [setter.reserve() for _ in range(4)]
        with ThreadPoolExecutor(12) as executor:
            waits = [executor.submit(waiter.wait, key, 20) for key in keys for _ in range(3)]
            time.sleep(0.1)
            assert not any(wait.done() for wait in waits)
            for key in reversed(keys):
                setter.set(key, [key.encode() * 1000])
            assert all(wait.result() for wait in waits)
        assert [connector.get(key) for key in keys] == [key.encode() * 1000 for key in keys]

    def test_wait_across_processes(self, connector: Connector, waiter: Waiting, setter: Deferred) -> None:
        if self.process_local:
            pytest.skip("no other process sees it")
        key, theirs = setter.reserve(), setter.reserve()
        with ThreadPoolExecutor(2) as executor:
            waiting_there = executor.submit(
                in_new_process, testing_elsewhere.wait, type(connector), connector.url, key
            )
            waiting_here = executor.submit(waiter.wait, theirs, 20)
            in_new_process(testing_elsewhere.set_once, type(connector), connector.url, theirs, [b"theirs"])
            assert waiting_here.result()
            setter.set(key, [b"mine" * 500_000])
            assert waiting_there.result() == b"mine" * 500_000
        assert connector.get(theirs) == b"theirs"

    def test_wait_in_a_fork(self, connector: Connector, waiter: Waiting, setter: Deferred) -> None:
        if self.process_local:
            pytest.skip("no other process sees it")
        key, other = setter.reserve(), setter.reserve()
        with ThreadPoolExecutor(1) as executor:
            wait = executor.submit(waiter.wait, other, 20)  # a wait is on its way when the child is made

            def child() -> bool:
                setter.set(other, [b"data"])
                threading.Timer(0.05, setter.set, (key, [b"data"])).start()
                return waiter.wait(key, 20)

            assert in_fork(child)
            assert wait.result()
        assert waiter.wait(key, 0)

    def test_wait_for_what_will_not_come(
        self, connector: Connector, waiter: Waiting, setter: Deferred, session: str
    ) -> None:
        gone = connector.put([b"data"])
        connector.evict(gone)
        with pytest.raises(GoneError):
            waiter.wait(gone, 20)
        for forged in ("", "../../etc/passwd"):
            with pytest.raises((RefusedError, UnreachableError)):
                waiter.wait(forged, 20)
        key, sessions = setter.reserve(), setter.reserve(session=session)
        with ThreadPoolExecutor(2) as executor:
            waits = [executor.submit(waiter.wait, unset, 30) for unset in (key, sessions)]
            time.sleep(0.05)
            connector.evict(key)
            keeper = leased(connector)
            if keeper is not None:
                keeper.end(session)
            else:
                connector.evict(sessions)
            for wait in waits:
                with pytest.raises(GoneError):
                    wait.result()
        until(lambda: not self.raw_objects(connector))  # type: ignore[attr-defined]

    def test_many_waits_leave_nothing_open(self, waiter: Waiting, setter: Deferred) -> None:
        key = setter.reserve()
        waiter.wait(key, 0.01)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            assert not waiter.wait(key, 0.001)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        setter.set(key, [secrets.token_bytes(10)])
        assert waiter.wait(key, 0)
