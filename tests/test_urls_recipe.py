"""URLs and recipes: taken apart, put together, and wrong ones named."""

from __future__ import annotations

import copy
import os
import pickle
import string
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxystore_core import recipe as recipes
from proxystore_core.connectors.file import FileConnector
from proxystore_core.connectors.memory import MemoryConnector
from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.shm import ShmConnector
from proxystore_core.errors import ConfigurationError, MissingExtraError, StoreError
from proxystore_core.recipe import (
    Recipe,
    check_url,
    connector_class,
    import_name,
    named,
    open_connector,
    register_connector,
)
from proxystore_core.urls import StoreURL, redact

# URLs.


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path", "query"),
    [
        ("shm://", "shm", "", None, "", {}),
        ("shm://Name", "shm", "Name", None, "", {}),
        ("SHM://x", "shm", "x", None, "", {}),
        ("file:///a/b%20c", "file", "", None, "/a/b c", {}),
        ("redis://host:6379/0?timeout=5", "redis", "host", 6379, "/0", {"timeout": "5"}),
        ("redis://[::1]:6379/0", "redis", "::1", 6379, "/0", {}),
        ("redis://[fe80::1]", "redis", "fe80::1", None, "", {}),
        ("redis+cluster://h?a=&b=%26&a=2", "redis+cluster", "h", None, "", {"a": "2", "b": "&"}),
        ("redis://u%40x:p%3Aq@host", "redis", "host", None, "", {}),
        ("memory://a%2Fb", "memory", "a/b", None, "", {}),
    ],
)
def test_parse(url: str, scheme: str, host: str, port: int | None, path: str, query: dict[str, str]) -> None:
    parts = StoreURL.parse(url)
    assert (parts.scheme, parts.host, parts.port, parts.path, parts.query) == (
        scheme,
        host,
        port,
        path,
        query,
    )


def test_credentials_are_decoded_and_never_shown() -> None:
    parts = StoreURL.parse("redis://u%40x:p%3Aq@host:1/0")
    assert (parts.username, parts.password) == ("u@x", "p:q")
    assert parts.url == "redis://u%40x:***@host:1/0"
    assert redact("redis://:secret@host") == "redis://:***@host"
    assert redact("redis://user@host") == "redis://user@host"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shm",
        "shm:",
        "shm:/x",
        "/tmp/x",
        "://x",
        "redis://:secret@h:port",
        "redis://:secret@h:99999",
        "redis://:secret@[::1",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        StoreURL.parse(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        open_connector(url)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("x://host", "host"),
        ("x://:80", "port"),
        ("x:///path", "path"),
        ("x://user@", "user"),
        ("x://:secret@", "user"),
    ],
)
def test_expect(url: str, found: str) -> None:
    with pytest.raises(ConfigurationError, match=f"takes no {found}") as caught:
        StoreURL.parse(url).expect(**{name: True for name in ("host", "port", "path") if name != found})
    assert "secret" not in str(caught.value)
    StoreURL.parse("x://h:1/p").expect(host=True, port=True, path=True)


def test_options() -> None:
    parts = StoreURL.parse("x://?a=1&b=two&c=3")
    assert parts.options({"a": int, "b": str}, spare=["c"]) == {"a": 1, "b": "two"}
    with pytest.raises(ConfigurationError, match=r"unknown parameter 'c' .* known: a, b"):
        parts.options({"a": int, "b": str})
    with pytest.raises(ConfigurationError, match="bad value 'two' of 'b'"):
        parts.options({"a": int, "b": int, "c": int})


@given(st.text(max_size=100))
def test_any_text_is_a_url_or_a_typed_error(text: str) -> None:
    for candidate in (text, f"shm://{text}", f"x://{text}:{text}@{text}?{text}"):
        try:
            parts = StoreURL.parse(candidate)
        except ConfigurationError:
            continue
        assert parts.scheme


# Recipes.

plain = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=20)
urls = st.builds(
    lambda scheme, host, path: f"{scheme}://{host}/{urllib.parse.quote(path)}",
    st.sampled_from(["shm", "file", "redis"]),
    plain,
    st.text(max_size=20),
)
functions = st.none() | st.builds(lambda module, name: f"{module}:{name}", plain, plain)


@given(
    st.builds(
        Recipe,
        url=urls,
        name=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        compression=st.none() | plain,
        serializer=functions,
        deserializer=functions,
    )
)
def test_recipes_round_trip(recipe: Recipe) -> None:
    text = str(recipe)
    assert text.isascii()
    assert Recipe.parse(text) == recipe


def test_recipes_are_short_and_readable() -> None:
    assert str(Recipe("shm://")) == "shm://"
    assert str(Recipe("redis://localhost:6379/0", "example")) == "redis://localhost:6379/0#example"
    assert str(Recipe("file:///data", "a", "lz4")) == "file:///data#a&compression=lz4"
    assert str(Recipe("shm://", serializer="pkg.mod:f")) == "shm://#&serializer=pkg.mod:f"


