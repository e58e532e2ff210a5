"""The endpoints (collections) of a Globus store: which paths, and which machine is at which of them."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import urllib.parse
import uuid
from collections.abc import Sequence
from typing import Any

from proxystore_core.errors import ConfigurationError, UnreachableError
from proxystore_core.urls import StoreURL

__all__ = ["HERE", "GlobusEndpoint", "Table"]

HERE = "PROXYSTORE_GLOBUS_ENDPOINT"
"""Variable that names the endpoint at which this process is, where hosts' names do not tell."""

_PARAMETER = re.compile(r"(path|local|hosts)([1-9][0-9]?)")
_MOST = 16  # endpoints: each one more is another transfer of everything


@dataclasses.dataclass(frozen=True)
class GlobusEndpoint:
    """One place where a copy of every object is.

    Attributes:
        uuid: identifies the endpoint (Globus says: collection).
        endpoint_path: the store's directory as Globus names it there.
        local_path: the same directory as processes there name it.
        host_regex: matches the whole names of the hosts that see ``local_path``.
    """

    uuid: str
    endpoint_path: str
    local_path: str = ""
    host_regex: str = ".*"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "uuid", str(uuid.UUID(self.uuid)))
        except (ValueError, AttributeError, TypeError):
            raise ConfigurationError(
                f"{self.uuid!r} identifies no Globus endpoint: expected its UUID"
            ) from None
        object.__setattr__(self, "local_path", self.local_path or self.endpoint_path)
        for name in ("endpoint_path", "local_path"):
            path = getattr(self, name)
            if not path.startswith("/") or path.rstrip("/") == "":
                raise ConfigurationError(f"{name} is {path!r}: expected the absolute path of a directory")
            object.__setattr__(self, name, path.rstrip("/"))
        try:
            re.compile(self.host_regex)
        except re.error as error:
            raise ConfigurationError(
                f"host_regex is {self.host_regex!r}, no regular expression: {error}"
            ) from None


class Table:
    """All endpoints of a store, in an order that keys refer to.

    Args:
        endpoints: at most sixteen, none twice.

    Raises:
        ConfigurationError: none, too many, or one twice.
    """

    def __init__(self, endpoints: Sequence[GlobusEndpoint]) -> None:
        self.endpoints = tuple(endpoints)
        ids = [endpoint.uuid for endpoint in self.endpoints]
        if not 1 <= len(ids) <= _MOST or len(set(ids)) < len(ids):
            raise ConfigurationError(
                f"a Globus store has 1 to {_MOST} different endpoints, found {', '.join(ids) or 'none'}"
            )

    @property
    def url(self) -> str:
        """``globus://UUID,UUID?path1=...&hosts1=...&path2=...``."""
        query: dict[str, str] = {}
        for number, endpoint in enumerate(self.endpoints, 1):
            query[f"path{number}"] = endpoint.endpoint_path
            if endpoint.local_path != endpoint.endpoint_path:
                query[f"local{number}"] = endpoint.local_path
            if endpoint.host_regex != ".*":
                query[f"hosts{number}"] = endpoint.host_regex
        ids = ",".join(endpoint.uuid for endpoint in self.endpoints)
        return f"globus://{ids}?{urllib.parse.urlencode(query, safe='/')}"

    @classmethod
    def of_url(cls, parts: StoreURL) -> Table:
        """The inverse of `url`; other parameters are someone else's.

        Raises:
            ConfigurationError: an endpoint has no path, or a parameter has no endpoint.
        """
        found: list[dict[str, Any]] = [{"uuid": host} for host in parts.hosts]
        names = {"path": "endpoint_path", "local": "local_path", "hosts": "host_regex"}
        for name, value in parts.query.items():
            match = _PARAMETER.fullmatch(name)
            if match is None:
                continue
            if int(match[2]) > len(found):
                raise ConfigurationError(f"{name!r} in {parts.url!r} belongs to no endpoint")
            found[int(match[2]) - 1][names[match[1]]] = value
        for number, endpoint in enumerate(found, 1):
            if "endpoint_path" not in endpoint:
                raise ConfigurationError(
                    f"{parts.url!r} lacks path{number}: the directory at endpoint {endpoint['uuid']}"
                )
        return cls([GlobusEndpoint(**endpoint) for endpoint in found])

    @staticmethod
    def is_parameter(name: str) -> bool:
        """Whether a URL's parameter is one of the table's."""
        return _PARAMETER.fullmatch(name) is not None

    def here(self) -> int:
        """Index of the endpoint at which this process is.

        Raises:
            ConfigurationError: the environment names an endpoint that is not in the table.
            UnreachableError: no endpoint's pattern matches this host.
        """
        named = os.environ.get(HERE)
        if named:
            for index, endpoint in enumerate(self.endpoints):
                if endpoint.uuid == named.lower():
                    return index
            raise ConfigurationError(
                f"{HERE} is {named!r}, which is no endpoint of this store", store=self.url
            )
        host = socket.gethostname()
        for index, endpoint in enumerate(self.endpoints):
            if re.fullmatch(endpoint.host_regex, host):
                return index
        patterns = ", ".join(repr(endpoint.host_regex) for endpoint in self.endpoints)
        raise UnreachableError(
            f"this host, {host}, is at none of the endpoints: their hosts are {patterns}",
            store=self.url,
            remedy=f"Add its name to an endpoint's hosts, or set {HERE} to the endpoint's UUID.",
        )
