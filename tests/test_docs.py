"""Blocks of the documentation run as they are written, with the servers and engines that they name.

What the reader has already (a config, an array, a function) has its name below, by page. Of what is written,
only addresses and directories are replaced.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import pytest
from stream_kinds import GROUP

import proxystore_core
from proxystore_core import ConfigurationError, MissingExtraError, StaticLifetime, Store, get_key
from proxystore_integrations.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
ELSEWHERE = {
    ("README", 4): "test_ray.py",
    ("ray", 0): "test_ray.py",
    ("ray", 1): "test_ray.py",
}
"""Blocks of Python that another module runs: Ray's tests have a process of their own."""
LIBRARIES = {"daos", "two-sites-globus"}
"""Pages whose store needs a library or a login that a machine may lack."""


def blocks(page: str, language: str) -> list[str]:
    text = PAGES[page].read_text(encoding="utf-8")
    return [
        textwrap.dedent(body)
        for _, body in re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]


class Mesh:
    points = cells = np.zeros(3)


def change(array: Any) -> None:
    array += 1
    proxystore_core.update(array)


def produce(future: Any) -> None:
    future.set_result(np.arange(10.0))


class Page:
    """One page: its blocks run one after another, with the same names.

    Args:
        name: of the page.
        directory: that takes the place of those which are named.
        replaced: other places.
    """

    def __init__(self, name: str, directory: Path, **replaced: str) -> None:
        self.name = name
        self.blocks = blocks(name, "python")
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.replaced = {"/shared/directory": str(directory), "/scratch/me/store": str(directory), **replaced}

    def run(self, number: int, **names: Any) -> dict[str, Any]:
        """Run a block; what it and those before it have named."""
        code = self.blocks[number]
        for old, new in self.replaced.items():
            code = code.replace(old, new)
        self.names.update(names)
        exec(compile(code, f"{PAGES[self.name]}, block {number}", "exec"), self.names)
        _run.add((self.name, number))
        return self.names


_run: set[tuple[str, int]] = set()


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """The page that a test is named after."""
    monkeypatch.chdir(tmp_path)
    name = request.node.originalname.removeprefix("test_").replace("_", "-")
    return Page(name if name != "readme" else "README", tmp_path / "directory")


@pytest.fixture
def redis_page(page: Page, server: Any) -> Page:
    host, port = server.address.split(":")
    page.replaced |= {
        '"localhost", 6379': f'"{host}", {port}',
        '"head", 6379': f'"{host}", {port}',
        **{f"{name}:6379": server.address for name in ("localhost", "login-node", "head", "head-node")},
    }
    return page


@contextlib.contextmanager
def pool() -> Iterator[Any]:
    from proxystore_integrations.futures import StoreExecutor

    with StoreExecutor(ProcessPoolExecutor(1)) as executor:
        yield executor


def test_readme(page: Page, tmp_path: Path) -> None:
    import parsl
    from parsl.config import Config
    from parsl.executors import ThreadPoolExecutor as Threads

    script = tmp_path / "script.py"
    script.write_text(page.blocks[0])
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=100)
    assert re.fullmatch(r"0\.(4999|5000)\d* 0\.2886\d*\n", done.stdout), done.stderr
    _run.add(("README", 0))
    page.run(1, config=Config(executors=[Threads()], run_dir=str(tmp_path), initialize_logging=False))
    parsl.dfk().cleanup()
    parsl.clear()
    with page.run(2, ProcessPoolExecutor=ProcessPoolExecutor)["executor"] as executor:
        assert executor.submit(np.sum, np.ones(100_000)).result() == 100_000
    assert page.run(3)["Executor"].__module__.startswith("proxystore_integrations.")


def test_connectors(page: Page) -> None:
    names = page.run(0)
    page.run(1)
    assert names["ShelfConnector"].from_url.__self__ is names["ShelfConnector"]


def test_dask(page: Page, cluster: Any, bare_client: Any) -> None:
    import dask

    page.run(0)
    page.run(1, client=bare_client)
    with page.run(2, cluster=cluster, train=np.sum, make=np.ones, data=np.ones(200_000))["client"] as client:
        assert client._link.url.endswith("/directory")
    (configuration,) = blocks("dask", "yaml")
    import distributed

    with dask.config.set(
        dask.config.merge(dask.config.config, importlib.import_module("yaml").safe_load(configuration))
    ):
        with distributed.Client(n_workers=1, processes=False, dashboard_address=None) as client:
            assert client._link.settings.threshold == 1_000_000


def test_futures(page: Page) -> None:
    data = np.ones(100_000)
    with page.run(0)["executor"]:
        names = page.run(1, train=np.negative, score=np.multiply, data=data, parts=[1.0, data])
        assert [score.result()[0] for score in names["scores"]] == [-1, -1]
    code = page.blocks[2].replace("fit", "multiply").replace("joblib.Parallel()", "found = joblib.Parallel()")
    page.blocks[2] = code
    assert page.run(2, multiply=np.multiply)["found"][99][0] == 99


