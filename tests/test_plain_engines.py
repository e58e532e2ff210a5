"""Engines without pickle: what needs one goes the engine's own way, and one that is stored is not read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import futures_tasks as tasks
import numpy as np
import pytest
from engines import ENGINES

from proxystore_core import Store
from proxystore_core.frames import KIND_PLAIN, unpack


class Trap:
    """Whoever unpickles it leaves a trace."""

    def __init__(self, witness: Path) -> None:
        self.witness = str(witness)
        self.size = bytes(10_000)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.witness, "w")


def kinds(directory: Path) -> list[int]:
    """How each object of a file store is serialized."""
    files = [path for path in directory.glob("*/*") if not path.name.startswith(".")]
    return [unpack(path.read_bytes()).kind for path in files]


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_of_engines(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYSTORE_ALLOW_PICKLE", "false")
    url, witness = f"file://{tmp_path}/store", tmp_path / "ran"
    array = np.full(50_000, 7.0)
    with ExitStack() as stack:
        submit = engine(stack, store=url, threshold=1000, results="always")
        result = submit(tasks.add, array)
        assert np.array_equal(result.result(60), array + 1)
        plain = kinds(tmp_path / "store")
        assert plain
        assert set(plain) == {KIND_PLAIN}
        parcel = submit(tasks.wrapped, tasks.Parcel(array))
        assert parcel.result(60).array.array.sum() == array.sum()
        assert set(kinds(tmp_path / "store")) == {KIND_PLAIN}
        with Store.from_url(url, name="theirs", allow_pickle=True) as theirs:
            trap = theirs.proxy(Trap(witness), populate_target=False)
            with pytest.raises(Exception, match="is a pickle"):
                submit(tasks.kind_of_target, trap).result(60)
            theirs.close(clear=True)
        assert not witness.exists()
