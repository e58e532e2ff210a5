"""Ownership: exactly one proxy owns an object, others borrow it, and the object goes with its owner.

Example:
    owned = store.owned_proxy(array)
    readers = [executor.submit(read, borrow(owned)) for _ in range(3)]  # any number that read
    wait(readers)
    executor.submit(change, mut_borrow(owned))  # or one that changes, and says update()
    del owned  # evicted, once the last borrower is done

The rules are Rust's, checked when the program runs: many readers or one writer; no owner moves,
changes or clones what somebody may be changing. A borrower is over when it is garbage, when
`end_borrow` says so, or when the task is done that it was submitted to.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from proxystore_core.borrowing import (
    TASK_DONE,
    Borrowing,
    MutableBorrowError,
    OwnedReference,
    Ownership,
    OwnershipError,
    ReferenceInvalidError,
    ReferenceNotOwnedError,
    alive,
    append_version,
    by_object,
    owners,
    session_of,
    stored_beside,
    where,
)
from proxystore_core.changes import changed_by, changes
from proxystore_core.connectors.base import Key
from proxystore_core.errors import ConfigurationError, GoneError
from proxystore_core.futures import Pending
from proxystore_core.operators import OPERATORS, PROXIES
from proxystore_core.proxy import Proxy, extract, forget_target, get_factory, is_resolved
from proxystore_core.reference import Reference
from proxystore_core.registry import store_for
from proxystore_core.serialize import undo_if_it_fails

__all__ = [
    "MutableBorrowError",
    "OwnedProxy",
    "OwnershipError",
    "RefMutProxy",
    "RefProxy",
    "ReferenceInvalidError",
    "ReferenceNotOwnedError",
    "borrow",
    "borrows_in",
    "clone",
    "end_borrow",
    "end_with",
    "into_owned",
    "mut_borrow",
    "submit",
    "update",
]

T = TypeVar("T")

_DEPTH = 8  # levels of containers in which borrowed proxies are looked for
_ITEMS = 1000  # of each


class OwnedProxy(Proxy[T]):
    """The one proxy that an object belongs to: when it is garbage, the object is evicted.

    Pickling moves the object: the proxy that is unpickled owns it, this one is over. (If it was pickled for
    nobody, because the rest could not be pickled or sent, `into_owned` takes it back.) It cannot be copied;
    `clone` stores another object.
    """

    __slots__ = ("__ownership__",)

    def __reduce__(self) -> tuple[Any, ...]:
        owner = _owner_of(self)
        with owner.lock:
            if not owner.moved:
                owner.check("moving (pickling) it")
                owner.moved = f"pickled at {where()}"
                undo_if_it_fails(owner.stay)
        return _owned, (owner.reference.plain(),)

    def __copy__(self) -> Any:
        raise _owner_of(self).error(OwnershipError, "an owned proxy cannot be copied", "Use clone().")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.__copy__()


class _Borrowed(Proxy[T]):
    __slots__ = ("__borrowing__",)

    def __copy__(self) -> Any:
        raise OwnershipError("a borrowed proxy cannot be copied", remedy="Call borrow() again.")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.__copy__()


class RefProxy(_Borrowed[T]):
    """Borrows an object to read it.

    Changes through it are refused where they can be seen: operators, attributes, and the methods and
    functions that `proxystore_core.changes` knows. In the owner's process it is the owner's object, else a
    copy.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        _check_valid(self)
        return _reader, (get_factory(self),)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _read_only(self)

    def __delattr__(self, name: str) -> None:
        raise _read_only(self)

    def __getattr__(self, name: str) -> Any:
        if name[:1] != "_" and changes(type(self.__proxy_target__), name):
            return functools.partial(_refuse, self)
        return super().__getattr__(name)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        for changed in changed_by(function, args, kwargs):
            if isinstance_of(changed, RefProxy):
                raise _read_only(changed)
        return OPERATORS["__array_function__"](self, function, types, args, kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        for changed in (*kwargs.get("out", ()), *(inputs[:1] if method == "at" else ())):
            if isinstance_of(changed, RefProxy):
                raise _read_only(changed)
        return OPERATORS["__array_ufunc__"](self, ufunc, method, *inputs, **kwargs)


class RefMutProxy(_Borrowed[T]):
    """Borrows an object to change it: its changes are its own until `update` stores them."""

    __slots__ = ("__record__",)

    def __reduce__(self) -> tuple[Any, ...]:
        _check_valid(self)
        return _writer, (get_factory(self), _slot(self, "__record__"))


def _refuse(p: Any, *args: Any, **kwargs: Any) -> Any:
    raise _read_only(p)


for _operation in (
    *("setitem", "delitem", "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv"),
    *("imod", "ipow", "ilshift", "irshift", "iand", "ior", "ixor"),
):
    setattr(RefProxy, f"__{_operation}__", _refuse)


# What users call.


def into_owned(proxy: Proxy[T]) -> OwnedProxy[T]:
    """The owner of an ordinary proxy's object from now on; the object is evicted with it.

    So is that of an owner that was moved: nobody can tell here whether its pickle reached another owner, who
    would evict the object, too.

    Raises:
        ReferenceNotOwnedError: the proxy is borrowed, or its object has an owner in this process already.
        ConfigurationError: it does not come from a store, or is that of a future whose result is not there.
    """
    reference = _reference(proxy)
    owner = by_object.get((reference.recipe, reference.key))
    if isinstance_of(proxy, _Borrowed) or (owner is not None and owner.owns):
        whose = "" if owner is None else f", made at {owner.holder}"
        raise ReferenceNotOwnedError(
            f"the object at {where()} has an owner already{whose}", key=reference.key, remedy="Use clone()."
        )
    if isinstance(reference, Pending) and not is_resolved(proxy):
        raise ConfigurationError(
            f"into_owned() at {where()} of a future's result, which may not be there",
            store=reference.recipe,
            key=reference.key,
            remedy="Wait for it first: resolve(proxy).",
        )
    mine = _owned(reference)
    if is_resolved(proxy):
        object.__setattr__(mine, "__proxy_target__", extract(proxy))
    return mine


def borrow(proxy: OwnedProxy[T]) -> RefProxy[T]:
    """Borrow the object to read it, beside any number of others who read it.

    Raises:
        MutableBorrowError: somebody borrows it to change it.
        ReferenceInvalidError: the owner was moved.
        ReferenceNotOwnedError: not an owned proxy.
    """
    owner = _owner_of(proxy)
    borrowing = owner.add(changes=False)
    borrowed: RefProxy[T] = RefProxy(owner.reference.plain())
    _tie(borrowed, borrowing)
    if is_resolved(proxy):
        object.__setattr__(borrowed, "__proxy_target__", extract(proxy))
    return borrowed


def mut_borrow(proxy: OwnedProxy[T]) -> RefMutProxy[T]:
    """Borrow the object to change it, and nobody beside. The borrower sees a copy of its own.

    Raises:
        MutableBorrowError: somebody borrows it.
        ReferenceInvalidError: the owner was moved.
        ReferenceNotOwnedError: not an owned proxy.
    """
    owner = _owner_of(proxy)
    borrowing = owner.add(changes=True)
    borrowed: RefMutProxy[T] = RefMutProxy(owner.reference.plain())
    object.__setattr__(borrowed, "__record__", borrowing.record)
    _tie(borrowed, borrowing)
    forget_target(proxy)  # it may be another one when the borrower is done
    return borrowed


def end_borrow(proxy: RefProxy[T] | RefMutProxy[T]) -> None:
    """Give the object back now. The proxy is over; again is success.

    Raises:
        ReferenceNotOwnedError: not a borrowed proxy.
    """
    borrowing = _borrowing_of(proxy)
    if borrowing is not None:
        borrowing.end(f"end_borrow() at {where()}")
        _invalidate(proxy, borrowing)


def clone(proxy: OwnedProxy[T]) -> OwnedProxy[T]:
    """Store a copy of the object, with an owner of its own. The bytes are copied, not decoded.

    Raises:
        MutableBorrowError: somebody borrows it to change it.
        GoneError: it was evicted behind our back.
    """
    owner = _owner_of(proxy)
    with owner.lock:
        owner.check("clone()", shared=True)
    reference = owner.reference
    store = store_for(reference.recipe)
    data = store.stored(reference.key)
    if data is None:
        raise GoneError("the object to clone is gone", store=reference.recipe, key=reference.key)
    key, _ = store.put_frames([data], session=session_of(reference))
    return _owned(Reference(key, reference.recipe, reference.size, reference.kind))


def update(proxy: OwnedProxy[T] | RefMutProxy[T]) -> None:
    """Store the object as it is now in this process, for everyone who comes after.

    Raises:
        MutableBorrowError: it is an owner, and somebody borrows the object.
        ReferenceNotOwnedError: it is neither an owner nor borrowed to change.
        StoreError: it cannot be stored.
    """
    if isinstance_of(proxy, OwnedProxy):
        owner = _owner_of(proxy)
        with owner.lock:
            owner.check("update()")
        if is_resolved(proxy):
            owner.replace(stored_beside(owner.reference, extract(proxy)))
        return
    if not isinstance_of(proxy, RefMutProxy):
        raise ReferenceNotOwnedError(f"update() at {where()} of a proxy that may not change its object")
    _check_valid(proxy)
    if not is_resolved(proxy):
        return
    reference = _reference(proxy)
    record = _slot(proxy, "__record__")
    if not record:
        raise ConfigurationError(
            "this store cannot set an object later, so a borrower cannot update it",
            store=reference.recipe,
            remedy="Update through the owner, or use shm://, file:///path or redis://host.",
        )
    append_version(reference, record, stored_beside(reference, extract(proxy)))


def submit(
    function: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Submit a call to an engine without an integration of ours; what is borrowed for it ends with it.

    Args:
        function: the engine's ``submit``, or what returns a future with ``add_done_callback``.
        args: positional arguments of it.
        kwargs: keyword arguments of it.
    """
    borrowed = borrows_in((args, kwargs or {}))
    return end_with(function(*args, **(kwargs or {})), borrowed)


def borrows_in(values: Any) -> list[Proxy[Any]]:
    """The borrowed proxies of this process among values, also in lists, tuples and dicts."""
    return list(_found(values, _DEPTH)) if alive else []


def end_with(task: T, borrowed: Sequence[Proxy[Any]], *, retried: bool = False) -> T:
    """End borrowings when a task is done, and not before, whoever drops the proxies.

    Args:
        task: the engine's future, or a list of futures that are to be done.
        borrowed: what `borrows_in` found.
        retried: whether the engine may submit a task that failed again: only success ends what it borrows.

    Returns:
        ``task``.
    """
    if not borrowed:
        return task
    futures: list[Any] = task if isinstance(task, list) else [task]
    over = _Over(futures, list(borrowed), retried)
    for borrowing in filter(None, map(_borrowing_of, borrowed)):
        borrowing.task = over
    for future in futures:
        future.add_done_callback(over)
    return task


class _Over:
    """Ends borrowings with the last of some futures."""

    def __init__(self, futures: list[Any], borrowed: list[Proxy[Any]], retried: bool) -> None:
        self.futures = futures
        self.borrowed = borrowed
        self.retried = retried

    def done(self) -> bool:
        if not all(future.done() for future in self.futures):
            return False
        return not self.retried or not any(
            future.cancelled() or future.exception() is not None for future in self.futures
        )

    def __call__(self, future: Any) -> None:
        if not all(future.done() for future in self.futures):
            return
        borrowed, self.borrowed = self.borrowed, []
        if self.done():
            self.futures = []  # done for ever; whatever their results hold may go
            for proxy in borrowed:
                borrowing = _borrowing_of(proxy)
                if borrowing is not None:
                    borrowing.end(TASK_DONE)
                    _invalidate(proxy, borrowing)


# The rest is nobody's business.


def isinstance_of(proxy: object, *kinds: type) -> bool:
    """As `isinstance`, never asking the proxy's object."""
    return issubclass(type(proxy), kinds)


def _found(value: Any, depth: int) -> Iterator[Proxy[Any]]:
    kind = type(value)
    if kind in PROXIES:
        if issubclass(kind, _Borrowed):
            yield value
    elif kind in (list, tuple, dict) and depth:
        items = list(value.values() if kind is dict else value)
        for item in items[:_ITEMS]:
            yield from _found(item, depth - 1)


def _owned(reference: Reference) -> OwnedProxy[Any]:
    import proxystore_core.store  # noqa: F401  when the interpreter ends it is too late for that

    mine = OwnedReference(reference.key, reference.recipe, reference.size, reference.kind)
    proxy: OwnedProxy[Any] = OwnedProxy(mine)
    mine.ownership = ownership = Ownership(mine, where())
    ownership.proxy = weakref.ref(proxy)
    object.__setattr__(proxy, "__ownership__", ownership)
    weakref.finalize(proxy, ownership.drop).atexit = False
    owners.add(ownership)
    by_object[mine.recipe, mine.key] = ownership
    return proxy


def _reader(reference: Reference) -> RefProxy[Any]:
    return RefProxy(reference)


def _writer(reference: Reference, record: Key) -> RefMutProxy[Any]:
    borrowed: RefMutProxy[Any] = RefMutProxy(reference)
    object.__setattr__(borrowed, "__record__", record)
    return borrowed


def _tie(borrowed: Proxy[Any], borrowing: Borrowing) -> None:
    object.__setattr__(borrowed, "__borrowing__", borrowing)
    weakref.finalize(borrowed, borrowing.finish).atexit = False


def _invalidate(proxy: Proxy[Any], borrowing: Borrowing) -> None:
    forget_target(proxy)
    object.__setattr__(proxy, "__proxy_factory__", _Ended(get_factory(proxy), borrowing))


class _Ended:
    """The factory of a borrowed proxy that is over."""

    def __init__(self, reference: Any, borrowing: Borrowing) -> None:
        self.reference = reference
        self.borrowing = borrowing
        self.target_class = lambda: None

    def __call__(self) -> Any:
        raise self.borrowing.ownership.error(
            ReferenceInvalidError,
            f"what was borrowed at {self.borrowing.holder} went back to the owner made at "
            f"{self.borrowing.ownership.holder}: {self.borrowing.over}",
            "Borrow it again.",
        )

    def describe(self) -> str:
        return f"nothing any more: {self.borrowing.over}"


def _slot(proxy: Proxy[Any], name: str) -> Any:
    try:
        return object.__getattribute__(proxy, name)
    except AttributeError:
        return None


def _reference(proxy: Proxy[Any]) -> Reference:
    factory = get_factory(proxy)
    if not isinstance(factory, Reference):
        raise ConfigurationError(f"this proxy does not come from a store: its factory is {factory!r}")
    return factory


def _owner_of(proxy: Proxy[Any]) -> Ownership:
    ownership = _slot(proxy, "__ownership__") if isinstance_of(proxy, OwnedProxy) else None
    if ownership is None:
        raise ReferenceNotOwnedError(
            f"at {where()} an owned proxy is needed, not a {type(proxy).__name__}",
            remedy="Make one with store.owned_proxy(), or into_owned() of a proxy.",
        )
    ownership.settle()
    return ownership  # type: ignore[no-any-return]


def _borrowing_of(proxy: Proxy[Any]) -> Borrowing | None:
    """The borrowing of a proxy; None in the task that it was sent to."""
    if not isinstance_of(proxy, _Borrowed):
        raise ReferenceNotOwnedError(f"at {where()} a borrowed proxy is needed, not a {type(proxy).__name__}")
    return _slot(proxy, "__borrowing__")  # type: ignore[no-any-return]


def _check_valid(proxy: Proxy[Any]) -> None:
    factory = get_factory(proxy)
    if type(factory) is _Ended:
        factory()


def _read_only(proxy: Proxy[Any]) -> OwnershipError:
    borrowing = _borrowing_of(proxy)
    whose = f" from the owner made at {borrowing.ownership.holder}" if borrowing is not None else ""
    holder = f", borrowed at {borrowing.holder}{whose}" if borrowing is not None else ""
    return MutableBorrowError(
        f"{where()} changes what was borrowed to be read{holder}", remedy="Use mut_borrow()."
    )
