"""Runs a script, as it is, at the first of two sites; the workers that it starts are at the second.

    PROXYSTORE_ENDPOINT=there python tests/far_script.py here SCRIPT [ARGUMENT ...]

Stores other than ``webrtc://`` and ``globus://`` know no sites: to them it is as if started by itself.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from typing import Any


def be_at_the_first(endpoint: str, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let this process, and none that it starts or forks, be at an endpoint, and at a Globus store's first.

    Args:
        endpoint: its name.
        put: sets an attribute.
    """
    from proxystore_core.connectors.globus_endpoints import Table
    from proxystore_core.connectors.webrtc import EndpointConnector
    from proxystore_core.endpoint.settings import EndpointSettings

    process, here, settings = os.getpid(), Table.here, EndpointConnector._settings

    def our_settings(connector: EndpointConnector) -> EndpointSettings:
        return EndpointSettings.load(endpoint) if os.getpid() == process else settings(connector)

    put(Table, "here", lambda table: 0 if os.getpid() == process else here(table))
    put(EndpointConnector, "_settings", our_settings)


if __name__ == "__main__":
    endpoint, script, *arguments = sys.argv[1:]
    be_at_the_first(endpoint)
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")
