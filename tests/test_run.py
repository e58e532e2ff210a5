"""`proxystore run`: unchanged scripts, in the style of each engine's tutorial, with and without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proxystore_integrations import tuned

TUTORIALS = Path(__file__).parent / "tutorials"
FOLLOWS = "import proxystore_integrations.instrumentation as i, sys; print(i._finder in sys.meta_path)"
RUN = ["-m", "proxystore_integrations", "run"]


def python(*words: str, cwd: Path | None = None, **variables: str) -> Any:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=cwd,
        env={**os.environ, **variables},
    )


def run(*words: str, **options: Any) -> Any:
    return python(*RUN, *words, **options)


def same(*words: str, options: tuple[str, ...] = (), **more: Any) -> Any:
    """Run Python without and with us, expect the same, and return it."""
    bare, ours = python(*words, **more), run(*options, *words, **more)
    assert (ours.stdout, ours.returncode) == (bare.stdout, bare.returncode), ours.stderr
    assert ours.stderr == bare.stderr
    return ours


# Each engine.

TASKS = {
    "dask": {"inc", "total", "inv"},
    "joblib": {"fit"},
    "parsl": {"double", "add"},
    "pool": {"scale", "fail"},
    "ray": {"add"},
}


def measured(directory: Path, monkeypatch: pytest.MonkeyPatch, thresholds: dict[str, int]) -> None:
    """Let it be what `proxystore tune` found."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    for engine, threshold in thresholds.items():
        tuned.remember("shm://", engine, threshold)


def users_hook(directory: Path) -> dict[str, str]:
    """A hook of the user's own, which Ray asks when it starts."""
    code = f"def hook(env):\n    open({str(directory / 'asked')!r}, 'w').write(str(env))\n    return env\n"
    (directory / "theirs.py").write_text(code)
    return {"RAY_RUNTIME_ENV_HOOK": "theirs.hook", "PYTHONPATH": str(directory)}


@pytest.mark.parametrize("name", ["pool", "joblib", "dask", "parsl", "ray"])
def test_a_tutorial_says_the_same(name, tmp_path, monkeypatch):
    script = str(TUTORIALS / f"{name}_tutorial.py")
    figures = tmp_path / "run.json"
    called = {"pool": "concurrent.futures"}.get(name, name)
    measured(tmp_path, monkeypatch, {called: 100_000, "another": 5_000_000})
    with ThreadPoolExecutor(2) as both:
        waiting = both.submit(python, script)
        hook = users_hook(tmp_path) if name == "ray" else {}
        ours = run("--threshold=auto", "--json", str(figures), script, **hook)
        bare = waiting.result()
    assert bare.returncode == 0, bare.stderr
    assert (ours.stdout, ours.returncode) == (bare.stdout, 0), ours.stderr
    # Dask looks for its dashboard's usual port, which another test may have.
    assert not re.search(r"Warning: (?!Port \d+ is already in use)", ours.stderr)
    found = json.loads(figures.read_text())
    engine = found["engines"][called]
    assert engine["threshold"] == 100_000  # as measured with this engine
    if name == "ray":
        assert (tmp_path / "asked").read_text() == "None"
    else:  # Ray's own store may be as good
        assert engine["arguments"]["count"] >= 4
        assert engine["results"]["count"] + engine["gathered"]["count"] >= 4
    assert TASKS[name] <= {one["task"] for one in found["biggest"]}
    assert not found["leaks"]
    assert not found["troubles"]


LOKY = """
import loky, numpy as np
if __name__ == "__main__":
    executor = loky.get_reusable_executor(2)
    print(executor.submit(np.sum, np.ones(200_000)).result(), list(executor.map(len, [[1], [2, 3]])))
    print(type(executor.submit(len, [])).__module__)
"""


