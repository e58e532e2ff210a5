"""How alike are the ways in which adenylate kinase opens? Three simulated paths, compared with Parsl.

    pip install "proxystore-integrations[parsl]" MDAnalysis MDAnalysisTests
    python examples/parsl_trajectory.py [--bare] [--compare] [--every N] [--output results.npz]

An ordinary Parsl script but for one `wrap`. Workers read the trajectories (real ones, which ship with
MDAnalysisTests), superpose them and compare all their frames; the coordinates, about 8 MB a path, go
from app to app and never through this process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import parsl
from parsl import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from proxystore_integrations.parsl import wrap


@python_app
def read(topology: str, trajectory: str, every: int) -> Any:
    """A path: coordinates (frames, atoms, 3) in Angstrom, as float64, of the C-alpha atoms and of all."""
    import warnings

    import MDAnalysis
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        universe = MDAnalysis.Universe(topology, trajectory)
        frames = universe.trajectory.timeseries(order="fac", step=every).astype(np.float64)
    return {"all": np.ascontiguousarray(frames), "ca": universe.select_atoms("name CA").indices}


@python_app
def superposed(path: Any, reference: Any) -> Any:
    """All frames of a path, each with its C-alpha atoms as close as can be to the reference's first ones."""
    import numpy as np

    target = reference["all"][0, reference["ca"]]
    target = target - target.mean(axis=0)
    atoms = path["all"][:, path["ca"]]
    centre = atoms.mean(axis=1, keepdims=True)
    u, _, vt = np.linalg.svd((atoms - centre).transpose(0, 2, 1) @ target)
    u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]
    return {"all": (path["all"] - centre) @ (u @ vt), "ca": path["ca"]}


@python_app
def distances(a: Any, b: Any) -> Any:
    """RMSD (Angstrom) between the C-alpha atoms of all frames of two superposed paths."""
    import numpy as np

    x, y = (path["all"][:, path["ca"]].reshape(len(path["all"]), -1) for path in (a, b))
    square = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * (x @ y.T)
    return np.sqrt(np.maximum(square, 0) / len(a["ca"]))


@python_app
def spread(paths: Any) -> Any:
    """How far (Angstrom) each atom moves over all frames of all paths."""
    import numpy as np

    frames = np.concatenate([path["all"] for path in paths])
    return np.sqrt(frames.var(axis=0).sum(axis=1))


def analyse(every: int) -> dict[str, Any]:
    from MDAnalysisTests import datafiles

    files = {
        "DIMS 1": (datafiles.PSF, datafiles.DCD),
        "DIMS 2": (datafiles.PSF, datafiles.DCD2),
        "TMD": (datafiles.PSF_NAMD_GBIS, datafiles.DCD_NAMD_GBIS),
    }
    paths = {name: read(*names, every) for name, names in files.items()}
    aligned = {name: superposed(path, paths["DIMS 1"]) for name, path in paths.items()}
    alike = {f"{a} - {b}": distances(aligned[a], aligned[b]) for a, b in combinations(paths, 2)}
    moves = spread([aligned["DIMS 1"], aligned["DIMS 2"]])
    return {**{name: future.result() for name, future in alike.items()}, "spread": moves.result()}


def report(results: dict[str, Any]) -> None:
    for name, square in results.items():
        if name != "spread":
            hausdorff = max(square.min(axis=0).max(), square.min(axis=1).max())
            print(f"{name:16} Hausdorff distance {hausdorff:5.2f} Å, ends {square[-1, -1]:5.2f} Å apart")
    moves = results["spread"]
    print(f"{len(moves)} atoms move by {np.median(moves):.1f} Å in the middle, {moves.max():.1f} Å at most")


def run(bare: bool, output: str | None, every: int) -> None:
    # Parsl finds its own programs on the path.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            executors=[
                HighThroughputExecutor(
                    label="local",
                    address="127.0.0.1",
                    max_workers_per_node=2,
                    provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
                )
            ],
            dependency_resolver=parsl.dataflow.dependency_resolvers.DEEP_DEPENDENCY_RESOLVER,
            run_dir=folder,
            strategy_period=0.5,
            initialize_logging=False,
        )
        with parsl.load(config if bare else wrap(config)):
            analyse(every)  # workers start and import
            start = time.perf_counter()
            results = analyse(every)
            seconds = time.perf_counter() - start
    report(results)
    print(f"analysed in {seconds:.2f} s", file=sys.stderr)
    if output:
        np.savez(output, seconds=seconds, **results)


def compare(every: int) -> bool:
    """Run it bare and with a store, each as a process; whether the answers are the same, bit for bit."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in (("bare Parsl", ["--bare"]), ("with a store", [])):
            output = Path(folder) / f"{name}.npz"
            command = [sys.executable, __file__, *flags, "--every", str(every), "--output", str(output)]
            subprocess.run(
                command, check=True, stdout=None if flags else subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            with np.load(output) as file:
                found[name] = dict(file)
    bare, ours = found.values()
    times = [float(results.pop("seconds")) for results in found.values()]
    same = bare.keys() == ours.keys() and all(np.array_equal(bare[name], ours[name]) for name in bare)
    print(
        f"bare Parsl {times[0]:.2f} s, with a store {times[1]:.2f} s: {times[0] / times[1]:.1f} times as fast"
    )
    print("Same answers, bit for bit." if same else "The answers differ.")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description="How alike are the ways in which adenylate kinase opens?")
    parser.add_argument("--bare", action="store_true", help="without a store")
    parser.add_argument("--compare", action="store_true", help="run it both ways and compare")
    parser.add_argument("--output", metavar="FILE", help="save all results and the time to this .npz file")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th frame (default: all)")
    arguments = parser.parse_args()
    if arguments.compare:
        return 0 if compare(arguments.every) else 1
    run(arguments.bare, arguments.output, arguments.every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
