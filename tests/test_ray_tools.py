"""`proxystore doctor` asks a Ray cluster's nodes, and `proxystore tune` measures Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PYTHON = [sys.executable, "-m", "proxystore_integrations"]
CLUSTER = """
import sys, ray
context = ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


def proxystore(*words: str, **variables: str) -> tuple[int, Any]:
    done = subprocess.run(
        [*PYTHON, *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, **variables},
    )
    return done.returncode, json.loads(done.stdout)


def test_doctor_asks_the_nodes_of_a_cluster(tmp_path):
    open_to_all = {"RAY_AUTH_MODE": "disabled"}  # else one process' token is no other's
    words = ("doctor", "--engine", "loky", "--store", f"file://{tmp_path}/store", "--ray")
    with (
        ThreadPoolExecutor(1) as pool,
        subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **open_to_all},
        ) as cluster,
    ):
        nobody = pool.submit(proxystore, *words, "127.0.0.1:1")
        address = cluster.stdout.readline().strip()
        code, found = proxystore(*words, address, **open_to_all)
        (node,) = [one for one in found if one["what"].startswith("ray worker")]
        assert (code, node["level"], node["detail"]) == (0, "ok", "reaches the store")
        cluster.stdin.close()
    code, found = nobody.result()
    (problem,) = [one for one in found if one["level"] == "problem"]
    assert (code, problem["what"]) == (1, "ray 127.0.0.1:1")
    assert "nothing answers there" in problem["detail"]
    assert "as ray start says" in problem["remedy"]


def test_tune_measures_arguments(tmp_path):
    words = ("tune", "--engine", "ray", "--sizes", "1kB,20MB", "--repeat", "1", "--workers", "1")
    code, found = proxystore(*words, XDG_CACHE_HOME=str(tmp_path))
    assert code == 0
    assert list(found["points"]) == ["arguments"]  # Ray keeps results in plasma
    assert [size for size, *_ in found["points"]["arguments"]] == [1000, 20_000_000]
