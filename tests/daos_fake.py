"""A fake of ``pydaos`` (DAOS 2.x) on files, with its signatures and its pitfalls, reached by all processes.

Pools, containers and dictionaries are directories below the one that ``DAOS_FAKE_ROOT`` names; a value
is a file. `calls` counts what would be trips over the network. `installed` lets ``import pydaos`` find
this fake, here and in processes started from here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = "DAOS_FAKE_ROOT"
IN_FLIGHT = 16

calls: dict[str, int] = {"open": 0, "get": 0, "put": 0, "list": 0, "waves": 0}
fail_with: list[tuple[str, int]] = []
"""Errors for the next operations on dictionaries: message and DER_ number."""

_NAMES = {
    -1001: "DER_NO_PERM",
    -1003: "DER_INVAL",
    -1004: "DER_EXIST",
    -1005: "DER_NONEXIST",
    -1007: "DER_NOSPACE",
    -1011: "DER_TIMEDOUT",
}


class PyDError(Exception):
    """As the real one, it keeps the number in its text only."""

    def __init__(self, message: str, rc: int) -> None:
        self.message = f"{message}: {_NAMES.get(rc, rc)}"
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class DObjNotFound(Exception):  # noqa: N818 - pydaos' name
    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"Failed to open '{name}'")


class DCont:
    def __init__(
        self, pool: str | None = None, cont: str | None = None, path: str | None = None, open_mode: str = "RW"
    ) -> None:
        if path is None and (pool is None or cont is None):
            raise PyDError("invalid pool or container UUID", -1003)
        calls["open"] += 1
        self._process = os.getpid()
        self._directory = Path(os.environ[ROOT], pool or "", cont or "")
        if not self._directory.is_dir():
            raise PyDError("failed to access container", -1005)

    def get(self, name: str) -> DDict:
        calls["open"] += 1
        if not (self._directory / _file(name)).is_dir():
            raise DObjNotFound(name)
        return DDict(name, self._directory / _file(name), self)

    __getitem__ = get

    def dict(self, name: str, v: dict[str, Any] | None = None, cid: str = "0") -> DDict:
        calls["open"] += 1
        try:
            (self._directory / _file(name)).mkdir()
        except FileExistsError:
            raise PyDError("failed to create DAOS dict", -1004) from None
        found = DDict(name, self._directory / _file(name), self)
        if v:
            found.bput(v)
        return found

    def destroy(self, name: str) -> None:
        if not (self._directory / _file(name)).is_dir():
            raise PyDError("failed to destroy object", -1005)
        for path in (self._directory / _file(name)).iterdir():
            path.unlink()
        (self._directory / _file(name)).rmdir()


class DDict:
    value_size = 1 << 20

    def __init__(self, name: str, directory: Path, cont: DCont) -> None:
        self.name = name
        self._directory = directory
        self._cont = cont

    def get(self, key: str) -> bytes:
        found: dict[str, Any] = {key: None}
        self.bget(found)
        if found[key] is None:
            raise KeyError(key)
        value: bytes = found[key]
        return value

    __getitem__ = get

    def put(self, key: str, val: str | bytes | None) -> None:
        self.bput({key: val})

    __setitem__ = put

    def pop(self, key: str) -> None:
        self.put(key, None)

    __delitem__ = pop

    def bget(self, ddict: dict[str, Any], value_size: int | None = None) -> dict[str, Any]:
        self._begin("get", len(ddict))
        room = self.value_size if value_size is None else value_size
        for key in list(ddict):
            try:
                value = self._path(key).read_bytes()
            except FileNotFoundError:
                ddict[key] = None
                continue
            ddict[key] = value
            if len(value) > room:
                calls["get"] += 1  # a second trip, with a buffer that is big enough
        return ddict

    def bput(self, ddict: dict[str, Any]) -> None:
        for key, value in ddict.items():
            if type(key) is not str or type(value) not in (str, bytes, type(None)):
                raise TypeError(f"keys are str and values str or bytes, not {type(key)} and {type(value)}")
        self._begin("put", len(ddict))
        for key, value in ddict.items():
            path = self._path(key)
            if not value:  # to DAOS nothing and no bytes are the same: the key goes
                path.unlink(missing_ok=True)
                continue
            part = path.with_name(f".{os.getpid()}.{id(ddict)}")
            part.write_bytes(value.encode() if isinstance(value, str) else value)
            part.rename(path)

    def dump(self) -> dict[str, bytes]:
        return self.bget(dict.fromkeys(self))

    def __contains__(self, key: str) -> bool:
        try:
            self.get(key)
        except KeyError:
            return False
        return True

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        self._begin("list", 1)
        names = [path.name for path in self._directory.iterdir() if not path.name.startswith(".")]
        return iter([urllib.parse.unquote(name) for name in names])

    def _begin(self, kind: str, count: int) -> None:
        if os.getpid() != self._cont._process:
            raise PyDError("handles do not survive a fork", -1002)
        if fail_with:
            raise PyDError(*fail_with.pop(0))
        calls[kind] += 1
        calls["waves"] += -(-count // IN_FLIGHT)

    def _path(self, key: str) -> Path:
        # It becomes a C string: whatever follows a NUL is lost.
        return self._directory / _file(key.partition("\0")[0])


def _file(name: str) -> str:
    return urllib.parse.quote(name, safe="").replace(".", "%2E")


@contextlib.contextmanager
def installed(place: Path) -> Iterator[None]:
    """Let ``import pydaos`` find this fake, with a pool ``tank`` that has a container ``box``."""
    (place / "daos" / "tank" / "box").mkdir(parents=True)
    (place / "modules").mkdir()
    (place / "modules" / "pydaos.py").write_text(
        "from daos_fake import DCont, DDict, DObjNotFound, PyDError, calls, fail_with\n"
    )
    paths = [str(place / "modules"), str(Path(__file__).parent)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOT, str(place / "daos"))
        patch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(":"))
        patch.syspath_prepend(paths[0])
        yield
    for name in ("pydaos", "proxystore_core.connectors.daos"):
        sys.modules.pop(name, None)
