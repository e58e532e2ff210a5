"""Objects as files at several sites, each copied to all others by Globus Transfer.

<directory>/<session>/<object>      at every endpoint: written at one, brought to the others by a task a batch
<directory>/<session>/.lease        at endpoints where somebody renewed it; the latest one counts

A key names the task that brings its object to each endpoint, so whoever has a key can wait for it. At each
site the directory is a file store (`proxystore_core.connectors.file`).

No object is set later here: no step of Transfer both decides between two sites and publishes (its mkdir
carries no content, its rename replaces or not as the storage likes). Nor does a site list keys, as no file
tells which transfers its key names.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from proxystore_core import forks
from proxystore_core.connectors.base import USER_SESSION, Buffer, ByURL, Held, Key, check_lease, check_session
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.globus_endpoints import GlobusEndpoint, Table
from proxystore_core.connectors.globus_tasks import Tasks
from proxystore_core.connectors.lapsed import UNRENEWED, end_lapsed
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.errors import ConfigurationError, CorruptError, RefusedError, StoreError
from proxystore_core.urls import StoreURL, flag

__all__ = ["GlobusConnector", "GlobusEndpoint"]

_KEY = re.compile(
    r"([A-Za-z0-9_-]{1,64})\.([0-9a-f]{20})\.(0|[1-9a-f][0-9a-f]{0,9})"
    r"\.([0-9]|1[0-5])((?:\.[A-Za-z0-9_-]{22}){0,15})"
)
_DEADLINE = 600.0
_PAUSE = 0.5  # seconds in which evictions are gathered
_Late: TypeAlias = tuple[int, int, str, str]
"""An evicted file to delete: by which process, at which endpoint, once which transfer is over, its path."""

_log = logging.getLogger("proxystore_core.globus")


class GlobusConnector(ByURL):
    """Keeps each object at every endpoint; ``globus://UUID,UUID?path1=/dir&hosts1=login.*&path2=...``.

    A put writes a file here and submits one transfer to each other endpoint, however many objects it
    puts. A get elsewhere waits for that transfer. Nothing is asked of Globus before the first operation.

    Args:
        endpoints: where objects are. A process is at the first whose ``host_regex`` matches its host, or at
            the one that ``PROXYSTORE_GLOBUS_ENDPOINT`` names.
        deadline: seconds that a get waits for a transfer.
        polling_interval: seconds between two looks at a transfer, 1 at least.
        access: UUIDs of mapped collections that ask for a consent of their own (``data_access``).
        encrypt: have Globus encrypt what it transfers.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ("globus",)
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False
    scattered_leases: ClassVar[bool] = True

    def __init__(
        self,
        endpoints: Sequence[GlobusEndpoint | Mapping[str, str]],
        *,
        deadline: float = _DEADLINE,
        polling_interval: int = 1,
        access: Sequence[str] = (),
        encrypt: bool = False,
    ) -> None:
        self._table = Table(
            [each if isinstance(each, GlobusEndpoint) else GlobusEndpoint(**each) for each in endpoints]
        )
        if not deadline > 0 or polling_interval < 1:
            raise ConfigurationError(
                f"deadline is {deadline!r} and polling_interval {polling_interval!r}: expected seconds, "
                "more than 0 and at least 1"
            )
        given = {
            "deadline": deadline,
            "polling_interval": polling_interval,
            "access": ",".join(access),
            "encrypt": int(encrypt),
        }
        usual = {"deadline": _DEADLINE, "polling_interval": 1, "access": "", "encrypt": 0}
        changed = {name: value for name, value in given.items() if value != usual[name]}
        self._url = self._table.url + ("&" + urllib.parse.urlencode(changed) if changed else "")
        self._options = {**given, "access": list(access), "encrypt": bool(encrypt)}
        self._tasks = Tasks(
            self._url, deadline=deadline, polling=polling_interval, access=access, encrypt=encrypt
        )
        self._own = OwnKeys()
        self._late: list[_Late] = []
        self._timer: tuple[int, threading.Timer | None] = 0, None
        self._lock = forks.lock()
        self._opened: tuple[int, FileConnector] | None = None

    @property
    def url(self) -> str:
        return self._url

    @property
    def endpoints(self) -> tuple[GlobusEndpoint, ...]:
        """The endpoints, in the order that keys refer to."""
        return self._table.endpoints

    def config(self) -> dict[str, Any]:
        endpoints = [
            {
                "uuid": endpoint.uuid,
                "endpoint_path": endpoint.endpoint_path,
                "local_path": endpoint.local_path,
                "host_regex": endpoint.host_regex,
            }
            for endpoint in self.endpoints
        ]
        return {"endpoints": endpoints, **self._options}

    @classmethod
    def from_url(cls, url: str) -> GlobusConnector:
        parts = StoreURL.parse(url)
        if parts.port is not None or parts.path.strip("/") or parts.username:
            raise ConfigurationError(
                f"{parts.url!r} is more than endpoints: expected globus://UUID,UUID?path1=..."
            )
        table = Table.of_url(parts)
        known: dict[str, Callable[[str], Any]] = {
            "deadline": float,
            "polling_interval": int,
            "access": _uuids,
            "encrypt": flag,
        }
        options = parts.options(known, [name for name in parts.query if table.is_parameter(name)])
        return cls(table.endpoints, **options)

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        return self.put_batch([data], session=session)[0]

    def put_batch(self, items: Sequence[Sequence[Buffer]], *, session: str = USER_SESSION) -> list[Key]:
        check_session(session, self.url)
        here, files = self._here()
        written: list[str] = []
        try:
            with self._named():
                written.extend(files.put(data, session=session) for data in items)  # one by one: see below
            tasks = [
                "" if index == here or not written else self._send(here, index, written, session)
                for index in range(len(self.endpoints))
            ]
        except BaseException:
            for name in written:  # Globus leaves out what is not there any more
                with contextlib.suppress(StoreError):
                    files.evict(name)
            raise
        suffix = "".join(f".{_short(task)}" for task in tasks if task)
        keys = [
            f"{name}.{sum(memoryview(buffer).nbytes for buffer in data):x}.{here}{suffix}"
            for name, data in zip(written, items, strict=True)
        ]
        if session == USER_SESSION:
            self._own.note(keys, self._own_that_are_here)
        return keys

    def get(self, key: Key) -> Buffer | None:
        place = self._parse(key)
        here, files = self._here()
        task = place.task(here)
        if task is not None:
            self._tasks.wait(task, key)
        with self._named(key):
            data = files.get(place.name)
        if data is not None and memoryview(data).nbytes != place.size:
            raise CorruptError(
                f"the file has {memoryview(data).nbytes} bytes, {place.size} were stored",
                store=self.url,
                key=key,
            )
        return data

    def get_batch(self, keys: Sequence[Key]) -> list[Buffer | None]:
        return [self.get(key) for key in keys]  # one wait for all that came in one transfer

    def exists(self, key: Key) -> bool:
        place = self._parse(key)
        here, files = self._here()
        task = place.task(here)
        if task is not None and self._tasks.active(task):
            return True  # on its way
        with self._named(key):
            return files.exists(place.name)

    def evict(self, key: Key) -> None:
        self.evict_batch([key])

    def evict_batch(self, keys: Sequence[Key]) -> None:
        places = [self._parse(key) for key in keys]
        here, files = self._here()
        with self._named():
            for place in places:
                files.evict(place.name)
        self._own.discard(keys)
        with self._lock:
            self._late += [
                (os.getpid(), index, place.task(index) or "", place.path)
                for place in places
                for index in range(len(self.endpoints))
                if index != here or place.origin != here
            ]
            self._delete_soon()

    def _own_that_are_here(self) -> list[Key]:
        """Of the keys of own objects, which were all written here, those whose files nobody has removed."""
        there = set(self._here()[1].keys(USER_SESSION))
        return [key for key in self._own.mine() if self._parse(key).name in there]

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        with self._named():
            self._here()[1].renew(session, seconds)

    def end(self, session: str) -> int:
        check_session(session, self.url)
        here, files = self._here()
        if len(self.endpoints) > 1:
            self._tasks.cancel(_label(session))  # what arrives after the delete would stay
        with self._named():
            count = files.end(session)
        for index, endpoint in enumerate(self.endpoints):
            if index != here:
                self._tasks.delete(endpoint, [f"{session}/"], _label(session), recursive=True)
        return count

    def sessions(self) -> dict[str, float]:
        with self._named():
            return self._here()[1].sessions_here(orphans=False)

    def sweep(self) -> list[str]:
        """End every session whose lease has lapsed at all endpoints; returns their names.

        Where an endpoint cannot be asked, its sessions stay.
        """
        here, files = self._here()
        with self._named():
            for session in os.listdir(files.store_dir):
                with contextlib.suppress(StoreError, OSError):
                    if not os.path.exists(os.path.join(files.store_dir, session, ".lease")):
                        files.renew(session, UNRENEWED)  # brought here by a transfer; never the user's
            seen = files.sessions_here(orphans=False)

        def end(session: str) -> bool:
            with contextlib.suppress(StoreError):
                left = self._elsewhere(here, session)
                if left > 0:
                    files.renew(session, left)
                elif files.sessions_here(orphans=False).get(session, 0.0) < 0:  # nor here meanwhile
                    self.end(session)
                    return True
            return False

        return end_lapsed(seen, end)

    def held(self) -> dict[str, Held]:
        """What each session has at this site."""
        with self._named():
            return self._here()[1].held()

    def room(self) -> int | None:
        with self._named():
            return self._here()[1].room()

    def close(self, *, clear: bool = False) -> None:
        if clear:
            mine = self._own.mine()
            if mine:
                self.evict_batch(mine)
        timer = self._timer[1]
        if timer is not None and self._timer[0] == os.getpid():
            timer.cancel()
        if self._late:
            self._delete_late(wait=True)
        self._tasks.close()
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[1].close()

    def _here(self) -> tuple[int, FileConnector]:
        """Which endpoint this process is at, and the files there."""
        if self._opened is None:
            here = self._table.here()
            with self._named():
                self._opened = here, FileConnector(self.endpoints[here].local_path)
        return self._opened

    def _send(self, here: int, index: int, written: Sequence[str], session: str) -> str:
        paths = [name.replace(".", "/") for name in written]
        return self._tasks.transfer(self.endpoints[here], self.endpoints[index], paths, _label(session))

    def _delete_soon(self) -> None:
        """See to what was evicted in a moment, so that evictions one by one become one task."""
        process, timer = self._timer
        if not self._late or (process == os.getpid() and timer is not None and timer.is_alive()):
            return
        timer = threading.Timer(_PAUSE, self._delete_late)  # no daemon: a process that ends waits for it
        timer.name = "proxystore-globus"
        self._timer = os.getpid(), timer
        timer.start()

    def _delete_late(self, *, wait: bool = False) -> None:
        """Delete what was evicted wherever its transfer is over, in one task for each endpoint.

        Args:
            wait: wait for transfers that are not over, and raise what goes wrong.
        """
        with self._lock:
            mine = [late for late in self._late if late[0] == os.getpid()]
            self._late = []
        try:
            left = self._delete(mine, wait)
        except StoreError as error:
            with self._lock:
                self._late += mine
            if wait:
                raise
            _log.warning("what was evicted is still at other endpoints: %s", error)
            return
        with self._lock:
            self._late += left
            self._timer = 0, None
            if threading.main_thread().is_alive():
                self._delete_soon()

    def _delete(self, evicted: Sequence[_Late], wait: bool) -> list[_Late]:
        """Delete what can be deleted; what has to wait for its transfer is returned."""
        active: dict[str, bool] = {"": False}
        for task in {late[2] for late in evicted} - {""}:
            if wait:
                with contextlib.suppress(StoreError):  # a failed one is over, too
                    self._tasks.wait(task)
            active[task] = self._tasks.active(task)
        here, files = self._here()
        by_endpoint: dict[int, list[str]] = {}
        for _, index, task, path in evicted:
            if active[task]:
                continue
            if index == here:
                files.evict(path.replace("/", "."))
            else:
                by_endpoint.setdefault(index, []).append(path)
        for index, paths in by_endpoint.items():
            self._tasks.delete(self.endpoints[index], paths, "proxystore evict")
        return [late for late in evicted if active[late[2]]]

    def _elsewhere(self, here: int, session: str) -> float:
        """Seconds that the session's lease still has at some other endpoint."""
        found = [
            self._tasks.modified(endpoint, session, ".lease")
            for index, endpoint in enumerate(self.endpoints)
            if index != here
        ]
        return max([expiry for expiry in found if expiry is not None], default=0.0) - time.time()

    def _parse(self, key: Key) -> _Place:
        match = _KEY.fullmatch(key)
        if match is not None:
            place = _Place(
                match[1], match[2], int(match[3], 16), int(match[4]), tuple(match[5].split(".")[1:])
            )
            if place.origin < len(self.endpoints) == len(place.tasks) + 1:
                return place
        raise RefusedError("not a key of this Globus store", store=self.url, key=key[:200])

    @contextlib.contextmanager
    def _named(self, key: Key | None = None) -> Iterator[None]:
        """Let errors of the files here name this store."""
        try:
            yield
        except StoreError as error:
            error.store, error.key = self.url, key or error.key
            raise


class _Place:
    """Where the object of a key is, and what brings it to each endpoint."""

    def __init__(self, session: str, name: str, size: int, origin: int, tasks: tuple[str, ...]) -> None:
        self.name = f"{session}.{name}"
        self.path = f"{session}/{name}"
        self.size = size
        self.origin = origin
        self.tasks = tasks

    def task(self, index: int) -> str | None:
        """The transfer to an endpoint; None where the object was put."""
        if index == self.origin:
            return None
        return _long(self.tasks[index - (index > self.origin)])


def _label(session: str) -> str:
    return f"proxystore session {session}"


def _short(task: str) -> str:
    return base64.urlsafe_b64encode(uuid.UUID(task).bytes).decode().rstrip("=")


def _long(task: str) -> str:
    return str(uuid.UUID(bytes=base64.urlsafe_b64decode(task + "==")))


def _uuids(text: str) -> list[str]:
    return [str(uuid.UUID(each)) for each in text.split(",") if each]
