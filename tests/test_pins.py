"""Pins and holdings against plain models of them, and holdings in threads and forks."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core.pins import Holdings, Pins
from proxystore_core.reference import Reference
from proxystore_core.testing import in_fork

keys = st.sampled_from("kmn")
holders = st.sampled_from(["task", 1, ("result", 1)])
counts = st.integers(1, 3)


def reference(key: str) -> Reference:
    return Reference(key, "memory://", 0, "")


@given(st.lists(st.tuples(st.sampled_from(["pin", "release", "clear"]), keys, holders)))
def test_pins(steps: list[tuple[str, str, Hashable]]) -> None:
    pins, model = Pins(), defaultdict[str, set[Hashable]](set)
    for step, key, holder in steps:
        if step == "pin":
            pins.pin(key, holder)
            model[key].add(holder)
        elif step == "release":
            freed = {key for key, its in model.items() if its == {holder}}
            assert sorted(pins.release(holder)) == sorted(freed)
            for its in model.values():
                its.discard(holder)
        else:
            assert sorted(pins.clear()) == sorted(key for key, its in model.items() if its)
            model.clear()
        there = {key for key, its in model.items() if its}
        assert set(pins) == there
        assert len(pins) == len(there)
        assert all((key in pins) == (key in there) for key in "kmn")


@given(st.lists(st.tuples(st.sampled_from(["add", "find", "release", "forget", "learn"]), keys, counts)))
def test_holdings(steps: list[tuple[str, str, int]]) -> None:
    """All objects look alike; an object's digest is its key."""
    holdings, pins, known = Holdings(), Counter[str](), set[str]()
    for step, key, count in steps:
        digest = key.encode()
        if step == "add" and not pins[key]:
            holdings.add(b"look", reference(key), digest if count == 1 else None)
            pins[key] = 1
            known |= {key} if count == 1 else set()
        elif step == "find":
            found = holdings.find(b"look", digest)
            assert (found and found.key) == (key if pins[key] and key in known else None)
            pins[key] += found is not None
        elif step == "release":
            assert holdings.release(key, count) == (pins[key] <= count)
            pins[key] = max(0, pins[key] - count)
        elif step == "forget":
            holdings.forget(key)
            pins[key] = 0
        elif step == "learn":
            holdings.learn(key, digest)
            known |= {key} if pins[key] else set()
        known &= set(+pins)
        assert len(holdings) == len(+pins)
        alike = holdings.looks(b"look")
        undigested = sorted(set(+pins) - known)
        assert (alike is None) == (not +pins)
        assert sorted(one.key for one in alike or ()) == undigested
    assert holdings.looks(b"other look") is None


def test_release_all_takes_one_pin_from_each() -> None:
    holdings = Holdings()
    for key in "ab":
        holdings.add(key.encode(), reference(key), b"digest")
    holdings.find(b"a", b"digest")
    assert holdings.release_all(["a", "b", "a", "gone"]) == ["b", "a", "gone"]
    assert len(holdings) == 0


@pytest.mark.parametrize("turns", [3000])
def test_finding_and_letting_go_at_once(turns: int) -> None:
    """Who finds an object has it: it is never let go of between the finding and the pin."""
    holdings = Holdings()
    evicted: set[str] = set()
    numbers = iter(range(10**9))
    wrong: list[str] = []

    def use(_: int) -> None:
        for _ in range(turns):
            found = holdings.find(b"look", b"digest")
            if found is None:
                found = reference(f"object-{next(numbers)}")
                holdings.add(b"look", found, b"digest")
            if found.key in evicted:
                wrong.append(found.key)
            if holdings.release(found.key):
                evicted.add(found.key)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(use, range(8)))
    assert not wrong
    assert len(holdings) == 0
    assert holdings.looks(b"look") is None


def test_a_fork_holds_nothing_and_waits_for_no_lock() -> None:
    holdings = Holdings()
    holdings.add(b"look", reference("parent's"), b"digest")
    locked, go = threading.Event(), threading.Event()

    def hold() -> None:
        with holdings._lock:
            locked.set()
            go.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(20)

    def child() -> tuple[int, bool]:
        return len(holdings), holdings.find(b"look", b"digest") is None

    try:
        assert in_fork(child) == (0, True)
    finally:
        go.set()
        holder.join()
    assert len(holdings) == 1
