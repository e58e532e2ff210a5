"""The connector contract, on every connector that is shipped."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import pytest
from measures import files

from proxystore_core import recipe
from proxystore_core.connectors import memory
from proxystore_core.connectors.base import Connector, Key
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import UnreachableError
from proxystore_core.testing import ConnectorContract


class TestMemoryConnector(ConnectorContract):
    process_local = True

    def make(self) -> MemoryConnector:
        return MemoryConnector(secrets.token_hex(4))

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        assert isinstance(connector, MemoryConnector)
        space = memory._spaces.get(connector.name)
        return {} if space is None else dict(space.objects) | dict.fromkeys(space.reserved, b"")


class TestFileConnector(ConnectorContract):
    def make(self) -> FileConnector:
        return FileConnector(self.place / secrets.token_hex(4))

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        assert isinstance(connector, FileConnector)
        return files(connector.store_dir)

    def corrupt(self, connector: Connector, key: Key) -> bool:
        assert isinstance(connector, FileConnector)
        path = Path(connector.store_dir, *key.split("."))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return True


class TestNamedFiles(TestFileConnector):
    """On a file system where a file has a name from the start, such as NFS."""

    def make(self) -> FileConnector:
        connector = super().make()
        connector._unnamed = False
        return connector

    def open_again(self, connector: Connector) -> Connector:
        again = super().open_again(connector)
        assert isinstance(again, FileConnector)
        again._unnamed = False
        return again


class TestShmConnector(ConnectorContract):
    def make(self) -> ShmConnector:
        return ShmConnector(secrets.token_hex(4), spill=self.place / secrets.token_hex(4))

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes]:
        assert isinstance(connector, ShmConnector)
        prefix = f"{connector.node}."
        return files(connector.store_dir, prefix) | files(connector._spill_dir, prefix, ".disk")


class TestSpilled(TestShmConnector):
    """Shared memory that has no room at all: everything goes to the spill directory."""

    @pytest.fixture(autouse=True)
    def no_room(self, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
        monkeypatch.setattr("proxystore_core.connectors.shm._LEFT_TO_OTHERS", 1.0)

    def make(self) -> ShmConnector:
        return ShmConnector(secrets.token_hex(4), stock=0, spill=self.place / secrets.token_hex(4))


class TestMemory:
    def test_one_name_is_one_store(self) -> None:
        one, same, other = MemoryConnector("a"), MemoryConnector("a"), MemoryConnector("b")
        key = one.put([b"data"])
        assert bytes(same.get(key) or b"") == b"data"
        assert other.get(key) is None
        for connector in (one, same, other):
            connector.close()

    def test_the_last_one_to_close_takes_the_objects_along(self) -> None:
        one, same = MemoryConnector("last"), MemoryConnector("last")
        key = one.put([b"data"])
        one.close()
        one.close()
        assert bytes(same.get(key) or b"") == b"data"
        same.close()
        assert "last" not in memory._spaces

    def test_key_of_another_process(self) -> None:
        connector = MemoryConnector()
        with pytest.raises(UnreachableError, match="another process"):
            connector.get("0123456789ab.user.0")
        connector.close()

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "a:1", "a@b", "a?x=1#y", "Große [1]"])
    def test_any_name_survives_the_url(self, name: str) -> None:
        connector = MemoryConnector(name)
        again = MemoryConnector.from_url(connector.url)
        assert again.name == name
        again.close()
        connector.close()


@pytest.mark.parametrize("page", ["stores.md", "security.md"])
def test_the_documentation_has_every_store(page: str) -> None:
    text = (
        (Path(__file__).parent.parent / "docs" / page).read_text().replace("http(s)://", "http:// https://")
    )
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    kinds = {scheme.partition("+sentinel")[0].partition("+cluster")[0] for scheme in recipe._SHIPPED}
    assert not [kind for kind in kinds if f"{kind}://" not in table]
