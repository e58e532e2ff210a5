"""Where settings come from, which one wins, and what a mistake in each place is told."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import proxystore_core
import proxystore_integrations
from proxystore_core.connectors.base import Connector
from proxystore_core.errors import ConfigurationError, MissingExtraError
from proxystore_integrations.settings import NAMES, NOT_SETTINGS, Settings
from proxystore_integrations.units import format_size, parse_duration, parse_size

PATH = [os.path.abspath(entry) for entry in sys.path]  # Before a test changes the working directory.


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory of its own, two levels below ``tmp_path``."""
    directory = tmp_path / "project" / "sub"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)
    return directory


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# -- Units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("100 kB", 100_000),
        ("1MB", 1_000_000),
        ("1 MiB", 2**20),
        ("1.5 GB", 1_500_000_000),
        ("1.1 GB", 1_100_000_000),
        (" 64kib ", 65_536),
        ("4096", 4096),
        ("1_000_000", 1_000_000),
        ("7 B", 7),
        ("1e6", 1_000_000),
        (0, 0),
        (4096, 4096),
        (1e6, 1_000_000),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size
    assert type(parse_size(text)) is int


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10 min", 600),
        ("30 s", 30),
        ("500 ms", 0.5),
        ("1h", 3600),
        ("1.5 hours", 5400),
        ("2 d", 172_800),
        ("20 us", 2e-5),
        ("45", 45),
        (45, 45),
        (0.25, 0.25),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)
    assert type(parse_duration(text)) is float


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("100 kilo", "unknown unit 'kilo'. Known units: B, kB, MB"),
        ("10 min", "unknown unit 'min'"),
        ("-5 MB", "'-5 MB' is negative"),
        (-5, "-5 is negative"),
        ("", "cannot read ''"),
        ("MB", "cannot read 'MB'"),
        ("1,5 MB", "cannot read '1,5 MB'"),
        ("1 MB 2", "cannot read"),
        ("1_", "cannot read"),
        ("\u0661 MB", "cannot read"),
        ("nan", "cannot read 'nan'"),
        (float("inf"), "not finite"),
        ("1e400", "not finite"),
        (1.5, "not a whole number of bytes"),
        (True, "cannot read True"),
        (None, "cannot read None"),
        ([1], r"cannot read \[1\]"),
    ],
)
def test_what_is_no_size_is_refused(value, says):
    with pytest.raises(ConfigurationError, match=says):
        parse_size(value)


@pytest.mark.parametrize("value", ["10 MB", "-1 s", float("nan"), "1h 30min", True, "soon"])
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(ConfigurationError):
        parse_duration(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (100_000, "100 kB"),
        (1_234_567, "1.23 MB"),
        (999_999, "1 MB"),
        (10**18, "1000 PB"),
    ],
)
def test_a_size_reads_well(size, text):
    assert format_size(size) == text


@given(st.integers(0, 10**19))
def test_a_formatted_size_is_read_back_to_three_digits(size):
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.005)


@given(st.text())
def test_any_text_is_a_size_or_a_typed_error(text):
    try:
        size = parse_size(text)
    except ConfigurationError as error:
        named = repr(text) in str(error)
    else:
        named = size >= 0
    assert named


# -- Precedence


def test_the_defaults():
    settings = Settings.load()
    assert (settings.threshold, settings.store, settings.lease) == (100_000, "shm://", 600.0)
    assert (settings.inputs, settings.results, settings.on_store_error) == ("value", "auto", "fallback")
    assert settings.origin("threshold") == "default"
    assert settings == Settings()


def test_the_first_found_wins_setting_by_setting(place, monkeypatch):
    path = write(place / "proxystore.toml", 'threshold = "1 MB"\nlease = "1 h"\nresults = "never"\n')
    monkeypatch.setenv("PROXYSTORE_THRESHOLD", "2 MB")
    monkeypatch.setenv("PROXYSTORE_LEASE", "2 h")
    settings = Settings.load(threshold="3 MB", lease=None)
    assert (settings.threshold, settings.lease, settings.results) == (3_000_000, 7200.0, "never")
    assert settings.origin("threshold") == "keyword argument"
    assert settings.origin("lease") == "PROXYSTORE_LEASE"
    assert settings.origin("results") == path
    assert settings.origin("inputs") == "default"
    assert dict(settings.origins) == {
        "threshold": "keyword argument",
        "lease": "PROXYSTORE_LEASE",
        "results": path,
    }


