"""Equal objects of one session stored once, however many calls use them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xxhash

from proxystore_core.connectors.base import Buffer, Key
from proxystore_core.flight import Flights
from proxystore_core.pickling import Pickling
from proxystore_core.pins import Holdings
from proxystore_core.reference import Reference, class_name

if TYPE_CHECKING:
    from proxystore_core.lifetimes import Session
    from proxystore_core.store import Store

__all__ = ["Sharing"]

_SAMPLES = 16
_SAMPLE = 64  # bytes
_SEEN = 0.01  # seconds for which what was there is taken to be there
_SEED = secrets.randbits(64)  # what a digest says of an object, it says to this process only


class Sharing:
    """Puts objects for one session, unless an equal one is there.

    Objects are equal when their stored bytes are, whatever their identity. Only an object that looks
    like a held one is read in full to find out (100 MB: about 5 ms).

    Args:
        store: where objects go.
        session: the session that they belong to.
        pickling: see `serialize.serialize`.

    Attributes:
        holdings: what is there, with a pin for each call that uses it.
        closed: nothing is to be put any more.
    """

    def __init__(
        self,
        store: Store[Any],
        session: str,
        *,
        pickling: Pickling = Pickling(),  # noqa: B008  unchanging
    ) -> None:
        self.store = store
        self.pickling = pickling
        self.session = session
        self.holdings = Holdings()
        self.closed = False
        self._ended: Session | None = None
        self._flights = Flights()
        # What the store was asked for last, and until when that holds.
        self._seen: tuple[Key, float] = ("", 0.0)

    def reference(self, obj: Any) -> Reference:
        """The reference of an object that is in the store, pinned once for this call.

        Raises:
            SerializationError: the object cannot be turned into bytes.
            StoreError: the store failed; says why.
        """
        frames = self.store.encode(obj, pickling=self.pickling)
        look = _look(frames)
        mine: list[Reference] = []

        digest: bytes | None = None

        def put() -> None:
            # Where fetching costs, the digest is taken now, else only when something looks like this.
            known = digest or (None if self.store.connector.cheap_get else _digest(frames))
            key, size = self.store.put_frames(frames, session=self.session, kind=class_name(obj))
            mine.append(Reference(key, self.store.recipe, size, class_name(obj)))
            self.holdings.add(look, mine[0], known)

        while not mine:
            undigested = self.holdings.looks(look)
            if undigested is None:
                self._flights.run(look, put)  # another thread's, if equal, is found in the next round
                continue
            for reference in undigested:
                self._learn(reference)
            digest = _digest(frames)
            found = self._find(look, digest)
            if found is not None:
                return found
            self._flights.run((look, digest), put)  # as above, where something else looks like this
        return mine[0]

    def close(self, session: Session | None = None) -> None:
        """Put nothing any more.

        Args:
            session: that of the objects, if it is about to end.
        """
        self._ended = session
        self.closed = True

    def take_back(self, *keys: Key) -> None:
        """Evict an object whose put was under way while this was closed: its session may have begun again.

        Also when that put has failed, and there is none.
        """
        for key in keys:
            self.store.evict(key)
        if self._ended is not None:
            self._ended.end()

    def _learn(self, reference: Reference) -> None:
        data = self.store.stored(reference.key)
        if data is None:
            self.holdings.forget(reference.key)
        else:
            self.holdings.learn(reference.key, _digest([data]))

    def _find(self, look: bytes, digest: bytes) -> Reference | None:
        found = self.holdings.find(look, digest)
        if found is None:
            return None
        # A hundred calls in a row ask once or twice: 20 us each for a file, a trip for a server.
        seen, until = self._seen
        if found.key == seen and time.monotonic() < until:
            return found
        if self.store.exists(found.key):
            self._seen = found.key, time.monotonic() + _SEEN
            return found
        self.holdings.forget(found.key)  # lost behind our back: a server restarted, a directory was cleaned
        return None


def _look(frames: Sequence[Buffer]) -> bytes:
    """Sizes and a few samples: equal for equal objects, and cheap."""
    look = xxhash.xxh3_64(seed=_SEED)
    for frame in frames:
        view = memoryview(frame).cast("B")
        look.update(view.nbytes.to_bytes(8, "little"))
        if view.nbytes <= _SAMPLES * _SAMPLE:
            look.update(view)
            continue
        step = (view.nbytes - _SAMPLE) // (_SAMPLES - 1)
        starts = range(0, view.nbytes - _SAMPLE + 1, step)
        look.update(b"".join([view[start : start + _SAMPLE] for start in starts]))
    return look.digest()


def _digest(frames: Sequence[Buffer]) -> bytes:
    digest = xxhash.xxh3_128(seed=_SEED)
    for frame in frames:
        digest.update(frame)
    return digest.digest()
