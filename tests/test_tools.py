"""doctor, ls, top, gc, tune and bench, as a person uses them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from redis_servers import serving
from terminal import at_terminal
from waiting import until

from proxystore_core import ConfigurationError, Session, Store
from proxystore_integrations import tuned
from proxystore_integrations.cli.console import console
from proxystore_integrations.cli.doctor import Finding, _table, _workers
from proxystore_integrations.cli.tune import threshold_of
from proxystore_integrations.cli.workers import Question
from proxystore_integrations.settings import Settings
from proxystore_integrations.tuned import Point

PYTHON = [sys.executable, "-m", "proxystore_integrations"]


def proxystore(*words: str, cwd: Path | None = None, **variables: str) -> Any:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [*PYTHON, *words], capture_output=True, text=True, check=False, timeout=100, cwd=cwd, env=environment
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


KILLED = """
import os, signal, sys
from proxystore_core import Session, Store
store = Store.from_url(sys.argv[1])
session = Session(store.connector, lease=0.2, name="killed")
for _ in range(3):
    store.put(bytes(100_000), session=session.name)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def left(url: str) -> Iterator[str]:
    """A store with what a killed client left."""
    killed = subprocess.run([sys.executable, "-c", KILLED, url], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    time.sleep(0.3)  # its lease was 0.2 s
    with Store.from_url(url) as store:
        store.put(b"mine")
        yield url
        store.close(clear=True)


def test_gc_removes_what_dead_sessions_left_and_nothing_else(left):
    told = proxystore("gc", "--store", left, "--dry-run")
    assert told.returncode == 0
    assert "1 session, 3 objects would be removed." in told.stdout
    assert "dead for" in told.stdout
    found = json.loads(proxystore("gc", "--store", left, "--json").stdout)
    assert found == {"dry_run": False, "sessions": {"killed": 3}}
    assert json.loads(proxystore("gc", "--store", left, "--json").stdout)["sessions"] == {}
    (row,) = json.loads(proxystore("ls", "--store", left, "--json").stdout)
    assert (row["session"], row["objects"]) == ("user", 1)


def test_gc_ends_a_session_by_name(url):
    with Store.from_url(url) as store:
        session = Session(store.connector)
        told = proxystore("gc", "--store", url).stdout
        assert told.startswith("0 sessions, 0 objects removed.\n1 session of clients that live, or died less")
        assert "--session NAME ends one at once" in told
        key = store.put(b"x", session=session.name)
        done = proxystore("gc", "--store", url, "--session", "no-such")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "no session 'no-such'" in done.stderr
        done = proxystore("gc", "--store", url, "--session", session.name)
        assert "1 session, 1 object removed." in done.stdout
        assert store.get(key) is None
        session.end()


def test_ls_and_top_show_sessions(left):
    shown = proxystore("ls", "--store", left).stdout
    assert re.search(r"killed\s+dead for \d+ s\s+3\s+300 kB", shown)
    assert re.search(r"user\s+yours, until evicted\s+1\s", shown)
    assert "free" in shown
    once = proxystore("top", "--store", left)
    assert once.returncode == 0
    assert once.stdout.count("killed") == 1
    assert once.stdout.endswith("\n")


def test_top_shows_rates_at_a_terminal(left):
    code, shown = at_terminal(*PYTHON, "top", "--store", left, "--interval", "0.1", "--count", "3")
    assert code == 0
    assert "objects/s" in shown
    assert "\x1b[" in shown


def test_top_on_redis(tmp_path):
    with serving(tmp_path) as server, Store.from_url(f"unix://{server.socket}") as store:
        session = Session(store.connector)
        store.put(bytes(50_000), session=session.name)
        (row,) = json.loads(proxystore("ls", "--store", f"redis://{server.address}", "--json").stdout)
        assert row["session"] == session.name
        assert row["objects"] == 1
        assert 50_000 < row["size"] < 80_000
        session.end()


# doctor


def doctor(*words: str, **options: Any) -> Any:
    """With one engine, which loads fast."""
    return proxystore("doctor", "--engine", "loky", *words, **options)


def test_doctor_finds_all_well(url):
    done = proxystore("doctor", "--store", url)
    assert done.returncode == 0, done.stdout
    for said in ("All is well.", "there and back", "a worker process here", "from keyword argument", "free"):
        assert said in done.stdout
    assert "\x1b" not in done.stdout
    for name in ("dask", "globus-compute", "joblib", "loky", "parsl", "ray"):
        assert re.search(rf" ok +{name} +\d+\.\d+", done.stdout)


def test_doctor_tells_where_each_value_comes_from(tmp_path, url):
    (tmp_path / "proxystore.toml").write_text(f'store = "{url}"\n')
    found = json.loads(doctor("--json", cwd=tmp_path, PROXYSTORE_LEASE="1 min").stdout)
    details = {one["what"]: one["detail"] for one in found}
    assert details["setting store"] == f"{url}, from {tmp_path}/proxystore.toml"
    assert details["setting lease"] == "60 s, from PROXYSTORE_LEASE"
    assert details["setting threshold"] == "100 kB, from default"
    assert details["loky"].startswith("3.")


def test_doctor_tells_where_the_secret_is_and_not_what_it_is(url):
    done = doctor("--store", url)
    assert re.search(r"setting secret +none, from default", done.stdout)
    assert re.search(r"setting allow_pickle +true, from default", done.stdout)
    done = doctor("--store", url, PROXYSTORE_SECRET="0123456789abcdef0123456789abcdef")
    assert re.search(r"setting secret +env PROXYSTORE_SECRET, from ", done.stdout), done.stdout
    assert "0123456789" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('store = "shn://"', "unknown store scheme 'shn'"),
        ("threshold", "is not valid TOML"),
        ('thresold = "1 MB"', "Did you mean 'threshold'?"),
        ('store = "file:///proc/none"', "/proc/none"),
        ('store = "redis://127.0.0.1:1?connect_timeout=0.2&deadline=1"', "refused"),
    ],
)
def test_doctor_names_a_problem_and_its_remedy(tmp_path, toml, said):
    (tmp_path / "proxystore.toml").write_text(toml)
    done = doctor(cwd=tmp_path)
    assert done.returncode == 1
    assert "1 problem." in done.stdout
    assert said in " ".join(done.stdout.split())  # however it is folded
    assert "Traceback" not in done.stderr