def test_an_overridden_value_is_not_checked(place):
    write(place / "proxystore.toml", 'store = "nosuch://"')
    assert Settings.load(store="memory://").store == "memory://"


def test_an_empty_variable_is_not_set(monkeypatch):
    monkeypatch.setenv("PROXYSTORE_THRESHOLD", "")
    monkeypatch.setenv("PROXYSTORE_CONFIG", "")
    assert Settings.load().threshold == 100_000


def test_settings_are_read_anew_each_time(place):
    write(place / "proxystore.toml", "threshold = 1")
    assert Settings.load().threshold == 1
    write(place / "proxystore.toml", "threshold = 2")
    assert Settings.load().threshold == 2


# -- Files


def test_the_nearest_directory_wins(place):
    write(place.parent.parent / "proxystore.toml", "threshold = 1\nlease = 5")
    path = write(place.parent / "pyproject.toml", "[tool.proxystore]\nthreshold = 2")
    write(place / "pyproject.toml", '[project]\nname = "proxystore-user"')
    settings = Settings.load()
    assert (settings.threshold, settings.lease) == (2, 600.0)
    assert settings.origin("threshold") == path


def test_proxystore_toml_comes_before_pyproject_toml(place):
    write(place / "pyproject.toml", "[tool.proxystore]\nthreshold = 1\nlease = 5")
    write(place / "proxystore.toml", "threshold = 2")
    assert (Settings.load().threshold, Settings.load().lease) == (2, 600.0)


def test_a_pyproject_that_is_not_about_us_is_not_even_parsed(place):
    write(place / "pyproject.toml", "[tool.ruff\nbroken")
    assert Settings.load() == Settings()


@pytest.mark.parametrize("name", ["cluster.toml", "pyproject.toml"])
def test_a_named_file_replaces_the_search(place, monkeypatch, tmp_path, name):
    write(place / "proxystore.toml", "threshold = 1\nlease = 5")
    header = "[tool.proxystore]\n" if name == "pyproject.toml" else ""
    path = write(tmp_path / name, f"{header}threshold = 2")
    monkeypatch.setenv("PROXYSTORE_CONFIG", path)
    settings = Settings.load()
    assert (settings.threshold, settings.lease) == (2, 600.0)
    assert settings.origin("threshold") == path


def test_a_removed_working_directory_means_no_file(place):
    place.rmdir()
    assert Settings.load() == Settings()


# -- Mistakes


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('treshold = "1 MB"', ["unknown setting", "'treshold'", "Did you mean 'threshold'?", "lease"]),
        ('threshold = "1 XB"', ["threshold = '1 XB'", "unknown unit 'XB'", "MiB"]),
        ("threshold = -1", ["threshold = -1", "negative", '"100 kB"']),
        ("threshold = true", ["threshold = True", "cannot read"]),
        ("lease = 0", ["lease = 0", "10 min"]),
        ('lease = "1 MB"', ["lease = '1 MB'", "unknown unit 'MB'", "min"]),
        ('results = "allways"', ["results = 'allways'", "'auto' or 'always' or 'never'"]),
        ("inputs = 1", ["inputs = 1", "'value' or 'proxy'"]),
        ("on_store_error = []", ["on_store_error = []", "'fallback' or 'raise'"]),
        ('store = "nosuch://host"', ["store = 'nosuch://host'", "unknown store scheme 'nosuch'", "shm"]),
        ('store = "/scratch"', ["store = '/scratch'", "scheme://"]),
        ("store = 5", ["store = 5", "int", "shm://"]),
        ('store = "shm://?stok=3"', ["store = 'shm://?stok=3'", "unknown parameter 'stok'", "stock"]),
        ('store = "file://scratch/me"', ["store = 'file://scratch/me'", "file:///path"]),
        ("[store]\nurl = 'shm://'", ["store = {'url': 'shm://'}", "dict"]),
        ("[tool.proxystore]\nthreshold = 1", ["in a table [tool.proxystore]", "Leave out that line"]),
        ("[proxystore]\nthreshold = 1", ["in a table [proxystore]", "Leave out that line"]),
        ("[tool.other]\nthreshold = 1", ["unknown setting", "'tool'"]),
        ('allow_pickle = "maybe"', [": allow_pickle = 'maybe'. Expected true or false"]),
        ("threshold = = 1", ["not valid TOML", "line 1"]),
        ("store = redis://host:6379", ["not valid TOML", 'in quotes: store = "redis://host:6379"']),
    ],
)
def test_a_mistake_in_a_file_names_file_key_found_and_expected(place, line, says):
    path = write(place / "proxystore.toml", line)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    for part in [path, *says]:
        assert part in str(caught.value)


