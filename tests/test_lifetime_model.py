"""The life of stored objects against a model of it: any order of puts, pins, orders, crashes and ends.

The client's side (`Link`, `Sharing`, `Session`) and the scheduler's (`StoreSchedulerPlugin`, `Pins`) are
the real ones, and so is the store. What is between them is simulated: streams that deliver each
message whole, in order and as late as the rules like, as TCP and Dask's event loop do. Time is
simulated by setting a lease's expiry into the past behind the connector's back.

After each step every object that anyone needs is readable and right; nothing of a session that is
over is left; nobody else's objects are touched. When no message is on its way, nothing else is there.

``HYPOTHESIS_PROFILE=thorough`` plays many more and longer games.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
import types
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis_servers import Server, serving

from proxystore_core import GoneError, Store
from proxystore_core.connectors import memory
from proxystore_core.connectors.base import Key, leased
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.reference import Reference
from proxystore_core.testing import in_fork
from proxystore_integrations.dask.engine import Task
from proxystore_integrations.dask.graph import StoredValue
from proxystore_integrations.dask.link import Link
from proxystore_integrations.dask.scheduler import ClientSession, StoreSchedulerPlugin
from proxystore_integrations.settings import Settings

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
PLAY = settings(
    max_examples=300 if THOROUGH else 25,
    stateful_step_count=100 if THOROUGH else 40,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
PAST = time.time() - 3600
CRASHED = 3 << 20  # bytes that a writer is killed at

# The first two look alike: they differ where no sample is taken.
CONTENTS = {
    "a": b"a" * 5000,
    "like a": b"a" * 100 + b"b" + b"a" * 4899,
    "c": b"c" * 2000,
    "big": bytes(range(256)) * 5000,
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
        found = defaultdict(set)
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


# Between client and scheduler.


@types.coroutine
def pause() -> Generator[None, None, None]:
    yield


@dataclasses.dataclass
class Inbox:
    """One direction of a stream."""

    messages: deque[dict[str, Any]] = dataclasses.field(default_factory=deque)

    def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def closed(self) -> bool:
        return False


@dataclasses.dataclass
class TaskState:
    key: str
    run_spec: Any
    needs: set[Key]  # what its function is going to read
    who_wants: set[str] = dataclasses.field(default_factory=set)
    detached: bool = False  # fire_and_forget
    actor: bool = False
    result: Key | None = None


class Scheduler:
    """What the plugin sees of Dask's scheduler."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskState] = {}
        self.clients: dict[str, Any] = {}
        self.client_comms: dict[str, Inbox] = {}
        self.stream_comms: dict[str, Inbox] = {"worker": Inbox()}
        self.stream_handlers: dict[str, Any] = {"update-graph": self.update_graph}
        self.handlers: dict[str, Any] = {}
        self.callbacks: deque[Callable[[], object]] = deque()
        self.loop = self
        self.plugin = StoreSchedulerPlugin()
        self.plugin.start(self)  # type: ignore[arg-type]

    def add_callback(self, callback: Callable[[], object]) -> None:
        self.callbacks.append(callback)

    async def update_graph(self, *, client: str, tasks: list[TaskState], detached: bool, fails: bool) -> None:
        await pause()  # deserialized in a thread
        if fails:
            return
        for task in tasks:
            known = self.tasks.setdefault(task.key, task)
            known.detached |= detached
            if not detached:
                known.who_wants.add(client)
        self.plugin.update_graph(self, client=client, tasks=[task.key for task in tasks])  # type: ignore[arg-type]

    def client_releases_keys(self, *, keys: Iterable[str], client: str, stimulus_id: str = "") -> None:
        for key in keys:
            task = self.tasks.get(key)
            if task is not None:
                task.who_wants.discard(client)
                self.forget_if_done(task)

    def forget_if_done(self, task: TaskState) -> None:
        if not task.who_wants and not task.detached:
            del self.tasks[task.key]
            if task.result is not None:
                self.plugin.transition(task.key, "memory", "released")
            self.plugin.transition(task.key, "released", "forgotten")

    def wanted(self, client: str) -> list[TaskState]:
        return [task for task in self.tasks.values() if client in task.who_wants]

    def remove_client(self, client: str) -> None:
        self.client_releases_keys(keys=[task.key for task in self.wanted(client)], client=client)
        self.clients.pop(client, None)
        self.client_comms.pop(client, None)
        self.plugin.remove_client(self, client)  # type: ignore[arg-type]


