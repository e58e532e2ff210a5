"""A fake of the Globus Compute web service, with a real endpoint engine behind it.

The real service needs an account and the internet. Real are the SDK's Client (over HTTP, on this machine),
Executor, serializers and messages, and the endpoint's engine and workers. Faked are the service's HTTP side,
with its limit on the size of a submission, and the AMQP queue that results come through.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import socket
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from unittest import mock

import globus_sdk
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, Task
from globus_compute_endpoint.engines import GlobusComputeEngine, ProcessPoolEngine
from globus_compute_endpoint.engines.base import GCFuture
from globus_compute_sdk import Client
from globus_compute_sdk.sdk import executor as sdk

LIMIT = 10_000_000
"""Bytes of one submission, as the real service's documentation has it."""


def process_pool(**options: Any) -> ProcessPoolEngine:
    """A real engine with two workers; not forked from a process with threads."""
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolEngine(**{"max_workers": 2, "mp_context": context, **options})


def pilot_jobs() -> GlobusComputeEngine:
    """The engine that endpoints have by default, over Parsl's high-throughput executor, with one worker."""
    return GlobusComputeEngine(address="127.0.0.1", max_workers_per_node=1)


class FakeService:
    """Registers functions, takes batches, runs them on an engine, and keeps results.

    Args:
        engine: one of the endpoint package's, not started yet.
        directory: where it runs.
        hostname: where the endpoint says that it is.

    Attributes:
        endpoint_id: of the one endpoint.
        batches: bytes of each submission that came, and what was in it.
        functions: what was registered, by identifier.
        refuse: gives the HTTP status that a submission is refused with, or None.
    """

    def __init__(self, engine: Any, directory: Path, hostname: str | None = None) -> None:
        self.endpoint_id = uuid.uuid4()
        self.engine = engine
        self.engine.start(endpoint_id=self.endpoint_id, run_dir=str(directory))
        self.hostname = hostname or socket.getfqdn()
        self.batches: list[tuple[int, dict[str, Any]]] = []
        self.functions: dict[str, dict[str, Any]] = {}
        self.refuse: Any = lambda batch: None
        self.groups: dict[str, dict[str, bytes | None]] = {}
        service = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                self._answer(*service.get(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(*service.post(self.path, body))

            def _answer(self, status: int, content: dict[str, Any]) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def client(self, **options: Any) -> Client:
        with mock.patch("globus_compute_sdk.sdk.client.get_web_service_url", return_value=self.url):
            authorizer = globus_sdk.AccessTokenAuthorizer("token of nobody")
            return Client(authorizer=authorizer, do_version_check=False, **options)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        kind, _, name = path.removeprefix("/v2/").partition("/")
        if kind == "endpoints":
            return 200, {"uuid": name, "name": "here", "metadata": {"hostname": self.hostname}}
        if kind == "taskgroup":
            return 200, {"taskgroup_id": name, "tasks": [{"id": task} for task in self.groups[name]]}
        raise AssertionError(path)

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        content = json.loads(body)
        if path == "/v3/functions":
            identity = str(uuid.uuid4())
            self.functions[identity] = content
            return 200, {"function_uuid": identity}
        if path == "/v2/batch_status":
            return 200, {"results": {task: self._status(task) for task in content["task_ids"]}}
        assert path == f"/v3/endpoints/{self.endpoint_id}/submit", path
        self.batches.append((len(body), content))
        status = 413 if len(body) > LIMIT else self.refuse(content)
        if status is not None:
            return status, {"code": "REFUSED", "message": "refused"}
        group = content.get("task_group_id") or str(uuid.uuid4())
        tasks = {
            function: [self._run(group, function, payload, content) for payload in payloads]
            for function, payloads in content["tasks"].items()
        }
        answer = {"tasks": tasks, "task_group_id": group, "endpoint_id": str(self.endpoint_id)}
        return 200, {**answer, "request_id": str(uuid.uuid4())}

    def _run(self, group: str, function: str, payload: str, content: dict[str, Any]) -> str:
        task = str(uuid.uuid4())
        self.groups.setdefault(group, {})[task] = None
        packed = messagepack.pack(
            Task(task_id=uuid.UUID(task), task_buffer=self.functions[function]["function_code"] + payload)
        )
        done = GCFuture(task)
        done.add_done_callback(lambda done: self._done(group, task, done.result()))
        specification = content.get("resource_specification") or {}
        self.engine.submit(done, packed, specification, content.get("result_serializers"))
        return task

    def _done(self, group: str, task: str, result: bytes) -> None:
        self.groups[group][task] = result
        results_of(group).put(result)

    def _status(self, task: str) -> dict[str, Any]:
        packed = next(tasks[task] for tasks in self.groups.values() if task in tasks)
        if packed is None:
            return {"task_id": task}
        result = messagepack.unpack(packed)
        assert isinstance(result, Result)
        word, kind = ("failed", "exception") if result.is_error else ("success", "result")
        return {"task_id": task, "completion_t": str(time.time()), "status": word, kind: result.data}

    def __enter__(self) -> Self:
        self._patch = mock.patch.object(sdk, "_ResultWatcher", FakeResultWatcher)
        self._patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        for group in self.groups:
            results_of(group).put(None)
        self._patch.stop()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        self.engine.shutdown(block=True)


_results: dict[str, queue.SimpleQueue[bytes | None]] = {}


def results_of(group: str) -> queue.SimpleQueue[bytes | None]:
    """The queue of a task group's results."""
    return _results.setdefault(group, queue.SimpleQueue())


class FakeResultWatcher(sdk._ResultWatcher):
    """The SDK's, except that messages come from a queue in this process and not through AMQP."""

    def run(self) -> None:
        results = results_of(str(self.task_group_id))
        while not self._time_to_stop:
            if self._open_futures and self._received_results:
                self._match_results_to_futures()
            try:
                message = results.get(timeout=0.01)
            except queue.Empty:
                continue
            if message is None:
                return
            result = messagepack.unpack(message)
            assert isinstance(result, Result)
            self._received_results[str(result.task_id)] = (mock.Mock(headers={}), result)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._time_to_stop = True
        sdk._RESULT_WATCHERS.pop(self.task_group_id, None)
