"""Backends that keep bytes, one file each; see `proxystore_core.connectors.base`."""