def test_doctor_shows_what_stands_in_brackets(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    extra = 'Run: pip install "proxystore-integrations[loky]".'
    console().print(_table([Finding("problem", "pool [loky]", "not installed [/]", extra)]))
    assert f"problem  pool [loky]  not installed [/] -> {extra}" in capsys.readouterr().out


def test_doctor_says_how_to_install_an_engine_whose_workers_are_to_be_asked(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (found,) = _workers("globus-compute", "some-endpoint", Question("", "", 1))
    assert (found.level, found.detail) == ("problem", "globus_compute_sdk is not installed here")
    assert found.remedy == 'Run: pip install "proxystore-integrations[globus-compute]".'


def test_doctor_warns_of_dead_sessions_and_of_redis_that_drops_keys(tmp_path, left):
    done = doctor("--store", left, "--strict")
    # Its own session sweeps what is dead when it starts, so that it may be gone by now.
    assert done.returncode == ("dead sessions" in done.stdout)
    policy = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with serving(tmp_path / "server", *policy) as server:
        done = doctor("--store", f"redis://{server.address}", "--json")
        warned = [one for one in json.loads(done.stdout) if one["level"] == "warning"]
        assert any("allkeys-lru" in one["detail"] for one in warned)
        assert any("free" in one["detail"] for one in warned)  # of 100 MB


def test_doctor_asks_the_workers_of_a_cluster(cluster, url):
    done = doctor("--store", url, "--dask", cluster.scheduler_address, "--json")
    answers = [one for one in json.loads(done.stdout) if one["what"].startswith("dask worker")]
    assert [one["level"] for one in answers] == ["ok", "ok"]
    done = doctor("--store", url, "--dask", "tcp://127.0.0.1:1")
    assert done.returncode == 1
    assert "nothing answers there" in done.stdout
    assert "'nonsense' is no address" in doctor("--store", url, "--dask", "nonsense").stdout


def test_doctor_that_is_given_the_port_of_the_dashboard(url):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.server_port}"
        done = doctor("--store", url, "--dask", address, "--timeout", "2", "--json")
        server.shutdown()
    (found,) = [one for one in json.loads(done.stdout) if one["level"] == "problem"]
    assert found["what"] == f"dask {address}"
    assert "not its dashboard's?" in found["remedy"]


def test_doctor_sees_that_workers_lack_the_password(tmp_path):
    witness = {"password": "hunter2"}
    with serving(tmp_path, "--requirepass", "hunter2", witness=witness) as server:
        url = f"redis://:hunter2@{server.address}"
        done = doctor("--store", url, "--json")
        (child,) = [one for one in json.loads(done.stdout) if one["what"] == "a worker process here"]
        assert child["level"] == "problem"
        assert "hunter2" not in done.stdout
        assert doctor("--store", url, PROXYSTORE_REDIS_PASSWORD="hunter2").returncode == 0


# tune


def test_tune_finds_the_crossover_and_keeps_it(tmp_path):
    words = ("tune", "--sizes", "1kB,20MB", "--repeat", "2", "--plot", "plot.svg", "--write", "--json")
    (tmp_path / "proxystore.toml").write_text('threshold = "5 MB" # old\nresults = "always"\n')
    done = proxystore(*words, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [point[0] for point in found["points"]["arguments"]] == [1000, 20_000_000]
    measured = {way: [Point(*point) for point in points] for way, points in found["points"].items()}
    assert found["threshold"] == threshold_of(measured)
    threshold = {1000: "1 kB", 20_000_000: "20 MB"}[found["threshold"]]
    assert (tmp_path / "proxystore.toml").read_text() == f'threshold = "{threshold}"\nresults = "always"\n'
    plot = (tmp_path / "plot.svg").read_text()
    assert plot.startswith("<svg")
    assert f"threshold {threshold}" in plot
    code = "from proxystore_integrations.settings import Settings; print(Settings.load().threshold)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PROXYSTORE_THRESHOLD": "auto"},
    )
    assert done.stdout == f"{found['threshold']}\n"


