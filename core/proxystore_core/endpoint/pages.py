"""Health and metrics pages, for loopback: ``/health`` (JSON) and ``/metrics`` (Prometheus' text format)."""

from __future__ import annotations

import http
import json
from collections.abc import Callable, Mapping
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

__all__ = ["pages"]


async def pages(
    name: str, port: int, health: Callable[[], dict[str, Any]], metrics: Callable[[], Mapping[str, float]]
) -> Server:
    """Serve the pages of one daemon on loopback.

    Args:
        name: start of the metrics' names.
        port: 0 for any.
        health: what ``/health`` shows; its ``status`` is "ok" or a problem, which is answered with 503.
        metrics: counters and gauges by name.
    """

    def answer(connection: ServerConnection, request: Request) -> Response:
        path = request.path.partition("?")[0]
        if path == "/health":
            found = health()
            good = found.get("status") == "ok"
            status = http.HTTPStatus.OK if good else http.HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, json.dumps(found, indent=1) + "\n")
        if path == "/metrics":
            lines = [f"{name}_{metric} {value}\n" for metric, value in sorted(metrics().items())]
            return connection.respond(http.HTTPStatus.OK, "".join(lines))
        return connection.respond(http.HTTPStatus.NOT_FOUND, "/health or /metrics\n")

    async def nothing(connection: ServerConnection) -> None:
        """No websockets here: every request has been answered."""

    return await serve(nothing, "127.0.0.1", port, process_request=answer, compression=None, max_size=1024)
