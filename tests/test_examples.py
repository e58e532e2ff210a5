"""The examples as a user runs them, and their science against MDAnalysis's own."""

import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

datafiles = pytest.importorskip("MDAnalysisTests.datafiles")
pytest.importorskip("rich")

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run_demo():
    return runpy.run_path(str(EXAMPLES / "run_demo.py"), run_name="run_demo")


def test_the_two_scripts_differ_in_one_import(run_demo):
    text = (EXAMPLES / "dask_trajectory.py").read_text(encoding="utf-8")
    assert text.splitlines().count(run_demo["OURS"]) == 1
    assert text.lower().count("proxystore") == 1


@pytest.mark.timeout(300)
def test_demo_gives_the_same_answers_through_a_lighter_scheduler():
    out = run("run_demo.py", "--rounds", "1", "--repeat", "2")
    assert "Same answers, bit for bit" in out
    assert "\x1b" not in out
    for direction in ("received", "sent"):
        bare, ours = map(float, re.findall(r"([\d.]+) MB", out.split(f"{direction} by the scheduler")[1])[:2])
        assert bare > 140  # 18 arguments of 8 MB, and as much again for what the client gathers
        assert ours < bare / 20


def test_script_by_itself_agrees_with_mdanalysis(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import MDAnalysis
        from MDAnalysis.analysis.rms import rmsd

        universe = MDAnalysis.Universe(datafiles.PSF, datafiles.DCD)
    ca = universe.select_atoms("name CA")
    frames = [ca.positions.astype(float) for _ in universe.trajectory]
    gyration = [universe.atoms.radius_of_gyration() for _ in universe.trajectory]

    out = run("dask_trajectory.py", "--workers", "2", "--output", str(tmp_path / "results.npz"))

    with np.load(tmp_path / "results.npz") as saved:
        results = dict(saved)
    np.testing.assert_allclose(results["DIMS 1/Rg"], gyration, rtol=1e-5)
    for end, reference in (("closed", frames[0]), ("open", frames[-1])):
        expected = [rmsd(frame, reference, superposition=True) for frame in frames]
        np.testing.assert_allclose(results[f"DIMS 1/{end}"], expected, atol=1e-5)
    pairs = np.triu_indices(len(ca), k=4)
    distances = np.linalg.norm(frames[50][pairs[0]] - frames[50][pairs[1]], axis=1)
    np.testing.assert_allclose(results["DIMS 1/distances"][50], distances, rtol=1e-5)
    assert results["DIMS 1/aligned"].shape == (98, 3341, 3)
    assert results["DIMS 1/Q"][0] == 1
    assert "Adenylate kinase, closed to open: 3 paths, 300 frames of 3341 atoms" in out


@pytest.mark.parametrize(
    ("got", "named"),
    [
        ({"x": np.array([0.0, 1.0])}, []),
        ({"x": np.array([-0.0, 1.0])}, ["x"]),
        ({"x": np.array([0.0, 1.0], dtype=np.float32)}, ["x"]),
        ({"x": np.array([[0.0, 1.0]])}, ["x"]),
        ({"x": np.array([0.0, 1.0]), "y": np.array(1)}, ["y"]),
        ({}, ["x"]),
    ],
)
def test_demo_sees_a_single_bit(run_demo, got, named):
    assert run_demo["difference"]({"x": np.array([0.0, 1.0])}, got) == named


def test_demo_tells_when_answers_differ(run_demo):
    from rich.console import Console

    def side(name, answer, report="report"):
        return run_demo["Side"](
            name=name,
            script=EXAMPLES / "dask_trajectory.py",
            scheduler="",
            first=[1.0],
            later=[1.0],
            received=[1e6],
            sent=[1e6],
            reports=[report],
            results=[{"answer": np.array(answer)}],
        )

    console = Console(record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        assert run_demo["compare"](side("bare", 1.0), side("ours", 1.0), console)
        assert not run_demo["compare"](side("bare", 1.0), side("ours", 2.0), console)
        assert not run_demo["compare"](side("bare", 1.0), side("ours", 1.0, "another"), console)
    said = console.export_text()
    assert said.count("Same answers") == 1
    assert "The answers differ: answer." in said
    assert "The answers differ: in the printed report." in said


@pytest.mark.timeout(300)
def test_the_parsl_script_gives_the_same_answers():
    text = (EXAMPLES / "parsl_trajectory.py").read_text(encoding="utf-8")
    assert text.count("wrap(") == 1
    out = run("parsl_trajectory.py", "--compare", "--every", "4")
    assert "Same answers, bit for bit" in out
    assert "times as fast" in out


def test_the_futures_script_gives_the_same_answers():
    ours, bare = run("futures_trajectory.py"), run("futures_trajectory.py", "--bare")
    assert ours == bare
    assert "share of first contacts" in ours


def test_the_globus_compute_script_gives_the_same_answers(tmp_path):
    """Above the service's limit, on a real endpoint engine behind a fake service."""
    from concurrent.futures import ThreadPoolExecutor

    from globus_fakes import LIMIT, FakeService, process_pool

    from proxystore_integrations.globus_compute import Executor

    script = runpy.run_path(str(EXAMPLES / "globus_compute_trajectory.py"))
    with ThreadPoolExecutor(1) as pool:
        expected = script["analyse"](pool)
    with (
        FakeService(process_pool(), tmp_path) as service,
        Executor(service.endpoint_id, service.client()) as executor,
    ):
        executor.api_burst_limit = 1
        maps = script["analyse"](executor)
        sizes = [size for size, _ in service.batches]
    assert maps.keys() == expected.keys()
    for name, map_ in maps.items():
        np.testing.assert_array_equal(map_, expected[name])
    assert max(sizes) < LIMIT / 500
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "globus_compute_trajectory.py")],
        check=False,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 2
    assert "--endpoint" in done.stderr


def test_the_ray_script_gives_the_same_answers_under_the_environment_variable():
    text = (EXAMPLES / "ray_trajectory.py").read_text(encoding="utf-8")
    assert "import proxystore" not in text
    assert "from proxystore" not in text
    out = run("ray_trajectory.py", "--compare", "--every", "4")
    assert "Same answers, bit for bit" in out
    assert "times as fast" in out
