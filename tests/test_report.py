"""The report of a run: on a terminal, as JSON, and as a page in a browser."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import picture, rendered
from terminal import at_terminal

from proxystore_integrations.ledger import Ledger

TUTORIALS = Path(__file__).parent / "tutorials"
RUN = [sys.executable, "-m", "proxystore_integrations", "run"]


def run(*words: str, cwd: Path | None = None, **variables: str) -> Any:
    return subprocess.run(
        [*RUN, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=cwd,
        env={**os.environ, **variables},
    )


@pytest.fixture(scope="module")
def pool_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """One run of a pool's tutorial, with all reports."""
    directory = tmp_path_factory.mktemp("report")
    files = ["--report", str(directory / "run.html"), "--json", str(directory / "run.json")]
    done = run("--threshold=100 kB", *files, "--summary", str(TUTORIALS / "pool_tutorial.py"), COLUMNS="120")
    assert done.returncode == 0, done.stderr
    return done, directory


def test_the_figures_are_those_of_the_script(pool_run):
    found = json.loads((pool_run[1] / "run.json").read_text())
    engine = found["engines"]["concurrent.futures"]
    # 4 + 3 of map + len + fail; of them data is there already but for the first, in each of three phases.
    assert engine["arguments"]["count"] == 9
    assert engine["arguments"]["size"] > 9 * 2_400_000
    assert engine["shared"]["count"] >= 3
    assert engine["results"]["count"] == 6  # 4, and map's two chunks
    assert engine["by_value"]["small"]["count"] >= 3
    assert engine["stores"] == ["shm://"]
    assert found["puts"]["count"] == 15
    assert found["gets"]["count"] == 15
    assert found["put_seconds"] > 0
    assert found["get_seconds"] > 0
    assert found["leaks"] == 0
    assert found["processes"] == 3
    assert found["exit_code"] == 0
    biggest = found["biggest"][0]
    assert (biggest["task"], biggest["what"], biggest["kind"]) == ("scale", "result", "list")
    lines = (TUTORIALS / "pool_tutorial.py").read_text().splitlines()
    argument = next(one for one in found["biggest"] if one["what"] == "argument" and one["times"] == 4)
    name, _, line = argument["source"].rpartition(":")
    assert Path(name).name == "pool_tutorial.py"
    assert "pool.submit(scale" in lines[int(line) - 1]


def test_the_summary_says_it_in_a_few_lines(pool_run):
    done, _ = pool_run
    assert done.stdout.startswith("completed [")
    assert "concurrent.futures" in done.stderr
    assert re.search(r"[1-9] under 100 kB", done.stderr)
    assert "0 leaks" in done.stderr
    assert "\x1b" not in done.stderr


def test_the_page_in_a_browser(pool_run, tmp_path):
    page = pool_run[1] / "run.html"
    text = page.read_text()
    assert not re.search(r"<script|src=|href=|url\(", text)  # one file
    document = rendered(page, tmp_path / "profile")
    for said in ("What went through the store", "concurrent.futures", "scale", "<svg", "0 of 15"):
        assert said in document
    png = picture(page, tmp_path / "profile", tmp_path / "page.png")
    assert png.startswith(b"\x89PNG")
    pillow = pytest.importorskip("PIL.Image")
    with pillow.open(tmp_path / "page.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0x25, 0x63, 0xEB), (0xD9, 0x77, 0x06)} <= colours  # the bars are there


def test_what_is_in_a_page_is_escaped(tmp_path):
    from proxystore_integrations.cli.report import Big, Engine, Report
    from proxystore_integrations.cli.report_page import page_of

    evil = "<script>alert(1)</script>"
    big = Big(1, evil, evil, evil, evil, evil)
    report = Report([evil], engines={evil: Engine()}, biggest=[big], troubles=[evil], advice=[evil])
    assert "<script" not in page_of(report)


def test_a_terminal_gets_a_table_in_colours(tmp_path):
    script = str(TUTORIALS / "pool_tutorial.py")
    code, shown = at_terminal(*RUN, "--threshold", "100 kB", script)
    assert code == 0
    assert "what went through the store" in shown
    assert "\x1b[" in shown
    code, shown = at_terminal(*RUN, "--threshold", "100 kB", script, NO_COLOR="1")
    assert "what went through the store" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)
    code, shown = at_terminal(*RUN, "--quiet", script)
    assert "what went through the store" not in shown


def test_json_on_standard_output_and_no_engine():
    done = run("--json", "-", "-c", "pass")
    assert json.loads(done.stdout)["engines"] == {}
    assert "no engine" in run("--summary", "-c", "pass").stderr


@pytest.mark.parametrize(("code", "exit_code"), [("raise SystemExit(7)", 7), ("1 / 0", 1)])
def test_a_script_that_fails_still_has_a_report(code, exit_code):
    done = run("--summary", "-c", code)
    assert done.returncode == exit_code
    assert "no engine" in done.stderr


