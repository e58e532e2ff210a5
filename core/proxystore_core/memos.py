"""Which objects a pickle has in it: those that another pickle has, too, are two where both are read."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

__all__ = ["Memo", "remember", "remembering"]


class Memo:
    """The objects in one pickle.

    Args:
        pickler: one that has just made it, for nothing else; it keeps them alive.
        written: what it writes to.
    """

    def __init__(self, pickler: Any, written: list[Any]) -> None:
        self._pickler = pickler
        self._written = written
        pickler.fast = True  # it learns nothing more

    def __contains__(self, obj: object) -> bool:
        """Whether the pickle has this very object; costs about 1 us. Numbers are in none."""
        before = len(self._written)
        try:
            self._pickler.persistent_id = _Stop()
            _REDUCERS.__set__(self._pickler, _STOP)  # else it would run the object's own code
        except AttributeError:  # Python 3.13.0
            return id(obj) in self.objects()
        try:
            self._pickler.dump(obj)
            return self._written[before][_opcode(self._written[before])] in _GET
        except Exception:
            return False
        finally:
            del self._written[before:]

    def objects(self) -> dict[int, Any]:
        """All of them, by id; costs about as much as pickling them."""
        return {one: obj for one, (_, obj) in self._pickler.memo.copy().items()}


_GET = b"hj"  # what pickle writes for an object that it has seen
_FRAME = 0x95


def _opcode(stream: bytes) -> int:
    return 11 if stream[2] == _FRAME else 2


class _StopError(Exception):
    """Raised to see no more of an object."""


class _StopReducing:
    """A table of reducers that lets a pickler reduce nothing."""

    def __getitem__(self, kind: type) -> Any:
        raise _StopError


_STOP = _StopReducing()
_REDUCERS: Any = pickle.Pickler.__dict__["dispatch_table"]


class _Stop:
    """Lets a pickler look whether it has seen an object, and at nothing in it."""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, obj: object) -> None:
        if self._begun:
            raise _StopError
        self._begun = True


_memos: ContextVar[dict[int, Memo] | None] = ContextVar("proxystore_memos", default=None)


@contextlib.contextmanager
def remembering() -> Iterator[dict[int, Memo]]:
    """Fills a dictionary with the memos of what this thread pickles for a store meanwhile, by its id."""
    memos: dict[int, Memo] = {}
    token = _memos.set(memos)
    try:
        yield memos
    finally:
        _memos.reset(token)


def remember(obj: object, pickler: Any, written: list[Any]) -> None:
    """Note what a pickler has made, if anybody wants to know."""
    memos = _memos.get()
    if memos is not None:
        memos[id(obj)] = Memo(pickler, written)
