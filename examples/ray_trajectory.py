"""How sure are the motions of adenylate kinase? Resampled simulations of its opening, with Ray.

    pip install "proxystore-integrations[ray]" MDAnalysis MDAnalysisTests
    python examples/ray_trajectory.py [--compare] [--every N] [--output results.npz]

An ordinary Ray script, which knows nothing of a store; the environment variable gives it one:

    RAY_RUNTIME_ENV_HOOK=proxystore_integrations.ray.runtime_env_hook python examples/ray_trajectory.py

The trajectories are real ones that ship with MDAnalysisTests. Each of them, about 8 MB of coordinates, is
passed to twenty tasks as a plain argument: Ray copies it twenty times, with a store it is kept once.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import ray

SAMPLES = 20
HOOK = "proxystore_integrations.ray.runtime_env_hook"


def read(topology: str, trajectory: str, every: int) -> tuple[Any, Any]:
    """A path: coordinates (frames, atoms, 3) in Angstrom, as float64, and which atoms are C-alpha."""
    import MDAnalysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        universe = MDAnalysis.Universe(topology, trajectory)
        frames = universe.trajectory.timeseries(order="fac", step=every).astype(np.float64)
    return np.ascontiguousarray(frames), universe.select_atoms("name CA").indices


@ray.remote
def superposed(path: Any, ca: Any) -> Any:
    """All frames of a path with their C-alpha atoms as close as can be to the first frame's."""
    target = path[0, ca] - path[0, ca].mean(axis=0)
    atoms = path[:, ca]
    centre = atoms.mean(axis=1, keepdims=True)
    u, _, vt = np.linalg.svd((atoms - centre).transpose(0, 2, 1) @ target)
    u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]
    return (path - centre) @ (u @ vt)


@ray.remote
def moves(path: Any, ca: Any, seed: int) -> Any:
    """How far (Angstrom) each residue moves over as many frames, drawn with replacement."""
    frames = np.random.default_rng(seed).integers(len(path), size=len(path))
    return np.sqrt(path[frames][:, ca].var(axis=0).sum(axis=1))


def analyse(every: int) -> dict[str, Any]:
    from MDAnalysisTests import datafiles

    files = {
        "DIMS 1": (datafiles.PSF, datafiles.DCD),
        "DIMS 2": (datafiles.PSF, datafiles.DCD2),
        "TMD": (datafiles.PSF_NAMD_GBIS, datafiles.DCD_NAMD_GBIS),
    }
    paths = {name: read(*names, every) for name, names in files.items()}
    start = time.perf_counter()
    results: dict[str, Any] = {}
    for name, (path, ca) in paths.items():
        aligned = ray.get(superposed.remote(path, ca))
        results[name] = np.stack(ray.get([moves.remote(aligned, ca, seed) for seed in range(SAMPLES)]))
    results["seconds"] = time.perf_counter() - start
    return results


def report(results: dict[str, Any]) -> None:
    for name, samples in results.items():
        means, spread = samples.mean(axis=0), samples.std(axis=0)
        most = int(means.argmax())
        moved = f"{means[most]:.2f} ± {spread[most]:.2f} Å"
        print(f"{name:8} residue {most + 1} moves most, {moved}; all within ± {spread.max():.2f} Å")


def run(output: str | None, every: int) -> None:
    # The imports of a task are the workers' to do before anything is timed.
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    small = np.random.default_rng(0).random((9, 9, 3))
    ray.get([moves.remote(small, np.arange(9), seed) for seed in range(8)])
    results = analyse(every)
    ray.shutdown()
    seconds = results.pop("seconds")
    report(results)
    print(f"analysed in {seconds:.2f} s", file=sys.stderr)
    if output:
        np.savez(output, seconds=seconds, **results)


def compare(every: int) -> bool:
    """Run it bare and with a store, each as a process; whether the answers are the same, bit for bit."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, variables in (("bare Ray", {}), ("with a store", {"RAY_RUNTIME_ENV_HOOK": HOOK})):
            output = Path(folder) / f"{name}.npz"
            subprocess.run(
                [sys.executable, __file__, "--every", str(every), "--output", str(output)],
                check=True,
                env={**os.environ, **variables},
                stdout=subprocess.DEVNULL if variables else None,
                stderr=subprocess.DEVNULL,
            )
            with np.load(output) as file:
                found[name] = dict(file)
    bare, ours = found.values()
    times = [float(results.pop("seconds")) for results in found.values()]
    same = bare.keys() == ours.keys() and all(np.array_equal(bare[name], ours[name]) for name in bare)
    print(
        f"bare Ray {times[0]:.2f} s, with a store {times[1]:.2f} s: {times[0] / times[1]:.1f} times as fast"
    )
    print("Same answers, bit for bit." if same else "The answers differ.")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description="How sure are the motions of adenylate kinase?")
    parser.add_argument("--compare", action="store_true", help="run it with and without a store and compare")
    parser.add_argument("--output", metavar="FILE", help="save all results and the time to this .npz file")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th frame (default: all)")
    arguments = parser.parse_args()
    if arguments.compare:
        return 0 if compare(arguments.every) else 1
    run(arguments.output, arguments.every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
