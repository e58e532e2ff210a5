"""The life of stored objects against a model of it: any order of puts, pins, orders, crashes and ends.

Stores, `Session`, `Sharing`, `Holdings` and `Pins` are the real ones. Clients and a scheduler that use
them are written out here, as the protocol of the Dask integration has it: clients announce graphs,
the scheduler counts them, pins objects while it knows their tasks, and orders evictions with the
number of graphs that it has seen. Streams deliver each message whole, in order and as late as the
rules like. Time passes by setting a lease's expiry into the past behind the connector's back.

After each step every object that anyone needs is readable and right; nothing of a session that is
over is left; nobody else's objects are touched. When no message is on its way, nothing else is there.

``HYPOTHESIS_PROFILE=thorough`` plays many more and longer games.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis_servers import Server

from proxystore_core import GoneError, Pins, Session, Sharing, Store
from proxystore_core.connectors import memory
from proxystore_core.connectors.base import Key
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.reference import Reference
from proxystore_core.testing import in_fork

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
PLAY = settings(
    max_examples=300 if THOROUGH else 15,
    stateful_step_count=60 if THOROUGH else 30,
    deadline=None,
    derandomize=not THOROUGH,
    database=None,
    phases=[Phase.generate],  # a game as long as this shrinks for an hour
    suppress_health_check=list(HealthCheck),
)
PAST = time.time() - 3600
CRASHED = 3 << 20  # bytes that a writer is killed at

# The first two look alike: they differ where no sample is taken.
CONTENTS = {
    "a": b"a" * 5000,
    "like a": b"a" * 100 + b"b" + b"a" * 4899,
    "c": b"c" * 2000,
    "big": bytes(range(256)) * 4100,
}


class World:
    """One store, and how to look at it and its leases behind the connector's back."""

    shared = True

    def connect(self) -> Any:
        raise NotImplementedError

    def name(self, key: Key) -> str:
        """The object's name, as `raw` has it."""
        return key.rpartition(".")[2]

    def raw(self) -> dict[str, set[str]]:
        """Names of everything that is there, published or not, by session."""
        raise NotImplementedError

    def lapse(self, session: str) -> None:
        """Let a lease's time have come."""
        raise NotImplementedError

    def close(self) -> None:
        pass


class MemoryWorld(World):
    shared = False

    def __init__(self) -> None:
        self.space = secrets.token_hex(4)
        self.kept = MemoryConnector(self.space)  # objects are there while any connector is

    def connect(self) -> Any:
        return MemoryConnector(self.space)

    def raw(self) -> dict[str, set[str]]:
        found = defaultdict(set)
        for key in memory._spaces[self.space].objects:
            found[key.split(".")[1]].add(self.name(key))
        return found

    def lapse(self, session: str) -> None:
        memory._spaces[self.space].leases[session] = PAST

    def close(self) -> None:
        self.kept.close()


class FileWorld(World):
    def __init__(self, named: bool = False) -> None:
        self.named = named  # as on a file system where a file needs a name from the start
        self.place = tempfile.TemporaryDirectory()

    def connect(self) -> Any:
        connector = FileConnector(Path(self.place.name, "store"))
        connector._unnamed = connector._unnamed and not self.named
        return connector

    @property
    def directory(self) -> Path:
        return Path(self.place.name, "store")

    def raw(self) -> dict[str, set[str]]:
        found = defaultdict(set)
        for path in self.directory.glob("*/*"):
            if path.name != ".lease":
                found[path.parent.name].add(path.name)
        return found

    def lapse(self, session: str) -> None:
        os.utime(self.directory / session / ".lease", (PAST, PAST))

    def close(self) -> None:
        self.place.cleanup()


class ShmWorld(FileWorld):
    def __init__(self) -> None:
        super().__init__()
        self.space = secrets.token_hex(4)
        self.store_dir = self.connect().store_dir

    def connect(self) -> Any:
        return ShmConnector(self.space, spill=Path(self.place.name, "spill"))

    @property
    def directory(self) -> Path:
        return Path(self.store_dir)

    def close(self) -> None:
        connector = self.connect()
        connector.end("user")
        connector.close()
        super().close()


