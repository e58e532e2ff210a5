"""Lines of a ledger outlive their process, and never end it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from mounts import on_tmpfs

from proxystore_integrations.ledger_file import LineFile, lines_of


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    script = (
        "import os, signal, sys\n"
        "from proxystore_integrations.ledger_file import LineFile\n"
        "file = LineFile(sys.argv[1])\n"
        "for i in range(5000): file.add(b'line %d' % i)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert lines_of(str(path)) == [b"line %d" % i for i in range(5000)]


def test_lines_longer_than_the_room_that_is_asked_for(tmp_path: Path) -> None:
    path = str(tmp_path / "lines")
    file = LineFile(path)
    wanted = [b"a" * 10, b"b" * 300_000, b"c", b"d" * 65_000, b"e" * 1_000]
    for line in wanted:
        file.add(line)
    assert lines_of(path) == wanted
    file.close()


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = str(tmp_path / "lines")
    file = LineFile(path)

    def add(name: int) -> None:
        for i in range(2000):
            file.add(b"%d:%d" % (name, i))

    threads = [threading.Thread(target=add, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lines_of(path)) == sorted(b"%d:%d" % (name, i) for name in range(4) for i in range(2000))


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = LineFile(str(path))
    file.add(b"whole")
    content = path.read_bytes()
    path.write_bytes(content[:6] + b"cut off" + content[13:])
    assert lines_of(str(path)) == [b"whole"]


def test_a_full_file_system_is_an_error_and_no_signal(tmp_path: Path) -> None:
    script = (
        "import errno, sys\n"
        "from proxystore_integrations.ledger_file import LineFile, lines_of\n"
        "file = LineFile(sys.argv[1])\n"
        "try:\n"
        "    for i in range(100_000): file.add(b'line %d' % i)\n"
        "except OSError as error:\n"
        "    assert error.errno == errno.ENOSPC, error\n"
        "    assert lines_of(sys.argv[1])[-1] == b'line %d' % (i - 1)\n"
        "    print('full')\n"
    )
    program = [sys.executable, "-c", script, str(tmp_path / "lines")]
    command = on_tmpfs(tmp_path, 128 << 10, program)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "full\n", done.stderr