EXECUTORLIB = """
import numpy as np
from executorlib import SingleNodeExecutor
if __name__ == "__main__":
    with SingleNodeExecutor(max_workers=1) as executor:
        data = executor.submit(np.negative, np.ones(200_000), resource_dict={"cores": 1})
        print(executor.submit(np.sum, data, resource_dict={"cores": 1}).result(), executor.max_workers)
        print(type(executor.submit(len, [])).__module__)
"""
MPI = """
import numpy as np
from mpi4py.futures import MPIPoolExecutor
if __name__ == "__main__":
    with MPIPoolExecutor() as executor:
        data = executor.submit(np.negative, np.ones(200_000))
        print(executor.submit(np.sum, data.result()).result(), executor.num_workers)
        print(type(executor.submit(len, [])).__module__)
        arrays = executor.map(np.negative, [np.ones(200_000)] * 4, chunksize=2)
        assert [array[0] for array in arrays] == [-1] * 4
"""
OURS = "proxystore_integrations.dependents"


def test_loky(tmp_path):
    (tmp_path / "script.py").write_text(LOKY)
    ours = run("script.py", cwd=tmp_path)
    assert ours.stdout.split("\n")[:2] == ["200000.0 [1, 2]", OURS], ours.stderr


def test_executorlib(tmp_path):
    (tmp_path / "script.py").write_text(EXECUTORLIB)
    ours = run("--json=run.json", "--threshold=1MB", "script.py", cwd=tmp_path)
    assert ours.stdout.split("\n")[:2] == ["-200000.0 1", OURS], ours.stderr
    found = json.loads((tmp_path / "run.json").read_text())
    engine = found["engines"]["executorlib"]
    assert (engine["arguments"]["count"], engine["results"]["count"]) == (1, 1)
    assert found["leaks"] == 0


