"""Which value is proxied."""

from __future__ import annotations

import msgspec

from proxystore_core.proxy import Proxy
from proxystore_core.sizeof import sizeof

__all__ = ["Policy"]


class Policy(msgspec.Struct, frozen=True):
    """Proxy a value from a size on.

    Attributes:
        threshold: bytes.
    """

    threshold: int

    def over(self, value: object) -> bool:
        """Whether the value is to be proxied. A proxy never is, and is not resolved to find out.

        The size is an estimate that costs microseconds, whatever the value's size.
        """
        threshold = self.threshold
        # Nearly all values are small, so what costs less comes first: `sizeof` resolves no proxy either.
        return sizeof(value, limit=threshold) >= threshold and not issubclass(type(value), Proxy)
