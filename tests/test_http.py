"""Web servers that are slow, or announce what they do not have; one that works is in `test_objects`."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from proxystore_core.connectors.http import HTTPConnector
from proxystore_core.errors import ConfigurationError, StoreError
from proxystore_core.recipe import open_connector

KEY = f"user.{'a' * 20}"  # of a file store: it does not tell the size
MEBIBYTE = 1 << 20


@contextlib.contextmanager
def serving(announced: int, write: Callable[[Any], None]) -> Iterator[str]:
    """The URL of a web server that answers each request with as many bytes as it likes."""

    class Server(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(announced))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            with contextlib.suppress(OSError):
                write(self.wfile)
            self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as web:
        web.daemon_threads = True
        thread = threading.Thread(target=web.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}/files"
        finally:
            web.shutdown()
            thread.join()


def gets(connector: HTTPConnector) -> list[Callable[[], Any]]:
    return [lambda: connector.get(KEY), lambda: asyncio.run(connector.get_async(KEY))]


def test_a_big_file_has_as_much_time_as_its_bytes_take():
    def slowly(file: Any) -> None:
        for number in range(64):
            file.write(bytes([number]) * MEBIBYTE)
            time.sleep(0.05)

    with serving(64 * MEBIBYTE, slowly) as url:
        for get in gets(HTTPConnector(url, deadline=0.2)):  # with two seconds for the parts of others
            data = memoryview(get())
            assert data.nbytes == 64 * MEBIBYTE
            assert bytes(data[::MEBIBYTE]) == bytes(range(64))


@pytest.mark.parametrize("size", [1 << 48, 10**18, (1 << 64) - 1])
def test_more_is_announced_than_there_is_memory_for(size):
    with serving(size, lambda file: file.write(b"x")) as url:
        for get in gets(HTTPConnector(url, deadline=5)):
            with pytest.raises(StoreError, match=KEY):
                get()


def test_less_comes_than_was_announced():
    with serving(20 * MEBIBYTE, lambda file: file.write(bytes(MEBIBYTE))) as url:
        for get in gets(HTTPConnector(url, deadline=1, connect_timeout=0.5)):
            with pytest.raises(StoreError):
                get()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/files?deadline=2", "https://127.0.0.1:9/files"])
def test_it_is_pickled_as_its_url(url):
    connector = open_connector(url)
    again = pickle.loads(pickle.dumps(connector))
    assert (type(again), again.config(), again.url) == (type(connector), connector.config(), connector.url)


def test_no_password_in_the_address():
    """It would be in references, errors and pickles."""
    for url in ("http://me:word@host/p", "ftp://me:word@host/p", "http://me:word@host/p?q=1"):
        with pytest.raises(ConfigurationError) as raised:
            HTTPConnector(url)
        assert "word" not in str(raised.value)
