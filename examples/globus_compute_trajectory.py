"""How far apart are the ways in which adenylate kinase opens? Compared on a Globus Compute endpoint.

    pip install "proxystore-integrations[globus-compute,redis]" MDAnalysis MDAnalysisTests
    python examples/globus_compute_trajectory.py --endpoint UUID --store redis://host:6379

An ordinary script around the SDK's `Executor`, but for one import. A path is 8 to 12 MB of coordinates and
the service takes 10 MB, so that without a store the tasks are refused. The store is one that this machine and
the endpoint reach. The trajectories are real ones that ship with MDAnalysisTests.
"""

import argparse
import sys
import time
import warnings
from concurrent.futures import Executor as AnyExecutor
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Functions go to the endpoint as they are written here: each imports what it needs.


def aligned(frames: NDArray[Any], atoms: NDArray[Any]) -> NDArray[Any]:
    """Each frame without drift and rotation: its C-alpha atoms fitted to those of the first (Kabsch)."""
    import numpy as np

    frames = frames - frames[:, atoms].mean(axis=1, keepdims=True)
    reference = frames[0, atoms]
    for number, frame in enumerate(frames):
        left, _, right = np.linalg.svd(frame[atoms].T @ reference)
        left[:, -1] *= np.sign(np.linalg.det(left @ right))
        frames[number] = frame @ left @ right
    return np.asarray(frames)


def distances(path: NDArray[Any], other: NDArray[Any], atoms: NDArray[Any], others: NDArray[Any]) -> Any:
    """Root mean square distance of the C-alpha atoms, each frame of a path to each of another, Angstrom."""
    import numpy as np

    first, second = path[:, atoms], other[:, others]
    return np.asarray([np.sqrt(((second - frame) ** 2).sum(axis=2).mean(axis=1)) for frame in first])


def read(topology: str, trajectory: str, every: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Coordinates (frames, atoms, 3) in Angstrom, and which of the atoms are C-alpha."""
    import MDAnalysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        universe = MDAnalysis.Universe(topology, trajectory)
        frames = universe.trajectory.timeseries(order="fac", step=every)
    return np.asarray(frames, dtype=np.float64), universe.select_atoms("name CA").indices


def analyse(executor: AnyExecutor, every: int = 1) -> dict[str, NDArray[Any]]:
    """Distance maps of all pairs of paths."""
    from MDAnalysisTests import datafiles

    files = {
        "DIMS 1": (datafiles.PSF, datafiles.DCD),
        "DIMS 2": (datafiles.PSF, datafiles.DCD2),
        "TMD": (datafiles.PSF_NAMD_GBIS, datafiles.DCD_NAMD_GBIS),
    }
    paths = {name: read(*names, every) for name, names in files.items()}
    fitted = {name: executor.submit(aligned, frames, atoms) for name, (frames, atoms) in paths.items()}
    maps = {
        f"{first} - {second}": executor.submit(
            distances, fitted[first].result(), fitted[second].result(), paths[first][1], paths[second][1]
        )
        for first, second in combinations(paths, 2)
    }
    return {name: future.result() for name, future in maps.items()}


def report(maps: dict[str, NDArray[Any]]) -> None:
    print(f"{'Hausdorff distance, Angstrom':30}{'':4}{'mean':>6}")
    for name, between in maps.items():
        hausdorff = max(between.min(axis=0).max(), between.min(axis=1).max())
        print(f"{name:30}{hausdorff:>4.1f}{between.mean():>6.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="How far apart are the ways in which adenylate kinase opens?"
    )
    parser.add_argument("--endpoint", required=True, metavar="UUID", help="Globus Compute endpoint")
    parser.add_argument("--store", help="URL that this machine and the endpoint reach, redis://host:6379")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th frame (default: all)")
    arguments = parser.parse_args()
    from proxystore_integrations.globus_compute import (
        Executor,  # was: from globus_compute_sdk import Executor
    )

    with Executor(arguments.endpoint, store=arguments.store) as executor:
        start = time.perf_counter()
        maps = analyse(executor, arguments.every)
        print(f"compared in {time.perf_counter() - start:.2f} s", file=sys.stderr)
    report(maps)


if __name__ == "__main__":
    main()
