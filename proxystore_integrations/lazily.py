"""A package's public names, loaded when they are asked for."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["lazily", "loading"]


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__``.

    Args:
        package: its name.
        homes: the module of each public name.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with loading(homes[name]):
            home = importlib.import_module(homes[name])
        value = getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    return load


@contextlib.contextmanager
def loading(module: str) -> Iterator[None]:
    """What a ``__getattr__`` loads: an AttributeError of its code, or of its engine's, is an ImportError.

    Python would tell the user that there is no such name, and not why.
    """
    try:
        yield
    except AttributeError as error:
        raise ImportError(f"{module} cannot be loaded: {error}") from error
