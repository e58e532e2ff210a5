"""Big task arguments and results through a store, with the workflow script unchanged.

One package an engine, all of one shape and with the same settings (`proxystore_integrations.settings`).
`instrument` equips whichever engine a program imports; ``%load_ext proxystore_integrations`` does so in a
notebook, and ``proxystore run script.py`` from outside.
"""

from __future__ import annotations

from proxystore_integrations.instrumentation import instrument, uninstrument

TYPE_CHECKING = False  # see proxystore_integrations.instrumentation
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "instrument", "uninstrument"]


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext proxystore_integrations``: `instrument`."""
    instrument()


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext proxystore_integrations``: `uninstrument`."""
    uninstrument()


def __getattr__(name: str) -> Any:
    """What workers call by a short name."""
    if name in ("call_given", "call_pickled"):
        from proxystore_integrations import carriers

        return globals().setdefault(name, getattr(carriers, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
