"""How does adenylate kinase open? Three simulated closed-to-open paths, analysed with Dask.

    pip install distributed MDAnalysis MDAnalysisTests
    python examples/dask_trajectory.py [--workers 2] [--repeat 3] [--output results.npz]

The trajectories (two by dynamic importance sampling, DIMS, one by targeted MD) are real ones that
ship with MDAnalysisTests. Each task takes a whole path, about 8 MB of coordinates, and the aligned
coordinates and distance maps that come back are as big. MDAnalysis only reads the files.
"""

import argparse
import sys
import time
import warnings
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxystore_integrations.dask import Client

Array = NDArray[Any]  # coordinates are (frames, atoms, 3), in Angstrom

CORE = "name CA and (resid 1:29 or resid 60:121 or resid 160:214)"
ANGLES = {  # each angle: two arms and the hinge between them, as backbone centres of these residues
    "NMP": ("35:55", "90:100", "115:125"),
    "LID": ("179:185", "115:125", "125:153"),
}
CONTACT = 8.0  # Angstrom between the CA atoms of residues that are no neighbours in the chain


class Path(NamedTuple):
    """One trajectory and the atoms, by index, that the analysis looks at."""

    frames: Array
    masses: Array
    ca: Array
    core: Array
    angles: dict[str, list[Array]]


def read(topology: str, trajectory: str, every: int) -> Path:
    """Read a trajectory, or every so many-th frame, as float64: the superposition needs the digits."""
    import MDAnalysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of MDAnalysis about its own next version
        universe = MDAnalysis.Universe(topology, trajectory)
        frames = universe.trajectory.timeseries(order="fac", step=every)

    def select(selection: str) -> Array:
        return np.asarray(universe.select_atoms(selection).indices)

    return Path(
        frames=np.ascontiguousarray(frames, dtype=np.float64),
        masses=universe.atoms.masses,
        ca=select("name CA"),
        core=select(CORE),
        angles={
            name: [select(f"backbone and resid {residues}") for residues in arms]
            for name, arms in ANGLES.items()
        },
    )


def read_paths(every: int) -> dict[str, Path]:
    from MDAnalysisTests import datafiles

    return {
        "DIMS 1": read(datafiles.PSF, datafiles.DCD, every),
        "DIMS 2": read(datafiles.PSF, datafiles.DCD2, every),
        "TMD": read(datafiles.PSF_NAMD_GBIS, datafiles.DCD_NAMD_GBIS, every),
    }


# The tasks.


def radius_of_gyration(frames: Array, masses: Array) -> Array:
    weights = masses / masses.sum()
    arms = frames - (weights @ frames)[:, None]
    return np.asarray(np.sqrt((arms * arms).sum(axis=2) @ weights))


def domain_angle(frames: Array, groups: list[Array]) -> Array:
    """The angle (degrees) at the second group's centre, for each frame."""
    first, hinge, last = (frames[:, group].mean(axis=1) for group in groups)
    a, b = first - hinge, last - hinge
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.degrees(np.arccos((a * b).sum(axis=1) / lengths)))


def rotations(mobile: Array, reference: Array) -> Array:
    """Kabsch: the proper rotation that brings each centred frame onto the centred reference."""
    u, _, vt = np.linalg.svd(mobile.transpose(0, 2, 1) @ reference)
    u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]
    return np.asarray(u @ vt)


def superpose(frames: Array, atoms: Array, reference: Array) -> Array:
    """Move all atoms of each frame so that the given ones lie best on the reference."""
    centred = frames - frames[:, atoms].mean(axis=1)[:, None]
    centre = reference.mean(axis=0)
    return np.asarray(centred @ rotations(centred[:, atoms], reference - centre) + centre)


def rmsd(frames: Array, atoms: Array, reference: Array) -> Array:
    """The least RMSD (Angstrom) of the given atoms to the reference, for each frame."""
    difference = superpose(frames[:, atoms], np.arange(len(atoms)), reference) - reference
    return np.asarray(np.sqrt((difference * difference).sum(axis=2).mean(axis=1)))


def distance_map(frames: Array, atoms: Array) -> Array:
    """The distances between atoms at least four places apart: float32 of shape (frames, pairs)."""
    first, second = np.triu_indices(len(atoms), k=4)
    distances = np.empty((len(frames), len(first)), dtype=np.float32)
    for row, x in zip(distances, frames[:, atoms], strict=True):
        square = (x * x).sum(axis=1)
        row[:] = np.sqrt((square[:, None] + square - 2 * (x @ x.T))[first, second])
    return distances


def moments(frames: Array, atoms: Array) -> tuple[int, Array, Array]:
    x = frames[:, atoms]
    return len(x), x.sum(axis=0), (x * x).sum(axis=0)


def rmsf(parts: list[tuple[int, Array, Array]]) -> Array:
    """The fluctuation (Angstrom) of each atom over the frames of all paths."""
    count = sum(part[0] for part in parts)
    mean = np.sum([part[1] for part in parts], axis=0) / count
    mean_square = np.sum([part[2] for part in parts], axis=0) / count
    return np.asarray(np.sqrt((mean_square - mean * mean).sum(axis=1)))


