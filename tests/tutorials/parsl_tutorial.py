"""In the style of Parsl's own tutorial: apps, dependencies, a join."""

import os
import sys
import tempfile

import numpy as np
import parsl
from parsl import join_app, python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.providers import LocalProvider

os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])


@python_app(executors=["htex"])
def double(x):
    return x * 2


@python_app(executors=["htex"])
def add(x, y):
    return x + y


@python_app(executors=["threads"])
def mean(x):
    return float(x.mean())


@python_app(executors=["htex"])
def fail(x):
    raise ValueError(f"no {len(x)}")


@join_app
def twice(x):
    return double(double(x))


if __name__ == "__main__":
    config = Config(
        executors=[
            HighThroughputExecutor(
                label="htex",
                address="127.0.0.1",
                encrypted=False,
                max_workers_per_node=2,
                heartbeat_period=2,
                heartbeat_threshold=6,
                provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
            ),
            ThreadPoolExecutor(label="threads"),
        ],
        run_dir=tempfile.mkdtemp(),
        strategy="none",
        initialize_logging=False,
    )
    with parsl.load(config):
        data = np.arange(300_000, dtype=float)
        doubled = double(data)
        print("result", doubled.result().sum())
        print("chained", mean(add(doubled, data)).result())
        print("joined", twice(data).result()[-1])
        print("many", [float(future.result()[1]) for future in [double(data + i) for i in range(4)]])
        print("error", repr(fail(data).exception()))
    print("executor", type(config.executors[0]).__name__)
