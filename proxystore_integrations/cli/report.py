"""What a run did, put together from its processes' ledgers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec

from proxystore_core.connectors.base import leased
from proxystore_core.errors import StoreError
from proxystore_core.recipe import Recipe, open_connector
from proxystore_integrations.ledger import Got, Opened, Put, Trouble, Went, noted

__all__ = ["Big", "Engine", "Moved", "Report", "collect"]

_BIGGEST = 10


class Moved(msgspec.Struct):
    """Values of one kind.

    Attributes:
        count: how many.
        size: bytes of all.
    """

    count: int = 0
    size: int = 0

    def add(self, count: int, size: int) -> None:
        """Count more of them."""
        self.count += count
        self.size += size


class Engine(msgspec.Struct):
    """One engine's part in a run.

    Attributes:
        threshold: size from which its values went through a store, bytes.
        stores: recipes.
        arguments: that calls took from the store; one that several calls share counts for each.
        shared: those of them that were in the store already.
        results: that were in the store when their task was over.
        gathered: results that workers published when the client asked for them.
        by_value: what went the engine's own way, by reason.
    """

    threshold: int = 0
    stores: list[str] = []
    arguments: Moved = msgspec.field(default_factory=Moved)
    shared: Moved = msgspec.field(default_factory=Moved)
    results: Moved = msgspec.field(default_factory=Moved)
    gathered: Moved = msgspec.field(default_factory=Moved)
    by_value: dict[str, Moved] = {}

    @property
    def kept_off(self) -> int:
        """Bytes that its scheduler, interchange or pipes did not carry."""
        return self.arguments.size + self.results.size + self.gathered.size


class Big(msgspec.Struct):
    """One stored value.

    Attributes:
        size: bytes.
        what: argument, result or gathered.
        engine: whose.
        task: name of the call's function.
        source: file and line.
        kind: its class.
        times: how many calls used it.
    """

    size: int
    what: str
    engine: str
    task: str
    source: str
    kind: str
    times: int = 1


class Report(msgspec.Struct):
    """A run.

    Attributes:
        command: what ran.
        exit_code: of it.
        seconds: that it took.
        processes: that noted anything.
        engines: by name.
        put_seconds: spent on storing, in all processes.
        get_seconds: spent on loading, in all processes.
        puts: values stored or found stored.
        gets: values loaded.
        cached: values loaded that the process had kept.
        biggest: stored values, largest first.
        sizes: by engine, bit length of the size, and whether stored: how many, and their bytes.
        leaks: sessions that are over and still in a store.
        troubles: what the user was warned of.
        advice: what to do better.
    """

    command: list[str]
    exit_code: int = 0
    seconds: float = 0.0
    processes: int = 0
    engines: dict[str, Engine] = {}
    put_seconds: float = 0.0
    get_seconds: float = 0.0
    puts: Moved = msgspec.field(default_factory=Moved)
    gets: Moved = msgspec.field(default_factory=Moved)
    cached: int = 0
    biggest: list[Big] = []
    sizes: list[tuple[str, int, bool, int, int]] = []
    leaks: int = 0
    troubles: list[str] = []
    advice: list[str] = []


def collect(directory: str, command: list[str], exit_code: int = 0, seconds: float = 0.0) -> Report:
    """The report of a run that is over.

    Args:
        directory: of its ledgers.
        command: what ran.
        exit_code: of it.
        seconds: that it took.
    """
    report = Report(command, exit_code, seconds)
    engines: dict[str, Engine] = defaultdict(Engine)
    sizes: dict[tuple[str, int, bool], Moved] = defaultdict(Moved)
    big: dict[tuple[Any, ...], Big] = {}
    sessions: list[tuple[str, str]] = []
    for counted in noted(directory):
        report.processes += 1
        for event, (count, size, seconds, among) in counted:
            match event:
                case Put():
                    _add_put(report, engines[event.engine], event, int(count), int(size), int(among))
                    report.put_seconds += seconds
                    length = (int(size) // max(1, int(count))).bit_length()
                    sizes[event.engine, length, True].add(int(count), int(size))
                    _add_big(big, event, int(count))
                case Got():
                    report.gets.add(int(count), int(size))
                    report.get_seconds += seconds
                    report.cached += int(among)
                case Went():
                    went = engines[event.engine].by_value.setdefault(event.why, Moved())
                    went.add(int(count), int(size))
                    sizes[event.engine, event.length, False].add(int(count), int(size))
                case Opened():
                    engine = engines[event.engine]
                    engine.threshold = event.threshold
                    if event.recipe not in engine.stores:
                        engine.stores.append(event.recipe)
                    sessions.append((event.recipe, event.session))
                case Trouble():
                    if event.problem not in report.troubles:
                        report.troubles.append(event.problem)
    report.engines = dict(sorted(engines.items()))
    report.sizes = [(*place, moved.count, moved.size) for place, moved in sorted(sizes.items())]
    report.biggest = sorted(big.values(), key=lambda one: -one.size)[:_BIGGEST]
    report.leaks = _leaks(sessions)
    return report


def _add_put(report: Report, engine: Engine, event: Put, count: int, size: int, shared: int) -> None:
    report.puts.add(count, size)
    name = {"argument": "arguments", "result": "results"}.get(event.what, "gathered")
    getattr(engine, name).add(count, size)
    if shared:
        engine.shared.add(shared, size // max(1, count) * shared)


def _add_big(big: dict[tuple[Any, ...], Big], event: Put, count: int) -> None:
    kind = event.kind.replace("builtins:", "").replace(":", ".")
    fields = event.size, event.what, event.engine, event.task, event.source, kind
    known = big.setdefault(fields, Big(*fields, times=0))
    known.times += count


def _leaks(sessions: list[tuple[str, str]]) -> int:
    """How many of these sessions, which are over, are still there."""
    left = 0
    for recipe in {recipe for recipe, _ in sessions}:
        try:
            connector = open_connector(Recipe.parse(recipe).url)
            keeper = leased(connector)
            if keeper is not None:
                there = keeper.sessions()
                left += sum(name in there for place, name in sessions if place == recipe)
            connector.close()
        except StoreError:
            continue
    return left
