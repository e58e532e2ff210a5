"""Counters outlive their process, and never end it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mounts import on_tmpfs

from proxystore_integrations.counter_file import CounterFile, counters_of


def test_a_killed_process_loses_no_count(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    script = (
        "import os, signal, sys\n"
        "from proxystore_integrations.counter_file import CounterFile\n"
        "file = CounterFile(sys.argv[1])\n"
        "places = [file.add(b'label %d' % i) for i in range(5000)]\n"
        "for step in range(3):\n"
        "    for i, place in enumerate(places): file.set(place, [step, i, 0.5, -1.0])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    found = list(counters_of(str(path)))
    assert found == [(b"label %d" % i, (2.0, float(i), 0.5, -1.0)) for i in range(5000)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200) | st.sampled_from([b"x" * 65_000, b"y" * 300_000])))
def test_what_is_added_is_read(tmp_path: Path, labels: list[bytes]) -> None:
    path = tmp_path / "counters"
    path.unlink(missing_ok=True)
    file = CounterFile(str(path))
    places = [file.add(label) for label in labels]
    for number, place in enumerate(places):
        file.set(place, [float(number), 0.0, 0.0, 1.0])
    file.close()
    assert list(counters_of(str(path))) == [
        (label, (float(number), 0.0, 0.0, 1.0)) for number, label in enumerate(labels)
    ]


def test_threads_do_not_mix_their_records(tmp_path: Path) -> None:
    path = str(tmp_path / "counters")
    file = CounterFile(path)

    def add(name: int) -> None:
        for i in range(2000):
            file.set(file.add(b"%d:%d" % (name, i)), [name, i, 0, 0])

    threads = [threading.Thread(target=add, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = [(b"%d:%d" % (name, i), (name, i, 0, 0)) for name in range(4) for i in range(2000)]
    assert sorted(counters_of(path)) == sorted(wanted)


def test_a_record_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    file = CounterFile(str(path))
    file.add(b"whole")
    file.add(b"cut off")
    whole = path.read_bytes()
    for end in range(48, 48 + 47):
        path.write_bytes(whole[:end])
        assert list(counters_of(str(path))) == [(b"whole", (0.0, 0.0, 0.0, 0.0))]


def test_a_full_file_system_is_an_error_and_no_signal(tmp_path: Path) -> None:
    script = (
        "import errno, sys\n"
        "from proxystore_integrations.counter_file import CounterFile, counters_of\n"
        "file = CounterFile(sys.argv[1])\n"
        "try:\n"
        "    for i in range(100_000): file.add(b'label %d' % i)\n"
        "except OSError as error:\n"
        "    assert error.errno == errno.ENOSPC, error\n"
        "    assert list(counters_of(sys.argv[1]))[-1][0] == b'label %d' % (i - 1)\n"
        "    print('full')\n"
    )
    program = [sys.executable, "-c", script, str(tmp_path / "counters")]
    command = on_tmpfs(tmp_path, 128 << 10, program)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "full\n", done.stderr
