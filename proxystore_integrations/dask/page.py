"""A page of the scheduler's dashboard: which clients have a store, what is pinned, which workers lack it."""

from __future__ import annotations

import html
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Scheduler

    from proxystore_integrations.dask.scheduler import StoreSchedulerPlugin

__all__ = ["PATH", "add_page"]

PATH = "/proxystore"

logger = logging.getLogger(__name__)
_STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid #ddd}"
)


def add_page(scheduler: Scheduler, plugin: StoreSchedulerPlugin) -> None:
    """Serve the page beside the dashboard's own; where the scheduler serves none, there is none.

    Args:
        scheduler: the plugin's.
        plugin: what the page shows.
    """
    application: Any = getattr(scheduler, "http_application", None)
    if application is None:
        return
    try:
        from tornado import web

        class Page(web.RequestHandler):
            def get(self) -> None:
                self.set_header("Refresh", "2")
                self.write(_page(plugin))

        application.add_application(web.Application([(PATH, Page)]))
    except Exception:  # a page less
        logger.info("no page %s on the dashboard", PATH, exc_info=True)


def _page(plugin: StoreSchedulerPlugin) -> str:
    rows = [
        [
            session.client,
            session.recipe,
            session.session,
            "connected" if session.here else "gone, its tasks go on",
            str(len(session.pins)),
            str(session.settings.get("threshold", "")),
        ]
        for session in plugin.sessions
    ]
    lacking = [[worker, reason] for worker, reason in list(plugin.lacking.items())]
    parts = [
        f"<!DOCTYPE html><html><head><meta charset='utf-8'><title>Dask: proxystore</title><style>{_STYLE}",
        "</style></head><body><h1>Stores of this cluster's clients</h1>",
        _table(["client", "store", "session", "state", "objects that tasks need", "threshold, bytes"], rows),
    ]
    if lacking:
        parts += ["<h2>Workers that reach no store</h2>", _table(["worker", "why"], lacking)]
    return "".join([*parts, "</body></html>"])


def _table(names: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>" if rows else "<p>None now.</p>"
