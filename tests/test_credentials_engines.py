"""A password that the client alone was given is nowhere in the memory of a worker, whatever the engine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import futures_tasks as tasks
import numpy as np
import pytest
from engines import ENGINES, on_joblib
from measures import in_memory
from redis_servers import Server, serving

from proxystore_core.connectors.redis_login import PASSWORD

OURS, THEIRS = secrets.token_hex(12), secrets.token_hex(12)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One where a user has a password here, and another one where workers are."""
    user = ("--user", "alice", "reset", "on", f">{OURS}", f">{THEIRS}", "~*", "&*", "+@all")
    login = {"username": "alice", "password": OURS}
    with serving(tmp_path_factory.mktemp("r"), "--user", "default", "off", *user, witness=login) as server:
        yield server


@pytest.mark.parametrize("engine", [*ENGINES, on_joblib])
def test_workers_of_engines(engine: Any, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, THEIRS)
    url = f"redis://alice:{OURS}@{server.address}"
    array = np.full(50_000, 7.0)
    with ExitStack() as stack:
        submit = engine(stack, store=url, threshold=1000, results="always", on_store_error="raise")
        result = submit(tasks.add, array)
        assert np.array_equal(result.result(60), array + 1)
        assert server.witness.keys("*"), "nothing was stored"
        worker = submit(os.getpid).result(60)
        assert worker != os.getpid()
        assert in_memory(worker, THEIRS.encode())
        assert not in_memory(worker, OURS.encode())
        assert in_memory(os.getpid(), OURS.encode())
        del result