def test_futures_distributed(redis_page: Page) -> None:
    with ThreadPoolExecutor(2) as executor:
        store = redis_page.run(0, executor=executor, produce=produce, consume=np.sum)["store"]
    assert store.connector.url.startswith("redis://")


def test_globus_compute(redis_page: Page, tmp_path: Path) -> None:
    from globus_compute_sdk.sdk import executor as sdk
    from globus_fakes import FakeService, process_pool

    with (
        FakeService(process_pool(), tmp_path) as service,
        mock.patch.object(sdk, "Client", return_value=service.client()),
    ):
        given: dict[str, Any] = {"endpoint_id": service.endpoint_id, "train": np.sum}
        names = redis_page.run(0, **given, big_array=np.ones(2_000_000))
        assert names["future"].result() == 2_000_000
        redis_page.run(1)["executor"].shutdown()


def test_multi(redis_page: Page) -> None:
    from proxystore_core.connectors.redis import RedisConnector
    from proxystore_core.connectors.shm import ShmConnector

    connector = redis_page.run(0, ShmConnector=ShmConnector, RedisConnector=RedisConnector)["connector"]
    connector.evict(connector.put([b"small"]))
    connector.close()


def test_ownership(page: Page, store: Store[Any]) -> None:
    with pool() as executor:
        page.run(0, store=store, executor=executor, array=np.ones(10), read=np.sum, change=change)
        try:
            page.run(1, array=np.ones(10))
        finally:
            StaticLifetime().close()  # else its session is renewed for as long as tests run


def test_parsl(page: Page, tmp_path: Path) -> None:
    import parsl
    from parsl.config import Config
    from parsl.executors import ThreadPoolExecutor as Threads

    def config() -> Any:
        return Config(executors=[Threads()], run_dir=str(tmp_path), initialize_logging=False)

    page.run(0, config=config())
    parsl.dfk().cleanup()
    parsl.clear()
    page.run(1, config=config())
    parsl.clear()


def test_run(redis_page: Page) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORE", "THRESHOLD"):
            patch.delenv(f"PROXYSTORE_{name}", raising=False)
        redis_page.run(0)
    from proxystore_integrations.instrumentation import equipped

    assert not equipped()


def test_security(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    page.run(0, Mesh=type("Mesh", (), {}))
    (lines,) = blocks("security", "sh")
    command = shlex.split(lines.splitlines()[1])
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=True)
    monkeypatch.setenv("PROXYSTORE_SECRET", done.stdout.strip())
    Settings.load()


