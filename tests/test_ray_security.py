"""Ray with a secret, and without pickle: what is stored shows nothing, and workers that lack it are told."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from redis_servers import serving

from proxystore_core.connectors.redis_login import PASSWORD
from proxystore_core.secret import VARIABLE

SCRIPT = """
import os, sys
from pathlib import Path
import numpy as np, ray, redis
import ray_tasks as work
from measures import in_memory
from proxystore_core import Store, encryption
from proxystore_core.frames import KIND_PLAIN, unpack
from proxystore_integrations.ray import init

how, place, *more = sys.argv[1:]
url = f"file://{place}/store"
if how == "password":
    address, ours, theirs = more
    url = f"redis://alice:{ours}@{address}"
    witness = redis.Redis.from_url(url)
init(**work.OPTIONS, store=url, threshold=1000, results="always")

def kept():
    if how == "password":
        return witness.keys("*")
    return [path.read_bytes() for path in Path(place, "store").glob("*/*") if path.name[0] != "."]

@ray.remote
class Worker:
    def add(self, array):
        return array + 1

    def pid(self):
        return os.getpid()

    def forget(self):
        from proxystore_core import registry
        del os.environ["PROXYSTORE_SECRET"]
        for store in list(registry._by_recipe.values()):
            store.close()

array = np.full(50_000, 7.0)
worker = Worker.remote()
result = worker.add.remote(array)
assert np.array_equal(ray.get(result), array + 1)
found = kept()
assert found
if how == "password":
    pid = ray.get(worker.pid.remote())
    print(in_memory(pid, theirs.encode()), in_memory(pid, ours.encode()))
elif how == "secret":
    assert all(map(encryption.is_encrypted, found))
    assert not any(plain.tobytes()[:800] in each for each in found for plain in (array, array + 1))
    ray.get(worker.forget.remote())
    try:
        ray.get(worker.add.remote(array + 2))
    except Exception as error:
        print(error)
else:
    assert {unpack(each).kind for each in found} == {KIND_PLAIN}
    holder = work.Holder(array)
    assert np.array_equal(ray.get(ray.put(holder)).array, array)
    assert {unpack(each).kind for each in kept()} == {KIND_PLAIN}
    with Store.from_url(url, name="theirs", allow_pickle=True) as theirs:
        proxy = theirs.proxy(work.Holder(array), populate_target=False)
        try:
            ray.get(worker.add.remote(proxy))
        except Exception as error:
            print(error)
        theirs.close(clear=True)
ray.shutdown()
"""


def script(*arguments: str, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **variables}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_secret(tmp_path: Path) -> None:
    said = script("secret", str(tmp_path), **{VARIABLE: "first" * 10})
    assert f"{os.uname().nodename} has no secret" in said
    assert f"Set {VARIABLE}" in said
    assert "firstfirst" not in said


def test_no_pickle(tmp_path: Path) -> None:
    assert "is a pickle" in script("plain", str(tmp_path), PROXYSTORE_ALLOW_PICKLE="false")


def test_a_password(tmp_path: Path) -> None:
    """One that the driver alone was given is nowhere in a worker's memory."""
    ours, theirs = secrets.token_hex(12), secrets.token_hex(12)
    user = ("--user", "alice", "reset", "on", f">{ours}", f">{theirs}", "~*", "&*", "+@all")
    login = {"username": "alice", "password": ours}
    with serving(tmp_path / "r", "--user", "default", "off", *user, witness=login) as server:
        said = script("password", str(tmp_path), server.address, ours, theirs, **{PASSWORD: theirs})
    assert said.split() == ["True", "False"]
