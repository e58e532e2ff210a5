"""A password is in no pickle, no repr, no error and no log, whichever connector it was given to."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from typing import Any

import margo_tasks  # noqa: F401  which finds a fake of Margo
import pytest

from proxystore_core import Store, recipe
from proxystore_core.errors import StoreError
from proxystore_core.recipe import open_connector
from proxystore_core.urls import StoreURL, redact
from proxystore_integrations.cli.main import main
from proxystore_integrations.settings import Settings

WORD = "hunter2hunter2hunter2"
SCHEMES = sorted(recipe._SHIPPED)
URLS = {
    "userinfo": "{}://alice:{}@host.invalid:1234/0",
    "userinfo and path": "{}://alice:{}@host.invalid/a/b",
    "password": "{}://host.invalid?password={}",
    "token": "{}://host.invalid/x?token={}",
    "secret": "{}://host.invalid?secret={}",
    "key": "{}://host.invalid/x?secret_access_key={}&region=eu",
    "bad port": "{}://alice:{}@host.invalid:port/0",
    "bad host": "{}://alice:{}@[::1/0",
    "odd host": "{}://alice:{}@host\u2100.invalid/0",
    "wrong option": "{}://alice:{}@host.invalid/0?nothing=1",
}


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def shown_of(store: Store[Any]) -> list[str]:
    """All that others may get to see of a store."""
    proxy = store.proxy_from_key("user.0123456789abcdef0123")
    found = [repr(store), repr(store.connector), str(store.connector), store.recipe, store.connector.url]
    found.append(pickle.dumps([proxy, store, copy.copy(proxy)]).decode("latin-1"))
    found.append(repr(recipe.Recipe.parse(store.recipe)))
    return found


@pytest.mark.parametrize("where", URLS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_urls(scheme: str, where: str, records: pytest.LogCaptureFixture) -> None:
    url = URLS[where].format(scheme, WORD)
    shown = [redact(url)]
    try:
        with Store("credentials", open_connector(url), near=False) as store:
            shown += shown_of(store)
    except StoreError as error:
        shown += [str(error), repr(error), pickle.dumps(error).decode("latin-1")]
        shown.append("".join(traceback.format_exception_only(error)))
    except ImportError:
        pytest.skip(f"no library for {scheme}://")
    try:
        shown.append(repr(Settings(store=url)))
    except StoreError as error:
        shown += [str(error), repr(error)]
    shown.append(records.text)
    assert not [text for text in shown if WORD in text]


def test_arguments(monkeypatch: pytest.MonkeyPatch, records: pytest.LogCaptureFixture) -> None:
    from proxystore_core.connectors.kafka import KafkaConnector
    from proxystore_core.connectors.redis import RedisConnector, RedisTLSConnector, RedisUnixConnector
    from proxystore_core.connectors.zmq import ZeroMQConnector

    monkeypatch.setenv("PROXYSTORE_REDIS_PASSWORD", WORD)
    connectors: list[Any] = [
        RedisConnector("host.invalid", 1, password=WORD, username="alice"),
        RedisConnector("host.invalid", 1),
        RedisTLSConnector("host.invalid", 1, password=WORD),
        RedisUnixConnector("/nowhere/socket", password=WORD),
        KafkaConnector(["host.invalid"], username="alice", password=WORD, protocol="sasl_ssl"),
        ZeroMQConnector(secret=WORD),
    ]
    for connector in connectors:
        with Store("credentials", connector, near=False) as store:
            shown = [*shown_of(store), json.dumps(store.config(), default=str), records.text]
        assert not [text for text in shown if WORD in text]


def test_what_fails_says_nothing(records: pytest.LogCaptureFixture) -> None:
    from proxystore_core.connectors.redis import RedisConnector

    connector = RedisConnector("127.0.0.1", 1, password=WORD, connect_timeout=0.05)
    with Store("credentials", connector, near=False) as store, pytest.raises(StoreError) as failed:
        store.put("x")
    said = "".join(traceback.format_exception(failed.value)) + records.text
    assert WORD not in said


def test_what_is_no_secret_is_shown() -> None:
    url = "zmq://name:5000?interface=eth0&deadline=3"
    assert redact(url) == url
    assert StoreURL.parse("redis://alice@host/0?prefix=a").url == "redis://alice@host/0?prefix=a"


@pytest.mark.parametrize("command", ["ls", "gc", "run", "bench"])
def test_what_is_typed_at_the_wrong_place(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    code = main([command, f"redis://alice:{WORD}@host.invalid/0"])
    said = "".join(capfd.readouterr())
    assert code == 2
    assert "redis://alice:***@host.invalid/0" in said
    assert WORD not in said