def test_settings(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYSTORE_THRESHOLD", "1MB")
    names = page.run(0)
    shown = re.findall(r"^(\S.*?)  # (.+)$", page.blocks[0], re.MULTILINE)
    assert len(shown) == 2
    for expression, value in shown:
        assert repr(eval(expression, names)) == value
    page.run(1, Mesh=Mesh)


def test_store(page: Page) -> None:
    for number in range(len(page.blocks)):
        page.run(number)


def test_streams(redis_page: Page, store: Store[Any], bootstrap: str) -> None:
    from proxystore_core.stream import StreamConsumer, StreamProducer
    from proxystore_core.stream.kafka import KafkaPublisher, KafkaSubscriber
    from proxystore_core.stream.queue import QueuePublisher, QueueSubscriber

    seen: list[float] = []
    frames = [np.full(3, float(i)) for i in range(3)]
    given: dict[str, Any] = {"store": store, "instrument": frames, "analyse": lambda x: seen.append(x.sum())}
    redis_page.run(0, clock=lambda: 0.0, **given)
    assert seen == [0, 3, 6]
    publisher = QueuePublisher()
    consumer: StreamConsumer[Any] = StreamConsumer(QueueSubscriber(publisher, "frames"))
    with StreamProducer(publisher, store) as producer:
        for frame in frames:
            producer.send("frames", frame)
    with pool() as executor:
        redis_page.run(1, consumer=consumer, executor=executor, analyse=np.sum)
    redis_page.replaced["host:9092"] = bootstrap
    with StreamProducer(KafkaPublisher(bootstrap), store) as producer:
        producer.send("raw", frames[2])
    soon = functools.partial(KafkaSubscriber, options=GROUP)  # else Tansu takes its time with a group
    redis_page.run(2, KafkaPublisher=KafkaPublisher, KafkaSubscriber=soon, clean=np.negative)


def test_tools(page: Page) -> None:
    pytest.importorskip("prometheus_client")
    pytest.importorskip("opentelemetry.sdk")
    code = "\n".join(page.blocks)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    _run.add(("tools", 0))


def test_two_sites_globus(page: Page) -> None:
    for name in ("UUID-A", "UUID-B"):
        page.replaced[name] = str(uuid.uuid4())
    page.run(0)["store"].close()


def test_every_block_of_python_runs() -> None:
    """In this module, when all of it runs, or where `ELSEWHERE` says."""
    every = {(page, number) for page in PAGES for number in range(len(blocks(page, "python")))}
    tested = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_")}
    assert not [one for one in every - ELSEWHERE.keys() if one[0].replace("README", "readme") not in tested]
    assert ELSEWHERE.keys() <= every
    for page in {page for page, _ in _run}:
        left_out = {one for one in every if one[0] == page} - _run - ELSEWHERE.keys()
        assert not left_out, left_out


# Examples in docstrings.


EXAMPLES: dict[str, Callable[[Store[Any]], dict[str, Any]]] = {
    "proxystore_core": lambda store: {"data": [1]},
    "proxystore_core.ownership": lambda store: {
        "array": np.ones(3),
        "read": np.sum,
        "change": change,
        "wait": wait,
    },
    "proxystore_core.futures": lambda store: {"produce": produce, "consume": np.sum},
    "proxystore_core.stream": lambda store: {"array": np.ones(3)},
}


@pytest.mark.parametrize("module", EXAMPLES)
def test_an_example_of_a_docstring_runs(module: str, store: Store[Any], server: Any) -> None:
    from proxystore_core.stream.redis_streams import RedisStreamPublisher, RedisStreamSubscriber

    loaded = importlib.import_module(module)
    assert loaded.__doc__ is not None
    found = re.search(r"^Example:\n((?:    .*\n|\n)+)", loaded.__doc__ + "\n", re.MULTILINE)
    assert found is not None
    host, port = server.address.split(":")
    code = textwrap.dedent(found[1]).replace('"localhost", 6379', f'"{host}", {port}')
    if "for array in consumer" in code:
        code = code.replace("\nconsumer =", "\nproducer.close()\nconsumer =")
    with pool() as executor:
        names = {**vars(proxystore_core), **vars(loaded), **EXAMPLES[module](store)}
        names |= {
            "RedisStreamPublisher": RedisStreamPublisher,
            "RedisStreamSubscriber": RedisStreamSubscriber,
        }
        names |= {"store": store, "executor": executor}
        exec(compile(code, module, "exec"), names)
    if "proxy" in names and module == "proxystore_core":  # what users store themselves stays
        with Store.from_url("shm://") as again:
            again.evict(get_key(names["proxy"]))


def test_every_example_of_a_docstring_is_known() -> None:
    found = set()
    for package in ("core/proxystore_core", "proxystore_integrations"):
        for path in (ROOT / package).rglob("*.py"):
            if (
                re.search(r"^Examples?:$", path.read_text(encoding="utf-8"), re.MULTILINE)
                and "cli" not in path.parts
            ):
                parts = (
                    path.relative_to(ROOT / ("core" if package.startswith("core") else "."))
                    .with_suffix("")
                    .parts
                )
                found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert found == EXAMPLES.keys()


# Settings, and commands.


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")])
def test_settings_that_are_shown_can_be_set(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in blocks(page, "toml"):
        table = tomllib.loads(text)
        if not table.keys() - {"tool", "project"}:
            continue
        file = tmp_path / "proxystore.toml"
        file.write_text(re.sub("UUID-[AB]", lambda _: str(uuid.uuid4()), text))
        monkeypatch.setenv("PROXYSTORE_CONFIG", str(file))
        try:
            loaded = Settings.load()
        except MissingExtraError:
            assert page in LIBRARIES
        else:
            assert loaded.origin(next(iter(table)))


def commands() -> list[tuple[str, str]]:
    found = []
    for page, path in PAGES.items():
        lines = re.findall(
            r"^ {4,}(?:[A-Z_]+=\S+ )?proxystore (\w.*)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        found += [(page, line) for line in lines]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_that_are_shown_have_these_options(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("groups.txt", "relay.pem", "relay.key", "script.py"):
        (tmp_path / name).touch()
    from proxystore_integrations.cli.commands import proxystore
    from proxystore_integrations.cli.run import parse

    name, *words = shlex.split(re.sub(r" {2,}#.*", "", line).replace("the-script's", "script"))
    if name == "run":
        assert parse(words).program
        return
    with click.Context(proxystore) as context:
        command = proxystore.get_command(context, name)
        assert command is not None
        with contextlib.suppress(ConfigurationError):
            made = command.make_context(name, words, parent=context)
            if isinstance(command, click.Group):
                inner = command.get_command(made, made._protected_args[0])
                assert inner is not None
                inner.make_context(made._protected_args[0], list(made.args), parent=made)