def hausdorff(a: Array, a_atoms: Array, b: Array, b_atoms: Array) -> float:
    """How far (Angstrom, RMSD without a further fit) two aligned paths get from each other."""
    x, y = a[:, a_atoms].reshape(len(a), -1), b[:, b_atoms].reshape(len(b), -1)
    square = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * (x @ y.T)
    distances = np.sqrt(np.maximum(square, 0) / len(a_atoms))
    return float(max(distances.min(axis=0).max(), distances.min(axis=1).max()))


# The workflow.


def analyse(client: Client, paths: dict[str, Path]) -> dict[str, Any]:
    """Submit one task per path and question, chain the aligned coordinates, gather it all."""
    start = next(iter(paths.values()))
    closed, opened = start.frames[0], start.frames[-1]
    futures: dict[str, Any] = {}
    for name, path in paths.items():
        futures[f"{name}/Rg"] = client.submit(radius_of_gyration, path.frames, path.masses)
        futures[f"{name}/closed"] = client.submit(rmsd, path.frames, path.ca, closed[start.ca])
        futures[f"{name}/open"] = client.submit(rmsd, path.frames, path.ca, opened[start.ca])
        for angle, groups in path.angles.items():
            futures[f"{name}/{angle}"] = client.submit(domain_angle, path.frames, groups)
        futures[f"{name}/aligned"] = client.submit(superpose, path.frames, path.core, closed[start.core])
        futures[f"{name}/distances"] = client.submit(distance_map, futures[f"{name}/aligned"], path.ca)
    for a, b in combinations(paths, 2):
        aligned = futures[f"{a}/aligned"], futures[f"{b}/aligned"]
        futures[f"{a} - {b}"] = client.submit(hausdorff, aligned[0], paths[a].ca, aligned[1], paths[b].ca)
    parts = [client.submit(moments, futures[f"{name}/aligned"], paths[name].ca) for name in paths]
    futures["RMSF"] = client.submit(rmsf, parts)

    results: dict[str, Any] = client.gather(futures)
    closed_contacts = results[f"{next(iter(paths))}/distances"][0] < CONTACT
    for name in paths:
        results[f"{name}/Q"] = (results[f"{name}/distances"] < CONTACT)[:, closed_contacts].mean(axis=1)
    motion = np.concatenate([results[f"{name}/aligned"][:, path.ca] for name, path in paths.items()])
    motion = (motion - motion.mean(axis=0)).reshape(len(motion), -1)
    variances = np.linalg.eigvalsh(motion @ motion.T)[::-1]
    results["PCA"] = variances[:3] / variances.sum()
    return results


def report(paths: dict[str, Path], results: dict[str, Any]) -> None:
    frames = sum(len(path.frames) for path in paths.values())
    atoms = next(iter(paths.values())).frames.shape[1]
    print(f"Adenylate kinase, closed to open: {len(paths)} paths, {frames} frames of {atoms} atoms\n")
    rows = {
        "Rg (Å)": "Rg",
        "RMSD to closed (Å)": "closed",
        "RMSD to open (Å)": "open",
        "NMP angle (°)": "NMP",
        "LID angle (°)": "LID",
        "contacts kept": "Q",
    }
    print(f"{'first > last frame':20}" + "".join(f"{name:>18}" for name in paths))
    for title, key in rows.items():
        series = [results[f"{name}/{key}"] for name in paths]
        print(f"{title:20}" + "".join(f"{f'{values[0]:.2f} > {values[-1]:.2f}':>18}" for values in series))
    fluctuation = results["RMSF"]
    flexible = ", ".join(f"{i + 1} ({fluctuation[i]:.1f} Å)" for i in np.argsort(-fluctuation)[:5])
    print(f"\nRMSF: median {np.median(fluctuation):.1f} Å, most in residues {flexible}")
    for a, b in combinations(paths, 2):
        print(f"Hausdorff distance {a} - {b}: {results[f'{a} - {b}']:.2f} Å")
    shares = ", ".join(f"{share:.1%}" for share in results["PCA"])
    print(f"Variance in the first three principal components: {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description="How does adenylate kinase open?")
    parser.add_argument("--workers", type=int, default=2, help="worker processes to start (default: 2)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="use this running cluster instead")
    parser.add_argument("--repeat", type=int, default=1, help="analyse so many times (default: once)")
    parser.add_argument("--output", metavar="FILE", help="save all results and times to this .npz file")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th frame (default: all)")
    arguments = parser.parse_args()

    paths = read_paths(arguments.every)
    cluster: dict[str, Any] = {"n_workers": arguments.workers, "threads_per_worker": 1}
    if arguments.scheduler:
        cluster = {"address": arguments.scheduler}
    seconds = []
    with Client(**cluster) as client:
        for _ in range(arguments.repeat):
            start = time.perf_counter()
            results = analyse(client, paths)
            seconds.append(time.perf_counter() - start)
            print(f"analysed in {seconds[-1]:.2f} s", file=sys.stderr)
    report(paths, results)
    if arguments.output:
        np.savez(arguments.output, seconds=seconds, **results)


if __name__ == "__main__":
    main()
