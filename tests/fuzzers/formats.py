"""Parsers of what stores, brokers and peers say."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from fuzzers.inputs import altered, json_values
from fuzzers.watching import Check
from proxystore_core.endpoint.wire import Answer
from proxystore_core.errors import StoreError

__all__ = ["of_margo", "of_messages", "of_objects"]


@contextlib.contextmanager
def of_objects() -> Iterator[tuple[Any, Check]]:
    """What is read from a store: encrypted or not, compressed or not, without pickle."""
    import numpy as np

    from proxystore_core.encryption import decrypt, encrypt
    from proxystore_core.frames import unpack
    from proxystore_core.secret import Secret
    from proxystore_core.serialize import deserialize, serialize

    secret = Secret("s" * 32)
    obj = [1, "two", {"three": np.arange(2000)}, b"four" * 2000]
    plain = [
        b"".join(serialize(obj, allow_pickle=False, compression=codec)) for codec in (None, "lz4", "zstd")
    ]
    plain += [b"".join(serialize(obj)), bytes(encrypt([plain[0]], secret, "n" * 22)[0])]

    def check(data: bytes) -> None:
        for read in (unpack, lambda data: decrypt(data, secret, "n" * 22), restored):
            with contextlib.suppress(StoreError):
                read(data)

    def restored(data: bytes) -> None:
        deserialize(data, allow_pickle=False)

    yield st.binary(max_size=300) | st.sampled_from(plain).flatmap(altered), check


@contextlib.contextmanager
def of_messages() -> Iterator[tuple[Any, Check]]:
    """What brokers, peers and clients say, and recipes."""
    from proxystore_core.endpoint.wire import Request as Asked
    from proxystore_core.endpoint.wire import WireError
    from proxystore_core.recipe import Recipe
    from proxystore_core.stream.events import decode
    from proxystore_core.urls import StoreURL

    def check(data: bytes) -> None:
        for read in (decode, lambda data: Recipe.parse(data.decode("latin-1")), Asked.decode, Answer.decode):
            with contextlib.suppress(StoreError, WireError):
                read(data)
        with contextlib.suppress(StoreError):
            StoreURL.parse(data.decode("latin-1"))

    event = json.dumps([1, "shm://", [["key", 1, "a:b", True, {}]]]).encode()
    whole = st.sampled_from([event, b"redis://me:word@[::1]:1,b:2/0?a=b#n&compression=lz4"])
    values = json_values.map(lambda value: json.dumps(value).encode())
    yield st.binary(max_size=300) | values | whole.flatmap(altered), check


@contextlib.contextmanager
def of_margo() -> Iterator[tuple[Any, Check]]:
    """What Margo is made to unpickle with: a real server of it is not to be had."""
    import margo_tasks  # noqa: F401  which finds the fake library

    from proxystore_core.connectors.margo import _plain

    good = [pickle.dumps((b"request", "handle", 7), protocol) for protocol in range(6)]
    bombs = [
        b"\x80\x04Nr\xff\xff\xff\x7f.",
        b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"}h<Ns.",
    ]

    def check(data: bytes) -> None:
        try:
            found = _plain(data)
        except pickle.UnpicklingError:  # the server's library answers with an error
            return
        assert type(found).__module__ == "builtins"

    yield st.binary(max_size=200) | st.sampled_from(good + bombs).flatmap(altered), check
