"""Objects as files in a directory that all processes reach, for example on a parallel file system.

<directory>/<session>/<object>      mode 0600, published whole, never changed
<directory>/<session>/.lease        its modification time is when the lease lapses, where no name says it
<directory>/<session>/.<object>     not published yet (where files need a name from the start)
<directory>/<session>/<object>w     one that was set later, under a reserved key
<directory>/<session>/.<object>w    its reservation, until it is set; locked by the one who sets it
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from proxystore_core.buffers import read_file, write_file
from proxystore_core.connectors.base import (
    USER_SESSION,
    Buffer,
    ByURL,
    Held,
    Key,
    check_lease,
    check_session,
    lapse_of,
    never_comes,
    no_reservation,
)
from proxystore_core.connectors.lapsed import LEASE, UNRENEWED, end_files, end_lapsed
from proxystore_core.connectors.own import OwnKeys
from proxystore_core.connectors.survey import held_in, room_at
from proxystore_core.connectors.watch import told_of, watching
from proxystore_core.errors import ConfigurationError, FullError, RefusedError, StoreError, UnreachableError
from proxystore_core.urls import StoreURL

__all__ = ["FileConnector"]

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OBJECT = re.compile(r"[0-9a-f]{20}w?")
_PART = re.compile(r"\.[0-9a-f]{20}w?")
LATER = "w"  # ends the names of objects that are waited for
_UNWRITTEN = 24 * 3600.0  # seconds after which nobody goes on writing a file without a name
_TRIES = 10  # a directory that is made can be ended beside us before it is used


class FileConnector(ByURL):
    """Keeps each object in a file of its own; ``file:///directory``.

    Args:
        store_dir: directory of the store; created with mode 0700 when missing.
        grace: seconds for which a missing file is looked for again; by default 2 on network file
            systems, where a fresh file may look missing, and 0 elsewhere.

    Raises:
        RefusedError: the directory is another user's, or others may write to it.
        UnreachableError: the directory cannot be made.
    """

    schemes: ClassVar[tuple[str, ...]] = ("file",)
    checksum: ClassVar[bool] = True
    cheap_get: ClassVar[bool] = False

    def __init__(self, store_dir: str | os.PathLike[str], *, grace: float | None = None) -> None:
        self.store_dir = os.path.abspath(store_dir)
        self._given_grace = grace
        self._own = OwnKeys()
        self._unnamed = hasattr(os, "O_TMPFILE")
        self._is_local: bool | None = None
        with self._translated():
            self._prepare()
        self.grace = (0.0 if told_of(self.store_dir) else 2.0) if grace is None else grace

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store_dir!r})"

    @property
    def url(self) -> str:
        options = "" if self._given_grace is None else f"?grace={self._given_grace}"
        return f"{self.schemes[0]}://{Path(self.store_dir).as_uri()[7:]}{options}"

    def config(self) -> dict[str, Any]:
        return {"store_dir": self.store_dir, "grace": self._given_grace}

    @classmethod
    def from_url(cls, url: str) -> FileConnector:
        parts = StoreURL.parse(url)
        parts.expect(host=True, path=True)
        if parts.host or not parts.path:
            remedy = "Expected three slashes and a full path: file:///path/of/the/store."
            raise ConfigurationError(f"{parts.url!r} names no directory", remedy=remedy)
        return cls(parts.path, **parts.options({"grace": float}))

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        name = os.urandom(10).hex()
        try:
            self._in_session(session, self._publish, data, name)
        except StoreError:  # some are errors of the system, too
            raise
        except OSError as error:
            raise self._translation(error) from error
        return self._note(session, name)

    def reserve(self, *, session: str = USER_SESSION) -> Key:
        name = secrets.token_hex(10) + LATER

        def reserve(directory: str) -> None:
            path = f"{directory}/.{name}"
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))

        with self._translated():
            self._in_session(session, reserve)
        return self._note(session, name)

    def set(self, key: Key, data: Sequence[Buffer]) -> None:
        directory, name = os.path.split(self._path(key))
        with self._translated(key):
            if not os.path.lexists(os.path.join(directory, f".{name}")):
                raise no_reservation(self.url, key)
            self._publish(directory, data, name, key)

    def wait(self, key: Key, timeout: float | None = None) -> bool:
        directory, name = os.path.split(self._path(key))
        reservation = f".{name}"
        start = time.monotonic()
        with self._translated(key), watching(directory, (name, reservation), told=self._local) as change:
            while not self.exists(key):
                passed = time.monotonic() - start
                if not os.path.lexists(os.path.join(directory, reservation)):
                    if self.exists(key):  # set between the two looks
                        break
                    if passed >= self.grace:
                        raise never_comes(self.url, key)
                if timeout is not None and passed >= timeout:
                    return False
                change.wait(None if timeout is None else timeout - passed)
                if not self._local:
                    with contextlib.suppress(OSError):
                        os.listdir(directory)  # makes an NFS client ask its server again
        return True

    def get(self, key: Key) -> Buffer | None:
        path = self._path(key)
        try:
            fd = self._found(path)
            if fd is None:
                return None
            try:
                status = os.fstat(fd)
                # The directory may have been removed as empty, and made again by someone else.
                if status.st_uid != os.geteuid():
                    raise RefusedError("the object is another user's", store=self.url, key=key)
                return self._read(fd, status)
            finally:
                os.close(fd)
        except StoreError:  # some are errors of the system, too
            raise
        except OSError as error:
            raise self._translation(error, key) from error

    def exists(self, key: Key) -> bool:
        with self._translated(key):
            return os.path.lexists(self._path(key))

    def evict(self, key: Key) -> None:
        path = self._path(key)
        later = self._taken(path) if path.endswith(LATER) else contextlib.nullcontext()
        with self._translated(key), later, contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            if lapse_of(os.path.basename(os.path.dirname(path))) is not None:
                with contextlib.suppress(OSError):  # it holds more
                    os.rmdir(os.path.dirname(path))
        self._own.discard([key])

    def keys(self, session: str, *, reserved: bool = False) -> list[Key]:
        directory = self._directory(session)
        with self._translated():
            try:
                names = os.listdir(directory)
            except FileNotFoundError:
                return []
        if reserved:
            names = [name.removeprefix(".") if name.endswith(LATER) else name for name in names]
        return [self._key(session, name) for name in names if _OBJECT.fullmatch(name)]

    def _keys_of_users(self) -> list[Key]:
        return self.keys(USER_SESSION, reserved=True)

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        if lapse_of(session) is not None:
            return
        for _ in range(_TRIES):
            if self.extend(session, seconds):
                return
            with self._translated():
                self._begin(session, seconds)
        raise UnreachableError(f"the directory of session {session} goes again and again", store=self.url)

    def extend(self, session: str, seconds: float) -> bool:
        """As `extend_lease`."""
        check_lease(session, seconds, self.url)
        if lapse_of(session) is not None:
            return os.path.isdir(self._directory(session))
        lease, expiry = os.path.join(self._directory(session), LEASE), time.time() + seconds
        with self._translated(), contextlib.suppress(FileNotFoundError):
            os.utime(lease, (expiry, expiry))
        return os.path.exists(lease)  # a sweep may have taken it away at that very moment

    def end(self, session: str) -> int:
        directory = self._directory(session)
        count = 0
        with self._translated():
            for _ in range(_TRIES):  # an object may be published between the last unlink and the rmdir
                try:
                    # The lease goes last: a crash in between leaves a session that lapses, not one without.
                    for name in sorted(os.listdir(directory), key=LEASE.__eq__):
                        count += self._remove(directory, name)
                    os.rmdir(directory)
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
            self._remove_if_empty()
        return count

    def sessions(self) -> dict[str, float]:
        return self.sessions_here(orphans=True)

    def sessions_here(self, *, orphans: bool) -> dict[str, float]:
        """As `sessions`.

        Args:
            orphans: also sessions without a lease: who began or ended them was killed in between. Not where
                somebody brings a session's objects without its lease.
        """
        now = time.time()
        found = {}
        with self._translated(), contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.store_dir):
                lapse = lapse_of(name)
                if lapse is not None:
                    found[name] = lapse - now
                elif name != USER_SESSION and _SESSION.fullmatch(name):
                    directory = os.path.join(self.store_dir, name)
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        try:
                            found[name] = os.stat(os.path.join(directory, LEASE)).st_mtime - now
                        except FileNotFoundError:
                            if orphans and _is_ours(directory):
                                found[name] = os.stat(directory).st_mtime + UNRENEWED - now
        return found

    def held(self) -> dict[str, Held]:
        with self._translated():
            return held_in(self.store_dir, _SESSION, _OBJECT)

    def room(self) -> int | None:
        with self._translated():
            return room_at(self.store_dir)

    def sweep(self) -> list[str]:
        ended = end_lapsed(self.sessions(), self._end_lapsed)
        self._sweep_parts()
        return ended

    def _end_lapsed(self, session: str) -> bool:
        """End a session unless it has been renewed since somebody looked; whether it has ended."""
        if lapse_of(session) is not None:
            self.end(session)
            return True
        with self._translated():
            return end_files(_Files(self._directory(session), self._remove))

    def _sweep_parts(self) -> None:
        """Remove what writers that were killed left in the user session, which never ends."""
        directory, now = os.path.join(self.store_dir, USER_SESSION), time.time()
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                if _PART.fullmatch(entry.name) and not entry.name.endswith(LATER):
                    with contextlib.suppress(OSError):
                        if entry.stat(follow_symlinks=False).st_mtime < now - _UNWRITTEN:
                            os.unlink(entry.path)

    def close(self, *, clear: bool = False) -> None:
        if clear:
            for key in self._own.mine():
                self.evict(key)
        self._remove_if_empty()

    # What a connector over another kind of file changes.

    def _key(self, session: str, name: str) -> Key:
        return f"{session}.{name}"

    def _parse(self, key: Key) -> tuple[str, str] | None:
        """Session and object of a key, or None when it is not a key of this connector."""
        session, _, name = key.partition(".")
        return session, name

    def _read(self, fd: int, status: os.stat_result) -> Buffer:
        # Not a map: a file truncated or removed on its server under a map is SIGBUS here.
        return read_file(fd, status.st_size)

    def _fresh(self, directory: str, size: int) -> int:
        """A descriptor of a new file without a name on the store's file system."""
        return os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)

    # The rest is nobody's business.

    def _found(self, path: str) -> int | None:
        """A descriptor of a file; None when it is not there within the time that a server may lag behind."""
        until = 0.0
        while True:
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                now = time.monotonic()
                until = until or now + self.grace
                if now >= until:
                    return None
            time.sleep(0.02)
            with contextlib.suppress(OSError):
                os.listdir(os.path.dirname(path))  # makes an NFS client ask its server again

    def _in_session(self, session: str, make: Callable[..., None], *arguments: Any) -> None:
        """Make something in a session's directory, and the directory if need be."""
        directory = self._directory(session)
        for tries_left in reversed(range(_TRIES)):
            try:
                make(directory, *arguments)
                return
            except (FileNotFoundError, PermissionError) as error:
                # EPERM is what ext4 says of a new file in a directory that has just been removed.
                if not tries_left or error.errno == errno.EACCES:
                    raise
                self._begin(session, UNRENEWED)

    def _note(self, session: str, name: str) -> Key:
        key = self._key(session, name)
        if session == USER_SESSION:
            self._own.note([key], self._keys_of_users)
        return key

    @contextlib.contextmanager
    def _taken(self, path: str, setting: Key | None = None) -> Iterator[None]:
        """Take a reservation away, after what is done meanwhile; nobody else takes it at the same time.

        Args:
            path: the object's.
            setting: its key, when the object is to be there afterwards.

        Raises:
            RefusedError: there is no reservation, and one is needed to set the object.
        """
        reservation = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}")
        fd = None
        try:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(reservation, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                with contextlib.suppress(OSError):  # some network file systems know no locks
                    fcntl.flock(fd, fcntl.LOCK_EX)
            there = fd is not None and os.fstat(fd).st_nlink > 0
            if setting is not None and (not there or os.path.lexists(path)):
                raise no_reservation(self.url, setting)
            yield
            if there:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(reservation)
        finally:
            if fd is not None:
                os.close(fd)

    @property
    def _local(self) -> bool:
        """Whether all changes are made by this host's kernel, which then tells of them."""
        if (
            self._is_local is None
        ):  # not functools.cached_property: before Python 3.12 a fork inherits its lock
            self._is_local = told_of(self.store_dir)
        return self._is_local

    def _publish(
        self, directory: str, data: Sequence[Buffer], name: str, reserved: Key | None = None
    ) -> None:
        path = f"{directory}/{name}"
        if self._unnamed:
            try:
                fd = self._fresh(directory, sum([memoryview(buffer).nbytes for buffer in data]))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
                self._unnamed = False
            else:
                try:
                    write_file(fd, data)
                    # A file without a name vanishes with the process that dies before this line.
                    if reserved is None:
                        self._link(fd, directory, path)
                    else:
                        with self._taken(path, reserved):
                            self._link(fd, directory, path)
                finally:
                    os.close(fd)
                return
        part = os.path.join(directory, f".{name if reserved is None else secrets.token_hex(10)}")
        fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            try:
                write_file(fd, data)
            finally:
                os.close(fd)  # before the name is there: a network file system writes, and fails, only here
            with contextlib.nullcontext() if reserved is None else self._taken(path, reserved):
                os.rename(part, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            raise

    def _link(self, fd: int, directory: str, path: str) -> None:
        """Give a file its name."""
        for tries_left in reversed(range(2)):
            try:
                os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
                return
            except FileNotFoundError:
                # An eviction beside us has emptied the session, so it went: no need to write the bytes again.
                session = os.path.basename(directory)
                if not tries_left or lapse_of(session) is None:
                    raise
                self._begin(session, UNRENEWED)

    def _directory(self, session: str) -> str:
        check_session(session, self.url)
        return f"{self.store_dir}/{session}"

    def _path(self, key: Key) -> str:
        parsed = self._parse(key)
        if parsed is None:
            raise RefusedError("not a key of this store", store=self.url, key=key)
        return self._path_of(*parsed)

    def _path_of(self, session: str, name: str) -> str:
        if not _SESSION.fullmatch(session) or not _OBJECT.fullmatch(name):
            raise RefusedError("not a key of this store", store=self.url, key=self._key(session, name))
        return f"{self.store_dir}/{session}/{name}"

    def _begin(self, session: str, seconds: float) -> None:
        """Make a session's directory, with a lease unless it is the user's or its name says enough."""
        directory = self._directory(session)
        lease = os.path.join(directory, LEASE)
        # Somebody beside us may remove each directory as empty until it has the next: callers try again.
        with contextlib.suppress(FileNotFoundError):
            self._prepare()
            self._prepare(directory)
            if session == USER_SESSION or lapse_of(session) is not None or os.path.exists(lease):
                return
            part = os.path.join(directory, f".{secrets.token_hex(10)}")
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            expiry = time.time() + seconds
            os.utime(part, (expiry, expiry))
            os.rename(part, lease)  # never seen with another time: a sweep would end the session

    def _prepare(self, directory: str | None = None) -> None:
        """Make sure that a directory (the store's own by default) is there and is this user's alone."""
        if directory is None:
            directory = self.store_dir
            os.makedirs(os.path.dirname(directory), exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            status = os.lstat(directory)
            if not stat.S_ISDIR(status.st_mode):
                problem = "is not a directory (or is a link to one)"
            elif status.st_uid != os.geteuid():
                problem = f"belongs to another user (uid {status.st_uid}, this process is {os.geteuid()})"
            elif status.st_mode & 0o022:
                problem = f"can be written to by others (mode {stat.filemode(status.st_mode)})"
            else:
                return
            raise RefusedError(
                f"{directory} {problem}", store=self.url, remedy="Name a directory of your own, mode 0700."
            ) from None

    def _remove(self, directory: str, name: str) -> bool:
        """Remove a file of this store, no other; tells whether it was an object."""
        is_object = _OBJECT.fullmatch(name) is not None
        if is_object or name == LEASE or _PART.fullmatch(name):
            try:
                os.unlink(os.path.join(directory, name))
            except FileNotFoundError:
                return False
        return is_object

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(self.store_dir, USER_SESSION))

    @contextlib.contextmanager
    def _translated(self, key: Key | None = None) -> Iterator[None]:
        try:
            yield
        except StoreError:  # some are errors of the system, too
            raise
        except OSError as error:
            raise self._translation(error, key) from error

    def _translation(self, error: OSError, key: Key | None = None) -> StoreError:
        kind: type[StoreError] = UnreachableError
        remedy = None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            kind, remedy = FullError, "Evict objects, or name a store with more room."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.EROFS):
            kind, remedy = RefusedError, "Name a directory that this user may write to."
        elif error.errno in (errno.ENOENT, errno.ENOTDIR):
            remedy = "Name a directory that is there, or can be made."
        return kind(error.strerror or str(error), store=self.url, key=key, remedy=remedy)


class _Files:
    """See `SessionFiles`."""

    def __init__(self, directory: str, remove: Callable[[str, str], object]) -> None:
        self._directory = directory
        self._remove = remove

    def _at(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def names(self) -> list[str]:
        return os.listdir(self._directory)

    def lapse(self, lease: str) -> float:
        try:
            return os.stat(self._at(lease)).st_mtime
        except FileNotFoundError:
            return os.stat(self._directory).st_mtime + UNRENEWED

    def rename(self, name: str, new: str) -> None:
        os.rename(self._at(name), self._at(new))

    def put_back(self, name: str, new: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.link(self._at(name), self._at(new))
        os.unlink(self._at(name))

    def remove(self, name: str) -> None:
        self._remove(self._directory, name)

    def remove_directory(self) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(self._directory)


def _is_ours(directory: str) -> bool:
    """Whether a directory holds files of a store, and nothing else."""
    names = os.listdir(directory)
    return bool(names) and all(_OBJECT.fullmatch(name) or _PART.fullmatch(name) for name in names)
