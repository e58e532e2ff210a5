"""What every connector has to do, as tests: subclass `ConnectorContract` in a backend's test file.

    class TestFileConnector(ConnectorContract):
        def make(self) -> FileConnector:
            return FileConnector(self.place / secrets.token_hex(4))

Needs pytest. A contract is checked through the connector and, where the subclass says how to look
there, behind its back; other processes are real ones.
"""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from proxystore_core import testing_elsewhere
from proxystore_core.connectors import own
from proxystore_core.connectors.base import (
    USER_SESSION,
    Buffer,
    Connector,
    Key,
    leased,
    listed,
)
from proxystore_core.errors import ConfigurationError, CorruptError, RefusedError, UnreachableError
from proxystore_core.moving import listening
from proxystore_core.store import Store
from proxystore_core.testing_awaited import AwaitedContract
from proxystore_core.testing_deferred import DeferredContract
from proxystore_core.testing_leased import LeasedContract
from proxystore_core.testing_processes import in_fork, in_new_process, start, until

__all__ = ["ConnectorContract", "in_fork", "in_new_process", "until"]

T = TypeVar("T")

FORGED = (
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "user./etc/passwd",
    "user.../../../etc/passwd",
    "user.\0",
    "user.0123456789abcdef0123\n",
    "user.*",
    "user.\u0661",
    "k" * 100_000,
)
_BIG = 5_000_000


