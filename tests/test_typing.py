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
LINES = SAMPLE.read_text(encoding="utf-8").splitlines()
REVEALED = {
    number: line.rpartition("# ")[2]
    for number, line in enumerate(LINES, 1)
    if line.startswith("reveal_type(")
}
USED = next(number for number, line in enumerate(LINES, 1) if line.startswith("use("))
WRONG = next(number for number, line in enumerate(LINES, 1) if line.startswith("proxy.no_such"))


def mypy(tmp_path: Path, plugins: str) -> tuple[dict[int, str], set[int]]:
    """What it reveals, by line; and the lines with errors."""
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\nmypy_path = {CORE}\n{plugins}")
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini")]
    command += ["--cache-dir", str(tmp_path.parent / "typing_cache"), str(SAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    told = re.findall(r'typing_sample\.py:(\d+): note: Revealed type is "(?:.*\.)?(\w+)"', done.stdout)
    failed = re.findall(r"typing_sample\.py:(\d+): error", done.stdout)
    assert told, done.stdout + done.stderr
    return {int(number): kind for number, kind in told}, {int(number) for number in failed}


def test_mypy_with_the_plugin(tmp_path: Path) -> None:
    revealed, failed = mypy(tmp_path, "plugins = proxystore_core.mypy_plugin")
    assert revealed == REVEALED
    assert failed == {WRONG}


def test_mypy_without_the_plugin(tmp_path: Path) -> None:
    revealed, failed = mypy(tmp_path, "")
    assert failed == {USED}
    assert set(revealed.values()) == {"Any", "Model", "int"}


def test_pyright(tmp_path: Path) -> None:
    found = shutil.which("basedpyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")
    if found is None:
        pytest.skip("no pyright here")
    config = {"include": [str(SAMPLE)], "extraPaths": [str(CORE)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [found, "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)["generalDiagnostics"]
    errors = {each["range"]["start"]["line"] + 1 for each in told if each["severity"] == "error"}
    assert errors == {USED}
