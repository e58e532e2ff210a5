"""A fake of Globus Transfer for the unmodified globus-sdk: it really copies files. And of the tokens of Auth.

It answers what `proxystore_core.connectors.globus` asks: submission ids, transfers, deletes, tasks (one,
all, cancelled) and listings of directories, and gives tokens to a service account and to a user.
Collections are local directories. `guard` makes it impossible that anything here reaches the real services.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import os
import shutil
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

CODE = "code-of-a-user"
USER = "00000000-0000-0000-0000-0000000000aa"
TRANSFER_SCOPE = "urn:globus:auth:scope:transfer.api.globus.org:all"


class GlobusFake:
    """The services' state.

    Attributes:
        collections: directory of each collection, by UUID.
        tasks: every task's document, by its id.
        calls: method and path of each request.
        hold: while set, transfers stay ACTIVE; `release` lets them go.
        fail: fields of the tasks that are submitted next, for example ``{"status": "FAILED", ...}``.
        answers: errors for the next requests: (part of the path, HTTP status, body).
    """

    def __init__(self) -> None:
        self.collections: dict[str, Path] = {}
        self.tasks: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.hold = False
        self.fail: dict[str, Any] | None = None
        self.answers: list[tuple[str, int, dict[str, Any]]] = []
        self.url = ""
        self._held: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._submitted: dict[str, str] = {}
        self._lock = threading.Lock()

    def collection(self, directory: Path) -> str:
        """Another collection, whose root is a directory."""
        name = str(uuid.uuid4())
        directory.mkdir(parents=True, exist_ok=True)
        self.collections[name] = directory
        return name

    def count(self, part: str) -> int:
        """Requests so far with this in their method and path."""
        return sum(part in call for call in self.calls)

    def release(self) -> None:
        """Carry out what was held."""
        self.hold = False
        with self._lock:
            held, self._held = self._held, []
        for task, document in held:
            if task["status"] == "ACTIVE":
                self._carry_out(task, document)

    def submit(self, document: dict[str, Any], kind: str) -> dict[str, Any]:
        with self._lock:
            known = self._submitted.get(document["submission_id"])
            if known is not None:
                return {"task_id": known, "code": "Duplicate", "message": "seen before"}
            for end in ("source_endpoint", "destination_endpoint", "endpoint"):
                if end in document and document[end] not in self.collections:
                    raise _AnswerError(404, "EndpointNotFound", f"No such endpoint '{document[end]}'")
            task = {
                "DATA_TYPE": "task",
                "task_id": str(uuid.uuid4()),
                "type": kind,
                "status": "ACTIVE",
                "nice_status": "OK",
                "nice_status_short_description": "OK",
                "nice_status_details": None,
                "fatal_error": None,
                "label": document.get("label"),
                "files": len(document["DATA"]),
                "files_transferred": 0,
                "bytes_transferred": 0,
                "items": len(document["DATA"]),
            }
            self.tasks[str(task["task_id"])] = task
            self._submitted[document["submission_id"]] = str(task["task_id"])
            held = kind == "TRANSFER" and self.hold
            if held:
                self._held.append((task, document))
        if self.fail is not None:
            task.update(self.fail)
        elif not held:
            self._carry_out(task, document)
        return {"task_id": task["task_id"], "code": "Accepted", "message": "The task has been accepted"}

    def path(self, collection: str, path: str) -> Path:
        assert path.startswith("/")
        root = self.collections[collection]
        found = (root / path.lstrip("/")).resolve()
        assert found.is_relative_to(root.resolve()), f"{path} is outside of the collection"
        return found

    def _carry_out(self, task: dict[str, Any], document: dict[str, Any]) -> None:
        try:
            for item in document["DATA"]:
                if task["type"] == "TRANSFER":
                    self._copy(task, document, item)
                else:
                    self._delete(self.path(document["endpoint"], item["path"]), document)
        except OSError as error:
            task.update(status="FAILED", fatal_error={"code": "ERROR", "description": str(error)})
            return
        task["status"] = "SUCCEEDED"

    def _copy(self, task: dict[str, Any], document: dict[str, Any], item: dict[str, Any]) -> None:
        source = self.path(document["source_endpoint"], item["source_path"])
        to = self.path(document["destination_endpoint"], item["destination_path"])
        if not source.exists() and document.get("skip_source_errors"):
            return
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)  # in place, as GridFTP does: half of it can be seen
        task["files_transferred"] += 1
        task["bytes_transferred"] += to.stat().st_size

    def _delete(self, path: Path, document: dict[str, Any]) -> None:
        if not path.exists() and document.get("ignore_missing"):
            return
        if path.is_dir():
            assert document.get("recursive"), f"{path} is a directory"
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def answer(self, method: str, url: str, body: bytes) -> dict[str, Any]:
        parts = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(parts.query))
        self.calls.append(f"{method} {parts.path}")
        for place, (part, status, document) in enumerate(self.answers):
            if part in parts.path:
                del self.answers[place]
                raise _AnswerError(status, document["code"], document["message"], document)
        steps = parts.path.strip("/").split("/")
        match (method, steps):
            case ("POST", ["v2", "oauth2", "token"]):
                return _token(dict(urllib.parse.parse_qsl(body.decode())))
            case ("POST", ["v2", "oauth2", "token", "revoke"]):
                return {"active": False}
            case ("GET", [".well-known", "openid-configuration"]):
                return {
                    "id_token_signing_alg_values_supported": ["RS512"],
                    "jwks_uri": f"{self.url}/jwk.json",
                }
            case ("GET", ["jwk.json"]):
                return {"keys": [json.loads(RSAAlgorithm.to_jwk(_key().public_key()))]}
            case ("GET", ["v0.10", "submission_id"]):
                return {"DATA_TYPE": "submission_id", "value": str(uuid.uuid4())}
            case ("POST", ["v0.10", "transfer"]):
                return self.submit(json.loads(body), "TRANSFER")
            case ("POST", ["v0.10", "delete"]):
                return self.submit(json.loads(body), "DELETE")
            case ("GET", ["v0.10", "task", task]):
                return self._task(task)
            case ("POST", ["v0.10", "task", task, "cancel"]):
                found = self._task(task)
                if found["status"] == "ACTIVE":
                    found.update(
                        status="FAILED", nice_status="CANCELED", nice_status_short_description="CANCELED"
                    )
                return {"DATA_TYPE": "result", "code": "Canceled", "message": "The task has been cancelled"}
            case ("GET", ["v0.10", "task_list"]):
                wanted = query["filter"].removeprefix("status:").split(",")
                data = [task for task in list(self.tasks.values()) if task["status"] in wanted]
                return {"DATA_TYPE": "task_list", "DATA": data, "total": len(data)}
            case ("GET", ["v0.10", "operation", "endpoint", collection, "ls"]):
                return self._listing(collection, query)
        raise _AnswerError(404, "ClientError.NotFound", f"No such resource: {parts.path}")

    def _task(self, task: str) -> dict[str, Any]:
        if task not in self.tasks:
            raise _AnswerError(404, "TaskNotFound", f"No such task '{task}'")
        return self.tasks[task]

    def _listing(self, collection: str, query: dict[str, str]) -> dict[str, Any]:
        if collection not in self.collections:
            raise _AnswerError(404, "EndpointNotFound", f"No such endpoint '{collection}'")
        directory = self.path(collection, query["path"])
        if not directory.is_dir():
            raise _AnswerError(404, "ClientError.NotFound", f"Directory '{query['path']}' not found")
        wanted = query.get("filter", "").removeprefix("name:")
        data = []
        for path in sorted(directory.iterdir()):
            if not wanted or path.name == wanted:
                changed = dt.datetime.fromtimestamp(int(path.stat().st_mtime), dt.UTC)
                data.append({"DATA_TYPE": "file", "name": path.name, "last_modified": str(changed)})
        return {"DATA_TYPE": "file_list", "DATA": data}


class _AnswerError(Exception):
    def __init__(self, status: int, code: str, message: str, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, "request_id": "fake", **(body or {})}


def _token(form: dict[str, str]) -> dict[str, Any]:
    kind = form.get("grant_type")
    if kind == "authorization_code" and form.get("code") != CODE:
        raise _AnswerError(400, "invalid_grant", "no such code")

    def token(server: str, scope: str) -> dict[str, Any]:
        return {
            "access_token": f"token-of-{server}",
            "scope": scope,
            "expires_in": 172_800,
            "token_type": "Bearer",
            "resource_server": server,
            **({} if kind == "client_credentials" else {"refresh_token": f"refresh-of-{server}"}),
        }

    scope = form.get("scope", "transfer openid")
    known = [
        token("transfer.api.globus.org", TRANSFER_SCOPE) if "transfer" in scope else None,
        token("auth.globus.org", "openid") if "openid" in scope else None,
    ]
    first, *others = [each for each in known if each]
    if kind == "authorization_code":
        said = {"sub": USER, "aud": form["client_id"], "iat": time.time() - 1, "exp": time.time() + 600}
        first["id_token"] = jwt.encode(said, _key(), "RS512")
    return {**first, "other_tokens": others}


@functools.cache
def _key() -> Any:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@contextlib.contextmanager
def serving_globus() -> Iterator[GlobusFake]:
    """A fake that listens on loopback."""
    fake = GlobusFake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, document = 200, fake.answer(self.command, self.path, body)
            except _AnswerError as answer:
                status, document = answer.status, answer.body
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _serve  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        fake.release()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def guard(url: str, home: Path, *, proxies: bool = True) -> Iterator[None]:
    """Let globus-sdk, here and in processes started from here, know no service but the one at ``url``.

    Every other address is refused: here by the resolver, in other processes by a proxy that is not there
    (unless they have other servers of this host to reach, by its name: ``proxies=False``).
    """
    resolve = socket.getaddrinfo

    def refuse(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()):
            raise AssertionError(f"a test wanted to reach {name}")
        return resolve(host, *arguments, **options)

    nowhere = "http://127.0.0.1:9"
    with pytest.MonkeyPatch.context() as patch:
        for service in ("TRANSFER", "AUTH", "SEARCH", "GROUPS", "COMPUTE", "FLOWS", "TIMERS"):
            patch.setenv(f"GLOBUS_SDK_SERVICE_URL_{service}", url)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") if proxies else ():
            patch.setenv(name, nowhere)
            patch.setenv(name.lower(), nowhere)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
        patch.setenv("PROXYSTORE_GLOBUS_CLIENT_ID", "00000000-0000-0000-0000-000000000001")
        patch.setenv("PROXYSTORE_GLOBUS_CLIENT_SECRET", "secret")
        if proxies:
            patch.setattr(socket, "getaddrinfo", refuse)
        yield


def now_is(path: Path, seconds: float) -> None:
    """Set a file's time of change to so many seconds from now."""
    then = time.time() + seconds
    os.utime(path, (then, then))