class ConnectorContract(LeasedContract, DeferredContract, AwaitedContract):
    """The tests; a subclass says how to make a connector, and what else it can about the backend."""

    place: Path
    """A fresh directory, for backends that need one."""

    def make(self) -> Connector:
        """A connector to an empty store of its own: each call another one."""
        raise NotImplementedError

    def corrupt(self, connector: Connector, key: Key) -> bool:
        """Change a byte in the midst of the stored object; tells whether that can be done here."""
        return False

    @pytest.fixture
    def connector(self, tmp_path: Path) -> Iterator[Connector]:
        """The connector under test; whatever its store holds is evicted afterwards."""
        self.place = tmp_path
        self._made: list[Connector] = []
        yield self._fresh()
        for connector in self._made:
            keeper = leased(connector)
            if keeper is not None:
                for session in [USER_SESSION, *keeper.sessions()]:
                    keeper.end(session)
            connector.close(clear=True)

    def _fresh(self) -> Connector:
        connector = self.make()
        self._made.append(connector)
        return connector

    @pytest.fixture
    def session(self) -> str:
        return secrets.token_hex(6)

    # Bytes.

    @pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) - 1, 1 << 20, _BIG])
    def test_round_trip(self, connector: Connector, size: int) -> None:
        data = os.urandom(size)
        told: list[int] = []
        with listening(lambda nbytes, doing: told.append(nbytes)):
            key = connector.put([data])
            assert sum(told) <= max(size, 1)  # who has to write something for nothing, may
            told.clear()
            got = connector.get(key)
            assert sum(told) <= max(size, 1)
        assert got is not None
        assert memoryview(got).format == "B"
        assert bytes(got) == data

    def test_buffers_are_stored_one_after_another(self, connector: Connector) -> None:
        numbers = array.array("d", range(1000))
        matrix = memoryview(numbers).cast("B").cast("d", (10, 100))
        many: list[Any] = [bytes([i % 256]) * (i % 3) for i in range(3000)]
        data = [b"head", bytearray(b"array"), memoryview(b"view")[1:], memoryview(numbers), matrix, *many]
        got = connector.get(connector.put(data))
        assert got is not None
        assert bytes(got) == b"headarrayiew" + numbers.tobytes() * 2 + b"".join(many)
        assert connector.get(connector.put([])) == b""

    @pytest.mark.parametrize("size", [100, 3_000_000])
    def test_bytes_are_taken_at_once(self, connector: Connector, size: int) -> None:
        source = bytearray(b"a" * size)
        key = connector.put([source])
        source[:] = b"b" * size
        assert connector.get(key) == b"a" * size

    @pytest.mark.parametrize("size", [100, 3_000_000])
    def test_what_is_got_is_private(self, connector: Connector, size: int) -> None:
        key = connector.put([b"a" * size])
        first, second = connector.get(key), connector.get(key)
        assert first is not None
        if not memoryview(first).readonly:
            memoryview(first)[:] = b"b" * size
        assert second == b"a" * size
        assert connector.get(key) == b"a" * size
        raw = self.raw_objects(connector)
        assert raw is None or raw[key] == b"a" * size

    @pytest.mark.parametrize("size", [100, 3_000_000])
    def test_what_a_fork_changes_its_parent_does_not_see(self, connector: Connector, size: int) -> None:
        got = connector.get(connector.put([b"a" * size]))
        assert got is not None

        def change() -> bool:
            view = memoryview(got)
            if not view.readonly:
                view[:] = b"b" * size
            return True

        assert in_fork(change)
        assert got == b"a" * size

    @pytest.mark.parametrize("size", [100, 3_000_000])
    def test_what_is_got_outlives_the_object_and_the_connector(self, connector: Connector, size: int) -> None:
        key = connector.put([b"a" * size])
        got = connector.get(key)
        connector.evict(key)
        connector.close()
        assert got == b"a" * size

    def test_what_is_corrupt_is_not_loaded(self, connector: Connector) -> None:
        with Store(secrets.token_hex(4), connector) as store:
            key = store.put(b"a" * 100_000)
            assert store.get(key) == b"a" * 100_000
            if connector.checksum and self.corrupt(connector, key):
                with pytest.raises(CorruptError), Store(secrets.token_hex(4), connector) as other:
                    other.get(key)

    # Keys.

    def test_exists_and_evict(self, connector: Connector) -> None:
        key, other = connector.put([b"one"]), connector.put([b"two"])
        assert connector.exists(key)
        connector.evict(key)
        connector.evict(key)
        assert not connector.exists(key)
        assert connector.get(key) is None
        assert connector.get(other) == b"two"
        raw = self.raw_objects(connector)
        assert raw is None or dict(raw) == {other: b"two"}

    def test_keys(self, connector: Connector, session: str) -> None:
        keys = [connector.put([b"same"], session=session) for _ in range(50)]
        keys += [connector.put([b"same"]) for _ in range(50)]
        assert len(set(keys)) == 100
        for key in keys:
            assert key.isascii()
            assert key.isprintable()
            assert " " not in key
            assert len(key) <= 80

    def test_forged_keys(self, connector: Connector) -> None:
        key = connector.put([b"mine"])
        elsewhere = self._fresh()
        victim = self.place / "victim"
        victim.write_bytes(b"precious")
        before = sorted(self.place.rglob("*"))
        near = [
            key + "/",
            f"../{key}",
            key.upper() + ".",
            f"{key}\0",
            key.replace(".", "/."),
        ]
        for forged in [*FORGED, *near, str(victim), f"user.{victim}", f"{key}/../../victim"]:
            for method in (connector.get, connector.exists, connector.evict):
                with pytest.raises((RefusedError, UnreachableError)):
                    method(forged)
        # Another store's key is no forgery, but there is nothing under it here.
        with contextlib.suppress(RefusedError, UnreachableError):
            connector.evict(elsewhere.put([b"other's"]))
        theirs = elsewhere.put([b"other's"])
        with contextlib.suppress(RefusedError, UnreachableError):
            assert connector.get(theirs) is None
        assert elsewhere.get(theirs) == b"other's"
        elsewhere.evict(theirs)
        assert connector.get(key) == b"mine"
        assert set(before) <= set(self.place.rglob("*"))
        assert victim.read_bytes() == b"precious"

    def test_what_there_is_can_be_told(self, connector: Connector, session: str) -> None:
        lister = listed(connector)
        if lister is None:
            pytest.skip("does not tell what there is")
        assert lister.keys(session) == []
        keys = [connector.put([bytes(size)], session=session) for size in (0, 100, 3_000_000)]
        users = connector.put([b"mine"])
        assert sorted(lister.keys(session)) == sorted(keys)
        assert lister.keys(USER_SESSION) == [users]
        connector.evict(keys.pop())
        assert sorted(lister.keys(session)) == sorted(keys)
        with pytest.raises(RefusedError):
            lister.keys("../x")

    # The same store elsewhere.

    def test_config_and_url_open_an_equal_connector(self, connector: Connector) -> None:
        key = connector.put([b"data"])
        for other in (
            type(connector).from_config(connector.config()),
            type(connector).from_url(connector.url),
            self.open_again(connector),
        ):
            assert other.get(key) == b"data"
            assert other.config() == connector.config()
            assert other.url == connector.url
            back = other.put([b"back"])
            assert connector.get(back) == b"back"
            other.close()
        assert connector.url.partition("://")[0] == connector.schemes[0]
        pickle.dumps(connector.config())

    def test_what_is_pickled_is_what_opens_an_equal_connector(self, connector: Connector) -> None:
        key = connector.put([b"data"])
        text = pickle.dumps(connector)
        other = pickle.loads(text)
        assert type(other) is type(connector)
        assert other.url == connector.url
        assert other.config() == connector.config()
        assert other.get(key) == b"data"
        other.close(clear=True)  # it owns nothing that another has put
        assert connector.get(key) == b"data"
        if self.process_local:
            with pytest.raises(UnreachableError):
                in_new_process(testing_elsewhere.get_with, connector, [key])
        else:
            assert in_new_process(testing_elsewhere.get_with, connector, [key]) == [b"data"]

    def test_url_with_an_unknown_parameter(self, connector: Connector) -> None:
        url = connector.url
        with pytest.raises(ConfigurationError, match="no_such_parameter"):
            type(connector).from_url(f"{url}{'&' if '?' in url else '?'}no_such_parameter=1")

    def test_another_process(self, connector: Connector) -> None:
        data = [b"", b"small", os.urandom(_BIG)]
        keys = [connector.put([item]) for item in data]
        if self.process_local:
            with pytest.raises(UnreachableError):
                in_new_process(testing_elsewhere.get, type(connector), connector.url, keys)
            return
        assert in_new_process(testing_elsewhere.get, type(connector), connector.url, keys) == data
        theirs = in_new_process(testing_elsewhere.put, type(connector), connector.url, data)
        assert [connector.get(key) for key in theirs] == data

    def test_fork(self, connector: Connector) -> None:
        key = connector.put([b"parent's"])

        def child() -> tuple[Key, bool]:
            with contextlib.suppress(UnreachableError) if self.process_local else contextlib.nullcontext():
                assert connector.get(key) == b"parent's"
            theirs = connector.put([b"child's"])
            assert connector.get(theirs) == b"child's"
            connector.close()
            connector.close(clear=True)
            return connector.put([b"kept"]), connector.exists(theirs)

        kept, left = in_fork(child)
        assert not left
        assert connector.get(key) == b"parent's"
        if not self.process_local:
            assert connector.get(kept) == b"kept"

    def test_threads(self, connector: Connector, session: str) -> None:
        def work(number: int) -> None:
            for turn in range(50):
                data = bytes([number, turn]) * (turn + 1)
                key = connector.put([data], session=session if turn % 2 else USER_SESSION)
                assert connector.get(key) == data
                if turn % 3:
                    connector.evict(key)
                    assert not connector.exists(key)

        with ThreadPoolExecutor(8) as executor:
            list(executor.map(work, range(8)))

    # Ends.

    def test_close_clears_what_it_put_for_the_user(self, connector: Connector, session: str) -> None:
        other = self.open_again(connector)
        mine, sessions = connector.put([b"mine"]), connector.put([b"session's"], session=session)
        theirs = other.put([b"theirs"])
        connector.close(clear=True)
        connector.close(clear=True)
        assert other.get(mine) is None
        assert other.get(sessions) == b"session's"
        assert other.get(theirs) == b"theirs"
        other.evict(sessions)
        other.close(clear=True)
        other.close()

    def test_what_others_evicted_is_forgotten(
        self, connector: Connector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And what is there is cleared, also where a connector looks from time to time what that is."""
        monkeypatch.setattr(own, "_MANY", 8)
        known: own.OwnKeys | None = getattr(connector, "_own", None)
        if isinstance(known, own.OwnKeys):
            known._limit = own._MANY
        other, kept = self.open_again(connector), []
        for number in range(30):
            key = connector.put([b"data"])
            if number % 10:
                other.evict(key)
            else:
                kept.append(key)
        if isinstance(known, own.OwnKeys):
            assert len(known) <= 8
        connector.close(clear=True)
        assert [other.get(key) for key in kept] == [None] * 3
        other.close()

    def test_close_leaves_what_it_put(self, connector: Connector) -> None:
        other = self.open_again(connector)
        key = connector.put([b"mine"])
        connector.close()
        connector.close()
        assert other.get(key) == b"mine"
        other.evict(key)
        other.close()

    def test_published_whole(self, connector: Connector) -> None:
        if self.raw_objects(connector) is None:
            pytest.skip("no view behind the connector's back")
        size = 16 << 20
        data = [bytes([part]) * (size // 16) for part in range(16)]
        whole, done = b"".join(data), threading.Event()

        def put() -> None:
            try:
                for _ in range(3):
                    connector.evict(connector.put(data))
            finally:
                done.set()

        writer = threading.Thread(target=put)
        writer.start()
        while not done.is_set():
            self._all_whole(connector, whole)
        writer.join()
        assert not self.raw_objects(connector)

    def test_a_killed_writer_leaves_nothing_unfinished(self, connector: Connector, session: str) -> None:
        if self.process_local:
            pytest.skip("the objects die with the process")
        size = 8 << 20
        for turn in range(3):
            reading, writing = os.pipe()
            child = self._writer(connector, session, size, writing)
            os.close(writing)
            assert os.read(reading, 1) == b"."
            os.close(reading)
            time.sleep(0.003 * turn)  # whatever it is in the midst of
            child.send_signal(signal.SIGKILL)
            child.wait()
        whole = b"".join(bytes([part]) * (size // 16) for part in range(16))
        self._all_whole(connector, whole)
        keeper = leased(connector)
        if keeper is not None:
            assert keeper.end(session) > 0
            assert not self.raw_objects(connector)

    def _writer(self, connector: Connector, session: str, size: int, started: int) -> subprocess.Popen[bytes]:
        call = pickle.dumps((type(connector), connector.url, session, size, started))
        return start([sys.executable, "-c", testing_elsewhere.main("put_for_ever")], call, started)

    def _all_whole(self, connector: Connector, whole: bytes) -> None:
        for name in self.raw_objects(connector) or ():
            try:
                got: Buffer | None = connector.get(name)
            except (RefusedError, UnreachableError):
                continue  # not published: no key
            assert got is None or got == whole
