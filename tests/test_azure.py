"""Azure Blob Storage: the contract on its emulator, where that is installed (npm install azurite)."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import os
import secrets
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import obstore.store
import pytest
from object_contract import BucketContract
from redis_servers import free_port
from waiting import until

from proxystore_core.connectors.objects import AzureConnector
from proxystore_core.errors import ConfigurationError, RefusedError

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(b"a key for tests that nobody else has or needs".ljust(64, b".")).decode()
AZURITE = os.environ.get("AZURITE") or shutil.which("azurite-blob")

pytestmark = pytest.mark.skipif(not AZURITE, reason="no azurite-blob in PATH or AZURITE: npm install azurite")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, place = free_port(), tmp_path_factory.mktemp("azurite")
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURITE_ACCOUNTS", f"{ACCOUNT}:{KEY}")
        patch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=place)
        try:
            until(lambda: make_container(endpoint))
            yield endpoint
        finally:
            server.kill()
            server.wait()


def make_container(endpoint: str) -> bool:
    """Make the container ``bucket``, as Azure's documentation of shared keys says; whether that went well."""
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    named = "".join(f"{name}:{value}\n" for name, value in headers.items())
    text = f"PUT{12 * chr(10)}{named}/{ACCOUNT}/{ACCOUNT}/bucket\nrestype:container"
    digest = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{digest}", "Content-Length": "0"}
    try:
        request = urllib.request.Request(
            f"{endpoint}/bucket?restype=container", method="PUT", headers=headers
        )
        urllib.request.urlopen(request, timeout=5).close()
    except OSError:
        return False
    return True


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
