"""Ownership: one owner, readers or one writer, and an object that goes with its owner."""

from __future__ import annotations

import array
import copy
import gc
import pickle
import secrets
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future as LocalFuture
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from waiting import until

from proxystore_core import Proxy, Store, extract, get_key, is_resolved
from proxystore_core.errors import ConfigurationError, GoneError, SerializationError, UnreachableError
from proxystore_core.ownership import (
    MutableBorrowError,
    OwnedProxy,
    OwnershipError,
    ReferenceInvalidError,
    ReferenceNotOwnedError,
    RefMutProxy,
    RefProxy,
    borrow,
    clone,
    end_borrow,
    into_owned,
    mut_borrow,
    submit,
    update,
)
from proxystore_core.testing import in_fork, in_new_process


@pytest.fixture(params=["shm", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Store[Any]]:
    url = {"shm": f"shm://{secrets.token_hex(4)}", "redis": f"{redis_url}?prefix={secrets.token_hex(4)}"}
    with Store.from_url(url[request.param], name=secrets.token_hex(4)) as store:
        yield store
        gc.collect()
        store.close(clear=True)


def gone(store: Store[Any], key: str) -> None:
    until(lambda: not store.exists(key))


def test_an_object_goes_with_its_owner(store: Store[Any]) -> None:
    owned = store.owned_proxy([1, 2])
    key = get_key(owned)
    assert isinstance(owned, list)
    assert type(owned) is OwnedProxy
    assert extract(owned) == [1, 2]
    assert store.exists(key)
    del owned
    gone(store, key)


def test_into_owned(store: Store[Any]) -> None:
    proxy = store.proxy([1], populate_target=False)
    key = get_key(proxy)
    owned = into_owned(proxy)
    assert not is_resolved(owned)
    with pytest.raises(ReferenceNotOwnedError, match="owner already"):
        into_owned(owned)
    with pytest.raises(ReferenceNotOwnedError, match="owner already"):
        into_owned(borrow(owned))
    del owned
    gone(store, key)
    with pytest.raises(GoneError):
        extract(proxy)
    with pytest.raises(TypeError):
        into_owned([1])  # type: ignore[arg-type]


def test_many_readers_or_one_writer(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    readers = [borrow(owned) for _ in range(3)]
    assert all(type(reader) is RefProxy and extract(reader) == [1] for reader in readers)
    with pytest.raises(MutableBorrowError) as raised:
        mut_borrow(owned)
    text = str(raised.value)
    assert text.count("test_ownership.py:") == 3  # who wants it, who owns it, who has it
    assert "to be read" in text
    with pytest.raises(MutableBorrowError):
        update(owned)
    with pytest.raises(MutableBorrowError):
        pickle.dumps(owned)
    readers.clear()
    writer = mut_borrow(owned)
    assert type(writer) is RefMutProxy
    for forbidden in (borrow, mut_borrow, clone, update, pickle.dumps):
        with pytest.raises(MutableBorrowError, match="to be changed"):
            forbidden(owned)
    del writer
    assert extract(borrow(owned)) == [1]


def test_end_borrow(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    reader = borrow(owned)
    end_borrow(reader)
    end_borrow(reader)
    writer = mut_borrow(owned)
    for use in (len, pickle.dumps):
        with pytest.raises(
            ReferenceInvalidError, match=r"test_ownership.py.*went back.*test_ownership.py.*end_b"
        ):
            use(reader)
    assert "nothing any more" in repr(reader)
    end_borrow(writer)
    with pytest.raises(ReferenceInvalidError):
        update(writer)
    with pytest.raises(ReferenceNotOwnedError):
        end_borrow(owned)  # type: ignore[arg-type]


def test_readers_change_nothing(store: Store[Any]) -> None:
    owned = store.owned_proxy({"a": np.arange(3)})
    reader: Any = borrow(owned)

    def set_item() -> None:
        reader["a"] = 1

    def set_attribute() -> None:
        reader.a = 1

    def add() -> None:
        nonlocal reader
        reader += 1

    for change in (set_item, set_attribute, add, lambda: reader.__delitem__("a")):
        with pytest.raises(MutableBorrowError, match="mut_borrow"):
            change()
    with pytest.raises(ReferenceNotOwnedError):
        update(reader)
    assert len(extract(owned)) == 1


def test_update_by_a_borrower(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    first = get_key(owned)
    writer = mut_borrow(owned)
    writer.append(2)
    del writer
    assert extract(owned) == [1]  # nobody said update
    writer = mut_borrow(owned)
    for number in (2, 3):
        writer.append(number)
        update(writer)
    del writer
    assert extract(owned) == [1, 2, 3]
    gone(store, first)
    last = get_key(owned)
    assert extract(borrow(owned)) == [1, 2, 3]
    del owned
    gone(store, last)


def test_update_by_the_owner(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    first = get_key(owned)
    update(into_owned(store.proxy([0], populate_target=False)))  # nothing loaded, nothing changed
    owned.append(2)
    assert pickle.loads(pickle.dumps(borrow(owned))) == [1]
    update(owned)
    assert pickle.loads(pickle.dumps(borrow(owned))) == [1, 2]
    gone(store, first)


def test_clone(store: Store[Any]) -> None:
    owned = store.owned_proxy(np.arange(500_000))
    twin = clone(owned)
    assert get_key(twin) != get_key(owned)
    extract(twin)[0] = 7
    assert extract(owned)[0] == 0
    del owned
    assert extract(twin)[1] == 1
    for make in (copy.copy, copy.deepcopy):
        with pytest.raises(OwnershipError, match="clone"):
            make(twin)
        with pytest.raises(OwnershipError, match="again"):
            make(borrow(twin))


def test_pickling_moves_it(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    key = get_key(owned)
    moved = pickle.loads(pickle.dumps(owned))
    assert type(moved) is OwnedProxy
    with pytest.raises(ReferenceInvalidError, match="moved"):
        borrow(owned)
    del owned
    assert store.exists(key)
    assert extract(moved) == [1]
    del moved
    gone(store, key)


def test_an_owner_that_is_gone_before_its_borrowers(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    key = get_key(owned)
    reader = borrow(owned)
    del owned
    gc.collect()
    assert store.exists(key)
    assert pickle.loads(pickle.dumps(reader)) == [1]
    del reader
    gone(store, key)


def test_only_owners_are_borrowed_from(store: Store[Any]) -> None:
    wrong: Any
    for wrong in (store.proxy([1]), borrow(store.owned_proxy([1])), Proxy(list)):
        for use in (borrow, mut_borrow, clone):
            with pytest.raises(ReferenceNotOwnedError, match="owned_proxy"):
                use(wrong)
    store.close(clear=True)


def test_threads(store: Store[Any]) -> None:
    owned = store.owned_proxy([0])
    counts = {"changed": 0}
    lock = threading.Lock()

    def work(_: int) -> None:
        while True:
            try:
                writer: Any = mut_borrow(owned)
            except MutableBorrowError:
                continue
            writer[0] += 1
            update(writer)
            end_borrow(writer)
            with lock:
                counts["changed"] += 1
            return

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(12)))
    assert counts == {"changed": 12}
    assert extract(owned) == [12]


def test_a_fork_owns_nothing(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    key = get_key(owned)
    boxes = [owned]

    def child() -> bool:
        boxes.clear()
        gc.collect()
        return store.exists(key)

    del owned
    assert in_fork(child)
    assert store.exists(key)
    boxes.clear()
    gone(store, key)


AT_EXIT = """
import sys
from proxystore_core import Store, get_key
from proxystore_core.ownership import borrow
store = Store.from_url(sys.argv[1])
owned = store.owned_proxy([1])
reader = borrow(owned)
print(get_key(owned))
"""


def test_owned_objects_go_at_exit(store: Store[Any]) -> None:
    command = [sys.executable, "-c", AT_EXIT, store.connector.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not store.exists(done.stdout.strip())


def _sum(proxy: Any) -> float:
    return float(np.sum(proxy["x"]))


def _change(proxy: Any) -> None:
    proxy["x"][:] = 5
    update(proxy)


def _keep(proxy: Any) -> str:
    return type(proxy).__name__


def test_other_processes(store: Store[Any]) -> None:
    owned = store.owned_proxy({"x": np.ones(300_000)})
    assert in_new_process(_sum, borrow(owned)) == 300_000
    writer = mut_borrow(owned)
    in_new_process(_change, writer)
    with pytest.raises(MutableBorrowError):
        borrow(owned)
    end_borrow(writer)
    assert _sum(owned) == 1_500_000
    assert in_new_process(_keep, owned) == "OwnedProxy"
    with pytest.raises(ReferenceInvalidError):
        borrow(owned)


def test_a_late_update_is_refused(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    writer = mut_borrow(owned)
    elsewhere = pickle.loads(pickle.dumps(writer))
    elsewhere.append(2)
    end_borrow(writer)
    with pytest.raises(ReferenceInvalidError, match="too late"):
        update(elsewhere)
    assert extract(owned) == [1]


def test_an_updating_task_that_is_run_again(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    writer = mut_borrow(owned)
    sent = pickle.dumps(writer)
    for _ in range(2):
        attempt = pickle.loads(sent)
        attempt.append(2)
        update(attempt)
    end_borrow(writer)
    assert extract(owned) == [1, 2]


def test_submit_to_any_executor(store: Store[Any]) -> None:
    owned = store.owned_proxy({"x": np.ones(10)})
    with ThreadPoolExecutor(1) as pool:
        future = submit(pool.submit, (in_new_process, _sum, borrow(owned)))
        assert future.result(60) == 10
        submit(pool.submit, (in_new_process, _change, mut_borrow(owned))).result(60)
        assert _sum(owned) == 50


def test_what_was_borrowed_ends_with_its_task_and_not_before(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    future: LocalFuture[None] = LocalFuture()
    mine = borrow(owned)
    submit(lambda *args: future, ([mine, {"more": borrow(owned)}],))
    gc.collect()
    with pytest.raises(MutableBorrowError):
        mut_borrow(owned)
    future.set_exception(ValueError("the task failed"))
    mut_borrow(owned)
    with pytest.raises(ReferenceInvalidError, match="task"):
        len(mine)


def test_nothing_is_left(store: Store[Any], tmp_path: Path) -> None:
    connector = store.connector
    if not hasattr(connector, "store_dir"):
        pytest.skip("looks at files")
    owned = store.owned_proxy([1])
    for number in range(3):
        writer = mut_borrow(owned)
        writer.append(number)
        if number:
            update(writer)
        end_borrow(writer)
    twin = clone(owned)
    assert extract(twin) == [1, 1, 2]
    del owned, twin, writer
    until(lambda: not [path for path in Path(connector.store_dir).rglob("*") if path.is_file()])


def test_a_borrowing_that_fails_is_none(store: Store[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    owned = store.owned_proxy([1])
    key = get_key(owned)

    def refuse(**options: Any) -> Any:
        raise UnreachableError("the store is away")

    with monkeypatch.context() as patched:
        patched.setattr(store.connector, "reserve", refuse)
        with pytest.raises(UnreachableError):
            mut_borrow(owned)
    changed = mut_borrow(owned)
    end_borrow(changed)
    assert borrow(owned) == [1]
    del owned, changed
    gone(store, key)


def test_an_object_has_one_owner_in_a_process(store: Store[Any]) -> None:
    proxy = store.proxy([1])
    owned = into_owned(proxy)
    for another in (proxy, store.proxy_from_key(get_key(proxy))):
        with pytest.raises(ReferenceNotOwnedError, match=r"made at test_ownership\.py"):
            into_owned(another)
    update(owned)
    with pytest.raises(ReferenceNotOwnedError):
        into_owned(store.proxy_from_key(get_key(owned)))
    moved = pickle.loads(pickle.dumps(owned))
    with pytest.raises(ReferenceNotOwnedError):
        into_owned(store.proxy_from_key(get_key(moved)))
    assert moved == [1]
    key = get_key(moved)
    del owned, moved
    gone(store, key)


def test_a_result_that_is_not_there_has_no_owner(store: Store[Any]) -> None:
    future = store.future()
    proxy = future.proxy()
    with pytest.raises(ConfigurationError, match="resolve"):
        into_owned(proxy)
    future.set_result([1])
    owned = into_owned(extracted(proxy))
    assert borrow(owned) == [1]
    del owned
    gone(store, future.key)


def extracted(proxy: Any) -> Any:
    assert extract(proxy) == [1]
    return proxy


def test_ufuncs_change_nothing_that_was_borrowed_to_be_read(store: Store[Any]) -> None:
    owned = store.owned_proxy(np.zeros(3))
    reader: Any = borrow(owned)
    with pytest.raises(MutableBorrowError, match="to be read"):
        np.add(reader, 1, out=reader)
    with pytest.raises(MutableBorrowError, match="to be read"):
        np.add.at(reader, [0], 1)
    into = np.ones(3)
    np.add(reader, 1, out=into)
    assert (np.add(reader, reader) == reader + reader).all()
    assert (into == 1).all()
    assert not reader.any()
    key = get_key(owned)
    del owned, reader
    gone(store, key)


def test_a_pickling_that_fails_moves_nothing(store: Store[Any]) -> None:
    owned, other = store.owned_proxy([1]), store.owned_proxy([2])
    with pytest.raises(SerializationError):
        store.put([owned, other, threading.Lock()])
    assert extract(borrow(owned)) == [1]
    assert store.put([owned]) in store.connector.keys("user")
    with pytest.raises(ReferenceInvalidError):
        borrow(owned)
    key = get_key(other)
    with pytest.raises(SerializationError):
        store.put([other, threading.Lock()])
    del other
    until(lambda: not store.exists(key))


def test_an_owner_that_was_pickled_for_nobody_is_taken_back(store: Store[Any]) -> None:
    owned = store.owned_proxy([1])
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps([owned, threading.Lock()])
    with pytest.raises(ReferenceInvalidError, match=r"into_owned\(\)"):
        borrow(owned)
    back = into_owned(owned)
    key = get_key(back)
    assert extract(borrow(back)) == [1]
    with pytest.raises(ReferenceNotOwnedError):
        into_owned(owned)
    there = pickle.loads(pickle.dumps(back))
    with pytest.raises(ReferenceNotOwnedError):
        into_owned(back)  # it has arrived
    del owned, back
    assert store.exists(key)
    del there
    until(lambda: not store.exists(key))


@pytest.mark.parametrize(
    ("obj", "change"),
    [
        ([2, 1], lambda p: p.sort()),
        ([1], lambda p: p.append(2)),
        ({"a": 1}, lambda p: p.update(a=2)),
        ({"a": 1}, lambda p: p.setdefault("b", 1)),
        ({1}, lambda p: p.add(2)),
        (bytearray(b"a"), lambda p: p.extend(b"b")),
        (deque([1]), lambda p: p.appendleft(2)),
        (OrderedDict(a=1, b=2), lambda p: p.move_to_end("a")),
        (Counter("a"), lambda p: p.subtract("a")),
        (array.array("d", [1]), lambda p: p.append(2)),
        (np.arange(4.0), lambda p: p.fill(1)),
        (np.arange(4.0)[::-1].copy(), lambda p: p.sort()),
        (np.arange(4.0), lambda p: np.copyto(p, 1)),
        (np.arange(4.0), lambda p: np.put(p, [0], [5])),
        (np.arange(4.0), lambda p: np.clip(p, 0, 1, out=p)),
        (np.arange(4.0), lambda p: np.cumsum([1.0] * 4, out=p)),
        (np.ma.masked_array([3.0, 1.0], mask=[False, True]), lambda p: p.sort()),
        (pd.DataFrame({"a": [1]}), lambda p: p.insert(0, "b", 1)),
        (pd.DataFrame({"a": [1]}), lambda p: p.pop("a")),
    ],
)
def test_methods_that_change_what_was_borrowed_to_be_read(obj: Any, change: Any) -> None:
    with Store.from_url(f"memory://{secrets.token_hex(4)}") as store:
        before = repr(obj)
        owned = store.owned_proxy(obj)
        for borrowed in (borrow(owned), pickle.loads(pickle.dumps(borrow(owned)))):
            with pytest.raises(MutableBorrowError, match="borrowed to be read"):
                change(borrowed)
            assert repr(extract(borrowed)) == before
        assert repr(extract(owned)) == before


def test_readers_read(store: Store[Any]) -> None:
    """What is called like something that changes another class, and what only reads."""
    owned = store.owned_proxy(pd.DataFrame({"a": [2, 1]}))
    assert borrow(owned).sort_values("a")["a"].tolist() == [1, 2]
    tuples = store.owned_proxy((1, 2))
    assert borrow(tuples).index(2) == 1
    text = store.owned_proxy("a b")
    assert borrow(text).split() == ["a", "b"]
    numbers = store.owned_proxy(np.arange(3.0))
    assert np.clip(borrow(numbers), 0, 1).tolist() == [0, 1, 1]
    assert np.sort(borrow(numbers)).tolist() == [0, 1, 2]
    assert np.copy(borrow(numbers)).tolist() == [0, 1, 2]
    target = np.zeros(3)
    np.copyto(target, borrow(numbers))
    assert target.tolist() == [0, 1, 2]