def test_tune_tells_what_it_cannot_keep(tmp_path):
    (tmp_path / "proxystore").touch()  # where the directory would be
    done = proxystore("tune", "--sizes", "20MB", "--repeat", "1", XDG_CACHE_HOME=str(tmp_path), COLUMNS="900")
    assert done.returncode == 0, done.stderr
    said = f'not kept for threshold = "auto" in {tmp_path}/proxystore/tuned.json: '
    assert said in done.stdout or "none of these sizes" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "nobody"], "cannot measure the engine 'nobody'. Known: concurrent.futures, dask"),
        (["--sizes", "1kB,x"], "cannot read 'x'"),
        (["--repeat", "0"], "are to be positive"),
        (["--store", "shn://"], "unknown store scheme"),
    ],
)
def test_tune_called_wrongly(words, said):
    done = proxystore("tune", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_tune_without_the_engine(tmp_path):
    (tmp_path / "loky.py").write_text("raise ModuleNotFoundError('no loky here', name='loky')\n")
    done = proxystore("tune", "--engine", "loky", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert 'pip install "proxystore-integrations[loky]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_crossover_is_where_the_store_wins_for_good():
    from proxystore_integrations.cli.measure import crossover
    from proxystore_integrations.tuned import Point

    points = [Point(1, 2.0, 1.0), Point(10, 1.0, 2.0), Point(100, 2.0, 2.0), Point(1000, 9.0, 3.0)]
    assert crossover(points) == 100
    assert crossover(points[:2]) is None
    assert crossover([]) is None


def test_auto_is_what_was_measured_on_this_machine_else_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings.load(threshold="auto").threshold == 100_000
    tuned.remember("redis://:secret@host:1", "dask", 300_000)
    tuned.remember("redis://:secret@host:1", "parsl", 30_000)
    assert "secret" not in Path(tuned.path()).read_text()
    assert Settings.load(threshold="auto").threshold == 100_000
    settings = Settings.load(threshold="auto", store="redis://host:1")
    assert settings.threshold == 100_000  # another user of it
    assert settings.origin("threshold") == "default"
    settings = Settings.load(threshold="auto", store="redis://:secret@host:1")
    assert settings.threshold == 300_000
    assert settings.origin("threshold") == "keyword argument"
    Path(tuned.path()).write_text("no json")
    assert Settings.load(threshold="auto").threshold == 100_000
    with pytest.raises(ConfigurationError, match="automatic"):
        Settings.load(threshold="automatic")


# bench


def test_bench_compares_a_script(tmp_path):
    (tmp_path / "script.py").write_text(
        "import sys\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1) as pool:\n"
        "        print(sys.argv[1], pool.submit(len, bytes(2_000_000)).result())\n"
    )
    stores = ("--store", "shm://", "--store", f"file://{tmp_path}/store")
    done = proxystore("bench", *stores, "--repeat=1", "--plot=b.svg", "script.py", "word", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()[2:5]] == ["yes"] * 3
    assert "1.00x" in done.stdout
    assert (tmp_path / "b.svg").read_text().count("<rect x=") == 4  # three bars and the legend
    (tmp_path / "script.py").write_text("import os; print(os.environ.get('PROXYSTORE_STORE'))")
    done = proxystore("bench", "--store", "shm://", "--repeat", "1", "script.py", "--json", cwd=tmp_path)
    assert done.returncode == 1  # the output differs
    assert " no" in done.stdout
    (tmp_path / "script.py").write_text("raise SystemExit('what is wrong')")
    done = proxystore("bench", "script.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "the script failed with exit code 1 (bare): what is wrong" in done.stderr


def test_an_interrupted_bench_lets_the_script_end(tmp_path):
    (tmp_path / "script.py").write_text(
        "import pathlib, time\ntry:\n    pathlib.Path('began').touch()\n    time.sleep(60)\n"
        "finally:\n    time.sleep(1)\n    pathlib.Path('ended').touch()\n"
    )
    bench = subprocess.Popen(
        [*PYTHON, "bench", "script.py"], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE
    )
    until(lambda: (tmp_path / "began").exists())
    os.killpg(bench.pid, signal.SIGINT)
    assert b"Aborted" in bench.communicate(timeout=30)[1]
    assert bench.returncode == 130
    assert (tmp_path / "ended").exists()
