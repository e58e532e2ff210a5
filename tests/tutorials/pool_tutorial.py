"""In the style of the standard library's documentation: a pool of processes."""

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed, wait

import numpy as np


def scale(array, by=2.0):
    return array * by


def fail(array):
    raise ValueError(f"no {array.shape}")


if __name__ == "__main__":
    data = np.arange(300_000, dtype=float)
    with ProcessPoolExecutor(max_workers=2) as pool:
        futures = [pool.submit(scale, data, by=i) for i in range(4)]
        print("completed", sorted(float(future.result().sum()) for future in as_completed(futures)))
        print("map", [float(array[1]) for array in pool.map(scale, [data, data + 1, data + 2], chunksize=2)])
        done, not_done = wait([pool.submit(len, data), pool.submit(os.path.basename, "/a/b")])
        print("wait", sorted(str(future.result()) for future in done), not_done)
        print("error", repr(pool.submit(fail, data).exception()))
        print("time", pool.submit(time.strftime, "%Y", (2026, *[1] * 8)).result())
    try:
        pool.submit(len, data)
    except RuntimeError as error:
        print("after", error)
