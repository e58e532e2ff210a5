"""A serializer for Parsl executors that cannot be wrapped: arguments only.

Results come back by value, nothing tells when a task is over (so what was stored stays until `close`),
and a call whose arguments a worker cannot have fails. Executors that can be wrapped are better off so.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import dill

from proxystore_integrations.calls import CallLink
from proxystore_integrations.parsl.engine import SerializerBase, methods_for_data, register_method_for_data

__all__ = ["StoreSerializer"]


class StoreSerializer(SerializerBase):
    """Puts large arguments into a store when Parsl serializes them.

    Workers find it by its name, in the package that is installed there. Use it as a context manager
    around the workflow, or call `install` and `close`.

    Args:
        **settings: as for `wrap`.

    Raises:
        ConfigurationError: a setting is unknown or wrong.
    """

    identifier = f"{__name__} StoreSerializer".encode()

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._link: CallLink | None = None

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def install(self) -> None:
        """Let Parsl ask this serializer first, and its own for what is small.

        Raises:
            StoreError: the store cannot be opened.
        """
        self._link = CallLink(*CallLink.settled(**self._settings), "parsl")
        self._link.open()
        others = dict(methods_for_data)
        methods_for_data.clear()
        register_method_for_data(self)
        methods_for_data.update(others)  # Parsl decodes results with these

    def close(self) -> None:
        """Leave Parsl to its own serializers, and empty the store. Idempotent."""
        methods_for_data.pop(self.identifier, None)
        if self._link is not None:
            self._link.close_now()

    def serialize(self, data: Any) -> bytes:
        """Arguments (a list, tuple or dict) with the large ones in the store.

        Raises:
            TypeError: there is nothing large among them; Parsl then asks its own serializer.
        """
        link = self._link
        if link is None or not link.reached or type(data) not in (list, tuple, dict):
            raise TypeError("not for the store")
        packed = link.pack(data)
        if packed is None:
            raise TypeError("nothing large")
        return dill.dumps(packed)  # type: ignore[no-any-return]

    def deserialize(self, payload: bytes) -> Any:
        """The arguments, with all values in their places.

        Raises:
            StoreError: one of them cannot be had.
        """
        return dill.loads(payload).filled()[1][0]
