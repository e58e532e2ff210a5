"""A serialization strategy, for endpoints and clients that are configured rather than called.

A client that names it (``ComputeSerializer(strategy_data=StoreData)``) sends large arguments through the
store; an endpoint that a client names it to (``result_serializers=[StoreData, DillDataBase64]``) sends large
results back so. The endpoint's Python has to know it: through ``result_serializers``, or its own
``allowed_serializers``.

Settings come from the environment and ``proxystore.toml``, on each side its own. Nothing tells when a task is
over: arguments stay until the client's process ends or its lease runs out, results until the lease does.
`Executor` knows better.
"""

from __future__ import annotations

import atexit
import base64
import os
from typing import Any

import dill

from proxystore_core import StoreError
from proxystore_core.flight import Flights
from proxystore_integrations.calls import CallLink
from proxystore_integrations.globus_compute.engine import SELECTABLE_STRATEGIES, SerializationStrategy

__all__ = ["StoreData"]


class StoreData(SerializationStrategy):
    """Data as the SDK's default strategy has it, except that large values are in the store."""

    identifier = "p5\n"
    for_code = False

    def serialize(self, data: Any) -> str:
        """Data as text.

        Raises:
            StoreError: the store failed, and settings want that raised.
        """
        link = _link()
        packed = link.pack(data) if link.reached else None
        kind, sent = (_PLAIN, data) if packed is None else (_STORED, packed)
        return self.identifier + kind + base64.b64encode(dill.dumps(sent)).decode()

    def deserialize(self, payload: str) -> Any:
        """The data, with all values in their places.

        Raises:
            NotDeliveredError: one of them cannot be had.
        """
        start = len(self.identifier)
        data = dill.loads(base64.b64decode(payload[start + 1 :]))
        return data if payload[start] == _PLAIN else data.delivered("a task")[1][0]


_PLAIN, _STORED = "v", "s"

_links: dict[int, CallLink] = {}
"""By process: one that was forked has its own session."""

_flights = Flights()


def _link() -> CallLink:
    process = os.getpid()
    if process not in _links:
        _flights.run(process, _open)
    return _links[process]


def _open() -> None:
    process = os.getpid()
    if process in _links:
        return
    link = CallLink(*CallLink.settled(), "globus-compute")
    try:
        link.open()
    except StoreError as error:
        link.by_value.accept(error, "work")
    _links[process] = link


def _leave() -> None:
    link = _links.get(os.getpid())
    if link is not None:
        # Results that a worker stored are still to be read.
        link.close_now(keep="GC_TASK_UUID" in os.environ)


atexit.register(_leave)

if StoreData not in SELECTABLE_STRATEGIES:
    SELECTABLE_STRATEGIES.append(StoreData)
