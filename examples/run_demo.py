"""Run dask_trajectory.py on bare Dask and with a store, in turns, and compare answers, bytes and times.

    python examples/run_demo.py [--rounds 3] [--repeat 3] [--workers 2]

Exits with 1 when a run fails, when the answers are not the same bits, or when a stored object stays behind.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from distributed import LocalCluster
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tornado.iostream import IOStream

SCRIPT = Path(__file__).with_name("dask_trajectory.py")
BARE = "from distributed import Client"
OURS = "from proxystore_integrations.dask import Client"
BUDGET = 55.0  # seconds: no further round starts that would end later
DEADLINE = 300.0  # seconds for one run of the script
SCRATCH = Path(tempfile.gettempdir())


class Traffic:
    """Counts the bytes that the schedulers in this process receive and send on their sockets.

    Both schedulers live here, the clients and workers in processes of their own, and only one
    scheduler is at work at a time.
    """

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        self._lock = threading.Lock()  # each scheduler has its own thread

    def start(self) -> None:
        """Count what Tornado reads from and writes to all sockets from now on."""
        read: Callable[[IOStream, Any], int | None] = IOStream.read_from_fd
        write: Callable[[IOStream, memoryview], int] = IOStream.write_to_fd

        def counted_read(stream: IOStream, buffer: Any) -> int | None:
            count = read(stream, buffer)
            with self._lock:
                self.received += count or 0
            return count

        def counted_write(stream: IOStream, data: memoryview) -> int:
            count = write(stream, data)
            with self._lock:
                self.sent += count
            return count

        setattr(IOStream, "read_from_fd", counted_read)  # noqa: B010
        setattr(IOStream, "write_to_fd", counted_write)  # noqa: B010


@dataclass
class Side:
    """One of the two ways to run the script, and what its runs gave."""

    name: str
    script: Path
    scheduler: str
    first: list[float] = field(default_factory=list)  # seconds: a run's first analysis
    later: list[float] = field(default_factory=list)  # seconds: its other ones
    received: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    results: list[dict[str, np.ndarray[Any, Any]]] = field(default_factory=list)

    def run(self, repeat: int, traffic: Traffic) -> None:
        """Run the script once, as its user would, with so many analyses.

        Raises:
            subprocess.CalledProcessError: The script failed.
            subprocess.TimeoutExpired: It did not end; it is killed.
        """
        output = self.script.with_suffix(".npz")
        command = [sys.executable, str(self.script), "--scheduler", self.scheduler]
        received, sent = traffic.received, traffic.sent
        done = subprocess.run(
            [*command, "--repeat", str(repeat), "--output", str(output)],
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            check=True,
            timeout=DEADLINE,
        )
        self.received.append((traffic.received - received) / repeat)
        self.sent.append((traffic.sent - sent) / repeat)
        self.reports.append(done.stdout)
        with np.load(output) as saved:
            results = dict(saved)
        first, *later = results.pop("seconds").tolist()
        self.first.append(first)
        self.later += later
        self.results.append(results)


def difference(expected: dict[str, np.ndarray[Any, Any]], got: dict[str, np.ndarray[Any, Any]]) -> list[str]:
    """Name the results that differ in type, shape or a single bit."""

    def bits(array: np.ndarray[Any, Any] | None) -> tuple[object, ...]:
        return () if array is None else (array.dtype, array.shape, array.tobytes())

    return [key for key in {**expected, **got} if bits(expected.get(key)) != bits(got.get(key))]


def objects_left(name: str) -> list[Path]:
    """Remove what the shared-memory store of this name has left behind; the files among it."""
    folders = [*Path("/dev/shm").glob(f"proxystore-*-{name}"), *SCRATCH.glob(f"proxystore-*-{name}")]
    left = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for folder in folders:
        shutil.rmtree(folder)
    return left


def megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def compare(bare: Side, ours: Side, console: Console) -> bool:
    """Print what the runs gave; say whether all answers are the same."""
    expected = bare.results[0]
    runs = bare.results + ours.results
    different = sorted({key for results in runs for key in difference(expected, results)})
    same = not different and len({*bare.reports, *ours.reports}) == 1
    console.print(ours.reports[-1], markup=False, highlight=False, soft_wrap=True)

    seconds = [statistics.median(side.later) for side in (bare, ours)]
    received = [statistics.median(side.received) for side in (bare, ours)]
    sent = [statistics.median(side.sent) for side in (bare, ours)]
    table = Table("one analysis", title_justify="left")
    for side in (bare, ours):
        table.add_column(side.name, justify="right")
    table.add_row(f"time, median of {len(bare.later)}", *(f"{value:.2f} s" for value in seconds))
    table.add_row("fastest", *(f"{min(side.later):.2f} s" for side in (bare, ours)))
    table.add_row("first of a script", *(f"{statistics.median(side.first):.2f} s" for side in (bare, ours)))
    table.add_row("received by the scheduler", *map(megabytes, received))
    table.add_row("sent by the scheduler", *map(megabytes, sent))
    console.print(table)

    if same:
        size = megabytes(sum(array.nbytes for array in expected.values()))
        console.print(
            f"[green]Same answers[/], bit for bit: {len(expected)} results, {size}, {len(runs)} runs."
        )
    else:
        console.print(f"[red]The answers differ[/]: {', '.join(different) or 'in the printed report'}.")
    share = 1 - (received[1] + sent[1]) / (received[0] + sent[0])
    change = seconds[1] / seconds[0] - 1
    saved = f"{abs(change):.0%} {'less' if change < 0 else 'more'} time"
    console.print(
        f"One line changed: {share:.1%} of the bytes stay away from the scheduler, "
        f"and the analysis takes {saved if abs(change) >= 0.05 else 'as long'}.",
        highlight=False,
    )
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description="The same Dask script, bare and with a store.")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, at most (default: 3)")
    parser.add_argument("--repeat", type=int, default=3, help="analyses in each run, 2 or more (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each side (default: 2)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.repeat < 2 or arguments.workers < 1:
        parser.error("at least one round, two analyses in each run and one worker are needed")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is closed
    console = Console()
    text = SCRIPT.read_text(encoding="utf-8")
    if text.count(OURS) != 1:
        console.print(f"{SCRIPT.name} must hold the line {OURS!r} once.", markup=False)
        return 1
    console.print(f"{SCRIPT.name}, one line changed:", highlight=False)
    console.print(f"[red]- {BARE}[/]\n[green]+ {OURS}[/]\n", highlight=False)

    # A store of its own, so that what stays behind is known from what others use now.
    store = f"demo-{os.getpid()}"
    os.environ.setdefault("PROXYSTORE_STORE", f"shm://{store}")
    traffic = Traffic()
    traffic.start()
    left: list[Path] = []
    start = time.monotonic()
    with ExitStack() as stack:
        stack.callback(lambda: left.extend(objects_left(store)))  # when the clusters are closed
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
        progress = stack.enter_context(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
        )
        steps = progress.add_task("starting two clusters", total=2 * arguments.rounds + 2)
        sides = []
        for name, line in (("bare Dask", BARE), ("with a store", OURS)):
            script = folder / name.replace(" ", "-") / SCRIPT.name
            script.parent.mkdir()
            script.write_text(text.replace(OURS, line), encoding="utf-8")
            cluster = LocalCluster(
                n_workers=arguments.workers,
                threads_per_worker=1,
                dashboard_address=":0",
                local_directory=str(script.parent),
            )
            sides.append(Side(name, script, stack.enter_context(cluster).scheduler_address))
            progress.advance(steps)
        ready = time.monotonic()
        for turn in range(arguments.rounds):
            now = time.monotonic()
            if turn and now + (now - ready) / turn > start + BUDGET:  # a busy machine: fewer rounds
                break
            for side in sides if turn % 2 == 0 else reversed(sides):
                progress.update(steps, description=f"round {turn + 1}: {side.name}")
                try:
                    side.run(arguments.repeat, traffic)
                except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                    said = f"{side.name}: {error}\n{error.stderr!s}"
                    console.print(said, markup=False, highlight=False)
                    return 1
                progress.advance(steps)
    same = compare(sides[0], sides[1], console)
    if left:
        console.print(f"[red]Left in the store[/]: {', '.join(map(str, left))}", highlight=False)
    return 0 if same and not left else 1


if __name__ == "__main__":
    sys.exit(main())
