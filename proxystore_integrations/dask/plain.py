"""For a Dask whose inside has changed: the same names, everything by value, one warning."""

from __future__ import annotations

import warnings
from typing import Any

import distributed

from proxystore_core import MissingExtraError
from proxystore_integrations.settings import Settings

__all__ = ["Client", "unfit", "wrap"]

_reason: list[str] = []


def unfit(error: MissingExtraError) -> None:
    """Note why the integration cannot work with this Dask; said when the first client is made."""
    _reason[:] = [str(error)]


def _warn() -> None:
    if _reason:
        warnings.warn(f"Values go through Dask itself: {_reason.pop()}", RuntimeWarning, stacklevel=3)


class Client(distributed.Client):
    """Dask's client, which takes our settings and keywords and uses none of them."""

    def __init__(self, address: Any = None, *args: Any, **kwargs: Any) -> None:
        names = set(Settings.__struct_fields__) - {"origins"}
        given = {name: kwargs.pop(name) for name in names & kwargs.keys()}
        if not isinstance(given.get("store"), str):
            given.pop("store", None)
        Settings.load(**given)
        _warn()
        super().__init__(address, *args, **kwargs)  # type: ignore[no-untyped-call]

    def submit(self, *args: Any, proxy_args: Any = None, proxy_result: Any = None, **kwargs: Any) -> Any:
        return super().submit(*args, **kwargs)

    def map(self, *args: Any, proxy_args: Any = None, proxy_result: Any = None, **kwargs: Any) -> Any:
        return super().map(*args, **kwargs)


def wrap(client: Any, **settings: Any) -> Any:
    """The client as it is; for an asynchronous client an awaitable of it."""

    async def same() -> Any:
        return client

    _warn()
    return client.sync(same)
