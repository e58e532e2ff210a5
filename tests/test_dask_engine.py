"""Dask: releases that this integration was not made for."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import distributed
import numpy as np
import pytest

from proxystore_core import MissingExtraError
from proxystore_integrations.dask import engine


def test_this_release_is_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.check_release(engine.version)


def test_an_old_release_is_refused():
    with pytest.raises(MissingExtraError, match=r"2025\.1\.0 is too old.*pip install"):
        engine.check_release("2025.1.0")


def test_a_newer_release_with_all_names_is_used_with_a_warning():
    with pytest.warns(RuntimeWarning, match=r"tested with Dask up to .* this is 2031\.2\.0"):
        engine.check_release("2031.2.0")


def test_a_name_that_is_gone_is_named(monkeypatch):
    monkeypatch.delattr(distributed.Client, "_graph_to_futures")
    with pytest.raises(MissingExtraError, match=r"has no Client\._graph_to_futures"):
        engine.check_release("2031.2.0")


SCRIPT = """
import glob
import warnings
import dask._task_spec
import numpy as np
from distributed import Client as Bare

del dask._task_spec.convert_legacy_graph  # Dask itself has it already
from proxystore_integrations.dask import Client, wrap

if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Client(
            n_workers=1, threshold="1 MB", store="shm://narrow-dask", dashboard_address=None
        ) as client:
            array = np.arange(200_000.0)
            objects = "/dev/shm/proxystore-*narrow-dask/*/[0-9a-f]*"
            total = client.submit(np.sum, array)
            bare = Bare(client.scheduler.address, set_as_default=False)
            print(total.result(), total.key == bare.submit(np.sum, array).key, len(glob.glob(objects)))
            bare.close()
            added = client.submit(np.add, total, array, pure=False)
            print(added.result()[0], client.submit(np.sum, [array, added]).result())
            by_value = client.submit(len, array, proxy_args=False)
            print(client.submit(np.sum, a=array).result(), by_value.result())
            print(client.gather(client.map(len, [array, array[1:], array[:3]], proxy_result=True)))
            print(client.gather(client.map(np.multiply, [1, 2], [array] * 2))[1][1])
            print(client.compute([client.submit(abs, -1)], sync=True))
            client.run(lambda: None)
            print(wrap(client) is client, isinstance(client, Bare), len(glob.glob(objects)))
        print(len(glob.glob(objects)))
    print(*[one.message for one in caught if one.category is RuntimeWarning], sep="|")
"""


def test_without_a_private_name_arguments_go_through_the_store_with_one_warning(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-1] == [
        "19999900000.0 True 1",
        f"19999900000.0 {added_sum()}",
        "19999900000.0 200000",
        "[200000, 199999, 3]",
        "2.0",
        "[1]",
        "True True 2",
        "0",
    ]
    warning = done.stdout.splitlines()[-1]
    assert "convert_legacy_graph" in warning
    assert "Only large arguments" in warning
    assert "|" not in warning


def added_sum():
    array = np.arange(200_000.0)
    return np.sum([array, array + array.sum()])
