"""In the style of Ray's own tutorial: tasks, actors, object references."""

import numpy as np
import ray


@ray.remote
def square(x):
    return x * x


@ray.remote
def total(*arrays):
    return float(sum(array.sum() for array in arrays))


@ray.remote
class Counter:
    def __init__(self):
        self.sum = 0.0

    def add(self, array):
        self.sum += float(array.sum())
        return self.sum


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    data = np.arange(300_000, dtype=float)
    print("tasks", [float(array[-1]) for array in ray.get([square.remote(data + i) for i in range(3)])])
    reference = ray.put(data)
    print("put", ray.get(total.remote(reference, square.remote(reference))))
    counter = Counter.remote()
    print("actor", [ray.get(counter.add.remote(data)) for _ in range(2)])
    ray.shutdown()
