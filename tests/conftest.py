"""What every test runs in: no settings of the developer's, and a machine left as it was found."""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import secrets
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # workers import the tasks of tests by name

from mounts import own_shared_memory
from waiting import until

SHARED_MEMORY = Path("/dev/shm")
STARTS_RAY = {
    "test_ray",
    "test_ray_contract",
    "test_ray_drivers",
    "test_ray_jobs",
    "test_ray_results",
    "test_ray_security",
    "test_ray_starts",
    "test_ray_tools",
}
GRACE = 10.0  # seconds that workers told to stop get to evict what they hold
_made_by: dict[Path, str] = {}
_modules = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store", help="URL of the store that the contracts of engines run on, instead of shm://"
    )
    parser.addoption("--elsewhere", help="command that starts a process on another host, for Dask")
    parser.addoption("--every-example", action="store_true", help="all engines' over stores at two sites")
    parser.addoption("--address", help="of this host, as that one knows it")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many as there are cores, and at least three: tests wait a lot. None without mounts of their own.

    Each has a /dev/shm that the others do not see.
    """
    if os.geteuid():
        return 0
    return max(3, len(os.sched_getaffinity(0)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing that is imported is garbage; to look for some takes a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Into a fresh process: Ray's client of its first cluster may be refused by the next one's servers.
    items.sort(key=lambda item: item.path.stem not in STARTS_RAY)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker has the tests of Ray."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            name = nodeid.partition("::")[0]
            return "Ray" if Path(name).stem in STARTS_RAY else name

    return Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        own_shared_memory()
    # Before any test module is imported: a developer's own settings would change what is tested.
    for name in [name for name in os.environ if name.startswith("PROXYSTORE_")]:
        del os.environ[name]
    if config.getoption("--store"):
        os.environ["PROXYSTORE_STORE"] = config.getoption("--store")


def stored_paths(*directories: Path) -> set[Path]:
    """This user's files below `<directory>/proxystore-*`; an empty directory is nobody's loss."""
    uid = os.getuid()
    found = set()
    for directory in directories:
        for root in directory.glob("proxystore-*"):
            for path in [root, *root.rglob("*")]:
                try:
                    if path.lstat().st_uid == uid and not path.is_dir():
                        found.add(path)
                except FileNotFoundError:
                    continue
    return found


def _told(path: Path) -> str:
    """A path, with where it may come from. A lease's file has the time at which it lapses."""
    with contextlib.suppress(OSError):
        status, now = path.stat(), time.time()
        return (
            f"{path} (made by {_made_by.get(path, 'the last module')} or what it started; "
            f"lapses in {status.st_mtime - now:.1f} s, touched {now - status.st_ctime:.1f} s ago)"
        )
    return str(path)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the session when stored objects outlive it.

    Temporary files go into a directory of this session's own, inherited by worker processes. Its name is
    short: sockets in it, such as Ray's, may have 107 letters in all.
    """
    before = stored_paths(SHARED_MEMORY)
    with (
        tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        scratch = Path(directory)
        patch.setenv("TMPDIR", str(scratch))
        patch.setenv("XDG_CONFIG_HOME", str(scratch / "configuration"))  # secrets that are made, too
        # Ray remembers the token that it finds at home first; some tests are at home elsewhere.
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setattr(tempfile, "tempdir", None)
        # Else multiprocessing makes one in there, and at the very end misses it.
        patch.setitem(multiprocessing.current_process()._config, "tempdir", directory)  # type: ignore[attr-defined]
        yield
        deadline = time.monotonic() + GRACE
        while (left := stored_paths(SHARED_MEMORY, scratch) - before) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert not left, "left behind:\n" + "\n".join(sorted(map(_told, left)))


@pytest.fixture(scope="module", autouse=True)
def who_made_what(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remember after which module a stored object was there first."""
    yield
    for path in stored_paths(SHARED_MEMORY):
        _made_by.setdefault(path, request.node.name)


@pytest.fixture(scope="module", autouse=True)
def earlier_modules_are_not_searched_for_garbage() -> None:
    """Many tests collect garbage: of a process that has imported every engine that takes half a second.

    So does this where it looks at everything again: at every eighth module, for what was in use before.
    """
    if next(_modules) % 8 == 0:
        gc.unfreeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # what is wrong with them is not this module's fault
        gc.collect()
    gc.freeze()


# -- Servers and stores ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Redis server, for the tests of one module."""
    from redis_servers import serving

    with serving(tmp_path_factory.mktemp("r")) as server:
        yield server


@pytest.fixture(scope="module")
def redis_url(server: Any) -> str:
    return f"redis://{server.address}"


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    """Kafka's bootstrap servers, for the tests of one module."""
    import kafka_broker

    with kafka_broker.broker() as bootstrap:
        yield bootstrap


@pytest.fixture
def store() -> Iterator[Any]:
    """A store of its own in shared memory, and nothing of it afterwards, whoever put it there."""
    from proxystore_core import Store
    from proxystore_core.connectors.base import USER_SESSION

    with Store.from_url(f"shm://{secrets.token_hex(4)}", name=secrets.token_hex(4)) as store:
        yield store
        for session in [USER_SESSION, *store.connector.sessions()]:
            store.connector.end(session)


# -- Clusters ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Two worker processes with nannies, for the tests of one module."""
    import distributed

    elsewhere = request.config.getoption("--elsewhere")
    if elsewhere:
        from hosts import cluster_elsewhere

        with cluster_elsewhere(shlex.split(elsewhere), request.config.getoption("--address")) as cluster:
            yield cluster
        return
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def bare_client(cluster: Any) -> Iterator[Any]:
    """Dask as it is without us."""
    import distributed

    with distributed.Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    """Our client with its defaults."""
    from proxystore_integrations.dask import Client

    with Client(cluster) as client:
        yield client


class Stored:
    """The objects of one client's session, as long as its store stays open or anybody opens it again."""

    def __init__(self, client: Any) -> None:
        connector = client._link._store.connector
        self.url = connector.url
        self.session = client._link._session.name
        self.marker = client._link.marker
        if hasattr(connector, "store_dir"):
            self.directory = Path(connector.store_dir) / self.session

    def __call__(self) -> list[str]:
        from proxystore_core.connectors.base import listed
        from proxystore_core.recipe import open_connector

        connector = open_connector(self.url)
        try:
            lister = listed(connector)
            assert lister is not None
            return [key for key in lister.keys(self.session) if key != self.marker]
        finally:
            connector.close()

    def becomes(self, count: int) -> None:
        """Wait until there are so many."""
        until(lambda: len(self()) == count)


@pytest.fixture
def stored(client: Any) -> Stored:
    return Stored(client)


@pytest.fixture
def stored_by() -> type[Stored]:
    return Stored
