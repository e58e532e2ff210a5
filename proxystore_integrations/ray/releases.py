"""The releases of Ray that this integration is for."""

from __future__ import annotations

import re

from proxystore_core import MissingExtraError

__all__ = ["MINIMUM", "TESTED", "check_minimum", "numbers_of"]

MINIMUM = (2, 60)
TESTED = (2, 60)
"""The lowest and the highest release of Ray that the tests ran on."""


def numbers_of(release: str) -> tuple[int, ...]:
    """``"2.60.0"`` is ``(2, 60)``."""
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])


def check_minimum(release: str) -> None:
    """Check that a release of Ray is not too old.

    Raises:
        MissingExtraError: it is.
    """
    if numbers_of(release) < MINIMUM:
        raise MissingExtraError(
            f"Ray {release} is too old for this integration",
            remedy='Run: pip install --upgrade "proxystore-integrations[ray]".',
        )
