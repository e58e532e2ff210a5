"""What a client goes through under each fault: calls, the fault, and what came of the calls."""

from __future__ import annotations

import dataclasses
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from chaos import tasks
from chaos.engines import WAIT, Engine
from waiting import until

from proxystore_core.errors import StoreError

ANSWER = "answer"
WRONG = "WRONG"
HANG = "HANG"
TYPED = "typed"

SIZE = 1_000_000
"""Bytes of an argument or a result."""


@dataclasses.dataclass
class Probe:
    """What came of one call.

    Attributes:
        what: the call.
        outcome: `ANSWER`, `WRONG`, `HANG`, or the name of an error's class.
        typed: the error is one of ours.
        allowed: ours are allowed.
        seconds: that it took.
        text: of the error.
    """

    what: str
    outcome: str
    typed: bool
    allowed: bool
    seconds: float
    text: str = ""


class World:
    """A client's part of one case.

    Args:
        engine: bare, or with the case's store.
        ask: has something done from outside, and returns when it is done.
        seed: of all that is chosen.
        place: directory for files.
        short: everything takes as little time as it can.
    """

    def __init__(
        self, engine: Engine, ask: Callable[[str], None], seed: str, place: Path, short: bool
    ) -> None:
        self.engine = engine
        self.ask = ask
        self.place = place
        self.short = short
        self.bare = not engine.settings
        self.choose = random.Random(seed)
        self.probes: list[Probe] = []
        self._count = 0

    def path(self, armed: bool = False) -> str:
        """Of a new file; it is there already if it arms a death."""
        self._count += 1
        path = self.place / f"file{self._count}"
        if armed:
            path.touch()
        return str(path)

    def died(self, armed: str) -> None:
        """Fail if nobody died of it: the case would show nothing."""
        assert os.path.exists(f"{armed}.died"), "the fault did not happen"

    def array(self, size: int = SIZE) -> Any:
        return tasks.content(self.choose.getrandbits(32), size)

    def made(self, size: int = SIZE) -> tuple[int, Any]:
        """A seed for a task, and the array that it makes of it."""
        seed = self.choose.getrandbits(32)
        return seed, tasks.content(seed, size)

    def probe(self, what: str, call: Callable[[], Any], expected: Any, *, allowed: bool = False) -> None:
        """Note what comes of a call.

        Args:
            what: to call it in the report.
            call: makes it, and returns the result.
            expected: the result.
            allowed: one of our errors would be right, too.
        """
        start = time.monotonic()
        error: BaseException | None = None
        text = ""
        try:
            answer = call()
            outcome = ANSWER if np.array_equal(answer, expected) else WRONG
            text = "" if outcome == ANSWER else f"{answer!r} is not {expected!r}"[:300]
        except BaseException as caught:
            error = _cause(caught)
            late = isinstance(error, TimeoutError) and not isinstance(error, StoreError)
            outcome = HANG if late else type(error).__name__
        # Ray tells of what a worker cannot unpickle, or the driver, by text alone.
        typed = isinstance(error, StoreError) or "cannot be had here" in str(error)
        seconds = round(time.monotonic() - start, 2)
        text = text if error is None else str(error)[:300]
        self.probes.append(Probe(what, outcome, typed, allowed, seconds, text))

    def works(self, what: str = "calls that follow", *, allowed: bool = False) -> None:
        """Probe a call with a large argument and a large result, and one that takes this result."""
        engine, array = self.engine, self.array()

        def call() -> Any:
            first = engine.submit(tasks.add, array, 1.0)
            second = engine.submit(tasks.add, first, 1.0)
            return engine.result(second)

        self.probe(what, call, array + 2, allowed=allowed)


def _cause(error: BaseException) -> BaseException:
    """Our error where the engine's says that it is its cause; else the engine's."""
    inner = getattr(error, "cause", None)  # of Ray
    inner = inner if isinstance(inner, BaseException) else error.__cause__
    if inner is None or isinstance(error, StoreError):
        return error
    found = _cause(inner)
    return found if isinstance(found, StoreError) else error


# The faults.


