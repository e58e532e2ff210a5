"""Results of tasks in the store, and what stands for them in the workers' memory."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from dask.utils import key_split

from proxystore_core import Reference, StoreError, store_for
from proxystore_integrations import ledger
from proxystore_integrations.dask.orders import Order, carry_out

__all__ = ["StoredResult", "over", "put", "unclaimed"]


class StoredResult:
    """A value that is in the store: what a worker keeps in its memory, or is sent, in its place.

    Args:
        reference: names the value.
        session: the session that it belongs to.
        kind: the value's class; known where it was stored, and nowhere else.
    """

    __slots__ = ("kind", "reference", "session")

    def __init__(self, reference: Reference, session: str, kind: type | None = None) -> None:
        self.reference = reference
        self.session = session
        self.kind = kind

    def __reduce__(self) -> tuple[type[StoredResult], tuple[Reference, str]]:
        return StoredResult, (self.reference, self.session)

    def __repr__(self) -> str:
        return f"<stored {self.reference.describe()}>"

    def __sizeof__(self) -> int:
        return 200


unclaimed: dict[Any, StoredResult] = {}
"""Results that tasks of this process have stored and no worker has taken into its memory yet, by task.

Of those that one has, the scheduler knows. The others are of tasks that were cancelled while they ran.
"""

over: dict[str, None] = {}
"""Sessions that have ended, the last of them last. What is put into one brings it back."""


def put(value: Any, recipe: str, session: str, key: Any, what: str) -> Reference | None:
    """Put a task's result into a session.

    Args:
        value: the result.
        recipe: of the store.
        session: its name.
        key: the task's.
        what: for the ledger.

    Returns:
        None when the session is over, and nobody wants the result.

    Raises:
        StoreError: the store failed; says why.
    """
    if session in over:
        return None
    start = time.perf_counter()
    try:
        reference = store_for(recipe).reference(value, session=session)
    except BaseException:
        if session in over:  # it may have begun again, for nothing
            with contextlib.suppress(StoreError):
                carry_out(Order("end", recipe, session))
        raise
    if session in over:
        carry_out(Order("end", recipe, session, [reference.key]))
        return None
    if (book := ledger.book) is not None:
        book.put(what, "dask", key_split(key), reference, time.perf_counter() - start)
    return reference
