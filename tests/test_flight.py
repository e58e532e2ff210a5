"""Flights: one run per key, whoever asks, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from proxystore_core.flight import Flights


class Slow:
    """A function whose run the test holds open until `go` is set."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.runs = 0
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> Any:
        self.runs += 1
        self.started.set()
        assert self.go.wait(30)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except BaseException as error:
        return error


def share(flights: Flights, slow: Slow, waiters: int) -> list[Any]:
    """Outcomes of one leader and of callers that arrive while it is in the air."""
    outcomes: list[Any] = []
    waiting = threading.Semaphore(0)

    def wait() -> None:
        waiting.release()
        outcomes.append(outcome(lambda: flights.run("k", slow)))

    leader = threading.Thread(target=lambda: outcomes.append(outcome(lambda: flights.run("k", slow))))
    leader.start()
    assert slow.started.wait(30)
    threads = [threading.Thread(target=wait) for _ in range(waiters)]
    for thread in threads:
        thread.start()
    for _ in threads:
        waiting.acquire()
    slow.go.set()
    for thread in [leader, *threads]:
        thread.join(30)
        assert not thread.is_alive()
    return outcomes


def test_result_is_returned_and_key_is_free_again() -> None:
    flights = Flights()
    counter = iter(range(9))
    assert [flights.run("k", lambda: next(counter)) for _ in range(3)] == [0, 1, 2]
    assert len(flights) == 0


def test_waiter_gets_the_very_result() -> None:
    slow = Slow(result := object())
    assert all(got is result for got in share(Flights(), slow, 7))


def test_waiter_gets_the_very_exception() -> None:
    slow = Slow(error := LookupError("no"))
    flights = Flights()
    assert all(got is error for got in share(flights, slow, 3))
    assert flights.run("k", lambda: 1) == 1


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_waiters_survive_an_interrupted_leader(interrupt: type[BaseException]) -> None:
    slow = Slow(interrupt())
    flights = Flights()
    leader: list[Any] = []
    thread = threading.Thread(target=lambda: leader.append(outcome(lambda: flights.run("k", slow))))
    thread.start()
    assert slow.started.wait(30)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(flights.run, "k", lambda: "mine") for _ in range(4)]
        slow.go.set()
        assert [future.result(30) for future in futures] == ["mine"] * 4
    thread.join(30)
    assert isinstance(leader[0], interrupt)
    assert len(flights) == 0


def test_one_run_for_all_who_wait() -> None:
    flights, slow = Flights(), Slow(5)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(flights.run, "k", slow)
        assert slow.started.wait(30)
        late = pool.submit(flights.run, "k", slow)
        assert not late.done()
        slow.go.set()
        assert first.result(30) == late.result(30) == 5


def test_keys_do_not_wait_for_each_other() -> None:
    flights, slow = Flights(), Slow(1)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(flights.run, "slow", slow)
        assert slow.started.wait(30)
        assert flights.run("quick", lambda: 2) == 2
        slow.go.set()
        assert held.result(30) == 1


def test_reentry_names_the_key_and_other_keys_nest() -> None:
    flights = Flights()
    with pytest.raises(RuntimeError, match="'k'"):
        flights.run("k", lambda: flights.run("k", int))
    assert flights.run("k", lambda: flights.run("other", lambda: 3)) == 3
    assert len(flights) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_forked_in_mid_flight_starts_with_none() -> None:
    flights, slow = Flights(), Slow(1)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(flights.run, "k", slow)
        assert slow.started.wait(30)
        child = os.fork()
        if child == 0:
            good = len(flights) == 0 and flights.run("k", lambda: "child") == "child"
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        slow.go.set()
        assert held.result(30) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_leader_that_forks_lands_in_both_processes() -> None:
    flights = Flights()
    parent = os.getpid()
    child = flights.run("k", os.fork)
    if os.getpid() != parent:
        os._exit(0 if len(flights) == 0 and flights.run("k", lambda: 1) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(flights) == 0


def test_a_flight_that_fails_keeps_nothing() -> None:
    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    def fails() -> None:
        one = Held()
        held.append(weakref.ref(one))
        raise ValueError

    gc.disable()
    try:
        for _ in range(3):
            with contextlib.suppress(ValueError):
                Flights().run("key", fails)
        assert [each() for each in held] == [None] * 3
    finally:
        gc.enable()
