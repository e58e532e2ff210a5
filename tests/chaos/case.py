"""One case in processes of its own: the store, the cluster and the client of one engine under one fault.

``python -m chaos.case CASE`` prints what came of it. It expects to be the first process of a namespace
of processes, mounts and networks, so that whatever it starts ends with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Self

from chaos import tasks
from chaos.engines import dask_command
from chaos.own_memory import SIZE
from chaos.scenarios import ANSWER, Probe
from chaos.stores import STORES, SlowNetwork, Stored
from mounts import mount_tmpfs
from redis_servers import free_port
from waiting import until

LEASE = 3.0
LIMIT = 240.0
"""Seconds that a case may take at all."""

_GRACE = 20.0  # seconds that the last objects may stay after a lease
_HERE = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault, who has it, and how it goes.

    Attributes:
        fault: a name in `FAULTS`.
        engine: a name in `ENGINES`.
        store: a name in `STORES`; ``bare`` is without.
        seed: of all that is chosen.
        short: it takes as little time as it can.
    """

    fault: str
    engine: str
    store: str
    seed: int = 0
    short: bool = False

    def __str__(self) -> str:
        return f"{self.fault}: {self.engine} on {self.store}"

    def run(self) -> Outcome:
        """The case in a namespace of its own.

        Raises:
            OSError: namespaces cannot be made here.
        """
        inside = [sys.executable, "-m", "chaos.case", json.dumps(dataclasses.asdict(self))]
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--net", *inside]
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="c-", ignore_cleanup_errors=True) as place:
            environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith("PROXYSTORE_")},
                "PYTHONPATH": os.pathsep.join([str(_HERE), *filter(None, sys.path)]),
                "TMPDIR": place,
            }
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            )
            try:
                out, log = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                out, log = process.communicate()
                log += b"\nit was killed"
        lines = [line for line in out.decode().splitlines() if line.startswith("{")]
        seconds = round(time.monotonic() - start, 1)
        none = '{"probes": [], "left": [], "failure": "no outcome"}'
        found = json.loads(lines[-1] if lines else none)
        probes = [Probe(**probe) for probe in found["probes"]]
        return Outcome(self, probes, found["left"], found["failure"], seconds, log.decode()[-2500:])


@dataclasses.dataclass
class Outcome:
    """What came of a case.

    Attributes:
        case: the case.
        probes: calls of the client.
        left: what was in the store when it should have been empty.
        failure: what else went wrong.
        seconds: that it took.
        log: what its processes said.
    """

    case: Case
    probes: list[Probe]
    left: list[str]
    failure: str
    seconds: float
    log: str = ""

    def faults(self, bare: Outcome | None = None) -> list[str]:
        """What is not as it should be.

        Args:
            bare: of the bare engine under the same fault: what it does is right, too.
        """
        same = {probe.what: probe.outcome for probe in bare.probes} if bare is not None else {}
        wrong = [
            f"{probe.what}: {probe.outcome} {probe.text}"
            for probe in self.probes
            if probe.outcome != ANSWER
            and not (probe.typed and probe.allowed)
            and (probe.outcome != same.get(probe.what) or probe.outcome in ("WRONG", "HANG"))
        ]
        if self.left:
            wrong.append(f"{len(self.left)} left in the store: {self.left[:5]}")
        if self.failure:
            wrong.append(self.failure)
        return wrong


# The first process of the namespace.


class _Stage:
    """Store, cluster and client of a case."""

    def __init__(self, case: Case, place: Path) -> None:
        self.case = case
        self.place = place
        self.probes: list[dict[str, Any]] = []
        self.failure = ""
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        mount_tmpfs("/dev/shm", "size=512m")
        self.store: Stored = STORES[case.store](place, case.fault == "store full")
        self.environment = {**os.environ, **self.store.environment()}
        if case.engine == "ray":
            self.environment[SIZE] = ""  # its workers share the memory of the host
        os.environ.update(self.store.environment())
        self.cluster: list[subprocess.Popen[bytes]] = []
        self.port = free_port()

    def __enter__(self) -> Self:
        if self.case.engine == "dask":
            self._start_cluster()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.cluster:
            process.kill()
        self.store.close()

    def _start_cluster(self) -> None:
        file = self.place / "scheduler.json"
        file.unlink(missing_ok=True)
        scheduler = dask_command("scheduler", "--port", str(self.port), "--scheduler-file", str(file))
        self.cluster = [self._start(scheduler, **{tasks.SPARED: "1"})]
        until(file.exists, 40)
        worker = dask_command("worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny")
        self.cluster += [self._start([*worker, "--preload", "chaos.own_memory"]) for _ in range(2)]

    def _restart_cluster(self) -> None:
        """Kill the scheduler, and start it and other workers anew, as whoever deployed it does.

        Its workers end by themselves, but only when their tasks do, or after 30 s: just as long as a client
        by default looks for its scheduler before it closes.
        """
        before = self.cluster
        before[0].kill()
        before[0].wait(40)
        self._start_cluster()
        self.cluster += before[1:]

    def _start(self, command: list[str], **more: str) -> subprocess.Popen[bytes]:
        with (self.place / "log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.place, env={**self.environment, **more}
            )

    def play(self) -> None:
        """Run the client, and do what it asks for."""
        mine, theirs = socket.socketpair()
        case = json.dumps(dataclasses.asdict(self.case))
        arguments = [case, str(theirs.fileno()), str(self.place), self.store.url]
        client = subprocess.Popen(
            [sys.executable, "-m", "chaos.client", *arguments],
            pass_fds=[theirs.fileno()],
            stdout=sys.stderr,
            env=self.environment,
            cwd=self.place,
        )
        theirs.close()
        asked = mine.makefile("rw")
        killed = False
        for line in asked:
            message = json.loads(line)
            if "probes" in message:
                self.probes = message["probes"]
            elif message["ask"] == "kill me":
                killed = True
                client.kill()
                break
            else:
                self._do(message["ask"])
                with contextlib.suppress(BrokenPipeError):
                    asked.write("done\n")
                    asked.flush()
        if client.wait(LIMIT) and not killed:
            self.failure = f"the client ended with {client.returncode}"
        mine.close()

    def _do(self, what: str) -> None:
        if what == "restart scheduler":
            self._restart_cluster()
        elif what == "slow":
            SlowNetwork(30 + self.case.seed % 10).begin()
        else:
            getattr(self.store, what)()

    def left(self) -> list[str]:
        """What is in the store when every lease is over."""
        deadline = time.monotonic() + LEASE + _GRACE
        while (left := self.store.left()) and time.monotonic() < deadline:
            time.sleep(0.2)
            with contextlib.suppress(Exception):
                self.store.sweep()
        return left


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    place = Path(os.environ["TMPDIR"])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    left: list[str] = []
    with _Stage(case, place) as stage:
        stage.play()
        if not case.fault.startswith("store gone"):  # nobody can look
            left = stage.left()
        out = {"probes": stage.probes, "left": left, "failure": stage.failure}
        sys.stdout.write(json.dumps(out) + "\n")
        sys.stdout.flush()
        if stage.failure:
            with contextlib.suppress(FileNotFoundError):
                sys.stderr.write((place / "log").read_text()[-3000:])


if __name__ == "__main__":
    main()
