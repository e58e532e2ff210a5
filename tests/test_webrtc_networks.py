"""Two hosts in network namespaces that meet through a relay on a third, with NAT in between and without."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxystore_core.endpoint import daemon
from proxystore_core.endpoint.settings import DIRECTORY, ENDPOINT, EndpointSettings, relay_token
from proxystore_core.errors import ConfigurationError

PYTHON = [sys.executable, "-m", "proxystore_integrations"]
SECRET = secrets.token_urlsafe(32)
BEGIN = """
import hashlib, os, sys
from proxystore_core.connectors.webrtc import EndpointConnector
from proxystore_core.endpoint import daemon
from proxystore_core.endpoint.settings import EndpointSettings
daemon.start(EndpointSettings.create("default", sys.argv[2], relay=sys.argv[1]))
data = os.urandom(1_500_000)
print(EndpointConnector().put([data]), hashlib.sha256(data).hexdigest())
"""
GET = """
import hashlib, sys
from proxystore_core.connectors.webrtc import EndpointConnector
print(hashlib.sha256(EndpointConnector(deadline=20).get(sys.argv[1])).hexdigest())
"""


class Hosts:
    """Network namespaces that are joined by a switch called the internet; nothing else is reached."""

    def __init__(self) -> None:
        self.prefix = f"t{secrets.token_hex(2)}"
        self.made: list[str] = []

    def add(self, name: str) -> None:
        self.run("ip", "netns", "add", f"{self.prefix}{name}")
        self.made.append(name)
        self.run("ip", "-n", f"{self.prefix}{name}", "link", "set", "lo", "up")

    def join(self, one: str, other: str, addresses: tuple[str, str]) -> None:
        """A cable between two hosts, or a host and a switch's port (no address)."""
        link = secrets.token_hex(3)
        ends = [f"a{link}", f"b{link}"]
        self.run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end, address in zip((one, other), ends, addresses, strict=True):
            self.run("ip", "link", "set", end, "netns", f"{self.prefix}{host}")
            if address:
                self.on(host, "ip", "addr", "add", f"{address}/24", "dev", end)
            else:
                self.on(host, "ip", "link", "set", end, "master", "switch")
            self.on(host, "ip", "link", "set", end, "up")

    def internet(self) -> None:
        self.add("net")
        self.on("net", "ip", "link", "add", "switch", "type", "bridge")
        self.on("net", "ip", "link", "set", "switch", "up")

    def nat(self, router: str, host: str, inside: str, outside: str) -> None:
        """A host with a private address, behind a router that translates it."""
        network = inside.rpartition(".")[0]
        self.add(router)
        self.add(host)
        self.join(router, "net", (outside, ""))
        self.join(host, router, (inside, f"{network}.1"))
        self.on(host, "ip", "route", "add", "default", "via", f"{network}.1")
        self.on(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        rules = (
            "table ip nat { chain post { type nat hook postrouting priority 100; "
            f"ip saddr {network}.0/24 masquerade; }}; }}\n"
            # As at home: nothing comes in but what belongs to something that went out.
            # Without the first policy a peer's first packet would be a connection to the router itself.
            "table ip filter { chain input { type filter hook input priority 0; policy drop; }; "
            "chain forward { type filter hook forward priority 0; policy drop; "
            f"ip saddr {network}.0/24 accept; ct state established,related accept; }}; }}\n"
        )
        self.run(*self.command(router, "nft", "-f", "-"), given=rules)

    def command(self, host: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self.prefix}{host}", *words]

    def on(self, host: str, *words: str) -> str:
        return self.run(*self.command(host, *words))

    def run(self, *words: str, given: str | None = None) -> str:
        done = subprocess.run(words, capture_output=True, text=True, input=given, check=False, timeout=60)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def close(self) -> None:
        for name in self.made:
            subprocess.run(["ip", "netns", "del", f"{self.prefix}{name}"], capture_output=True, check=False)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nft", "sysctl"))):
        pytest.skip("needs root, ip, nft, sysctl")
    hosts = Hosts()
    try:
        try:
            hosts.internet()
            rules = "table ip nat { chain post { type nat hook postrouting priority 100; masquerade; }; }\n"
            hosts.run(*hosts.command("net", "nft", "-f", "-"), given=rules)
            hosts.on("net", "nft", "flush", "ruleset")
        except AssertionError as error:
            pytest.skip(f"network namespaces are not allowed here: {error}")
        yield hosts
    finally:
        hosts.close()


@contextlib.contextmanager
def directory(host: str, place: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DIRECTORY, str(place / host))
        patch.setenv(ENDPOINT, "default")
        yield


def meet(hosts: Hosts, relay: str, ends: tuple[str, str]) -> None:
    """Start a relay and two endpoints; each gets what the other has."""
    with tempfile.TemporaryDirectory(prefix="n") as scratch:
        place = Path(scratch)
        (place / "tokens").write_text(f"group {relay_token(SECRET)}\n")
        options = ["--tokens", str(place / "tokens"), "--host", relay, "--plain"]
        process = subprocess.Popen(
            hosts.command("relay", *PYTHON, "relay", *options), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("relay at ")
            stored = {}
            for host in ends:
                with directory(host, place):
                    words = (sys.executable, "-c", BEGIN, f"ws://{relay}:8765", SECRET)
                    stored[host] = hosts.on(host, *words).split()
            for one, other in (ends, ends[::-1]):
                key, digest = stored[one]
                with directory(other, place):
                    assert hosts.on(other, sys.executable, "-c", GET, key).strip() == digest
        finally:
            for host in ends:
                with directory(host, place), contextlib.suppress(ConfigurationError):
                    daemon.stop(EndpointSettings.load("default"), clear=True)
            process.send_signal(signal.SIGTERM)
            process.wait()
            process.stdout.close()


def test_without_nat(hosts):
    for name, address in (("relay", "10.99.0.1"), ("left", "10.99.0.2"), ("right", "10.99.0.3")):
        hosts.add(name)
        hosts.join(name, "net", (address, ""))
    meet(hosts, "10.99.0.1", ("left", "right"))


def test_one_behind_nat(hosts):
    for name, address in (("relay", "10.99.0.1"), ("right", "10.99.0.3")):
        hosts.add(name)
        hosts.join(name, "net", (address, ""))
    hosts.nat("router", "left", "192.168.7.2", "10.99.0.7")
    meet(hosts, "10.99.0.1", ("left", "right"))


def test_both_behind_nat(hosts):
    hosts.add("relay")
    hosts.join("relay", "net", ("10.99.0.1", ""))
    hosts.nat("router", "left", "192.168.7.2", "10.99.0.7")
    hosts.nat("gateway", "right", "192.168.8.2", "10.99.0.8")
    meet(hosts, "10.99.0.1", ("left", "right"))
