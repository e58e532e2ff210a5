"""What is said: values, names and numbers, and bytes as faults and enemies make them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

__all__ = ["altered", "ascii_text", "json_values", "names", "text", "u64"]

text = st.text(max_size=300)
ascii_text = st.text(st.characters(max_codepoint=127), max_size=255)
names = ascii_text | st.sampled_from(["user", "", "..", "../../etc", "a/b", "0" * 20, "x" * 64, "\0", "fuzz"])
u64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**20, 2**31, 2**63, 2**64 - 1])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=15,
)


@st.composite
def altered(draw: Any, whole: bytes) -> bytes:
    """Some bytes, and what faults and enemies make of them."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del data[place : place + draw(st.integers(1, 20))]
            case 2:
                data[place:place] = draw(st.binary(max_size=50))
            case _:
                data[place : place + 8] = draw(u64).to_bytes(8, "little")
    return bytes(data)
