"""Which contacts break while adenylate kinase opens? Simulated paths, analysed by a process pool.

    pip install proxystore-integrations MDAnalysis MDAnalysisTests
    python examples/futures_trajectory.py [--workers 2] [--bare]

An ordinary script around a `ProcessPoolExecutor`, but for the one `StoreExecutor`. The trajectories are
real ones that ship with MDAnalysisTests; each task takes a whole path, some 8 to 80 MB of coordinates.
"""

import argparse
import sys
import time
import warnings
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxystore_integrations.futures import StoreExecutor

CONTACT = 8.0  # Angstrom between the C-alpha atoms of residues at least four places apart
COPIES = 5  # of each frame, with the thermal noise of as many repeated simulations


def read(topology: str, trajectory: str, every: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Coordinates (frames, atoms, 3) in Angstrom, and which of the atoms are C-alpha."""
    import MDAnalysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        universe = MDAnalysis.Universe(topology, trajectory)
        frames = universe.trajectory.timeseries(order="fac", step=every)
    return np.asarray(frames, dtype=np.float64), universe.select_atoms("name CA").indices


def shaken(frames: NDArray[Any], amplitude: float, seed: int) -> NDArray[Any]:
    """Each frame several times, with Gaussian noise of so many Angstrom."""
    noise = np.random.default_rng(seed).normal(0, amplitude, (len(frames), COPIES, *frames.shape[1:]))
    return np.asarray((frames[:, None] + noise).reshape(-1, *frames.shape[1:]))


def contacts(frames: NDArray[Any], atoms: NDArray[Any]) -> NDArray[Any]:
    """The share of frames, in ten parts of the path, in which each pair of residues is in contact."""
    first, second = np.triu_indices(len(atoms), k=4)
    parts = []
    for part in np.array_split(frames[:, atoms], 10):
        close = [np.linalg.norm(x[first] - x[second], axis=1) < CONTACT for x in part]
        parts.append(np.mean(close, axis=0))
    return np.asarray(parts)


def analyse(executor: Executor, every: int = 1) -> dict[str, NDArray[Any]]:
    from MDAnalysisTests import datafiles

    files = {
        "DIMS 1": (datafiles.PSF, datafiles.DCD),
        "DIMS 2": (datafiles.PSF, datafiles.DCD2),
        "TMD": (datafiles.PSF_NAMD_GBIS, datafiles.DCD_NAMD_GBIS),
    }
    paths = {name: read(*names, every) for name, names in files.items()}
    noisy = {
        name: executor.submit(shaken, frames, 0.3, seed)
        for seed, (name, (frames, _)) in enumerate(paths.items())
    }
    shares = {
        name: executor.submit(contacts, future.result(), paths[name][1]) for name, future in noisy.items()
    }
    return {name: future.result() for name, future in shares.items()}


def report(shares: dict[str, NDArray[Any]]) -> None:
    print(f"{'share of first contacts':26}" + "".join(f"{part * 10:>6} %" for part in range(10)))
    for name, share in shares.items():
        kept = share[:, share[0] > 0.5].mean(axis=1)
        print(f"{name:26}" + "".join(f"{value:>8.2f}" for value in kept))


def main() -> None:
    parser = argparse.ArgumentParser(description="Which contacts break while adenylate kinase opens?")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--bare", action="store_true", help="without a store")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th frame (default: all)")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.workers) as pool:
        executor: Executor = pool if arguments.bare else StoreExecutor(pool)
        start = time.perf_counter()
        shares = analyse(executor, arguments.every)
        print(f"analysed in {time.perf_counter() - start:.2f} s", file=sys.stderr)
        executor.shutdown()
    report(shares)


if __name__ == "__main__":
    main()
