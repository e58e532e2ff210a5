"""In the style of joblib's own tutorial: Parallel, delayed, batches, a generator."""

from math import sqrt

import numpy as np
from joblib import Parallel, delayed, parallel_config


def fit(data, seed):
    return data[:: seed + 1].mean(), data * seed


if __name__ == "__main__":
    print(Parallel(n_jobs=1)(delayed(sqrt)(i**2) for i in range(10)))
    print(Parallel(n_jobs=2)(delayed(sqrt)(i**2) for i in range(10)))
    data = np.arange(300_000, dtype=float)
    found = Parallel(n_jobs=2)(delayed(fit)(data, seed) for seed in range(6))
    print([(float(mean), float(scaled.sum())) for mean, scaled in found])
    with Parallel(n_jobs=2, return_as="generator") as parallel:
        print([float(scaled[-1]) for _, scaled in parallel(delayed(fit)(data, seed) for seed in range(4))])
    with parallel_config(backend="threading", n_jobs=2):
        print(Parallel()(delayed(len)([i] * i) for i in range(3)))
    try:
        Parallel(n_jobs=2)(delayed(fit)(data, "x") for _ in range(2))
    except TypeError as error:
        print("error", error)