def test_a_mistake_in_pyproject_names_it(place):
    path = write(place / "pyproject.toml", "[tool]\nproxystore = 5")
    with pytest.raises(ConfigurationError, match="Expected a table") as caught:
        Settings.load()
    assert path in str(caught.value)


def test_bytes_that_are_not_text_are_not_toml(place):
    (place / "proxystore.toml").write_bytes(b"store = '\xff'")
    with pytest.raises(ConfigurationError, match=r"proxystore\.toml is not valid TOML"):
        Settings.load()


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXYSTORE_CONFIG", str(tmp_path))  # A directory.
    with pytest.raises(ConfigurationError, match=f"cannot read {tmp_path}"):
        Settings.load()


def test_a_named_file_must_be_there_and_have_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXYSTORE_CONFIG", "missing.toml")
    with pytest.raises(ConfigurationError, match=r"PROXYSTORE_CONFIG='missing\.toml'"):
        Settings.load()
    monkeypatch.setenv("PROXYSTORE_CONFIG", write(tmp_path / "pyproject.toml", "[project]"))
    with pytest.raises(ConfigurationError, match=r"\[tool\.proxystore\]"):
        Settings.load()


def test_a_mistake_in_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("PROXYSTORE_THRESHOLD", "big")
    with pytest.raises(ConfigurationError, match="PROXYSTORE_THRESHOLD: threshold = 'big'"):
        Settings.load()


def test_an_unknown_variable_is_an_error(monkeypatch):
    monkeypatch.setenv("PROXYSTORE_TRESHOLD", "1 MB")
    with pytest.raises(ConfigurationError, match="Did you mean 'PROXYSTORE_THRESHOLD'") as caught:
        Settings.load()
    assert "PROXYSTORE_DEBUG" not in str(caught.value)  # those that are no settings are a page of names
    assert str(caught.value).count("PROXYSTORE_SECRET") == 1
    monkeypatch.delenv("PROXYSTORE_TRESHOLD")
    monkeypatch.setenv("PROXYSTORE_DEBG", "1")
    with pytest.raises(ConfigurationError, match="Did you mean 'PROXYSTORE_DEBUG'"):
        Settings.load()


@pytest.mark.parametrize("name", ["PROXYSTORE_DEBUG", "PROXYSTORE_HOME"])
def test_variables_of_others_are_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "anything")
    assert Settings.load() == Settings()


def test_every_variable_that_the_code_reads_is_known():
    packages = [Path(proxystore_core.__file__).parent, Path(proxystore_integrations.__file__).parent]
    code = "".join(path.read_text() for package in packages for path in package.rglob("*.py"))
    found = set(re.findall(r"(?<!_)PROXYSTORE_[A-Z_]*[A-Z]", code))
    assert "PROXYSTORE_NODE_SECRET" in found
    assert found - NOT_SETTINGS <= {f"PROXYSTORE_{name.upper()}" for name in NAMES}


def test_an_unknown_keyword_is_an_error_even_when_none():
    with pytest.raises(ConfigurationError, match=r"in keyword arguments: 'result'\. Did you mean 'results'"):
        Settings.load(result=None)
    with pytest.raises(ConfigurationError, match="unknown setting"):
        Settings().origin("colour")


def test_a_missing_extra_keeps_its_type_and_its_remedy(place, monkeypatch):
    import proxystore_core.recipe as recipe

    monkeypatch.setitem(recipe._SHIPPED, "absent", "no_such_library:Connector")
    monkeypatch.setitem(recipe._EXTRAS, "absent", "absent")
    path = write(place / "proxystore.toml", 'store = "absent://"')
    with pytest.raises(MissingExtraError) as caught:
        Settings.load()
    assert path in str(caught.value)
    assert 'pip install "proxystore-integrations[absent]"' in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_mistake_is_one_traceback(monkeypatch):
    monkeypatch.setenv("PROXYSTORE_THRESHOLD", "1 Mo")
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert len(traceback.format_exception(caught.value)) <= 7  # a line of "Traceback", of the error, frames
    assert caught.value.__suppress_context__