class RedisWorld(World):
    def __init__(self, server: Server) -> None:
        self.server = server
        self.prefix = secrets.token_hex(4)

    def connect(self) -> Any:
        return RedisConnector("127.0.0.1", self.server.port, prefix=self.prefix)

    def name(self, key: Key) -> str:
        return key.split(".")[1]

    def hashes(self, session: str = "*") -> list[bytes]:
        return list(self.server.witness.scan_iter(f"{self.prefix}:{{{session}:*", count=10_000))

    def raw(self) -> dict[str, set[str]]:
        found: defaultdict[str, set[str]] = defaultdict(set)
        hashes = self.hashes()
        pipeline = self.server.witness.pipeline(transaction=False)
        for place in hashes:
            pipeline.hkeys(place)
        for place, fields in zip(hashes, pipeline.execute(), strict=True):
            session = place.decode().partition("{")[2].partition(":")[0]
            names = {field.decode().partition(".")[0] for field in fields} - {"lease"}
            if names:
                found[session] |= names
        return found

    def lapse(self, session: str) -> None:
        for place in self.hashes(session):
            self.server.witness.pexpireat(place, 1)

    def close(self) -> None:
        for place in self.hashes():
            self.server.witness.delete(place)


# Client and scheduler: the protocol of an engine whose scheduler counts, and whose client evicts.


@dataclasses.dataclass
class Stream:
    """One direction of a connection: whole messages, in order, as late as the rules like."""

    messages: deque[tuple[Any, ...]] = dataclasses.field(default_factory=deque)

    def send(self, *message: Any) -> None:
        self.messages.append(message)


@dataclasses.dataclass
class Task:
    name: str
    needs: set[Key]  # what its function is going to read
    detached: bool  # nobody waits for it, and it runs all the same
    fails: bool = False  # the scheduler cannot read its graph
    who_wants: set[str] = dataclasses.field(default_factory=set)
    result: Key | None = None


@dataclasses.dataclass
class Known:
    """What the scheduler knows of a session."""

    client: str
    name: str
    pins: Pins = dataclasses.field(default_factory=Pins)
    graphs: Counter[Key] = dataclasses.field(default_factory=Counter)
    here: bool = True


