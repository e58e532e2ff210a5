"""Reference: small on the wire, and what it tells without loading."""

from __future__ import annotations

import collections
import copy
import enum
import pickle
import subprocess
import sys

import cloudpickle
import dill
import numpy as np
import pytest

from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.errors import GoneError
from proxystore_core.proxy import Proxy, is_resolved
from proxystore_core.reference import Reference, class_name
from proxystore_core.store import Store


class Outer:
    class Inner:
        pass


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize("evict", [False, True])
@pytest.mark.parametrize("pickler", [pickle, cloudpickle, dill, copy])
def test_round_trip(pickler, evict):
    reference = Reference("key", "shm://#name", 12, "numpy:ndarray", evict)
    again = copy.copy(reference) if pickler is copy else pickler.loads(pickler.dumps(reference))
    assert type(again) is Reference
    for field in ("key", "recipe", "size", "kind", "evict"):
        assert getattr(again, field) == getattr(reference, field)


def test_a_proxy_of_it_is_small():
    reference = Reference(
        "host-0123456789-89abcdef.user." + "0" * 20, "shm://#a-name", 10**9, "numpy:ndarray", True
    )
    assert len(pickle.dumps(Proxy(reference))) <= 200


def test_equality_and_hash():
    one = Reference("k", "shm://")
    assert one == Reference("k", "shm://", 5, "builtins:int", True)
    assert hash(one) == hash(Reference("k", "shm://", 5))
    assert one != Reference("k", "shm://#other")
    assert one != Reference("l", "shm://")
    assert one != "k"
    assert len({one, Reference("k", "shm://"), Reference("l", "shm://")}) == 2


@pytest.mark.parametrize(
    "obj",
    [
        1,
        "s",
        [1],
        np.zeros(1),
        np.float64(1),
        collections.OrderedDict(),
        Outer.Inner(),
        Colour.RED,
        ValueError(),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_target_class(obj):
    assert Reference("k", "shm://", 0, class_name(obj)).target_class() is type(obj)


def test_target_class_that_is_not_to_be_had():
    class Local:
        pass

    for kind in (class_name(Local()), "no_such_module:Thing", "os:sep", "os:nothing.there", "os", ":", "os:"):
        assert Reference("k", "shm://", 0, kind).target_class() is None


def test_target_class_imports_nothing():
    code = (
        "import sys; from proxystore_core.reference import Reference;"
        "assert Reference('k', 'shm://', 0, 'sched:scheduler').target_class() is None;"
        "assert 'sched' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_kind_and_class_not_loaded_are_two_things():
    """Of the first only loading can tell; the second is not asked, and not loaded."""
    with Store("two", MemoryConnector(), register=True) as store:
        key = store.put([1])
        unknown = Proxy(Reference(key, store.recipe))
        assert not hasattr(unknown.__proxy_factory__, "target_class")
        assert isinstance(unknown, list)
        assert is_resolved(unknown)
        not_loaded = Proxy(Reference(key, store.recipe, 0, "no_such_module:Thing"))
        assert not isinstance(not_loaded, list)
        assert not is_resolved(not_loaded)
        assert not_loaded == [1]
        assert isinstance(not_loaded, list)


def test_it_loads_what_it_names():
    with Store("loads", MemoryConnector(), register=True) as store:
        reference = store.reference([1])
        first, second = reference(), reference()
        assert first == second == [1]
        assert first is not second
        store.evict(reference.key)
        with pytest.raises(GoneError, match=r"list, [0-9.]+ B, memory://#loads"):
            reference()


@pytest.mark.parametrize(
    ("size", "kind", "text"),
    [
        (0, "", "object, 0 B, shm://"),
        (999, "builtins:list", "list, 999 B, shm://"),
        (1000, "numpy:ndarray", "numpy.ndarray, 1 kB, shm://"),
        (100_000_000, "numpy:ndarray", "numpy.ndarray, 100 MB, shm://"),
        (2_500_000_000, "a.b:C.D", "a.b.C.D, 2.5 GB, shm://"),
        (3 * 10**15, "x:Y", "x.Y, 3e+03 TB, shm://"),
        (999_900, "x:Y", "x.Y, 1 MB, shm://"),
    ],
)
def test_describe(size, kind, text):
    assert Reference("k", "shm://", size, kind).describe() == text