def test_a_password_is_never_shown(monkeypatch):
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(store="nosuch://me:hunter2@host")
    assert "hunter2" not in str(caught.value)


# -- The object


def test_a_password_is_not_in_the_repr():
    from proxystore_core.recipe import register_connector

    class Connected:
        schemes = ("settings-test",)

    register_connector(Connected)
    settings = Settings(store="settings-test://me:hunter2@host")
    assert "hunter2" not in repr(settings)
    assert "hunter2" in settings.store
    assert not isinstance(Connected, Connector)


def test_a_pickle_of_settings_holds_no_password():
    for url, travels in (
        ("redis://me:hunter2@host:6379/1?deadline=5", "redis://me@host:6379/1?deadline=5"),
        ("redis://:hunter2@host", "redis://host"),
        ("redis://host", "redis://host"),
    ):
        settings = Settings(store=url, threshold=5, lease=30)
        data = pickle.dumps(settings)
        assert b"hunter2" not in data
        there = pickle.loads(data)
        assert there.store == travels
        assert (there.threshold, there.lease, there.origin("threshold")) == (5, 30, "keyword argument")
        for copied in (copy.copy(settings), copy.deepcopy(settings), copy.deepcopy([settings])[0]):
            assert copied.store == url


def test_settings_are_frozen_values():
    settings = Settings(threshold=5, lease=30)
    assert settings == Settings.load(threshold="5 B", lease="30 s")
    assert hash(settings) == hash(Settings.load(threshold=5, lease=30))
    assert settings != Settings()
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings.origin("threshold") == "keyword argument"
    with pytest.raises(AttributeError):
        settings.threshold = 6  # type: ignore[misc]
    with pytest.raises(ConfigurationError, match="keyword argument: threshold = -5"):
        Settings(threshold=-5)


def test_importing_settings_loads_only_msgspec_and_the_core():
    code = (
        "import sys; import proxystore_integrations.settings; "
        "print({m.partition('.')[0] for m in sys.modules} & {'numpy', 'cloudpickle', 'tomllib', 'asyncio'})"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(PATH)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# -- Stores by name

STORES = """
store = "multi://fast,wide"

[stores.fast]
url = "shm://mine"
max_size = "10 MB"
hosts = ["node*", "login"]

[stores.wide]
url = "file:///scratch/me?grace=1.0"
priority = -1
"""
SPELT_OUT = (
    "multi://fast,wide?fast=shm://mine&fast.max_size=10000000&fast.hosts=node*,login"
    "&wide=file:///scratch/me?grace%3D1.0&wide.priority=-1"
)


def test_a_store_of_named_stores_is_spelt_out(place, monkeypatch):
    write(place / "proxystore.toml", STORES)
    assert Settings.load().store == SPELT_OUT
    assert hash(Settings.load()) == hash(Settings(store=SPELT_OUT))
    assert Settings.load(store="multi://wide").store == (
        "multi://wide?wide=file:///scratch/me?grace%3D1.0&wide.priority=-1"
    )
    assert Settings.load(store="multi://").store == SPELT_OUT
    assert Settings.load(store="shm://").store == "shm://"
    monkeypatch.setenv("PROXYSTORE_STORE", "multi://one?one=shm://")
    assert Settings.load().store == "multi://one?one=shm://"
    tables = {"one": {"url": "memory://", "max_size": 5}}
    assert (
        Settings.load(store="multi://one", stores=tables).store == "multi://one?one=memory://&one.max_size=5"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('store = "multi://fast"', "'fast', which is no table"),
        ('store = "multi://fast"\nstores = 5', "stores = 5"),
        ('store = "multi://fast"\n[stores]\nfast = "shm://"', "stores = "),
        ('store = "multi://fast"\n[stores.fast]\nmax_size = 5', "no URL"),
        ('store = "multi://fast"\n[stores.fast]\nurl = "shm://"\nmax_sise = 5', "max_sise"),
        ('[stores.fast]\nurl = "shm://"\nmax_size = "much"', "stores.fast.max_size = 'much'"),
        ('store = "multi://fast"\n[stores.fast]\nurl = "nosuch://"', "nosuch"),
        ('store = "multi://fast"\n[stores.fast]\nurl = "redis://me:word@host"', "password"),
    ],
)
def test_named_stores_that_are_wrong(place, text, words):
    write(place / "proxystore.toml", text)
    with pytest.raises(ConfigurationError, match=words) as caught:
        Settings.load()
    assert "word@" not in str(caught.value)