def killed_while_it_puts(world: World) -> None:
    armed = world.path(armed=True)
    seed, made = world.made()
    if world.bare:
        call = world.engine.submit(tasks.die_sending, armed, seed, SIZE)
    else:
        call = world.engine.submit(tasks.die_putting, armed, seed, SIZE, world.choose.randint(1, 4))

    def result() -> Any:
        value = world.engine.result(call)
        return value.array if isinstance(value, tasks.Fragile) else value

    world.probe("its call", result, made)
    world.died(armed)
    world.works()


def killed_while_it_gets(world: World) -> None:
    armed = world.path(armed=True)
    array = world.array()
    fragile = tasks.Fragile(array, armed, out=False)
    call = world.engine.submit(tasks.total_of_fragile, fragile)
    world.probe("its call", lambda: world.engine.result(call), array.sum())
    world.died(armed)
    world.works()


def killed_while_it_holds(world: World) -> None:
    path = world.path()
    seed, made = world.made()
    held = world.engine.submit(tasks.stay, path, seed, SIZE)
    world.engine.wait(held)
    # Not from outside: an idle worker of Parsl may have a lock that all others wait for.
    armed = world.path(armed=True)
    deadline = time.monotonic() + WAIT
    while os.path.exists(armed) and time.monotonic() < deadline:
        for visit in [world.engine.submit(tasks.visit, path, armed) for _ in range(2)]:
            world.engine.wait(visit)
    world.died(armed)
    world.probe(
        "a call that takes it",
        lambda: world.engine.result(world.engine.submit(tasks.total, held)),
        made.sum(),
    )
    world.probe("the result it held", lambda: world.engine.result(held), made)
    world.works()


def _in_flight(world: World, fault: Callable[[], None], *, lost: bool, finish: Callable[[], None]) -> None:
    """A fault while arguments wait for their calls, and results for somebody who takes them.

    Args:
        world: the client's.
        fault: what happens.
        lost: stored objects are lost by it.
        finish: is done when all calls but the last are over.
    """
    engine = world.engine
    seed, made = world.made()
    held = engine.submit(tasks.stay, world.path(), seed, SIZE)
    engine.wait(held)
    gate = world.path()
    arrays = [world.array() for _ in range(4)]
    waiting = [engine.submit(tasks.wait_for, gate, array) for array in arrays]
    fault()
    Path(gate).touch()
    for number, (call, array) in enumerate(zip(waiting, arrays, strict=True), 1):
        world.probe(
            f"call {number} in flight",
            lambda call=call: engine.result(call),  # type: ignore[misc]
            array.sum(),
            allowed=lost,
        )
    taking = lambda: engine.result(engine.submit(tasks.total, held))  # noqa: E731
    world.probe("a call that takes a result from before", taking, made.sum(), allowed=lost)
    world.probe("a result from before", lambda: engine.result(held), made, allowed=lost)
    finish()
    world.works("calls afterwards")


def restarted_with_its_data(world: World) -> None:
    _in_flight(world, lambda: world.ask("restart"), lost=False, finish=lambda: None)


def restarted_without_its_data(world: World) -> None:
    _in_flight(world, lambda: world.ask("wipe"), lost=True, finish=lambda: None)


def unreachable(world: World) -> None:
    seconds = 3.0 if world.short else 10.0
    timer = threading.Timer(seconds, world.ask, ["thaw"])

    def fault() -> None:
        world.ask("freeze")
        timer.start()

    # Who asks while nobody answers is told so when the deadline is over.
    _in_flight(world, fault, lost=True, finish=timer.join)


def slow_network(world: World) -> None:
    world.ask("slow")
    _in_flight(world, lambda: None, lost=False, finish=lambda: None)


def full(world: World) -> None:
    engine = world.engine
    size = 20_000_000
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arrays = [world.array(size) for _ in range(2)]
        calls = [engine.submit(tasks.total, array) for array in arrays]
        for number, (call, array) in enumerate(zip(calls, arrays, strict=True), 1):
            world.probe(
                f"argument {number} that does not fit",
                lambda call=call: engine.result(call),  # type: ignore[misc]
                array.sum(),
            )
        seed, made = world.made(size)
        result = engine.submit(tasks.stay, world.path(), seed, size)
        world.probe("a result that does not fit", lambda: engine.result(result), made)
        world.works("calls that fit")
    _warned_once(world, caught)


