"""In the style of Dask's own tutorial: futures, delayed, a collection."""

import dask
import dask.array as da
import numpy as np
from dask.distributed import Client, as_completed


def inc(x):
    return x + 1


def total(*arrays):
    return float(sum(array.sum() for array in arrays))


if __name__ == "__main__":
    client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
    data = np.arange(300_000, dtype=float)

    future = client.submit(inc, data)
    print("submit", future.result().sum())

    futures = client.map(inc, [data * i for i in range(4)])
    print("map", [float(array[-1]) for array in client.gather(futures)])
    print("chained", client.submit(total, *futures).result())
    print("as completed", sorted(float(array.sum()) for _, array in as_completed(futures, with_results=True)))

    lazy = dask.delayed(total)(dask.delayed(inc)(data), data)
    print("delayed", lazy.compute())

    x = da.from_array(data.reshape(600, 500), chunks=(300, 500))
    print("array", (x + x.T[:1, :600].sum()).mean().compute())

    try:
        client.submit(np.linalg.inv, data[:250_000].reshape(500, 500) * 0).result()
    except np.linalg.LinAlgError as error:
        print("error", error)
    print("client", type(client).__name__, isinstance(client, Client))
    client.close()
