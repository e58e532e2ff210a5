"""ByteCache: bounded by bytes, read-only, and safe in threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxystore_core.cache import ByteCache

LIMIT = 800
KEYS = st.integers(0, 20)


class Model(RuleBasedStateMachine):
    """The cache against a dictionary in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ByteCache(LIMIT)
        self.model: OrderedDict[int, bytes] = OrderedDict()

    @rule(key=KEYS, size=st.sampled_from([0, 1, 99, 100, 101]))
    def admit(self, key: int, size: int) -> None:
        data = bytes([key]) * size
        view = self.cache.admit(key, data)
        assert (view is not None) == (size <= LIMIT // 8)
        if view is not None:
            self.model.pop(key, None)
            self.model[key] = data
            while sum(map(len, self.model.values())) > LIMIT:
                self.model.popitem(last=False)

    @rule(key=KEYS)
    def get(self, key: int) -> None:
        data = self.cache.get(key)
        assert data == self.model.get(key)
        if data is not None:
            self.model.move_to_end(key)

    @rule(key=KEYS)
    def drop(self, key: int) -> None:
        self.cache.drop(key)
        self.model.pop(key, None)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.clear()

    @invariant()
    def same(self) -> None:
        assert len(self.cache) == len(self.model)
        assert all(key in self.cache for key in self.model)
        assert self.cache.nbytes == sum(map(len, self.model.values())) <= LIMIT


TestModel = Model.TestCase


@given(st.binary(max_size=100))
def test_what_comes_out_is_read_only_and_not_a_copy(data):
    cache = ByteCache(LIMIT)
    mine = bytearray(data)
    view = cache.admit("k", mine)
    assert view is not None
    assert view.readonly
    kept = cache.get("k")
    assert kept is not None
    assert kept.readonly
    assert kept.obj is mine
    assert kept == data


def test_the_least_recently_used_goes_first():
    cache = ByteCache(LIMIT)
    for key in range(8):
        cache.admit(key, bytes(100))
    cache.get(0)
    cache.admit(2, bytes(100))
    cache.admit(8, bytes(100))
    assert [key for key in range(9) if key not in cache] == [1]
    cache.admit(9, bytes(100))
    assert [key for key in range(10) if key not in cache] == [1, 3]


def test_counts():
    cache = ByteCache(LIMIT)
    cache.get("k")
    cache.admit("k", b"v")
    cache.get("k")
    cache.get("k")
    assert (cache.hits, cache.misses) == (2, 1)


def test_no_cache():
    cache = ByteCache(0)
    assert cache.admit("k", b"v") is None
    assert cache.get("k") is None
    assert len(cache) == cache.nbytes == 0


def test_threads_keep_the_books():
    cache = ByteCache(LIMIT)

    def work(seed: int) -> None:
        for i in range(3000):
            key = (seed * 7 + i) % 23
            if i % 5 == 0:
                cache.drop(key)
            elif cache.get(key) is None:
                cache.admit(key, bytes(key * 4))

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    assert cache.nbytes == sum(len(cache.get(key) or b"") for key in range(23)) <= LIMIT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_child_forked_while_the_lock_is_held_can_use_it():
    code = """
    import os
    from proxystore_core.cache import ByteCache
    cache = ByteCache(100)
    cache.admit("k", b"v")
    with cache._lock:
        child = os.fork()
        if not child:
            os._exit(0 if cache.get("k") == b"v" else 1)
    sys_exit = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    raise SystemExit(sys_exit)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30)