def _warned_once(world: World, caught: list[warnings.WarningMessage]) -> None:
    texts = [str(one.message) for one in caught if "through the store" in str(one.message)]
    passing = [text for text in texts if "pass an argument" in text]
    world.probe("warnings of arguments by value", lambda: len(passing), 1)
    world.probes[-1].text += " ".join(passing)
    world.probe("warnings that are repeated", lambda: len(texts) - len(set(texts)), 0)


def gone_by_value(world: World) -> None:
    world.works("calls before")
    seed, made = world.made()
    held = world.engine.submit(tasks.stay, world.path(), seed, SIZE)
    world.engine.wait(held)
    world.ask("destroy")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(4):
            world.works(f"workflow {number}")
        world.probe("a result from before", lambda: world.engine.result(held), made, allowed=True)
    _warned_once(world, caught)


def gone_and_raised(world: World) -> None:
    world.works("calls before")
    world.ask("destroy")
    for number in range(2):
        world.works(f"workflow {number}", allowed=True)
        assert world.bare or world.probes[-1].typed, "the fault did not happen"


def client_killed(world: World) -> None:
    engine = world.engine
    seed, _ = world.made()
    held = engine.submit(tasks.stay, world.path(), seed, SIZE)
    engine.wait(held)
    gate = world.path()
    waiting = [engine.submit(tasks.wait_for, gate, world.array()) for _ in range(4)]
    world.ask("kill me")
    raise AssertionError(f"alive with {len(waiting)} calls")


def scheduler_restarted(world: World) -> None:
    engine = world.engine
    seed, made = world.made()
    held = engine.submit(tasks.stay, world.path(), seed, SIZE)
    engine.wait(held)
    begun, gate = world.path(), world.path()
    array = world.array()
    waiting = engine.submit(tasks.begin_and_wait, begun, gate, array)
    until(lambda: os.path.exists(begun), WAIT)
    world.ask("restart scheduler")
    Path(gate).touch()
    world.probe("a call in flight", lambda: engine.result(waiting), array.sum())
    world.probe("a result from before", lambda: engine.result(held), made)
    client = engine.client  # type: ignore[attr-defined]
    until(lambda: client.status == "running" and len(client.scheduler_info()["workers"]) >= 2, 60)
    until(lambda: world.bare or client._link.joined, 60)
    world.works("calls afterwards")


FAULTS: dict[str, tuple[Callable[[World], None], tuple[str, ...]]] = {
    "worker killed while it puts": (killed_while_it_puts, ("bare", "shm", "redis", "zmq")),
    "worker killed while it gets": (killed_while_it_gets, ("bare", "shm", "redis", "zmq")),
    "worker killed while it holds a result": (killed_while_it_holds, ("bare", "shm", "redis", "zmq")),
    "store's servers restarted with its data": (restarted_with_its_data, ("redis", "zmq")),
    "store restarted without its data": (restarted_without_its_data, ("shm", "redis", "zmq")),
    "store unreachable for a while": (unreachable, ("redis", "zmq")),
    "slow network": (slow_network, ("redis", "zmq")),
    "store full": (full, ("shm", "redis", "zmq")),
    "store gone, by value": (gone_by_value, ("shm", "redis", "zmq")),
    "store gone, an error": (gone_and_raised, ("shm", "redis", "zmq")),
    "client killed": (client_killed, ("shm", "redis", "zmq")),
    "scheduler restarted": (scheduler_restarted, ("bare", "shm", "redis", "zmq")),
}
"""Each fault, and the stores that it can happen to. Shared memory has no server and no network."""


def cases_of(engines: Iterable[str]) -> list[tuple[str, str, str]]:
    """Fault, engine and store of every case; bare engines come first."""
    return [
        (fault, engine, store)
        for fault, (_, stores) in FAULTS.items()
        for engine in engines
        for store in stores
        if fault != "scheduler restarted" or engine == "dask"
    ]
