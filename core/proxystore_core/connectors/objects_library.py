"""obstore as this process may use it, and what its errors mean.

Its requests are carried out by threads of its own, which a forked child does not have: there every request
would wait for ever. A child loads the library once more, from a copy in memory (15 MB, some 20 ms).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import obstore
import obstore.store

from proxystore_core import forks
from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)

__all__ = ["Diagnosis", "diagnosis", "library"]

_COMPILED = "obstore._obstore"
_libraries: dict[int, ModuleType] = {os.getpid(): obstore}  # by process
_lock = forks.lock()


def library() -> Any:
    """The module obstore, with threads that are this process's."""
    found = _libraries.get(os.getpid())
    if found is None:
        with _lock:
            found = _libraries.get(os.getpid())
            if found is None:
                found = _libraries[os.getpid()] = _copy()
    return found


def _copy() -> ModuleType:
    """Import obstore anew beside the one that is loaded, which stays what everybody else sees."""
    original = sys.modules[_COMPILED].__file__
    assert original is not None
    fd = os.memfd_create("obstore", os.MFD_CLOEXEC)
    try:
        with open(original, "rb") as file:
            left = os.fstat(file.fileno()).st_size
            while left:
                left -= os.sendfile(fd, file.fileno(), None, left)
        # Under a name that the loader knows it gives what it has: hence the process's number.
        with _finding(f"/proc/{os.getpid()}/fd/{fd}"), _unloaded("obstore"):
            for name in ("obstore", "obstore.store"):
                importlib.import_module(name)
            return sys.modules["obstore"]
    finally:
        os.close(fd)


@contextlib.contextmanager
def _unloaded(package: str) -> Iterator[None]:
    """Let a package be imported anew meanwhile."""
    loaded = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == package}
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules.update(loaded)


@contextlib.contextmanager
def _finding(path: str) -> Iterator[None]:
    """Let the compiled part be found there meanwhile."""

    class Finder:
        @staticmethod
        def find_spec(name: str, where: Sequence[str] | None, target: object = None) -> Any:
            if name != _COMPILED:
                return None
            loader = importlib.machinery.ExtensionFileLoader(name, path)
            return importlib.util.spec_from_file_location(name, path, loader=loader)

    sys.meta_path.insert(0, Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(Finder)


class Diagnosis(NamedTuple):
    """A typed error to be: its class, what happened, and what to do about it."""

    kind: type[StoreError]
    problem: str
    remedy: str


_CREDENTIALS = (
    "Put them into its environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY, ...); profiles of ~/.aws need boto3."
)
_TABLE: Sequence[tuple[Sequence[str], type[StoreError], str, str]] = (
    # Any of these words in what the library says, the error, what happened, and what to do about it.
    (
        ("latest/api/token", "latest/meta-data", "computemetadata", "oauth2/token", "instance metadata"),
        RefusedError,
        "this process has no credentials for the store",
        _CREDENTIALS,
    ),
    (
        (
            "insufficientstorage",
            "quotaexceeded",
            "storagefull",
            "no space left",
            "no writable volume",
            ": 507",
        ),
        FullError,
        "the store has no room",
        "Evict objects, or give the bucket more room.",
    ),
    (
        ("nosuchbucket", "bucket does not exist", "containernotfound"),
        ConfigurationError,
        "there is no such bucket",
        "Make it first, and check its name, the endpoint and the region in the URL.",
    ),
    (
        (
            "accessdenied",
            "invalidaccesskeyid",
            "signaturedoesnotmatch",
            ": 403",
            ": 401",
            "lacked the necessary",
        ),
        RefusedError,
        "the store does not let this user do that",
        "Check the credentials in this process's environment, and what they permit.",
    ),
    (
        ("certificate", "unknownissuer", "notvalidforname"),
        RefusedError,
        "no trust between this process and the server",
        "Name the authority's certificate with ?ca=.",
    ),
    (
        ("kind: timeout", "timed out", "timedout"),
        DeadlineError,
        "no answer in time",
        "Look at the server's load and the network, or name a longer ?deadline= (seconds).",
    ),
    (
        ("invalidcontenttype", "unexpectedmessage", "hyper::error(parse", "invalid http"),
        UnreachableError,
        "what listens there speaks another protocol",
        "Check the endpoint's scheme and port: http:// without TLS, https:// with it.",
    ),
    (
        (": 500", ": 502", ": 503", ": 504", ": 429", "slowdown", "serverbusy"),
        UnreachableError,
        "the store is there but fails",
        "Wait, or see the server's log.",
    ),
)
_TRIES = re.compile(r"max_retries: \d+, retry_timeout: \S+")  # whose numbers are no status
_URL = re.compile(r"https?://[^/\s]*")


def diagnosis(error: BaseException) -> Diagnosis:
    """What an error of obstore means; a missing object is none."""
    said, _, details = str(error).partition("\n\nDebug source")
    said = " ".join(said.split())[:300]
    low = _TRIES.sub("", _URL.sub("", said + details.partition("inner:")[2])).lower()
    for words, kind, problem, remedy in _TABLE:
        # Connecting takes time, too: who does not get there in time is not there, rather than slow.
        if kind is DeadlineError and "kind: connect" in low:
            continue
        if any(word in low for word in words):
            return Diagnosis(kind, f"{problem}: {said}", remedy)
    remedy = "Check the endpoint, and that the server runs and is reachable from this host."
    return Diagnosis(UnreachableError, f"no connection: {said}", remedy)
