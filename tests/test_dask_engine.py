"""Dask: releases that this integration was not made for."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import distributed
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
import warnings
import dask._task_spec
import numpy as np
from distributed import Client as Bare

del dask._task_spec.convert_legacy_graph  # Dask itself has it already
from proxystore_integrations.dask import Client, wrap

if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Client(n_workers=1, threshold="1 MB", store="shm://", dashboard_address=None) as client:
            array = np.arange(200_000.0)
            print(client.submit(np.sum, array, proxy_args=False).result())
            print(client.gather(client.map(len, [array, array[1:]], proxy_result=True)))
            print(wrap(client) is client, isinstance(client, Bare))
    print(*[one.message for one in caught if one.category is RuntimeWarning], sep="|")
"""


def test_without_a_private_name_all_goes_by_value_with_one_warning(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    total, lengths, same, warning = done.stdout.splitlines()
    assert (total, lengths, same) == ("19999900000.0", "[200000, 199999]", "True True")
    assert "convert_legacy_graph" in warning
    assert "|" not in warning
