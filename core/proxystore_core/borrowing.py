"""Who owns a stored object, and who borrows it: the books that `proxystore_core.ownership` keeps.

Stored objects never change. Whoever updates one stores a new version, and sets a small record that
leads to it; the owner follows the records when the borrower is done:
    ["<key of the new version>", "<reserved key of the next record>"]
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from proxystore_core import forks
from proxystore_core.connectors.base import Key, deferred
from proxystore_core.errors import CorruptError, RefusedError, StoreError
from proxystore_core.flight import Flights
from proxystore_core.proxy import forget_target
from proxystore_core.reference import Reference
from proxystore_core.registry import store_for

__all__ = [
    "TASK_DONE",
    "Borrowing",
    "MutableBorrowError",
    "OwnedReference",
    "Ownership",
    "OwnershipError",
    "ReferenceInvalidError",
    "ReferenceNotOwnedError",
    "alive",
    "append_version",
    "by_object",
    "owners",
    "reaper",
    "session_of",
    "stored_beside",
    "where",
]

TASK_DONE = "the task that it was submitted to is done"

_LAST = 10.0  # seconds for the evictions that are left when the process ends
_VERSIONS = 1 << 20  # updates by one borrower that its owner follows


class OwnershipError(StoreError):
    """A rule of ownership is broken; the message names both who has the object and who wants it."""


class MutableBorrowError(OwnershipError):
    """Somebody borrows the object, and would see it change, or changes it."""


class ReferenceNotOwnedError(OwnershipError):
    """Only an owner, or who borrows to change, can do that."""


class ReferenceInvalidError(OwnershipError):
    """This proxy is over: its object was moved to another owner, or its borrowing has ended."""


class Ownership:
    """What an owner and its borrowers in this process share."""

    def __init__(self, reference: OwnedReference, holder: str) -> None:
        self.reference = reference  # the owner's factory, changed in place when there is a new version
        self.proxy: weakref.ref[Any] | None = None
        self.holder = holder  # where the owner was made, for people
        self.process = os.getpid()
        self.lock = forks.lock()
        self.borrowers: dict[int, Borrowing] = {}
        self.moved = ""
        self.dropped = False

    def error(self, kind: type[OwnershipError], problem: str, remedy: str) -> OwnershipError:
        return kind(problem, store=self.reference.recipe, key=self.reference.key, remedy=remedy)

    @property
    def owns(self) -> bool:
        """Whether the object is this owner's, who may be gone while somebody borrows it."""
        return not self.moved and (not self.dropped or bool(self.borrowers))

    def settle(self) -> None:
        """Take back what borrowers have finished with."""
        for borrowing in list(self.borrowers.values()):
            if borrowing.finished or (borrowing.task is not None and borrowing.task.done()):
                borrowing.end("its proxy is gone" if borrowing.finished else TASK_DONE)

    def check(self, wanted: str, *, shared: bool = False) -> None:
        """With the lock held: raise unless ``wanted`` may be done now."""
        if self.moved:
            raise self.error(
                ReferenceInvalidError,
                f"{wanted} at {where()} is late: the owner made at {self.holder} was moved ({self.moved})",
                "Use the new owner, or move a clone(). If it was pickled for nobody: into_owned().",
            )
        for borrowing in self.borrowers.values():
            if borrowing.changes or not shared:
                raise self.error(
                    MutableBorrowError,
                    f"{wanted} at {where()}: the object of the owner made at {self.holder} is borrowed "
                    f"{'to be changed' if borrowing.changes else 'to be read'} at {borrowing.holder}",
                    "End that first: let its task finish, del it, or call end_borrow().",
                )

    def add(self, changes: bool) -> Borrowing:
        wanted = "mut_borrow()" if changes else "borrow()"
        self.settle()
        with self.lock:
            self.check(wanted, shared=not changes)
            borrowing = Borrowing(self, changes)
            self.borrowers[id(borrowing)] = borrowing
        if changes:
            try:
                able = deferred(store_for(self.reference.recipe).connector)
                if able is not None:
                    borrowing.record = able.reserve(session=session_of(self.reference))
            except BaseException:
                borrowing.leave("nothing was borrowed")  # else it would be borrowed for ever, and never go
                raise
        return borrowing

    def stay(self) -> None:
        """Be no more moved: what was pickled came to nothing."""
        self.moved = ""
        self.evict_if_over()

    def drop(self) -> None:
        """The owner is garbage: evict, now or with the last borrower. Does no I/O."""
        if self.process != os.getpid():
            return
        # No lock: this may run in a thread that has it, in the midst of anything.
        self.dropped = True
        self.evict_if_over()

    def evict_if_over(self) -> None:
        if self.dropped and not self.moved and not self.borrowers:
            reaper.order(self.reference.plain())

    def replace(self, version: Reference) -> None:
        """Let the owner stand for another version."""
        old = self.reference.plain()
        self.reference.key, self.reference.size = version.key, version.size
        by_object[version.recipe, version.key] = self
        reaper.order(old)


class OwnedReference(Reference):
    """The factory of an owned proxy."""

    __slots__ = ("ownership",)

    ownership: Ownership

    def __call__(self) -> Any:
        self.ownership.settle()
        return super().__call__()

    def plain(self) -> Reference:
        return Reference(self.key, self.recipe, self.size, self.kind)


