"""The command line as a person meets it: help, misuse, completion, colours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
        (["rum"], "No such command 'rum'"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["run"], "nothing to run"),
        (["run", "-m"], "nothing to run"),
        (["run", "no_such.py"], "there is no script 'no_such.py'"),
        (["run", "--stor", "shm://", "x.py"], "Did you mean --store?"),
        (["run", "--store"], "--store has no value"),
        (["run", "--store", "shn://", "-c", "1"], "run: --store = 'shn://': unknown store scheme 'shn'"),
        (["run", "--store=/data", "-c", "1"], "run: --store"),
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


def test_an_unreadable_file_of_settings_is_one_clear_line(tmp_path):
    (tmp_path / "proxystore.toml").write_text("threshold = \n")
    done = proxystore("run", "-c", "print(1)", cwd=tmp_path)
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    assert "proxystore.toml is not valid TOML" in done.stderr


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
