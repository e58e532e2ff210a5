"""What travels by a broker: events survive, and anything else is corrupt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core.errors import CorruptError
from proxystore_core.stream import End, Event
from proxystore_core.stream.events import decode, encode

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

metadata = st.dictionaries(st.text(), plain)


@given(
    st.lists(
        st.tuples(
            st.text(), st.integers(0, 2**60), st.text(), st.booleans(), st.dictionaries(st.text(), plain)
        ),
        min_size=1,
        max_size=5,
    ),
    st.text(),
)
def test_events_survive(items: list[Any], recipe: str) -> None:
    events = [Event(key, recipe, *rest) for key, *rest in items]
    assert decode(encode(events)) == events


@given(
    st.binary(max_size=100) | st.text().map(str.encode) | plain.map(lambda value: json.dumps(value).encode())
)
def test_anything_else_is_corrupt(message: bytes) -> None:
    try:
        found = decode(message)
    except CorruptError:
        return
    assert isinstance(found, End) or all(isinstance(event, Event) for event in found)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[2,null,[]]",
        b'[1,null,"x"]',
        b"[1,null,[1]]",
        b'[1,"shm://",[["k","1","",true,{}]]]',
        b'[1,"shm://",[["k",1,"",1,{}]]]',
        b'[1,5,[["k",1,"",true,{}]]]',
        b"[" * 100_000,
        b" " * (2 << 20),
    ],
)
def test_what_is_not_an_event(message: bytes) -> None:
    with pytest.raises(CorruptError):
        decode(message)
    assert decode(encode(End(frozenset("ab")))) == End(frozenset("ab"))
    assert len(encode([Event("node.user.0123456789abcdef0123", "shm://", 10, "numpy:ndarray")])) < 100
