"""Which Redis server has which keys: a single one, the one that sentinels name, or those of a cluster."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Protocol

from proxystore_core.connectors.resp import Address, Reply, Request, ServerError, command
from proxystore_core.errors import ConfigurationError

__all__ = ["Ask", "Cluster", "Nodes", "Sentinels", "Single", "hash_slot"]

_SLOTS = 16384


class Ask(Protocol):
    """Whoever can put a question to servers: the client."""

    url: str

    def first_answer(
        self, addresses: Sequence[Address], request: Request, until: float, *, sentinel: bool = False
    ) -> tuple[Reply, Address]: ...


def hash_slot(key: bytes) -> int:
    """The cluster's slot of a key: of what is in its first braces, where there is something."""
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if opened and closed and tag else key, 0) % _SLOTS


class Nodes(Protocol):
    """Which server has which slot."""

    several: bool
    """Whether a server may send us to another one."""

    def address(self, slot: int, ask: Ask, until: float) -> Address: ...

    def all(self, ask: Ask, until: float) -> list[Address]:
        """Every server that has objects."""
        ...

    def forget(self) -> None:
        """Find out anew at the next question: what is known has turned out to be wrong."""
        ...


class Single:
    """One server, which has everything."""

    several = False

    def __init__(self, address: Address) -> None:
        self._address = address

    def address(self, slot: int, ask: Ask, until: float) -> Address:
        return self._address

    def all(self, ask: Ask, until: float) -> list[Address]:
        return [self._address]

    def forget(self) -> None:
        pass


class Sentinels:
    """One server, which the sentinels know: after a failover it is another one."""

    several = False

    def __init__(self, sentinels: Sequence[Address], service: str) -> None:
        self._sentinels = list(sentinels)
        self._service = service
        self._primary: Address | None = None

    def address(self, slot: int, ask: Ask, until: float) -> Address:
        if self._primary is None:
            question = Request([command(b"SENTINEL", b"get-master-addr-by-name", self._service.encode())])
            answer, _ = ask.first_answer(self._sentinels, question, until, sentinel=True)
            if answer is None:
                raise ConfigurationError(
                    f"the sentinels know no service {self._service!r}",
                    store=ask.url,
                    remedy="Expected redis+sentinel://host:26379/service.",
                )
            host, port = answer
            self._primary = bytes(host).decode(), int(port)
        return self._primary

    def all(self, ask: Ask, until: float) -> list[Address]:
        return [self.address(0, ask, until)]

    def forget(self) -> None:
        self._primary = None


class Cluster:
    """Servers that share the slots among them.

    Args:
        seeds: some of the servers; the others are learned from them.
    """

    several = True

    def __init__(self, seeds: Sequence[Address]) -> None:
        self._seeds = list(seeds)
        self._slots: list[Address | None] = []

    def address(self, slot: int, ask: Ask, until: float) -> Address:
        slots = self._slots or self._learn(ask, until)
        found = slots[slot]
        if found is None:
            self.forget()
            raise ServerError(f"CLUSTERDOWN nobody has the slot {slot}")
        return found

    def all(self, ask: Ask, until: float) -> list[Address]:
        return sorted({address for address in self._slots or self._learn(ask, until) if address}, key=str)

    def forget(self) -> None:
        self._slots = []

    def _learn(self, ask: Ask, until: float) -> list[Address | None]:
        ranges, asked = ask.first_answer(self._seeds, Request([command(b"CLUSTER", b"SLOTS")]), until)
        slots: list[Address | None] = [None] * _SLOTS
        for first, last, primary, *_ in ranges:
            host = bytes(primary[0] or b"").decode() or asked[0]
            slots[first : last + 1] = [(host, primary[1])] * (last + 1 - first)
        known = sorted({address for address in slots if address}, key=str)
        self._seeds = [*known, *(seed for seed in self._seeds if seed not in known)]
        self._slots = slots
        return slots
