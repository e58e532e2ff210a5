"""What `ConnectorContract` has other processes do; not beside the tests, or each would import pytest."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from proxystore_core.connectors.base import Key

__all__ = ["get", "get_with", "main", "put", "put_for_ever", "set_for_ever", "set_once", "wait"]


def main(function: str) -> str:
    """The program of an interpreter that `testing_processes.start` starts, to call one of these."""
    return f"""
import pickle, sys
path, call = pickle.load(sys.stdin.buffer)
sys.path[:] = path
from {__name__} import {function}
{function}(*pickle.loads(call))
"""


def get(kind: type[Any], url: str, keys: Sequence[Key]) -> list[bytes | None]:
    return get_with(kind.from_url(url), keys)


def get_with(connector: Any, keys: Sequence[Key]) -> list[bytes | None]:
    found = [connector.get(key) for key in keys]
    connector.close()
    return [None if data is None else bytes(data) for data in found]


def put(kind: type[Any], url: str, data: Sequence[bytes]) -> list[Key]:
    connector = kind.from_url(url)
    keys = [connector.put([item]) for item in data]
    connector.close()
    return keys


def set_once(kind: type[Any], url: str, key: Key, data: Sequence[bytes]) -> None:
    connector = kind.from_url(url)
    connector.set(key, data)
    connector.close()


def wait(kind: type[Any], url: str, key: Key) -> bytes:
    connector = kind.from_url(url)
    assert connector.wait(key, 20)
    data = bytes(connector.get(key))
    connector.close()
    return data


def put_for_ever(kind: type[Any], url: str, session: str, size: int, started: int) -> None:
    """Put objects of 16 different buffers until killed; say at the descriptor `started` when there is one."""
    connector = kind.from_url(url)
    data = _sixteenths(size)
    while True:
        connector.put(data, session=session)
        started = _say(started)


def set_for_ever(kind: type[Any], url: str, keys: Sequence[Key], size: int, started: int) -> None:
    """Set reserved objects, as `put_for_ever` puts them, and wait to be killed."""
    connector = kind.from_url(url)
    data = _sixteenths(size)
    for key in keys:
        connector.set(key, data)
        started = _say(started)
    time.sleep(600)


def _sixteenths(size: int) -> list[bytes]:
    return [bytes([part]) * (size // 16) for part in range(16)]


def _say(started: int) -> int:
    """Say once that it has begun; -1, which stands for nobody to say it to."""
    if started >= 0:
        os.write(started, b".")
        os.close(started)
    return -1
