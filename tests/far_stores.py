"""Stores at two sites, for tests: endpoints behind a relay, Globus Transfer, DAOS (both fakes)."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import daos_fake
import endpoint_sites
import globus_transfer_fake
import pytest

from proxystore_core.endpoint.settings import ENDPOINT

HERE = "here"
NAMES = ("globus", "daos", "webrtc")


def far_stores(place: Path, stack: ExitStack) -> dict[str, str]:
    """URLs by name. Processes to be started are at the second site; this one is where it says that it is."""
    place.mkdir()
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    stack.enter_context(daos_fake.installed(place))
    service = stack.enter_context(globus_transfer_fake.serving_globus())
    stack.enter_context(globus_transfer_fake.guard(service.url, place, proxies=False))
    from proxystore_core.connectors.globus import GlobusEndpoint
    from proxystore_core.connectors.globus_endpoints import HERE as GLOBUS_ENDPOINT
    from proxystore_core.connectors.globus_endpoints import Table

    roots = [place / "here", place / "there"]
    ends = [GlobusEndpoint(service.collection(root), "/store", str(root / "store")) for root in roots]
    patch.setenv(GLOBUS_ENDPOINT, ends[1].uuid)
    endpoints = stack.enter_context(endpoint_sites.sites((HERE, "there"))).endpoints
    patch.setenv(ENDPOINT, "there")
    return {
        "globus": Table(ends).url,
        "daos": "daos://tank/box",
        "webrtc": f"webrtc://{','.join(endpoint.id for endpoint in endpoints.values())}",
    }