class Scheduler:
    """Pins objects while it knows their tasks; has no way to the store itself."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.sessions: dict[str, Known] = {}
        self.clients: dict[str, Stream] = {}
        self.workers: list[Stream] = [Stream()]
        self.orders: defaultdict[str, list[Key]] = defaultdict(list)
        self.turns: deque[Known] = deque()  # of the event loop: orders of one turn are sent together

    def graph(self, client: str, keys: list[Key], task: Task) -> None:
        session = self.sessions.get(client)
        if not task.fails:
            if task.name not in self.tasks:
                self.tasks[task.name] = task
                if session is not None:
                    for key in keys:
                        session.pins.pin(key, task.name)
            known = self.tasks[task.name]
            if task.detached:
                known.detached = True
            else:
                known.who_wants.add(client)
        if session is not None:
            session.graphs.update(keys)
            # What no task took (it was known already, or the graph failed) goes at once.
            self.evict(session, [key for key in keys if key not in session.pins])

    def release(self, client: str, names: Iterable[str]) -> None:
        for name in names:
            task = self.tasks.get(name)
            if task is not None:
                task.who_wants.discard(client)
                self.forget_if_done(task)

    def forget_if_done(self, task: Task) -> None:
        if not task.who_wants and not task.detached:
            del self.tasks[task.name]
            self.let_go(("result", task.name))
            self.let_go(task.name)

    def let_go(self, holder: Hashable) -> None:
        for session in list(self.sessions.values()):
            freed = session.pins.release(holder)
            if freed:
                self.evict(session, freed)
                self.end_if_over(session)

    def wanted(self, client: str) -> list[Task]:
        return [task for task in self.tasks.values() if client in task.who_wants]

    def evict(self, session: Known, keys: Iterable[Key]) -> None:
        self.orders[session.client].extend(keys)
        self.turns.append(session)

    def turn(self) -> None:
        session = self.turns.popleft()
        orders = dict.fromkeys(self.orders.pop(session.client, ()))
        keys = [(key, max(session.graphs.pop(key, 0), 1)) for key in orders if key not in session.pins]
        if not keys:
            return
        # Not to a client that has been told that it may go: what comes after that is not heard.
        if session.here and session.client in self.clients:
            self.clients[session.client].send("evict", keys)
        else:
            self.ask_worker("evict", [key for key, _ in keys])

    def ask_worker(self, *message: Any) -> None:
        for worker in self.workers:
            worker.send(*message)

    def end_if_over(self, session: Known) -> None:
        if not session.here and not session.pins and self.sessions.pop(session.client, None) is not None:
            self.ask_worker("end", session.name)

    def leave(self, client: str) -> None:
        self.release(client, [task.name for task in self.wanted(client)])
        session = self.sessions[client]
        session.here = False
        needed = bool(session.pins)
        if not needed:
            del self.sessions[client]
        self.clients[client].send("left", needed)

    def remove_client(self, client: str) -> None:
        self.release(client, [task.name for task in self.wanted(client)])
        self.clients.pop(client, None)
        session = self.sessions.get(client)
        if session is not None:
            session.here = False
            self.end_if_over(session)


class Client:
    """One client: its session, what it shares, and what is on its way to and from it."""

    def __init__(self, number: int, world: World, scheduler: Scheduler) -> None:
        self.id = f"client-{number}"
        self.out, self.inbox = Stream(), Stream()
        self.handled: tuple[Any, ...] | None = None  # the scheduler reads a graph: the stream waits
        self.state = "here"  # leaving, ended (orderly, all evicted), gone (killed, or its tasks go on)
        self.lapsed = False
        self.blind = False  # whether an order may have found nobody to carry it out
        self.strays: set[str] = set()  # names of what a crash left: the session's until it ends
        self.gate: threading.Event | None = None  # evictions wait for it
        connector = world.connect()
        swept, sweep = threading.Event(), connector.sweep

        def tell() -> None:
            sweep()
            swept.set()

        connector.sweep = tell
        self.store: Store[Any] = Store(secrets.token_hex(4), connector, cache_size=0)
        self.lease = Session(connector, lease=600)
        assert swept.wait(20)
        self.session = self.lease.name
        self.sharing = Sharing(self.store, self.session)
        self.evictions = ThreadPoolExecutor(1)
        scheduler.sessions[self.id] = Known(self.id, self.session)
        scheduler.clients[self.id] = self.inbox

    @property
    def announced(self) -> Iterator[Key]:
        """Keys in graphs that the scheduler has not worked on to the end."""
        for message in [*self.out.messages, *([self.handled] if self.handled else ())]:
            if message[0] == "graph":
                yield from message[1]

    def released(self, keys: Iterable[tuple[Key, int]]) -> None:
        """An order: while more graphs with an object are on their way, it stays."""
        for key, graphs in keys:
            if self.sharing.holdings.release(key, graphs):
                self.evictions.submit(self.store.evict, key)
        self.evictions_done()

    def withdraw(self, keys: Iterable[Key]) -> None:
        """A graph was not sent."""
        for key in self.sharing.holdings.release_all(keys):
            self.evictions.submit(self.store.evict, key)
        self.evictions_done()

    def evictions_done(self) -> None:
        if self.gate is None:
            self.evictions.submit(int).result()

    def open_gate(self) -> None:
        if self.gate is not None:
            self.gate.set()
            self.gate = None

    def close(self, *, keep: bool) -> None:
        self.open_gate()
        self.evictions.shutdown()
        if keep:
            self.lease.release()
        else:
            self.lease.end()

    def abandon(self) -> None:
        """What is left when the process is killed: nothing that runs."""
        self.lease.release()
        self.evictions.shutdown(wait=False, cancel_futures=True)
        self.open_gate()
        self.evictions.shutdown()


def choose(items: Iterable[Any], pick: int) -> Any:
    items = list(items)
    return items[pick % len(items)] if items else None


picks = st.integers(0, 7)
contents = st.sampled_from(sorted(CONTENTS))
STEPS = {"games": 0, "steps": 0}


class Lifetimes(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.scheduler = Scheduler()
        self.players: list[Client] = []
        self.numbers = iter(range(10_000))
        self.worker: Store[Any] = Store(secrets.token_hex(4), world.connect(), cache_size=0)
        self.contents: dict[Key, bytes] = {}
        self.sessions: dict[Key, str] = {}
        self.lost: set[Key] = set()
        self.user: dict[Key, bytes] = {}
        STEPS["games"] += 1

    # The model.

    def those(self, *states: str) -> list[Client]:
        return [player for player in self.players if player.state in states]

    def needed(self) -> set[Key]:
        """Every object that someone is going to read."""
        keys = {key for player in self.those("here", "leaving") for key in player.announced}
        for task in self.scheduler.tasks.values():
            keys |= task.needs
            if task.result is not None:
                keys.add(task.result)
        return keys - self.lost

    def needed_in_order(self) -> list[Key]:
        needed = self.needed()
        return [key for key in self.contents if key in needed]  # keys are random: games have to be repeatable

    def lose(self, session: str) -> None:
        self.lost |= {key for key, its in self.sessions.items() if its == session}

    def quiet(self) -> bool:
        """Whether all orders have been carried out."""
        streams = [stream for player in self.players for stream in (player.out, player.inbox)]
        streams += self.scheduler.workers
        return not (
            self.scheduler.turns
            or any(stream.messages for stream in streams)
            or any(player.handled or player.gate for player in self.players)
        )

    # Clients come and go.

    def somebody(self, pick: int) -> Client:
        if not self.those("here"):
            self.open()
        player: Client = choose(self.those("here"), pick)
        return player

    @precondition(lambda self: len(self.those("here")) < 2)
    @rule()
    def open(self) -> None:
        self.players.append(Client(next(self.numbers), self.world, self.scheduler))
        self.swept()

    def swept(self) -> None:
        """What has lapsed is gone now."""
        there = self.world.raw().keys() | self.worker.connector.sessions().keys()
        for player in self.players:
            if player.lapsed:
                assert player.session not in there
                player.strays.clear()
                player.lapsed = False

    @precondition(lambda self: self.those("here"))
    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        player = choose(self.those("here"), pick)
        if player:
            player.state = "leaving"
            player.out.send("leave")
            self.unattended()

    @precondition(lambda self: self.those("here"))
    @rule(pick=picks, arrived=st.integers(0, 3))
    def kill(self, pick: int, arrived: int) -> None:
        player = choose(self.those("here"), pick)
        if player is None:
            return
        while player.handled or (arrived > 0 and player.out.messages):
            arrived -= not player.handled
            self.deliver(player)
        player.out.messages.clear()
        player.inbox.messages.clear()
        player.state = "gone"
        self.unattended()
        player.abandon()
        self.scheduler.remove_client(player.id)
        # What was announced or ordered in vain is the session's, and goes with it.
        needed = {self.world.name(key) for key in self.needed()}
        player.strays |= self.world.raw().get(player.session, set()) - needed

    @precondition(lambda self: self.those("gone"))
    @rule(pick=picks)
    def lapse(self, pick: int) -> None:
        player = choose(self.those("gone"), pick)
        if player is not None and player.session in self.worker.connector.sessions():
            self.world.lapse(player.session)
            player.lapsed = True
            self.lose(player.session)

    @precondition(lambda self: self.those("here"))
    @rule(pick=picks)
    def suspend(self, pick: int) -> None:
        """A client sleeps for longer than its lease, someone sweeps, it wakes up."""
        player = choose(self.those("here"), pick)
        if player is None:
            return
        kept = [key for key in self.needed() if self.sessions[key] == player.session]
        self.world.lapse(player.session)
        self.sweep()
        self.lose(player.session)
        player.strays.clear()
        assert not self.world.raw().get(player.session)
        player.store.connector.renew(player.session, 600)
        for key in kept:
            with pytest.raises(GoneError, match="lease"):
                self.worker.load(Reference(key, self.worker.recipe, 0, ""))

    @precondition(lambda self: any(player.lapsed for player in self.players))
    @rule()
    def sweep(self) -> None:
        names = self.worker.connector.sweep()
        assert set(names) <= {player.session for player in self.players}
        self.swept()

    # Tasks.

    @rule(
        pick=picks,
        chosen=st.lists(contents, min_size=1, max_size=2),
        again=st.none() | picks,
        detached=st.booleans(),
        fate=st.sampled_from(["sent"] * 6 + ["fails", "withdrawn"]),
    )
    def submit(self, pick: int, chosen: list[str], again: int | None, detached: bool, fate: str) -> None:
        self.send(self.somebody(pick), chosen, again, detached, fate)

    def send(self, player: Client, chosen: list[str], again: int | None, detached: bool, fate: str) -> None:
        before = self.needed()
        values = [bytes(bytearray(CONTENTS[content])) for content in chosen]  # equal, never identical
        keys = []
        for content in values:
            key = player.sharing.reference(content).key
            keys.append(key)
            alike = {
                other
                for other in before
                if self.sessions[other] == player.session and self.contents[other] == content
            }
            shared = alike & set(player.sharing.holdings._by_key)
            assert not shared or key in shared, "an equal object was there"
            assert key not in self.lost
            assert self.contents.setdefault(key, content) == content
            self.sessions[key] = player.session
        if fate == "withdrawn":
            player.withdraw(keys)
            return
        known = choose(self.scheduler.tasks, again) if again is not None else None
        name = known or f"task-{next(self.numbers)}"
        player.out.send("graph", keys, Task(name, set(keys), detached, fate == "fails"))

    @precondition(lambda self: any(task.who_wants for task in self.scheduler.tasks.values()))
    @rule(pick=picks, which=picks)
    def release(self, pick: int, which: int) -> None:
        """A client lets go of a future (it knows its key from its own submit)."""
        player = choose(self.those("here"), pick)
        task = player and choose(self.scheduler.wanted(player.id), which)
        if task:
            player.out.send("release", [task.name])

    @precondition(lambda self: any(task.detached for task in self.scheduler.tasks.values()))
    @rule(pick=picks)
    def finish_detached(self, pick: int) -> None:
        task = choose([task for task in self.scheduler.tasks.values() if task.detached], pick)
        if task:
            task.detached = False
            self.scheduler.forget_if_done(task)

    @precondition(lambda self: self.scheduler.tasks)
    @rule(pick=picks, whose=picks, content=contents)
    def store_result(self, pick: int, whose: int, content: str) -> None:
        """results = "always": a worker publishes at the task's end."""
        task = choose([task for task in self.scheduler.tasks.values() if task.result is None], pick)
        session = choose(self.scheduler.sessions.values(), whose)
        if not task or not session or any(one.lapsed and one.session == session.name for one in self.players):
            return
        key = self.worker.put(CONTENTS[content], session=session.name)
        self.contents[key], self.sessions[key] = CONTENTS[content], session.name
        task.result = key
        session.pins.pin(key, ("result", task.name))

    @precondition(lambda self: any(task.result for task in self.scheduler.tasks.values()))
    @rule(pick=picks)
    def lose_result(self, pick: int) -> None:
        """The worker that holds the reference dies: the task is going to run again."""
        task = choose([task for task in self.scheduler.tasks.values() if task.result], pick)
        if task:
            task.result = None
            self.scheduler.let_go(("result", task.name))

    @precondition(lambda self: self.scheduler.tasks)
    @rule()
    def restart(self) -> None:
        for task in list(self.scheduler.tasks.values()):
            task.who_wants.clear()
            task.detached = False
            self.scheduler.forget_if_done(task)
        for session in self.scheduler.sessions.values():
            self.scheduler.evict(session, session.pins.clear())

    @rule(
        pick=picks,
        content=contents,
        moves=st.lists(
            st.sampled_from("submit release scheduler client loop worker".split()), min_size=8, max_size=40
        ),
    )
    def busy(self, pick: int, content: str, moves: list[str]) -> None:
        """One client with one argument, again and again, while messages come and go."""
        player = self.somebody(pick)
        for move in moves:
            if move == "submit":
                self.send(player, [content], None, False, "sent")
            elif move == "release":
                for task in self.scheduler.wanted(player.id)[:1]:
                    player.out.send("release", [task.name])
            elif move == "scheduler" and (player.handled or player.out.messages):
                self.deliver(player)
            elif move == "client" and player.inbox.messages:
                self.receive(player)
            elif move == "loop":
                self.loop_turn()
            elif move == "worker":
                self.worker_turn()
            self.holds()

    # Messages arrive.

    @precondition(lambda self: any(one.handled or one.out.messages for one in self.players))
    @rule(pick=picks)
    def to_scheduler(self, pick: int) -> None:
        player = choose([one for one in self.players if one.handled or one.out.messages], pick)
        if player:
            self.deliver(player)

    def deliver(self, player: Client) -> None:
        """The next message of a stream, or the rest of its last one."""
        if player.handled is not None:
            _, keys, task = player.handled
            player.handled = None
            self.scheduler.graph(player.id, keys, task)
            return
        message = player.out.messages.popleft()
        if message[0] == "graph":
            player.handled = message
        elif message[0] == "leave":
            self.scheduler.leave(player.id)
        elif message[0] == "release":
            self.scheduler.release(player.id, message[1])
        else:
            self.scheduler.remove_client(player.id)

    @precondition(lambda self: any(one.inbox.messages for one in self.players))
    @rule(pick=picks)
    def to_client(self, pick: int) -> None:
        player = choose([one for one in self.players if one.inbox.messages], pick)
        if player:
            self.receive(player)

    def receive(self, player: Client) -> None:
        order, told = player.inbox.messages.popleft()
        if order == "evict":
            player.released(told)
            return
        player.close(keep=told)
        player.state = "gone" if told else "ended"
        if not told:
            player.strays.clear()
        player.inbox.messages.clear()
        self.scheduler.clients.pop(player.id)
        player.out.send("closed")
        self.unattended()

    @precondition(lambda self: self.those("here"))
    @rule(pick=picks)
    def hold_evictions(self, pick: int) -> None:
        """Freeing memory takes long."""
        player = choose([one for one in self.those("here") if one.gate is None], pick)
        if player:
            player.gate = threading.Event()
            player.evictions.submit(player.gate.wait)

    @precondition(lambda self: any(one.gate for one in self.players))
    @rule(pick=picks)
    def let_evictions_go(self, pick: int) -> None:
        player = choose([one for one in self.players if one.gate is not None], pick)
        if player:
            player.open_gate()
            player.evictions_done()

    @precondition(lambda self: self.scheduler.turns)
    @rule()
    def loop_turn(self) -> None:
        if self.scheduler.turns:
            self.scheduler.turn()

    @precondition(lambda self: any(inbox.messages for inbox in self.scheduler.workers))
    @rule()
    def worker_turn(self) -> None:
        for worker in self.scheduler.workers:
            if worker.messages:
                order, told = worker.messages.popleft()
                if order == "evict":
                    for key in told:
                        self.worker.evict(key)
                else:
                    self.worker.connector.end(told)
                    for player in self.players:
                        if player.session == told:
                            player.strays.clear()

    @precondition(lambda self: self.those("gone") or not self.scheduler.workers)
    @rule()
    def worker_goes_or_comes(self) -> None:
        if self.scheduler.workers:
            lost = self.scheduler.workers.pop()
            for player in self.players:
                player.blind |= bool(lost.messages)
            self.unattended()
        else:
            self.scheduler.workers.append(Stream())

    def unattended(self) -> None:
        if not self.scheduler.workers:
            for player in self.those("gone", "leaving"):
                player.blind = True

    @precondition(lambda self: not self.quiet())
    @rule()
    def settle(self) -> None:
        """Let everything arrive."""
        for player in self.players:
            if player.gate is not None:
                player.open_gate()
                player.evictions_done()
        while not self.quiet():
            for pick in range(len(self.players)):
                self.to_scheduler(pick)
                self.to_client(pick)
            self.loop_turn()
            self.worker_turn()

    # Hazards.

    @precondition(lambda self: self.needed())
    @rule(pick=picks)
    def evicted_behind_our_back(self, pick: int) -> None:
        key = choose(self.needed_in_order(), pick)
        if key:
            self.worker.evict(key)
            self.worker.evict(key)
            self.lost.add(key)

    @precondition(lambda self: self.world.shared and self.those("here"))
    @rule(pick=picks, after=st.sampled_from([0.0, 0.0003, 0.001, 0.003]))
    def crash(self, pick: int, after: float) -> None:
        """A worker is killed while it puts, or right after."""
        player = choose(self.those("here"), pick)
        if player is None:
            return
        before = self.world.raw()
        connector = self.worker.connector
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                data = [b"k" * (CRASHED // 4)] * 4
                os.write(writing, b".")
                os.write(writing, connector.put(data, session=player.session).encode())
                signal.pause()
            os._exit(1)
        os.close(writing)
        with open(reading, "rb") as answer:
            assert answer.read(1) == b"."
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
            published = answer.read().decode()
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        now = self.world.raw()
        player.strays |= now.get(player.session, set()) - before.get(player.session, set())
        if published:
            assert connector.get(published) == b"k" * CRASHED

    @precondition(lambda self: self.those("here"))
    @rule(pick=picks)
    def fork(self, pick: int) -> None:
        """The child ends nothing, shares nothing, and reads on connections of its own."""
        player = choose(self.those("here"), pick)
        if player is None:
            return
        key = choose(self.needed_in_order(), pick) if self.world.shared else None

        def child() -> tuple[bool, int, int, bytes | None]:
            lease, holdings = player.lease, player.sharing.holdings
            return lease.owned, lease.end(), len(holdings), key and self.worker.get(key)

        assert in_fork(child) == (False, 0, 0, key and self.contents[key])

    @precondition(lambda self: self.those("ended"))
    @rule(pick=picks)
    def late(self, pick: int) -> None:
        """A worker publishes for a session that is over: nobody's for ever, its lease's."""
        player = choose(self.those("ended"), pick)
        if player is not None and not player.strays:
            key = self.worker.put(CONTENTS["c"], session=player.session)
            player.strays.add(self.world.name(key))
            assert player.session in self.worker.connector.sessions()
            player.state = "gone"
            player.blind = True

    # What a user stores himself.

    @precondition(lambda self: len(self.user) < 2)
    @rule(content=contents)
    def put(self, content: str) -> None:
        self.user[self.worker.put(CONTENTS[content])] = CONTENTS[content]

    @precondition(lambda self: self.user)
    @rule(pick=picks)
    def evict(self, pick: int) -> None:
        key = choose(self.user, pick)
        if key:
            self.worker.evict(key)
            del self.user[key]
            assert self.worker.get(key) is None

    # What always holds.

    @invariant()
    def holds(self) -> None:
        STEPS["steps"] += 1
        raw = self.world.raw()
        names = self.world.name
        assert raw.pop("user", set()) == {names(key) for key in self.user}
        for key, content in self.user.items():
            assert self.worker.get(key) == content
        needed = self.needed()
        for key in needed:
            assert self.worker.get(key) == self.contents[key], key
        quiet = self.quiet()
        alive = self.worker.connector.sessions()
        for player in self.players:
            there = raw.pop(player.session, set())
            its = {names(key) for key in needed if self.sessions[key] == player.session}
            if player.lapsed:
                continue  # swept, or not yet
            assert its <= there
            if player.state == "ended":
                assert not there
                assert player.session not in alive
            elif quiet and not player.blind:
                assert there - player.strays == its
                if player.state == "gone" and not its and not self.lost_pins(player):
                    assert not there
                    assert player.session not in alive
        assert not raw

    def lost_pins(self, player: Client) -> bool:
        """Whether tasks still name objects of a session that were lost."""
        return any(
            self.sessions[key] == player.session
            for task in self.scheduler.tasks.values()
            for key in (*task.needs, *([task.result] if task.result else ()))
        )

    def teardown(self) -> None:
        self.settle()
        self.holds()
        self.restart()
        if not self.scheduler.workers:
            self.scheduler.workers.append(Stream())
        self.settle()
        for player in self.those("here"):
            player.state = "leaving"
            player.out.send("leave")
        self.settle()
        self.holds()
        for player in self.those("gone"):
            if player.session in self.worker.connector.sessions():
                self.world.lapse(player.session)
                player.lapsed = True
        self.sweep()
        assert not self.worker.connector.sessions()
        for player in self.players:
            player.store.close()
        assert self.world.raw().keys() <= {"user"}
        for key in self.user:
            self.worker.evict(key)
        self.worker.close()
        self.world.close()


@pytest.mark.timeout(3600 if THOROUGH else 120)
@pytest.mark.parametrize("kind", ["memory", "file", "named file", "shm", "redis"])
def test_any_order_of_events(kind: str, request: pytest.FixtureRequest) -> None:
    worlds: dict[str, Callable[[], World]] = {
        "memory": MemoryWorld,
        "file": FileWorld,
        "named file": lambda: FileWorld(named=True),
        "shm": ShmWorld,
        "redis": lambda: RedisWorld(request.getfixturevalue("server")),
    }
    STEPS.update(games=0, steps=0)
    run_state_machine_as_test(lambda: Lifetimes(worlds[kind]()), settings=PLAY)  # type: ignore[arg-type]
    sys.stdout.write(f"{kind}: {STEPS['steps']} steps in {STEPS['games']} games\n")
    assert STEPS["games"] >= PLAY.max_examples