class Wants:
    """Dask's state of a client: it reads one attribute."""

    def __init__(self, scheduler: Scheduler, client: str) -> None:
        self.scheduler, self.client = scheduler, client

    @property
    def wants_what(self) -> list[TaskState]:
        return self.scheduler.wanted(self.client)


class Handler:
    """A coroutine of the scheduler, run step by step in a context of its own, as a task is."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.coroutine = coroutine
        self.context = contextvars.copy_context()

    def step(self) -> bool:
        """Go on; tells whether it has ended."""
        try:
            self.context.run(self.coroutine.send, None)
        except StopIteration:
            return True
        return False


class Player:
    """One client: the real `Link`, and what is on its way to and from it."""

    def __init__(self, number: int, world: World, scheduler: Scheduler) -> None:
        self.id = f"client-{number}"
        self.out, self.inbox = Inbox(), Inbox()
        self.handling: Handler | None = None
        self.graph: dict[str, Any] | None = None
        self.state = "here"  # leaving, ended (orderly, all evicted), gone (killed, or its tasks go on)
        self.lapsed = False
        self.blind = False  # whether an order may have found nobody to carry it out
        self.strays: set[str] = set()  # names of what a crash left: the session's until it ends
        self.gate: threading.Event | None = None  # evictions wait for it
        connector = world.connect()
        swept, sweep = threading.Event(), connector.sweep
        connector.sweep = lambda: (sweep(), swept.set())
        self.store: Store[Any] = Store(secrets.token_hex(4), connector, cache_size=0)
        self.link = Link(Settings(threshold=1000), store=self.store)
        told = self.link.open(self.id)
        assert swept.wait(20)
        self.session: str = told["session"]
        session = scheduler.plugin.sessions[self.id] = ClientSession(**told)
        session.updated.set()
        scheduler.clients[self.id] = Wants(scheduler, self.id)
        scheduler.client_comms[self.id] = self.inbox

    @property
    def announced(self) -> Iterator[Key]:
        """Keys in graphs that the scheduler has not worked on to the end."""
        for message in [*self.out.messages, *([self.graph] if self.graph else ())]:
            if message["op"] == "update-graph":
                yield from message["proxystore"]["keys"]

    def evictions_done(self) -> None:
        if self.gate is None and self.link._evictions is not None:
            self.link._evictions.submit(int).result()

    def open_gate(self) -> None:
        if self.gate is not None:
            self.gate.set()
            self.gate = None

    def abandon(self) -> None:
        """What is left when the process is killed: nothing that runs."""
        assert self.link._session is not None
        assert self.link._evictions is not None
        self.link._session.release()
        self.link._evictions.shutdown(wait=False, cancel_futures=True)
        self.open_gate()


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
        self.players: list[Player] = []
        self.numbers = iter(range(10_000))
        self.worker: Store[Any] = Store(secrets.token_hex(4), world.connect(), cache_size=0)
        self.contents: dict[Key, bytes] = {}
        self.sessions: dict[Key, str] = {}
        self.lost: set[Key] = set()
        self.user: dict[Key, bytes] = {}
        STEPS["games"] += 1

    # The model.

    def those(self, *states: str) -> list[Player]:
        return [player for player in self.players if player.state in states]

    def needed(self) -> set[Key]:
        """Every object that someone is going to read."""
        keys = {key for player in self.those("here", "leaving") for key in player.announced}
        for task in self.scheduler.tasks.values():
            keys |= task.needs
            if task.result is not None:
                keys.add(task.result)
        return keys - self.lost

    def lose(self, session: str) -> None:
        self.lost |= {key for key, its in self.sessions.items() if its == session}

    def quiet(self) -> bool:
        """Whether all orders have been carried out."""
        streams = [inbox for player in self.players for inbox in (player.out, player.inbox)]
        streams += self.scheduler.stream_comms.values()
        return not (
            self.scheduler.callbacks
            or any(inbox.messages for inbox in streams)
            or any(player.handling or player.gate for player in self.players)
        )

    # Clients come and go.

    @precondition(lambda self: len(self.those("here")) < 2)
    @rule()
    def open(self) -> None:
        self.players.append(Player(next(self.numbers), self.world, self.scheduler))
        self.swept()

    def swept(self) -> None:
        """What has lapsed is gone now."""
        there = self.world.raw().keys() | leased(self.worker.connector).sessions().keys()  # type: ignore[union-attr]
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
            player.out.send({"op": "leave"})

    @precondition(lambda self: self.those("here"))
    @rule(pick=picks, arrived=st.integers(0, 3))
    def kill(self, pick: int, arrived: int) -> None:
        player = choose(self.those("here"), pick)
        if player is None:
            return
        while player.handling or (arrived > 0 and player.out.messages):
            arrived -= not player.handling
            self.deliver(player)
        player.out.messages.clear()
        player.inbox.messages.clear()
        player.state = "gone"
        self.unattended()
        player.abandon()
        self.scheduler.remove_client(player.id)

    @precondition(lambda self: self.those("gone"))
    @rule(pick=picks, renewed=st.booleans())
    def lapse(self, pick: int, renewed: bool) -> None:
        player = choose(self.those("gone"), pick)
        if player is not None and player.session in leased(self.worker.connector).sessions():  # type: ignore[operator,union-attr]
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
        player.store.connector.renew(player.session, player.link.settings.lease)
        for key in kept:
            with pytest.raises(GoneError, match="lease"):
                self.worker.load(Reference(key, self.worker.recipe, 0, ""))

    @rule()
    def sweep(self) -> None:
        names = self.worker.connector.sweep()
        assert set(names) <= {player.session for player in self.players}
        self.swept()

    # Tasks.

    @precondition(lambda self: self.those("here"))
    @rule(
        pick=picks,
        chosen=st.lists(contents, min_size=1, max_size=2),
        again=st.none() | picks,
        detached=st.booleans(),
        fate=st.sampled_from(["sent"] * 6 + ["fails", "withdrawn"]),
    )
    def submit(
        self, pick: int, chosen: list[str], again: int | None, detached: bool, fate: str
    ) -> None:
        player = choose(self.those("here"), pick)
        if player is None:
            return
        outgoing = player.link.outgoing()
        before = self.needed()
        values = [bytes(bytearray(CONTENTS[content])) for content in chosen]  # equal, never identical
        carried = outgoing.substitute_all(values)
        assert all(type(value) is StoredValue for value in carried)
        keys = [value.reference.key for value in carried]
        assert sorted(keys) == sorted(reference.key for reference in outgoing.references)
        for content, key in zip(values, keys, strict=True):
            alike = {
                other
                for other in before
                if self.sessions[other] == player.session and self.contents[other] == content
            }
            shared = alike & set(player.link._sharing.holdings._by_key)  # type: ignore[union-attr]
            assert not shared or key in shared, "an equal object was there"
            assert self.contents.setdefault(key, content) == content
            self.sessions[key] = player.session
        if fate == "withdrawn":
            player.link.withdraw(keys)
            player.evictions_done()
            return
        name = choose(self.scheduler.tasks, again) if again is not None else None
        task = TaskState(name or f"task-{next(self.numbers)}", None, set(keys))
        task.run_spec = Task(task.key, max, *carried)
        player.out.send(
            {
                "op": "update-graph",
                "client": player.id,
                "tasks": [task],
                "detached": detached,
                "fails": fate == "fails",
                "proxystore": {"keys": keys, "results": None},
            }
        )

    @precondition(lambda self: any(task.who_wants for task in self.scheduler.tasks.values()))
    @rule(pick=picks, which=picks)
    def release(self, pick: int, which: int) -> None:
        """A client lets go of a future (it knows its key from its own submit)."""
        player = choose(self.those("here"), pick)
        task = player and choose(self.scheduler.wanted(player.id), which)
        if task:
            player.out.send({"op": "release", "keys": [task.key]})

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
        session = choose(self.scheduler.plugin.sessions.values(), whose)
        if not task or not session or any(one.lapsed and one.session == session.session for one in self.players):
            return
        key = self.worker.put(CONTENTS[content], session=session.session)
        self.contents[key], self.sessions[key] = CONTENTS[content], session.session
        task.result = key
        stored = {"proxystore": (session.session, key)}
        self.scheduler.plugin.transition(task.key, "processing", "memory", metadata=stored)

    @precondition(lambda self: any(task.result for task in self.scheduler.tasks.values()))
    @rule(pick=picks)
    def lose_result(self, pick: int) -> None:
        """The worker that holds the reference dies: the task is going to run again."""
        task = choose([task for task in self.scheduler.tasks.values() if task.result], pick)
        if task:
            task.result = None
            self.scheduler.plugin.transition(task.key, "memory", "released")

    @precondition(lambda self: self.scheduler.tasks)
    @rule()
    def restart(self) -> None:
        for task in list(self.scheduler.tasks.values()):
            task.who_wants.clear()
            task.detached = False
            self.scheduler.forget_if_done(task)
        self.scheduler.plugin.restart(self.scheduler)  # type: ignore[arg-type]

    # Messages arrive.

    @precondition(lambda self: any(one.handling or one.out.messages for one in self.players))
    @rule(pick=picks)
    def to_scheduler(self, pick: int) -> None:
        player = choose([one for one in self.players if one.handling or one.out.messages], pick)
        if player:
            self.deliver(player)

    def deliver(self, player: Player) -> None:
        """The next message of a stream; it waits until the last one has been worked on."""
        plugin = self.scheduler.plugin
        if player.handling is None:
            message = dict(player.out.messages.popleft())
            op = message.pop("op")
            if op == "update-graph":
                player.graph = {"op": op, **message}
                player.handling = Handler(plugin._announced_graph(**message))
            elif op == "leave":
                player.handling = Handler(plugin.leave(player.id))
            elif op == "release":
                self.scheduler.client_releases_keys(keys=message["keys"], client=player.id)
                return
            else:
                self.scheduler.remove_client(player.id)
                return
        if player.handling.step():
            player.handling = player.graph = None

    @precondition(lambda self: any(one.inbox.messages for one in self.players))
    @rule(pick=picks)
    def to_client(self, pick: int) -> None:
        player = choose([one for one in self.players if one.inbox.messages], pick)
        if player is None:
            return
        message = player.inbox.messages.popleft()
        if message["op"] == "proxystore-evict":
            player.link.released(message["keys"])
            player.evictions_done()
        else:
            assert message["op"] == "proxystore-left"
            player.open_gate()
            keep = message["needed"]
            player.link.close(keep=keep)
            player.state = "gone" if keep else "ended"
            player.strays -= set() if keep else player.strays
            player.inbox.messages.clear()
            self.scheduler.client_comms.pop(player.id, None)
            player.out.send({"op": "closed"})
            self.unattended()

    @precondition(lambda self: self.those("here"))
    @rule(pick=picks)
    def hold_evictions(self, pick: int) -> None:
        """Freeing memory takes long."""
        player = choose([one for one in self.those("here") if one.gate is None], pick)
        if player:
            player.gate = threading.Event()
            player.link._evictions.submit(player.gate.wait)

    @precondition(lambda self: any(one.gate for one in self.players))
    @rule(pick=picks)
    def let_evictions_go(self, pick: int) -> None:
        player = choose([one for one in self.players if one.gate is not None], pick)
        if player:
            player.open_gate()
            player.evictions_done()

    @precondition(lambda self: self.scheduler.callbacks)
    @rule()
    def loop_turn(self) -> None:
        if self.scheduler.callbacks:
            self.scheduler.callbacks.popleft()()

    @precondition(lambda self: any(inbox.messages for inbox in self.scheduler.stream_comms.values()))
    @rule()
    def worker_turn(self) -> None:
        inbox = self.scheduler.stream_comms.get("worker")
        if inbox is None or not inbox.messages:
            return
        message = inbox.messages.popleft()
        if message["op"] == "proxystore-evict":
            for key in message["keys"]:
                self.worker.evict(key)
        elif message["op"] == "proxystore-end":
            self.worker.connector.end(message["session"])
            for player in self.players:
                if player.session == message["session"]:
                    player.strays.clear()
        else:
            self.worker.connector.renew(message["session"], message["lease"])

    @rule()
    def worker_goes_or_comes(self) -> None:
        if self.scheduler.stream_comms:
            for player in self.those("gone", "leaving"):
                player.blind |= bool(self.scheduler.stream_comms["worker"].messages)
            del self.scheduler.stream_comms["worker"]
            self.unattended()
        else:
            self.scheduler.stream_comms["worker"] = Inbox()

    def unattended(self) -> None:
        if not self.scheduler.stream_comms:
            for player in self.those("gone"):
                player.blind = True

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
        key = choose(sorted(self.needed()), pick)
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
        key = choose(sorted(self.needed()), pick) if self.world.shared else None

        def child() -> tuple[bool, int, int, bytes | None]:
            session, sharing = player.link._session, player.link._sharing
            return session.owned, session.end(), len(sharing.holdings), key and self.worker.get(key)

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

    def lost_pins(self, player: Player) -> bool:
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
        self.scheduler.stream_comms.setdefault("worker", Inbox())
        self.settle()
        for player in self.those("here"):
            player.state = "leaving"
            player.out.send({"op": "leave"})
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("redis")) as server:
        yield server


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
    run_state_machine_as_test(lambda: Lifetimes(worlds[kind]()), settings=PLAY)
    sys.stdout.write(f"{kind}: {STEPS['steps']} steps in {STEPS['games']} games\n")
    assert STEPS["games"] >= PLAY.max_examples