def test_mpi_ranks(tmp_path):
    (tmp_path / "script.py").write_text(MPI)
    mpiexec = Path(sys.executable).parent / "mpiexec"
    done = subprocess.run(
        [mpiexec, "-n", "2", sys.executable, *RUN, "--threshold=1MB", "-m", "mpi4py.futures", "script.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "LD_LIBRARY_PATH": str(mpiexec.parents[1] / "lib")},
    )
    assert done.stdout.split("\n")[:2] == ["-200000.0 1", OURS], done.stderr
    assert done.returncode == 0


# What runs.


def test_a_script_is_itself(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "print(__name__, __file__, __spec__, sys.argv, sys.path[0], len(sys.path), sys.flags.dev_mode)\n"
        "print(sys.stdin.read(), sorted(set(sys.modules) - set(sys.stdlib_module_names))[:0])\n"
    )
    done = same("script.py", "--store", "mine", "-c", cwd=tmp_path)
    assert "['script.py', '--store', 'mine', '-c']" in done.stdout


def test_a_module_and_code(tmp_path):
    (tmp_path / "mine.py").write_text("import sys; print(sys.argv[1:], __name__, __spec__.name)\n")
    assert same("-m", "mine", "a", "-b", cwd=tmp_path).stdout == "['a', '-b'] __main__ mine\n"
    assert same("-c", "import sys; print(sys.argv)", "x").stdout == "['-c', 'x']\n"
    assert same("-m", "no_such_module_here").returncode == 1
    assert same("-mmine", "a", cwd=tmp_path).stdout == "['a'] __main__ mine\n"
    assert same("-cprint(5)").stdout == "5\n"


def test_a_script_from_standard_input():
    done = subprocess.run(
        [sys.executable, "-u", *RUN, "-", "a"],
        input=f"{FOLLOWS}; print(sys.argv, sys.stdout.write_through)",
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.stdout == "True\n['-', 'a'] True\n", done.stderr


def test_a_console_script(tmp_path):
    done = run("dask", "--version")
    assert done.stdout.startswith("dask, version")
    done = run(
        "python",
        "-c",
        "import proxystore_integrations.instrumentation as i, sys; print(i._finder in sys.meta_path)",
    )
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("raise SystemExit(7)", 7),
        ("import sys; sys.exit('a message')", 1),
        ("def f():\n    1 / 0\nf()", 1),
        ("import os; os._exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("this is no Python", 1),
        ("import no_such_engine", 1),
    ],
)
def test_a_script_that_fails_does_so_in_its_own_way(tmp_path, code, exit_code):
    (tmp_path / "script.py").write_text(code)
    assert same("script.py", cwd=tmp_path).returncode == exit_code


def test_flags_of_the_interpreter_are_kept():
    done = python(
        "-X",
        "utf8",
        "-W",
        "error",
        "-O",
        *RUN,
        "-c",
        "import sys; print(sys.flags.optimize, sys.warnoptions)",
    )
    assert done.stdout == "1 ['error']\n"


# Who follows.


def test_child_processes_follow(tmp_path):
    (tmp_path / "script.py").write_text(
        "import multiprocessing, subprocess, sys\n"
        f"CODE = {FOLLOWS!r}\n"
        "if __name__ == '__main__':\n"
        "    subprocess.run([sys.executable, '-c', CODE])\n"
        "    for method in ('spawn', 'fork'):\n"
        "        child = multiprocessing.get_context(method).Process(target=exec, args=(CODE, {}))\n"
        "        child.start(); child.join()\n"
    )
    assert run("script.py", cwd=tmp_path).stdout == "True\n" * 3


def test_the_users_own_sitecustomize_runs_once(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.mine = getattr(sys, 'mine', 0) + 1\n")
    code = "import sitecustomize, sys; print(sys.mine, sitecustomize.__file__)"
    assert same("-c", code, PYTHONPATH=str(tmp_path)).stdout == f"1 {tmp_path}/sitecustomize.py\n"
    (tmp_path / "sitecustomize.py").write_text("import no_such_thing\n")
    assert "no_such_thing" in run("-c", "print(1)", PYTHONPATH=str(tmp_path)).stderr


def test_a_python_without_us_starts_as_ever():
    done = run("-c", "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'print(1)'])")
    assert (done.stdout, done.stderr) == ("1\n", "")
    code = "import site, sys; print('proxystore_core' in sys.modules)"
    done = run("-c", f"import subprocess, sys; subprocess.run([{sys._base_executable!r}, '-c', {code!r}])")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_nothing_is_loaded_that_the_script_does_not_use():
    code = (
        "import concurrent.futures.process, sys\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in "
        "('dask', 'distributed', 'parsl', 'ray', 'joblib', 'loky', 'numpy', 'click', 'rich', 'msgspec')))"
    )
    assert run("-c", code).stdout == "[]\n"


# Not twice, and not at any price.

WRAPPED = """
from concurrent.futures import Future, ProcessPoolExecutor
import numpy as np
from proxystore_integrations.futures import StoreExecutor
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1)
    with StoreExecutor(pool, store="shm://run-mine", threshold="1 MB", results="never") as executor:
        inner = []
        send = executor._send
        executor._send = lambda call: inner.append(send(call)) or inner[-1]
        print(executor.submit(np.sum, np.ones(300_000)).result(), type(inner[0]) is Future)
"""


def test_what_is_wrapped_is_not_wrapped_twice(tmp_path):
    (tmp_path / "script.py").write_text(WRAPPED)
    assert run("script.py", cwd=tmp_path).stdout == "300000.0 True\n"


DASK_WRAPPED = """
from distributed import Client as Bare, LocalCluster
from proxystore_integrations.dask import Client, wrap
if __name__ == "__main__":
    with LocalCluster(n_workers=1, dashboard_address=None) as cluster:
        with Client(cluster, store="shm://run-mine") as client:
            print(client._link.settings.store)
        with Bare(cluster) as client:
            link = client._link
            print(link.settings.store, wrap(client)._link is link, type(client).__mro__[1].__name__)
            def nested():
                from distributed import get_client
                return get_client()._link.url
            print(client.submit(nested).result())
"""


def test_a_dask_client_has_one_store(tmp_path):
    (tmp_path / "script.py").write_text(DASK_WRAPPED)
    done = run("--store", "shm://run-theirs", "script.py", cwd=tmp_path)
    assert done.stdout == "shm://run-mine\nshm://run-theirs True StoreMixin\nshm://run-theirs\n", done.stderr


NEVER_CLOSED = """
import sys
import numpy as np
from distributed import Client
if __name__ == "__main__":
    client = Client(n_workers=1, threads_per_worker=1, dashboard_address=None)
    future = client.submit(np.sum, np.ones(1_000_000))
    print(future.result())
    sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_client_that_nobody_closes_leaves_nothing(tmp_path, code):
    (tmp_path / "script.py").write_text(NEVER_CLOSED)
    done = run("--json", "run.json", "--store", "shm://never-closed", "script.py", str(code), cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("1000000.0\n", code), done.stderr
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["leaks"] == 0
    assert found["engines"]["dask"]["arguments"]["count"] == 1
    assert not list(Path("/dev/shm").glob("proxystore-*-never-closed/*"))


def test_a_notebook_loads_the_extension(tmp_path):
    pytest.importorskip("IPython")
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "from proxystore_integrations.instrumentation import _finder\n"
        "import sys\n"
        "shell.run_line_magic('load_ext', 'proxystore_integrations')\n"
        "print(_finder in sys.meta_path)\n"
        "shell.run_line_magic('unload_ext', 'proxystore_integrations')\n"
        "print(_finder in sys.meta_path)\n"
    )
    done = python("-c", code, HOME=str(tmp_path), IPYTHONDIR=str(tmp_path / "ipython"))
    assert done.stdout == "True\nFalse\n", done.stderr


def test_a_store_out_of_reach_is_one_warning(tmp_path):
    (tmp_path / "script.py").write_text(
        "from concurrent.futures import ProcessPoolExecutor\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1) as pool:\n"
        "        print(pool.submit(len, bytes(10**6)).result(), pool.submit(len, 'ab').result())\n"
    )
    done = run("--store", "file:///proc/none", "script.py", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("1000000 2\n", 0), done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    done = run("--store", "file:///proc/none", "--on-store-error=raise", "script.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "StoreError" in done.stderr or "proxystore_core.errors." in done.stderr


# In code, and in a notebook.


def test_instrument_and_uninstrument(monkeypatch):
    import concurrent.futures.process as process

    import proxystore_integrations
    from proxystore_integrations.instrumentation import _finder, equipped

    bare = process.ProcessPoolExecutor.submit
    monkeypatch.delenv("PROXYSTORE_STORE", raising=False)
    proxystore_integrations.instrument(store="shm://instrumented", threshold=1000)
    try:
        assert "concurrent.futures" in equipped()
        assert os.environ["PROXYSTORE_STORE"] == "shm://instrumented"
        with process.ProcessPoolExecutor(1) as pool:
            assert pool.submit(len, b"x" * 5000).result() == 5000
            assert pool._proxystore._link.settings.store == "shm://instrumented"
    finally:
        proxystore_integrations.uninstrument()
    assert process.ProcessPoolExecutor.submit is bare
    assert _finder not in sys.meta_path
    assert "PROXYSTORE_STORE" not in os.environ
    assert not equipped()
    assert not list(Path("/dev/shm").glob("proxystore-*-instrumented/*"))


def test_an_instrumented_pools_shutdown_takes_what_it_takes():
    loky = pytest.importorskip("loky")
    from proxystore_integrations.futures.instrumentation import instrument, uninstrument

    instrument(loky.process_executor)
    try:
        for args in ((), (1,)):
            pool = loky.ProcessPoolExecutor(1)
            assert [pool.submit(abs, arg).result(60) for arg in args] == list(args)
            with pytest.raises(TypeError):
                pool.shutdown(True, False, False)
            pool.shutdown(True, True)  # kill_workers, by position
    finally:
        uninstrument(loky.process_executor)


def test_wrong_settings_leave_everything_as_it_was():
    import proxystore_integrations
    from proxystore_core import ConfigurationError
    from proxystore_integrations.instrumentation import _finder

    with pytest.raises(ConfigurationError, match="threshold"):
        proxystore_integrations.instrument(threshold="big")
    assert _finder not in sys.meta_path
    assert "PROXYSTORE_THRESHOLD" not in os.environ
