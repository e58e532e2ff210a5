"""Azure Blob Storage's emulator for tests, where it is installed (npm install azurite); killed afterwards."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from redis_servers import free_port
from waiting import until

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(b"a key for tests that nobody else has or needs".ljust(64, b".")).decode()
ACCESS = {"AZURE_STORAGE_ACCOUNT_KEY": KEY}
"""Environment of those who may do everything."""
AZURITE = os.environ.get("AZURITE") or shutil.which("azurite-blob")
MISSING = "no azurite-blob in PATH or AZURITE: npm install azurite"


@contextlib.contextmanager
def serving(place: Path) -> Iterator[str]:
    """The endpoint of a server with the container ``bucket``."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=place, env=environment)
    try:
        until(lambda: _make_container(endpoint), 60)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def _make_container(endpoint: str) -> bool:
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
