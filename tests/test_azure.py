"""Azure Blob Storage: the contract on its emulator, where that is installed (npm install azurite)."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator
from typing import Any

import obstore.store
import pytest
from azure_servers import ACCESS, ACCOUNT, AZURITE, KEY, MISSING, serving
from object_contract import BucketContract

from proxystore_core.connectors.objects import AzureConnector
from proxystore_core.errors import ConfigurationError, RefusedError

pytestmark = pytest.mark.skipif(not AZURITE, reason=MISSING)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("azurite")) as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in ACCESS.items():
            patch.setenv(name, value)
        yield endpoint


class TestAzureConnector(BucketContract):  # type: ignore[misc]
    @pytest.fixture(autouse=True)
    def on(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def make(self) -> AzureConnector:
        return AzureConnector("bucket", f"t/{secrets.token_hex(4)}", account=ACCOUNT, endpoint=self.endpoint)

    def witness(self) -> Any:
        config: Any = {"account_name": ACCOUNT, "account_key": KEY, "endpoint": self.endpoint}
        return obstore.store.AzureStore("bucket", config=config, client_options={"allow_http": True})


def test_objects_of_several_parts(endpoint: str) -> None:
    connector = AzureConnector("bucket", "parts", account=ACCOUNT, endpoint=endpoint)
    data = os.urandom(20_000_000)
    key = connector.put([data])
    assert connector.get(key) == data
    connector.evict(key)
    connector.evict(key)
    assert not connector.exists(key)
    connector.close()


def test_no_such_container(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="no such bucket"):
        AzureConnector("none", account=ACCOUNT, endpoint=endpoint).put([b"data"])


def test_wrong_key(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(bytes(64)).decode())
    with pytest.raises(RefusedError):
        AzureConnector("bucket", account=ACCOUNT, endpoint=endpoint).put([b"data"])