def test_recipe_with_an_unknown_option() -> None:
    with pytest.raises(ConfigurationError, match="unknown option 'colour'"):
        Recipe.parse("shm://#a&colour=red")


# Connectors by scheme.


@pytest.mark.parametrize(
    ("scheme", "kind"), [("memory", MemoryConnector), ("file", FileConnector), ("shm", ShmConnector)]
)
def test_shipped(scheme: str, kind: type[object]) -> None:
    assert connector_class(scheme) is kind
    check_url(f"{scheme}:///tmp/a" if scheme == "file" else f"{scheme}://a")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("shm://?stok=3", "unknown parameter 'stok'"),
        ("shm://?stock=much", "bad value 'much' of 'stock'"),
        ("shm:///a/b", "takes no path"),
        ("file://relative/directory", "three slashes and a full path: file:///path"),
        ("file://", "names no directory"),
        ("redis://host/zero", "'zero' is no number of a database"),
        ("zmq://?interfaces=eth0", "unknown parameter 'interfaces'"),
        ("kafka://host/topic?partz=3", "unknown parameter 'partz'"),
        ("s3://bucket?regin=x", "unknown parameter 'regin'"),
        ("multi://a?b=shm://", "unknown parameter 'b'"),
    ],
)
def test_a_wrong_part_is_seen_without_opening(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_url(url)


def test_what_is_checked_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_url(f"file://{tmp_path}/store")
    check_url("redis://127.0.0.1:1")
    check_url("kafka://127.0.0.1:1/topic?leases=false")
    check_url("sftp://127.0.0.1:1/directory")
    check_url("zmq://?interface=none")
    assert not list(tmp_path.iterdir())


def test_unknown_scheme() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'shm'") as caught:
        check_url("smh://")
    assert all(scheme in str(caught.value) for scheme in ("file", "memory", "shm"))
    with pytest.raises(ConfigurationError, match="unknown store scheme 'gopher'"):
        open_connector("gopher://")


def test_wrong_part() -> None:
    for url in ("shm://a/b", "memory://?x=1", "file://", "shm://?stock=much"):
        with pytest.raises(ConfigurationError):
            open_connector(url)


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_registered", {})

    @register_connector
    class Mine(MemoryConnector):
        schemes = ("mine", "mein")

    for scheme in Mine.schemes:
        connector = open_connector(f"{scheme}://name")
        assert isinstance(connector, Mine)
        assert connector.url == "mine://name"
        connector.close()


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes._SHIPPED, "absent", "no_such_library.connector:Absent")
    with pytest.raises(ModuleNotFoundError):
        connector_class("absent")
    monkeypatch.setitem(recipes._EXTRAS, "absent", "extra")
    with pytest.raises(MissingExtraError, match=r'pip install "proxystore-integrations\[extra\]"') as caught:
        connector_class("absent")
    assert isinstance(caught.value.__cause__, ImportError)
    assert isinstance(caught.value, StoreError)


class Other(FileConnector):
    """Answers to no scheme of its own."""


def test_a_connector_is_pickled_as_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_registered", {})
    for kind in (FileConnector, Other):
        again = pickle.loads(pickle.dumps(kind(tmp_path, grace=3)))
        assert type(again) is kind
        assert again.config() == {"store_dir": str(tmp_path), "grace": 3.0}
    with_password = RedisConnector("redis.invalid", password="sesame")
    text = pickle.dumps(with_password)
    assert b"sesame" not in text
    assert pickle.loads(text).url == copy.copy(with_password).url == "redis://redis.invalid:6379"
    # As with a proxy: who lacks the library is told what to install.
    monkeypatch.setitem(recipes._SHIPPED, "redis", "no_such_library.connector:Absent")
    with pytest.raises(MissingExtraError, match="pip install"):
        pickle.loads(text)


# Functions by name.


def test_functions_by_name() -> None:
    assert import_name(os.path.join) == "posixpath:join"
    assert named("posixpath:join") is os.path.join
    assert named("collections:OrderedDict.fromkeys") is not None
    assert named("no_such_module:f") is None
    assert named("os:no_such_name") is None
    assert named("os:path") is None
    for wrong in (lambda x: x, functions_of_this_test()):
        with pytest.raises(ConfigurationError, match="cannot be found by other processes"):
            import_name(wrong)


def functions_of_this_test() -> Callable[[], None]:
    def nested() -> None: ...

    return nested


def test_nothing_is_imported_because_a_reference_says_so() -> None:
    assert "antigravity" not in sys.modules
    assert named("antigravity:fly") is None
    assert "antigravity" not in sys.modules
