"""The command line as a person meets it: help, misuse, completion, colours."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal import at_terminal

PYTHON = [sys.executable, "-m", "proxystore_integrations"]


def proxystore(*words: str, cwd: Path | None = None, **variables: str) -> Any:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [*PYTHON, *words], capture_output=True, text=True, check=False, timeout=60, cwd=cwd, env=environment
    )


def test_help_has_examples_and_every_command():
    from proxystore_integrations.cli.commands import COMMANDS

    done = proxystore("--help")
    assert done.returncode == 0
    assert "proxystore run script.py" in done.stdout
    said = " ".join(done.stdout.split())  # however long lines are folded
    for name, (_, short) in COMMANDS.items():
        assert f"{name} {short}" in said


def commands() -> list[str]:
    from proxystore_integrations.cli.commands import COMMANDS

    return sorted(COMMANDS)


@pytest.mark.parametrize("name", [*commands(), "run"])
def test_every_command_explains_itself_with_examples(name):
    done = proxystore(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: proxystore {name}")
    assert "Examples:" in done.stdout
    assert "\x1b" not in done.stdout


def test_version():
    assert proxystore("--version").stdout.startswith("proxystore, version 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "No such command 'rum'. Did you mean 'run'?\n"),
        (["docter"], "No such command 'docter'. Did you mean 'doctor'?\n"),
        (["ls", "--stor", "x"], "Possible options: --json, --store"),
        (["ls", "--store", "nonsense"], "--store = 'nonsense': 'nonsense' is not a store's URL"),
        (["run", "--report", "/nowhere/x.html", "-c", "print()"], "there is no directory /nowhere"),
        (["run", "--report", "run.pdf", "-c", "print()"], "Expected --report run.html, or --json run.json"),
        (["run", "--json", "/tmp", "-c", "print()"], "--json /tmp: is a directory"),
        (["tune", "--plot", "/nowhere/x.svg"], "--plot /nowhere/x.svg: there is no directory /nowhere"),
        (["bench", "--plot", "", "-c", "1"], "--plot : names no file"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["run"], "nothing to run"),
        (["run", "-m"], "nothing to run"),
        (["run", "no_such.py"], "there is no script 'no_such.py'"),
        (["run", "--stor", "shm://", "x.py"], "Did you mean --store?"),
        (["run", "--store"], "--store has no value"),
        (["run", "--quiet=1", "x.py"], "--quiet takes no value"),
        (["run", "-u", "x.py"], "python -u -m proxystore_integrations run"),
        (["run", "--store", "shn://", "-c", "1"], "--store = 'shn://': unknown store scheme 'shn'"),
        (["run", "--store=/data", "-c", "1"], "--store = '/data'"),
        (["run", "--threshold", "1 XB", "-c", "1"], "unknown unit 'XB'"),
        (["run", "--results", "some", "-c", "1"], "'some' is no choice"),
    ],
)
def test_misuse_is_one_clear_line(words, said):
    done = proxystore(*words)
    assert done.returncode == 2
    assert not done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if words[0] == "run":
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("ls",), ("gc",), ("top", "--count", "1")])
def test_who_looks_at_a_directory_that_is_not_there_makes_none(words, tmp_path):
    done = proxystore(*words, "--store", f"file://{tmp_path}/no/such/place")
    assert done.returncode == 0
    assert done.stderr == f"proxystore: there is no directory {tmp_path}/no/such/place yet\n"
    assert not list(tmp_path.iterdir())


def test_an_unreadable_file_of_settings_is_one_clear_line(tmp_path):
    (tmp_path / "proxystore.toml").write_text("threshold = \n")
    done = proxystore("run", "-c", "print(1)", cwd=tmp_path)
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    assert "proxystore.toml is not valid TOML" in done.stderr


def test_what_is_wrong_with_us_or_the_system_is_one_line_too(monkeypatch, capsys):
    from proxystore_integrations.cli import commands
    from proxystore_integrations.cli.main import main

    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PYTHON, "ls", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "proxystore: error: [Errno 28] No space left on device\n"
    monkeypatch.setattr(commands.proxystore, "main", lambda *words, **options: 1 / 0)
    assert main(["ls"]) == 1
    said = "proxystore: error: ZeroDivisionError: division by zero (--debug shows where; please report it)\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "ls"])
    os.environ.pop("PROXYSTORE_DEBUG")


@pytest.mark.parametrize("words", [("--help",), ("ls", "--json"), ("completion", "bash")])
def test_a_reader_that_leaves_is_no_error(words):
    with subprocess.Popen([*PYTHON, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    done = subprocess.run(
        f"{sys.executable} -m proxystore_integrations run --json - -c 'raise SystemExit(3)' | true; "
        "exit ${PIPESTATUS[0]}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, b"")


def test_an_interrupt_ends_a_command_at_once(tmp_path):
    wait = "import time; print('ready', flush=True); time.sleep(60)"
    code, shown = at_terminal(*PYTHON, "run", "-c", wait, keys=("ready", "\x03"))
    assert code == -signal.SIGINT  # as the script alone
    assert shown.count("KeyboardInterrupt") == 1
    assert "no engine" in shown  # the report
    store = ("--store", f"file://{tmp_path}/store")
    code, shown = at_terminal(*PYTHON, "top", *store, "--interval", "0.1", keys=("free", "\x03"))
    assert code == 0
    words = ("--sizes", "10MB", "--repeat", "1000")
    code, shown = at_terminal(*PYTHON, "tune", *store, *words, keys=("of 10 MB", "\x03"))
    assert code == 130
    assert shown.rstrip().endswith("Aborted.")
    assert "Traceback" not in shown


@pytest.mark.parametrize("options", [(), ("--json", "run.json")])
def test_a_script_in_the_background_is_not_interrupted(options, tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('ignored')"
    done = subprocess.run(
        [*PYTHON, "run", *options, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell does for `&`
    )
    assert (done.stdout, done.returncode) == ("ignored\n", 0), done.stderr


def test_a_narrow_terminal_loses_no_word(tmp_path):
    words = ("doctor", "--engine", "loky", "--store", f"file://{tmp_path}/store")
    code, shown = at_terminal(*PYTHON, *words, COLUMNS="40")
    assert code == 0
    assert max(map(len, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).splitlines())) <= 40
    assert "All is well." in shown
    said = "".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).split())
    assert "there" in said
    assert "\u2026" not in said  # nothing is cut off


def test_debug_shows_the_traceback():
    for words in (["--debug", "run", "no_such.py"], ["run", "--debug", "no_such.py"]):
        assert "Traceback" in proxystore(*words).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    assert "_PROXYSTORE_COMPLETE" in proxystore("completion", shell).stdout
    if shell != "bash":
        return
    found = proxystore(_PROXYSTORE_COMPLETE="bash_complete", COMP_WORDS="proxystore com", COMP_CWORD="1")
    assert found.stdout.split() == ["plain,completion"]


def test_run_loads_no_command_line_framework():
    script = (
        "import json, sys; from proxystore_integrations.cli.main import main;"
        "main(['run', '--help']); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded.isdisjoint({"click", "rich", "argparse", "dask", "distributed", "parsl", "numpy"})


def test_a_missing_extra_is_one_clear_line(tmp_path):
    (tmp_path / "click.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'click'\", name='click')\n"
    )
    done = proxystore("doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pip install "proxystore-integrations[cli]"' in done.stderr
    # What needs none of it still runs.
    assert proxystore("run", "-c", "print('ran')", PYTHONPATH=str(tmp_path)).stdout == "ran\n"