def test_signals_reach_the_script():
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([*RUN, "--json", os.devnull, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 5
    died = run("--json", os.devnull, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert died.returncode == -signal.SIGKILL


KILLED = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
def die(data):
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    with ProcessPoolExecutor(1) as pool:
        try:
            pool.submit(die, bytes(2_000_000)).result()
        except BrokenProcessPool:
            print("broken")
"""


def test_a_killed_worker_has_told_what_it_did(tmp_path):
    (tmp_path / "script.py").write_text(KILLED)
    done = run("--json", "run.json", "script.py", cwd=tmp_path)
    assert done.stdout == "broken\n"
    assert json.loads((tmp_path / "run.json").read_text())["gets"]["count"] == 1


def test_nothing_of_a_report_is_left_in_the_temporary_directory(tmp_path):
    run("--json", os.devnull, "-c", "pass", TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_a_library_has_wrapped_is_at_home_where_the_user_wrote_it():
    names = {"wraps": functools.wraps, "work": work}
    library = "def wrap(f):\n    @wraps(f)\n    def wrapper(*x): return f(*x)\n    return wrapper"
    exec(compile(library, "/lib/site-packages/engine/app.py", "exec"), names)
    here = f"{__file__}:{work.__code__.co_firstlineno}"
    for function in (work, names["wrap"](work), functools.partial(names["wrap"](names["wrap"](work)), 1)):
        assert Ledger.home(function) == here
    assert Ledger.home(names["wrap"]) == "/lib/site-packages/engine/app.py:1"
    assert Ledger.home(names["wrap"](len)) == ""


def work(x):
    return x


def test_leaks_are_found_and_advised(tmp_path):
    from proxystore_core import Session, Store
    from proxystore_integrations.cli.advice import advise
    from proxystore_integrations.cli.report import collect
    from proxystore_integrations.ledger import Ledger

    url = f"file://{tmp_path}/store"
    ledger = Ledger(str(tmp_path))
    with Store.from_url(url) as store:
        session = Session(store.connector)
        store.put(b"forgotten", session=session.name)
        ledger.session("dask", session.name, store.recipe, 1000)
        report = collect(str(tmp_path), ["x"])
        assert report.leaks == 1
        assert any("proxystore gc" in line for line in advise(report))
        session.end()
    assert collect(str(tmp_path), ["x"]).leaks == 0


def test_large_values_are_said_to_be_absent_only_where_they_are(tmp_path):
    from proxystore_integrations.cli.advice import advise
    from proxystore_integrations.cli.report import collect
    from proxystore_integrations.ledger import Ledger

    ledger = Ledger(str(tmp_path))

    def absent() -> bool:
        return any("nothing was as large" in line for line in advise(collect(str(tmp_path), ["x"])))

    ledger.session("ray", "s", "memory://", 1000)
    assert absent()
    ledger.by_value("ray", "small", 10)
    assert absent()
    ledger.by_value("ray", "fast in Ray's own store", 10_000)
    assert not absent()
    (tmp_path / "other").mkdir()
    ledger = Ledger(str(tmp_path / "other"))
    ledger.session("dask", "s", "memory://", 1000)
    ledger.trouble("the worker tcp://host:1 does not reach the store")
    assert not any("nothing was" in line for line in advise(collect(str(tmp_path / "other"), ["x"])))


def test_a_threshold_is_advised_where_another_would_have_been_faster(tmp_path):
    from proxystore_integrations.cli.advice import advise
    from proxystore_integrations.cli.report import collect
    from proxystore_integrations.ledger import Ledger

    ledger = Ledger(str(tmp_path))
    ledger.session("parsl", "s", "memory://", 100_000_000)
    for _ in range(50):
        ledger.by_value("parsl", "small", 10_000_000)
    (line,) = [line for line in advise(collect(str(tmp_path), ["x"])) if "would have saved" in line]
    assert re.search(r"parsl: threshold \d+ \w?B would have saved about \d+ s \(it was 100 MB\)", line)


def test_advice_goes_by_what_was_measured_on_this_machine(tmp_path, monkeypatch):
    from proxystore_core import Store
    from proxystore_integrations import tuned
    from proxystore_integrations.cli.advice import advise, best_threshold
    from proxystore_integrations.cli.report import collect
    from proxystore_integrations.ledger import Ledger

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/store"
    points = [tuned.Point(1_000, 0.001, 0.002), tuned.Point(1_000_000, 0.1, 0.04)]
    tuned.remember(url, "dask", 1_000_000, {"arguments": points, "results": points})
    ledger = Ledger(str(tmp_path))
    with Store.from_url(url) as store:
        ledger.session("dask", "s", store.recipe, 100_000_000)
    for _ in range(50):
        ledger.by_value("dask", "small", 1_000_000)
    for _ in range(50):
        ledger.by_value("dask", "small", 1_000)
    report = collect(str(tmp_path), ["x"])
    found = best_threshold(report, "dask")
    assert found is not None
    assert 1_000 < found.threshold <= 1_000_000
    assert found.seconds == pytest.approx(50 * 0.06)
    (line,) = [line for line in advise(report) if "would have saved" in line]
    assert re.match(r"dask: threshold \S+ \w?B would have saved about 3 s \(it was 100 MB\); by what", line)
    assert "`proxystore tune` measured on this machine" in line
    ledger.by_value("dask", "small", 90_000_000)  # what was measured says nothing of such a one
    assert not any("by what" in line for line in advise(collect(str(tmp_path), ["x"])))


def test_what_was_measured_reaches_to_other_sizes():
    from proxystore_integrations.tuned import Measured, Point

    measured = Measured(None, {"arguments": [Point(100, 1.0, 3.0), Point(300, 2.0, 4.0)]})
    assert [measured.seconds(size, stored=False) for size in (10, 200, 300, 700)] == [1.0, 1.5, 2.0, 4.0]
    assert measured.seconds(200, stored=True) == 3.5
    assert Measured(None, {"arguments": [Point(100, 1.0, 3.0)]}).seconds(10_000, stored=True) == 3.0


def test_a_ledger_that_cannot_be_written_is_no_error(tmp_path):
    from proxystore_integrations.ledger import Ledger

    ledger = Ledger(str(tmp_path / "elsewhere"))
    ledger.trouble("x")
    ledger.by_value("dask", "small", 1)
