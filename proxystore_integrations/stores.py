"""Stores by name: tables of the settings that a ``multi://`` store is put together from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxystore_core.errors import ConfigurationError
from proxystore_integrations.units import parse_size

__all__ = ["STORES", "completed", "completed_tables"]

STORES = "stores"
"""Name of the table of tables."""

_SCHEME = "multi://"
_SIZES = ("min_size", "max_size")


def completed_tables(tables: Any, origin: str) -> dict[str, dict[str, Any]]:
    """The tables with their sizes in bytes.

    Args:
        tables: what was found under ``stores``.
        origin: where, for errors.

    Raises:
        ConfigurationError: they are no tables, or a size is none.
    """
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        remedy = 'Expected a table for each store: [stores.NAME] with url = "shm://", say.'
        raise ConfigurationError(f"{origin}: stores = {tables!r}", remedy=remedy)
    found = {name: dict(table) for name, table in tables.items()}
    for name, table in found.items():
        for option in _SIZES:
            if option in table:
                try:
                    table[option] = parse_size(table[option])
                except ConfigurationError as error:
                    problem = f"{origin}: stores.{name}.{option} = {table[option]!r}: {error.problem}"
                    raise ConfigurationError(problem, remedy=error.remedy) from error
    return found


def completed(url: str, stores: Mapping[str, Mapping[str, Any]], origin: str) -> str:
    """A store's URL that says all: that of a ``multi://`` store which only names its parts is spelt out.

    Args:
        url: any store's; ``multi://`` alone means all the tables, in their order.
        stores: what the tables say, by name.
        origin: where the URL was found, for errors.

    Raises:
        ConfigurationError: it names a store that has no table, or a table says something wrong.
    """
    if not url.startswith(_SCHEME) or "?" in url:
        return url
    from proxystore_core.connectors.multi import MultiConnector, multi_url

    names = [name for name in url.removeprefix(_SCHEME).strip("/").split(",") if name] or list(stores)
    for name in names:
        if name not in stores:
            known = ", ".join(sorted(stores)) or "none"
            raise ConfigurationError(
                f"{origin}: store = {url!r} names {name!r}, which is no table", remedy=f"Known: {known}."
            )
    parts = {name: stores[name] for name in names}
    MultiConnector.check(parts)
    return multi_url(parts)
