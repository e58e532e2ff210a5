"""Whether a release of an engine is one that its integration runs on: not too old, with all names it uses."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from proxystore_core import MissingExtraError

__all__ = ["Releases"]


class Releases(NamedTuple):
    """The releases of an engine that the tests ran on, by their first two numbers.

    Attributes:
        engine: what is released.
        extra: of this distribution, which brings it.
        lowest: of them.
        highest: of them.
    """

    engine: str
    extra: str
    lowest: tuple[int, int]
    highest: tuple[int, int]

    def check_minimum(self, release: str) -> None:
        """Check that a release is not too old.

        Raises:
            MissingExtraError: it is.
        """
        if _numbers(release) < self.lowest:
            raise MissingExtraError(
                f"{self.engine} {release} is too old for this integration",
                remedy=f'Run: pip install --upgrade "proxystore-integrations[{self.extra}]".',
            )

    def check(self, release: str, names: Mapping[Any, str], *, newer: bool = True) -> None:
        """Check a release and the names that are used of its inside.

        Args:
            release: the engine's version.
            names: by class or module, those that are used of it, with blanks between.
            newer: whether one that is newer than all that were tested is used, with a warning.

        Raises:
            MissingExtraError: it is too old, or too new, or a name is not there any more; says which.
        """
        self.check_minimum(release)
        tested = f"{self.highest[0]}.{self.highest[1]}"
        remedy = f"Use {self.engine} {tested}, or a newer proxystore-integrations."
        missing = [
            f"{place.__name__}.{name}"
            for place, used in names.items()
            for name in used.split()
            if not hasattr(place, name)
        ]
        if missing:
            raise MissingExtraError(
                f"{self.engine} {release} has no {', '.join(missing)}, which this integration needs",
                remedy=remedy,
            )
        if _numbers(release) <= self.highest:
            return
        problem = f"this integration was tested with {self.engine} up to {tested}, this is {release}"
        if not newer:
            raise MissingExtraError(problem, remedy=remedy)
        warnings.warn(f"{problem}. All names that it uses are there.", RuntimeWarning, stacklevel=3)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])
