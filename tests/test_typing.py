"""Type checkers understand a Proxy[T] as a T."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).with_name("typing_sample.py")
CORE = Path(__file__).parent.parent / "core"
LINES = dict(enumerate(SAMPLE.read_text(encoding="utf-8").splitlines(), 1))
WRONG = {number for number, line in LINES.items() if line.endswith("# error")}


def revealed(by: str) -> dict[int, str]:
    """What a checker is to reveal, by line; some of it only the one with our plugin."""
    told = {
        number: line.rpartition("# ")[2].split(", ")
        for number, line in LINES.items()
        if line.startswith("reveal_type(")
    }
    return {
        number: kind if len(only) == 0 or by in only[0] else "Any" for number, (kind, *only) in told.items()
    }


def mypy(tmp_path: Path, plugins: str) -> tuple[dict[int, str], set[int]]:
    """What it reveals, by line; and the lines with errors."""
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\nmypy_path = {CORE}\n{plugins}")
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini")]
    command += ["--cache-dir", str(tmp_path.parent / "typing_cache"), str(SAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    told = re.findall(r'typing_sample\.py:(\d+): note: Revealed type is "(?:.*\.)?(\w+)"', done.stdout)
    failed = re.findall(r"(\S+\.py):(\d+): error", done.stdout)
    assert told, done.stdout + done.stderr
    assert {Path(name).name for name, _ in failed} == {SAMPLE.name}, done.stdout
    return {int(number): kind for number, kind in told}, {int(number) for _, number in failed}


def test_mypy_with_the_plugin(tmp_path: Path) -> None:
    told, failed = mypy(tmp_path, "plugins = proxystore_core.mypy_plugin")
    assert failed == WRONG
    assert told == revealed("mypy")


def test_mypy_without_the_plugin(tmp_path: Path) -> None:
    told, failed = mypy(tmp_path, "")
    assert any("use(model)" in LINES[number] for number in failed)
    assert set(told.values()) == {"Any", "Model", "int"}


def test_pyright(tmp_path: Path) -> None:
    found = shutil.which("basedpyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")
    if found is None:
        pytest.skip("no pyright here")
    config = {"include": [str(SAMPLE)], "extraPaths": [str(CORE)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [found, "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told: dict[str, dict[int, str]] = {"error": {}, "information": {}}
    for each in json.loads(done.stdout)["generalDiagnostics"]:
        number = each["range"]["start"]["line"] + 1
        told.setdefault(each["severity"], {})[number] = each["message"]
    assert set(told["error"]) == WRONG, told["error"]
    kinds = {number: re.findall(r'is "(\w+)', text)[0] for number, text in told["information"].items()}
    assert kinds == revealed("pyright")
