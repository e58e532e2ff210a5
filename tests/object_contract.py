"""The contract for connectors to buckets, which looks into the bucket behind their back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from parts import wholes

from proxystore_core.connectors.base import Connector, Key
from proxystore_core.connectors.objects import ObjectConnector
from proxystore_core.testing import ConnectorContract


def listed(connector: ObjectConnector, witness: Any) -> dict[str, str]:
    """Everything under the connector's prefix but leases: the bucket's names by those that the store uses."""
    prefix = connector.prefix + "/"
    found = [entry["path"] for page in witness.list(prefix) for entry in page]
    return {path.removeprefix(prefix): path for path in found if not path.endswith("/lease")}


class BucketContract(ConnectorContract):
    """A subclass says who is the witness."""

    def witness(self) -> Any:
        """A plain client of the bucket."""
        raise NotImplementedError

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        assert isinstance(connector, ObjectConnector)
        witness = self.witness()
        parts: dict[str, dict[int, bytes]] = defaultdict(dict)
        for name, path in listed(connector, witness).items():
            session, _, rest = name.partition("/")
            named, _, part = rest.rpartition(".")
            try:
                parts[f"{session}.{named}"][int(part)] = bytes(witness.get(path).bytes())
            except FileNotFoundError:
                continue  # evicted while we look
        return wholes(parts)

    def corrupt(self, connector: Connector, key: Key) -> bool:
        assert isinstance(connector, ObjectConnector)
        session, _, name = key.partition(".")
        path = f"{connector.prefix}/{session}/{name}.0"
        witness = self.witness()
        data = bytearray(witness.get(path).bytes())
        data[len(data) // 2] ^= 1
        witness.put(path, data)
        return True
