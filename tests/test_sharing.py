"""Equal objects of a session are stored once, whatever threads do; nobody waits for another's I/O."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxystore_core import Session, Sharing, Store, UnreachableError
from proxystore_core import sharing as module
from proxystore_core.connectors.base import Buffer, Key
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.testing import in_fork, until

PLAIN = b"a" * 5000
ALIKE = b"a" * 100 + b"b" + b"a" * 4899  # differs where no sample is taken


class Slow(FileConnector):
    """Puts and gets of one session wait for the test, when it says so."""

    def __init__(self, store_dir: Path) -> None:
        super().__init__(store_dir)
        self.go = threading.Event()
        self.go.set()
        self.waiting = 0
        self.puts: Counter[str] = Counter()
        self.fails = False

    def put(self, data: Sequence[Buffer], *, session: str = "user") -> Key:
        self.puts[session] += 1
        self.waiting += 1
        assert self.go.wait(20)
        self.waiting -= 1
        if self.fails:
            raise UnreachableError("the plug is out", store=self.url)
        return super().put(data, session=session)

    def get(self, key: Key) -> Buffer | None:
        self.waiting += 1
        assert self.go.wait(20)
        self.waiting -= 1
        return super().get(key)


class SlowAndMapped(Slow):
    """As shared memory: fetching costs nothing, so digests are taken late; without checksums."""

    cheap_get = True
    checksum = False


@pytest.fixture(params=[Slow, SlowAndMapped])
def sharing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sharing]:
    connector = request.param(tmp_path / "store")
    session = Session(connector)
    store: Store[Any] = Store(secrets.token_hex(4), connector)
    yield Sharing(store, session.name)
    connector.go.set()
    session.end()
    store.close()


def slow(sharing: Sharing) -> Slow:
    connector = sharing.store.connector
    assert isinstance(connector, Slow)
    return connector


def stored(sharing: Sharing) -> int:
    return len(list(Path(slow(sharing).store_dir, sharing.session).glob("[0-9a-f]*")))


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a function; its outcome is in the list once the thread has ended."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_equality_goes_by_stored_bytes_and_never_by_identity(sharing: Sharing) -> None:
    array = np.arange(5000.0)
    first = sharing.reference(array)
    assert sharing.reference(array.copy()) == first
    array[2500] = -1  # the same object is another one now
    second = sharing.reference(array)
    assert second.key != first.key
    np.testing.assert_array_equal(sharing.store.load(first), np.arange(5000.0))
    np.testing.assert_array_equal(sharing.store.load(second), array)
    seen = {sharing.reference(bytearray(bytes([turn]) * 5000)).key for turn in range(20)}  # ids come again
    assert len(seen) == 20


def test_what_looks_alike_is_told_apart(sharing: Sharing) -> None:
    first, other = sharing.reference(PLAIN), sharing.reference(ALIKE)
    assert first.key != other.key
    assert sharing.reference(bytes(bytearray(ALIKE))).key == other.key
    assert sharing.reference(bytes(bytearray(PLAIN))).key == first.key
    assert (sharing.store.load(first), sharing.store.load(other)) == (PLAIN, ALIKE)


@pytest.mark.parametrize("held", [(), (ALIKE,)])
def test_equal_objects_put_at_once_are_stored_once(sharing: Sharing, held: tuple[bytes, ...]) -> None:
    """Also where something else is held already that only looks like them."""
    for obj in held * 2:  # the second time its digest is taken: threads meet at their puts
        sharing.reference(obj)
    connector = slow(sharing)
    connector.puts.clear()
    connector.go.clear()
    started = [in_thread(lambda: sharing.reference(bytes(bytearray(PLAIN)))) for _ in range(6)]
    until(lambda: connector.waiting)
    time.sleep(0.2)  # for the others to come as far as they can
    connector.go.set()
    for thread, _ in started:
        thread.join()
    keys = {outcome[0].key for _, outcome in started}
    assert len(keys) == 1
    assert connector.puts[sharing.session] == 1
    key = keys.pop()
    assert [sharing.holdings.release(key) for _ in started] == [False] * 5 + [True]


def test_a_put_that_blocks_holds_up_nobody_else(sharing: Sharing) -> None:
    connector = slow(sharing)
    held = sharing.reference(PLAIN)
    sharing.reference(PLAIN)  # whose digest is known
    connector.go.clear()
    thread, outcome = in_thread(lambda: sharing.reference(b"another" * 1000))
    until(lambda: connector.waiting)
    assert sharing.reference(bytes(bytearray(PLAIN))) == held
    assert [sharing.holdings.release(held.key) for _ in range(3)] == [False, False, True]
    connector.evict(held.key)
    assert stored(sharing) == 0
    connector.go.set()
    thread.join()
    assert sharing.store.load(outcome[0]) == b"another" * 1000


def test_a_put_that_fails_leaves_nothing_and_holds_nothing(sharing: Sharing) -> None:
    connector = slow(sharing)
    connector.fails = True
    connector.go.clear()
    started = [in_thread(lambda: sharing.reference(PLAIN)) for _ in range(3)]
    until(lambda: connector.waiting)
    connector.go.set()
    for thread, outcome in started:
        thread.join()
        assert isinstance(outcome[0], UnreachableError)
    assert len(sharing.holdings) == 0
    connector.fails = False
    assert sharing.store.load(sharing.reference(PLAIN)) == PLAIN


def test_what_was_lost_is_stored_again(sharing: Sharing) -> None:
    first = sharing.reference(PLAIN)
    sharing.store.evict(first.key)
    second = sharing.reference(PLAIN)
    assert second.key != first.key
    assert sharing.store.load(second) == PLAIN
    # Late orders for what was lost let go of nothing that is there.
    assert sharing.holdings.release(first.key)
    assert sharing.reference(PLAIN) == second


def test_calls_in_a_row_ask_once_whether_it_is_there(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    exists = slow(sharing).exists

    def ask(key: Key) -> bool:
        asked.append(key)
        return exists(key)

    monkeypatch.setattr(sharing.store.connector, "exists", ask)
    monkeypatch.setattr(module, "_SEEN", 3600.0)
    one, other = sharing.reference(PLAIN), sharing.reference(ALIKE)
    assert {sharing.reference(PLAIN) for _ in range(20)} == {one}
    assert asked == [one.key]
    assert sharing.reference(ALIKE) == other
    assert asked == [one.key, other.key]
    monkeypatch.setattr(module, "_SEEN", 0.0)
    sharing.reference(PLAIN)
    sharing.store.evict(one.key)
    assert sharing.reference(PLAIN) != one


def test_putting_and_letting_go_in_threads(sharing: Sharing) -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(40):
            content = (PLAIN, ALIKE, b"c" * 3000)[(number + turn) % 3]
            reference = sharing.reference(bytes(bytearray(content)))
            if sharing.store.get(reference.key) != content:
                wrong.append(reference.key)
            if sharing.holdings.release(reference.key):
                sharing.store.evict(reference.key)

    with ThreadPoolExecutor(6) as executor:
        list(executor.map(work, range(6)))
    assert not wrong
    assert len(sharing.holdings) == 0
    assert stored(sharing) == 0


def test_a_fork_shares_nothing_of_its_parent(sharing: Sharing) -> None:
    reference = sharing.reference(PLAIN)

    def child() -> tuple[int, str]:
        return len(sharing.holdings), sharing.reference(PLAIN).key

    held, theirs = in_fork(child)
    assert held == 0
    assert theirs != reference.key
    assert sharing.reference(PLAIN) == reference
    assert stored(sharing) == 2  # both the session's, and gone with it


def test_sharing_without_leases_or_other_processes() -> None:
    with Store(secrets.token_hex(4), MemoryConnector(secrets.token_hex(4))) as store:
        sharing = Sharing(store, "s")
        assert sharing.reference(PLAIN) == sharing.reference(bytes(bytearray(PLAIN)))
        assert store.connector.end("s") == 1