class Borrowing:
    """One borrower."""

    def __init__(self, ownership: Ownership, changes: bool) -> None:
        self.ownership = ownership
        self.changes = changes
        self.holder = where()
        self.record: Key = ""
        self.over = ""
        self.finished = False  # its proxy is garbage, and nobody has taken note
        self.task: Any = None  # the future of the task that it was submitted to
        alive.add(self)

    def finish(self) -> None:
        """The proxy is garbage. Does no I/O."""
        if self.ownership.process != os.getpid() or self.over:
            return
        self.finished = True
        if self.record:
            reaper.end(self)
        else:
            self.leave("its proxy is gone")

    def end(self, how: str) -> None:
        """Give the object back to its owner. Idempotent."""
        if self.ownership.process == os.getpid():
            _endings.run(id(self), functools.partial(self._end, how))

    def _end(self, how: str) -> None:
        if self.over:
            return
        owner = self.ownership
        try:
            if self.record:
                latest = _latest(owner.reference, self.record)
                if latest is not None:
                    owner.replace(latest)
                    proxy = owner.proxy() if owner.proxy is not None else None
                    if proxy is not None:
                        forget_target(proxy)
        finally:
            self.leave(how)

    def leave(self, how: str) -> None:
        """Be a borrower no more."""
        alive.discard(self)
        # First: what is over counts no more, and another thread may ask just now.
        self.ownership.borrowers.pop(id(self), None)
        self.over = how
        self.ownership.evict_if_over()


_endings = Flights()
alive: set[Borrowing] = set()


def session_of(reference: Reference) -> str:
    """The session of new objects beside this one: the store's own."""
    session: str = store_for(reference.recipe).session
    return session


def stored_beside(reference: Reference, obj: Any) -> Reference:
    return store_for(reference.recipe).reference(obj, session=session_of(reference))


def append_version(reference: Reference, record: Key, version: Reference) -> None:
    """Add a version to the end of a chain of records."""
    connector = store_for(reference.recipe).connector
    able = deferred(connector)
    assert able is not None
    following = able.reserve(session=session_of(reference))
    for _ in range(_VERSIONS):
        try:
            able.set(record, [json.dumps([version.key, following]).encode()])
            return
        except RefusedError:
            link = _link(reference, record)
            if link is None:
                break
            record = link[1]
    for key in (following, version.key):
        connector.evict(key)
    raise ReferenceInvalidError(
        f"update() at {where()} comes too late: the object went back to its owner",
        store=reference.recipe,
        key=reference.key,
        remedy="Update before the task ends.",
    )


def _link(reference: Reference, record: Key) -> tuple[Key, Key] | None:
    data = store_for(reference.recipe).stored(record)
    if data is None:
        return None
    try:
        version, following = json.loads(bytes(data))
        if type(version) is str and type(following) is str:
            return version, following
    except ValueError:
        pass
    raise CorruptError("a record of an update is not one", store=reference.recipe, key=record)


def _latest(reference: Reference, record: Key) -> Reference | None:
    """The last version that a borrower stored, if any; the records, and versions before it, go."""
    store = store_for(reference.recipe)
    latest: Key | None = None
    for _ in range(_VERSIONS):
        link = _link(reference, record)
        store.evict(record)
        if link is None:
            break
        if latest is not None:
            store.evict(latest)
        latest, record = link
    return None if latest is None else Reference(latest, reference.recipe, reference.size, reference.kind)


def where() -> str:
    """File, line and function of the code that called this module."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("proxystore_core.", "proxystore_integrations.", "weakref", "concurrent.", "pickle", "cloudpickle")
    ):
        frame = frame.f_back
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}"


class _Reaper:
    """Evicts and ends in the background: destructors may run in the midst of anything."""

    def __init__(self) -> None:
        # Unlike Queue.put, SimpleQueue.put may be interrupted by a destructor that puts as well.
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def order(self, reference: Reference) -> None:
        self._put(functools.partial(_evict, reference))

    def end(self, borrowing: Borrowing) -> None:
        self._put(functools.partial(borrowing.end, "its proxy is gone"))

    def _put(self, order: Callable[[], None]) -> None:
        self._orders.put(order)
        if self._thread is None:
            thread = threading.Thread(target=self._carry_out, name="proxystore-owners", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is ending: see `_at_exit`
                thread.start()
                self._thread = thread

    def _carry_out(self) -> None:
        while (order := self._orders.get()) is not None:
            with contextlib.suppress(StoreError):  # its session's lease, or gc, will
                order()
            del order

    def finish(self) -> None:
        """Carry out what has been ordered, all of it, before this returns."""
        thread, self._thread = self._thread, None
        self._orders.put(None)
        if thread is not None and thread.is_alive():
            thread.join(_LAST)
        with contextlib.suppress(queue.Empty):
            while True:
                order = self._orders.get_nowait()
                with contextlib.suppress(StoreError):
                    if order is not None:
                        order()


def _evict(reference: Reference) -> None:
    store_for(reference.recipe).evict(reference.key)


reaper = _Reaper()
owners: weakref.WeakSet[Ownership] = weakref.WeakSet()
by_object: weakref.WeakValueDictionary[tuple[str, Key], Ownership] = weakref.WeakValueDictionary()
"""The last that was made of each object, by recipe and key."""


def _at_exit() -> None:
    for ownership in list(owners):
        ownership.borrowers.clear()
        if not ownership.dropped:
            ownership.drop()
    reaper.finish()


@forks.in_child
def _after_fork() -> None:
    global reaper
    reaper = _Reaper()  # the child is nobody's owner
    alive.clear()
    owners.clear()
    by_object.clear()


atexit.register(_at_exit)
